"""The results store with damaged files, many processes, a full or read-only disk, and a clock that was set back."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import subprocess
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest
from support.tiny import result

from adcore import files, reproduce
from adcore.errors import StoreError
from adcore.experiments import Result, Store, load_results
from adcore.experiments.store import _digest, body_of, sealed

SCORES = pd.DataFrame([{"category": "all", "defect": "good", "label": 0, "score": 0.25, "image": "good/000.png"}])
MAPS = {"all/good/000.png": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)}


@pytest.fixture
def one(tmp_path: Path) -> Result:
    """A result in the store at tmp_path."""
    made = result({("all", "image_auroc"): 0.75, ("all", "aupro"): 0.5})
    Store(tmp_path).save(made, SCORES, MAPS)
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- damaged files ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["result.json", "scores.csv", "maps.npz"])
def test_a_file_with_a_flipped_bit_is_detected_and_set_aside(tmp_path, one, capsys, name):
    store, path = Store(tmp_path), Store(tmp_path).folder(one.experiment) / name
    assert store.load(one.experiment) == one
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert store.load(one.experiment) is None
    assert {"result.json.corrupt-1", f"{name}.corrupt-1"} <= set(names(path.parent)) and not path.exists()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert all(part in message for part in (f"{path} is damaged (", "set it aside", "runs again"))
    store.save(one, SCORES, MAPS)
    assert store.load(one.experiment) == one and capsys.readouterr().err == ""


def test_a_result_without_its_scores_is_missing(tmp_path, one, capsys):
    (Store(tmp_path).folder(one.experiment) / "scores.csv").unlink()
    assert Store(tmp_path).load(one.experiment) is None and "scores.csv is damaged" in capsys.readouterr().err


def test_damaged_files_are_numbered(tmp_path, one):
    folder = Store(tmp_path).folder(one.experiment)
    for _ in range(3):
        (folder / "result.json").write_text("{")
        assert Store(tmp_path).load(one.experiment) is None
    assert [name for name in names(folder) if "corrupt" in name] == [f"result.json.corrupt-{i}" for i in (1, 2, 3)]
    assert load_results(tmp_path).empty


@pytest.mark.parametrize("end", [0, 1, 40, 200, -2])
def test_a_truncated_result_is_missing(tmp_path, one, end):
    path = Store(tmp_path).folder(one.experiment) / "result.json"
    path.write_bytes(path.read_bytes()[:end])
    assert Store(tmp_path).load(one.experiment) is None and path.with_name("result.json.corrupt-1").is_file()


@pytest.mark.parametrize("digest", ["none", "of the body"])
def test_a_result_in_one_of_the_older_formats_still_loads(tmp_path, one, digest, capsys):
    body = body_of(one)
    path = Store(tmp_path).folder(one.experiment) / "result.json"
    path.write_text(json.dumps(body if digest == "none" else {**body, "digest": _digest(body)}))
    assert Store(tmp_path).load(one.experiment) == one and len(load_results(tmp_path)) == 2
    body["measures"][0]["value"] = "much"
    path.write_text(json.dumps(body if digest == "none" else {**body, "digest": "0" * 16}))
    assert Store(tmp_path).load(one.experiment) is None and "is damaged" in capsys.readouterr().err


def test_a_file_without_read_permission_does_not_count_as_damaged(tmp_path, one, monkeypatch, capsys):
    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refused)          # patched, because root may read everything
    with pytest.raises(StoreError, match=r"result\.json cannot be read: Permission denied; see to its permissions"):
        Store(tmp_path).load(one.experiment)
    assert load_results(tmp_path).empty and "Permission denied; left out" in capsys.readouterr().err
    assert "result.json" in names(Store(tmp_path).folder(one.experiment))


# --- many results -------------------------------------------------------------------------------------------------------

def test_the_table_of_two_thousand_results_has_all_their_rows(tmp_path):
    kinds = [("uniad", {"nma": False}), ("uniad", {"nma": True, "taps": (1, 2)}), ("patchcore", {"neighbors": 3}), ("ds2", {})]
    for i in range(2000):
        method, settings = kinds[i % 4]
        values = {("screw", "image_auroc"): i / 2000, ("01234", "aupro"): None if i % 7 else 0.5}
        made = result(values if i % 3 else {("all", "image_auroc"): 1.0}, method=method, seed=i, **settings)
        folder = tmp_path / method / made.experiment.key
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(sealed(body_of(made)))
    frame = load_results(tmp_path)
    pd.testing.assert_frame_equal(frame, pd.DataFrame([row for made in Store(tmp_path).results() for row in made.rows()]))
    assert len(frame) == 667 + 2 * 1333 and frame["seed"].nunique() == 2000
    by_seed = frame[frame.metric.eq("image_auroc") & frame.category.eq("screw")].set_index("seed")["value"]
    assert (by_seed == by_seed.index / 2000).all()
    assert [made.experiment.key for made in Store(tmp_path).results()] == [
        path.parent.name for path in sorted(tmp_path.glob("*/*/result.json"))]


def test_a_result_in_the_folder_of_another_experiment_is_left_out(tmp_path, one, capsys):
    folder = Store(tmp_path).folder(one.experiment)
    folder.rename(folder.with_name("0" * 16))
    assert load_results(tmp_path).empty and "has changed since; left out" in capsys.readouterr().err


# --- many processes -----------------------------------------------------------------------------------------------------

def write_and_read(root: Path, number: int, all_here: Any) -> None:
    store = Store(root)
    all_here.wait(60)
    for _ in range(6):
        for seed in (0, 1 + number):                          # one that all processes write, one of its own
            made = result({("all", "image_auroc"): seed / 10}, seed=seed)
            store.save(made, SCORES, MAPS)
            assert store.load(made.experiment) == made
        assert load_results(root)["value"].lt(1).all()


def test_eight_processes_that_use_one_store_never_see_an_incomplete_result(tmp_path, capfd):
    fork = multiprocessing.get_context("fork")                # eight imports of torch would take longer than the test
    all_here = fork.Barrier(8)
    writers = [fork.Process(target=write_and_read, args=(tmp_path, number, all_here)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0] * 8
    assert "damaged" not in capfd.readouterr().err
    frame = load_results(tmp_path)
    assert sorted(frame["seed"]) == list(range(9)) and (frame["value"] == frame["seed"] / 10).all()
    assert {path.name for path in tmp_path.rglob("*.*")} == {"result.json", "params.yaml", "scores.csv", "maps.npz"}


# --- read-only and full disks -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_a_read_only_store_can_be_read_and_a_write_raises_one_sentence(tmp_path, one, monkeypatch, capsys, code):
    def refused(*_: object, **__: object) -> NoReturn:
        raise OSError(code, os.strerror(code))

    opened = os.open

    def to_read(path: Path, flags: int, *rest: int) -> int:
        return refused() if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else opened(path, flags, *rest)

    folder = Store(tmp_path).folder(one.experiment)
    (folder / "scores.csv").write_text("changed")
    for name, instead in (("open", to_read), ("replace", refused), ("rename", refused), ("mkdir", refused)):
        monkeypatch.setattr(os, name, instead)                # patched, because root may write everywhere
    assert len(load_results(tmp_path)) == 2
    assert Store(tmp_path).load(one.experiment) is None
    assert "scores.csv is damaged (its digest does not fit); it cannot be set aside" in capsys.readouterr().err
    with pytest.raises(StoreError, match=rf"^cannot write .*params\.yaml: {os.strerror(code)}; free the folder"):
        Store(tmp_path).save(one, SCORES, MAPS)
    assert len(names(folder)) == 4


@pytest.mark.parametrize("writes", range(4))
def test_a_disk_that_fills_up_at_any_file_leaves_the_old_result_or_no_result(tmp_path, one, monkeypatch, writes):
    store, done = Store(tmp_path), []
    sync = os.fsync

    def full(descriptor: int) -> None:
        done.append(descriptor)
        if len(done) > writes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    other = result({("all", "image_auroc"): 0.1}, seed=1)
    monkeypatch.setattr(files.os, "fsync", full)
    for made, scores in ((other, SCORES), (one, SCORES.assign(score=0.9))):
        done.clear()
        with pytest.raises(StoreError, match=r"^cannot write .*: No space left on device; free the folder or name another one"):
            store.save(made, scores, MAPS)
    assert store.load(other.experiment) is None
    assert store.load(one.experiment) in (one, None)          # never old numbers with new scores
    if store.load(one.experiment):
        assert store.scores(one.experiment)["score"].tolist() == [0.25]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_full_disk_raises_one_sentence_and_works_again_once_there_is_room(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no mount is permitted here")
    try:
        made = result({("all", "image_auroc"): 0.75})
        (disk / "filler").write_bytes(bytes(248 * 1024))
        with pytest.raises(StoreError, match=r"^cannot write .*: No space left on device; free the folder or name another one"):
            Store(disk).save(made, pd.concat([SCORES] * 500), MAPS)
        assert Store(disk).load(made.experiment) is None and not list(disk.rglob(".*"))
        (disk / "filler").unlink()
        Store(disk).save(made, SCORES, MAPS)
        assert Store(disk).load(made.experiment) == made
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- a clock set back ---------------------------------------------------------------------------------------------------

def test_a_clock_set_back_does_not_make_a_result_of_older_code_look_current(tmp_path, one, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "gmtime", lambda *_: time.struct_time((1970, 1, 1, 0, 0, 0, 3, 1, 0)))
    store = Store(tmp_path)
    older = result({("all", "image_auroc"): 0.1}, code="older code")
    path = store.folder(one.experiment) / "result.json"
    before = path.stat()
    store.save(older, SCORES, MAPS)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - 10**15))
    loaded = store.load(one.experiment)
    assert loaded is not None and not loaded.made_by_this_code and load_results(tmp_path)["value"].tolist() == [0.1]


def test_a_report_is_written_again_when_a_source_changes_whatever_the_clock_says(tmp_path, monkeypatch):
    source, report = tmp_path / "results" / "a.csv", tmp_path / "report" / "index.html"
    for path in (source, report):
        path.parent.mkdir()
        path.write_text("a")
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    assert not reproduce.is_current(report, tmp_path)                     # there is no digest of its sources
    (report.with_name(reproduce.SOURCES)).write_text(reproduce.sources(tmp_path))
    assert reproduce.is_current(report, tmp_path)
    source.write_text("b")
    os.utime(source, (0, 0))                                              # as after a clock was set back
    assert not reproduce.is_current(report, tmp_path)
    (report.with_name(reproduce.SOURCES)).write_text(reproduce.sources(tmp_path))
    source.unlink()
    assert not reproduce.is_current(report, tmp_path)
