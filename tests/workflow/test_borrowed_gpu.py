"""workflow/borrowed_gpu: what is packed, what its five parts ask for, and what is taken of what comes back."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from support.tiny import result, write_tiny

from adcore.data import load_dataset
from adcore.experiments import Store
from adcore.experiments.record import records
from adcore.paths import repository

SCRIPTS = repository() / "workflow" / "borrowed_gpu"
SCORES = pd.DataFrame({"category": ["all"], "defect": ["good"], "label": [0], "score": [0.25], "image": ["good/000.png"]})


@pytest.fixture(scope="module")
def scripts() -> Iterator[SimpleNamespace]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        names = ("parts", "pack", "run", "merge")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
        for name in names:
            sys.modules.pop(name)


@pytest.fixture
def parts(scripts: SimpleNamespace, nothing_here: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The parts with no data set, no record and no result here."""
    monkeypatch.setattr(scripts.parts, "RECORD", tmp_path / "results" / "borrowed_gpu.csv")
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    return scripts.parts


# --- the parts --------------------------------------------------------------------------------------------------------------

def test_every_part_can_be_listed_without_data_and_asks_only_for_what_is_packed(parts):
    assert list(parts.PARTS) == [1, 2, 3, 4, 5]
    for path in parts.PARTS.values():
        found = parts.experiments(path)
        assert found and len({one.key for one in found}) == len(found)
        for one in found:
            config = one.config().values()
            assert (one.profile, one.dataset) == ("open", "mvtec_256") and set(one.category.split("+")) <= set(parts.CATEGORIES)
            assert config.get("backbone", "efficientnet_lite0") == "efficientnet_lite0" or config["weights"] == "random", one


def test_part_1_is_uniad_then_the_vanilla_transformer_then_the_other_seven_rows_of_table_s2(parts):
    first, second, *others = parts.experiments(parts.PARTS[1])
    assert first.method == "uniad" and not first.settings and first.config().epochs == 1000 and first.config().hidden == 256
    assert (second.config().query, second.config().nma, second.config().jitter) == ("one", False, False)
    assert len(others) == 7 and {one.seed for one in (first, second, *others)} == {0}


def test_the_long_parts_have_the_lengths_of_the_papers(parts):
    ds2 = parts.experiments(parts.PARTS[3])[0]
    few = parts.experiments(parts.PARTS[4])[0].config()
    tuned = [one.config() for one in parts.experiments(parts.PARTS[5]) if one.method == "contrastive"]
    assert ds2.method == "ds2" and ds2.config().epochs == 400
    assert (few.epochs, few.steps, few.batch_size, few.image_size) == (50, 20, 48, 224)
    assert {config.epochs for config in tuned} == {0, 20} and 1e-4 in {config.lr for config in tuned}


def test_the_readme_counts_the_experiments_of_each_part(parts):
    text = (SCRIPTS / "README.md").read_text(encoding="utf-8")
    counts = {int(number): int(count) for number, count in re.findall(r"^\| (\d) \| .* \| (\d+) \|$", text, re.MULTILINE)}
    assert counts == {number: len(parts.experiments(path)) for number, path in parts.PARTS.items()}


def test_the_list_says_which_part_is_next_and_counts_results_on_record_and_in_the_store(parts):
    assert parts.listing().splitlines()[0] == "part 1: 0 of 9 experiments have results, next"
    first, *others = parts.experiments(parts.PARTS[1])
    rows = [{"method": "uniad", "dataset": "mvtec_256", "category": "all", "profile": "open", "settings": "", "seed": 0,
             "metric": "image_auroc", "value": 0.5, "seconds": 1, "peak_bytes": 1, "version": 1, "key": one.key,
             **dict.fromkeys(("device", "machine", "commit", "data", "weights_digest", "finished"), "x")} for one in others]
    parts.RECORD.parent.mkdir()
    frame = pd.DataFrame(rows)
    for column in sys.modules["adcore.experiments.record"].COLUMNS:
        frame[column] = frame.get(column, 1)
    frame.to_csv(parts.RECORD, index=False)
    assert parts.listing().splitlines()[0] == "part 1: 8 of 9 experiments have results, next"
    stored = result({("all", "image_auroc"): 0.9}, dataset="mvtec_256", category="bottle+grid+screw", profile="open")
    assert stored.experiment.key == first.key
    Store().save(stored, SCORES, {})
    one, two, *_ = parts.listing().splitlines()
    assert one == "part 1: has its results" and two.endswith("experiments have results, next")


# --- pack -------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def source(tmp_path: Path, parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set `big` below ADCORE_DATA with the three categories at 300 pixels, and a checkout without a file."""
    root = write_tiny(tmp_path / "data" / "big", side=300, train=2, good=1, blobs=1, categories=parts.CATEGORIES)
    (root / "LICENSE-X.txt").write_text("free")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    return root


def write_package(folder: Path) -> None:
    (folder / "captum.py").write_text("")


@pytest.fixture
def pack(scripts: SimpleNamespace, source: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(scripts.pack, "tree_size", lambda _: 1000)
    return scripts.pack


def test_packed_images_have_256_pixels_their_labels_and_exact_masks(pack, source, tmp_path, monkeypatch):
    grey = source / "grid" / "train" / "good" / "000.png"
    Image.open(grey).convert("L").save(grey)
    sizes = pack.pack(tmp_path / "out", "big", 60, install=write_package)
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "out" / "data"))
    before, after = load_dataset(str(source)), load_dataset("mvtec_256")
    assert [(s.category, s.defect, s.label, s.path.stem) for s in (*after.train, *after.test)] == [
        (s.category, s.defect, s.label, s.path.stem) for s in (*before.train, *before.test)]
    assert all(s.image.size == (256, 256) for s in (*after.train, *after.test))
    for large, small in zip(before.test, after.test, strict=True):
        nearest = Image.fromarray(large.mask).convert("L").resize((256, 256), Image.Resampling.NEAREST)
        assert np.array_equal(small.mask, np.asarray(nearest) > 0)
        close = large.image.resize((256, 256), Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(small.image, float) - np.asarray(close, float)).mean() < 4
    made = tmp_path / "out" / "data" / "mvtec_256"
    assert [Image.open(made / "grid" / "train" / "good" / f"00{i}.jpg").mode for i in (0, 1)] == ["L", "RGB"]
    assert (made / "LICENSE-X.txt").read_text() == "free"
    assert sizes["checkout"] == 1000 and sizes["data"] > 1000
    assert json.loads((tmp_path / "out" / "packed.json").read_text())["side"] == 256


def test_more_than_the_limit_is_refused_in_a_sentence_and_nothing_half_written_stays(pack, tmp_path, capsys):
    to = tmp_path / "folder" / "out"
    assert pack.main(["--to", str(to), "--dataset", "nowhere"]) == 2
    for limit, earlier in (("0.01", False), ("60", True), ("0.01", True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pack.pack, "__kwdefaults__", {"install": write_package})
            status = pack.main(["--to", str(to), "--dataset", "big", "--limit", limit])
        assert status == (2 if limit == "0.01" else 0)
        assert [path.name for path in to.parent.iterdir()] == (["out"] if earlier else [])
        if limit == "0.01":
            said = capsys.readouterr().err.splitlines()[-1]
            assert "is not written: with the checkout it would have" in said and said.endswith("or raise --limit")
    assert (to / "site" / "captum.py").exists()


def test_packages_that_cannot_be_installed_are_refused_and_named(pack, monkeypatch, tmp_path):
    monkeypatch.setattr(pack.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="no index\n"))
    with pytest.raises(pack.AdcoreError, match=r"captum, .* cannot be packed \(no index\): run `make setup`"):
        pack.pack(tmp_path / "out", "big", 60)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(pack.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=0, stderr=""))
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "fast.so").write_text("")
    with pytest.raises(pack.AdcoreError, match=r"^fast\.so is compiled code"):
        pack.pack_packages(tmp_path / "site")


# --- what comes back --------------------------------------------------------------------------------------------------------

def stored(root: Path, seeds: tuple[int, ...] = (0, 1)) -> list[Path]:
    """Write results of UniAD on the packed data with maps into a store; returns their folders."""
    folders = []
    for seed in seeds:
        one = result({("all", "image_auroc"): 0.5 + seed / 10}, dataset="mvtec_256", profile="open", seed=seed)
        one.provenance.update(device="cuda", machine="GPU of a test")
        Store(root).save(one, SCORES, {"bottle/good/000.png": np.full((4, 4), seed, np.float16)})
        folders.append(Store(root).folder(one.experiment))
    return folders


@pytest.fixture
def returned(scripts: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder as `run.py` leaves it: two results and an unfinished training."""
    stored(tmp_path / "there")
    unfinished = tmp_path / "there" / "uniad" / "0123456789abcdef"
    unfinished.mkdir()
    torch.save({"losses": [3.0, 2.0]}, unfinished / "checkpoint-1234")
    out = tmp_path / "measured"
    out.mkdir()
    assert scripts.run.collect(tmp_path / "there", set(), out, 1 << 20) == (2, [])
    (out / "summary.json").write_text(json.dumps({"part": 1, "machine": "GPU of a test", "tiny": False}))
    (out / "kernels.csv").write_text("kernel\ngmm\n")
    return out


@pytest.fixture
def take(scripts: SimpleNamespace, parts: ModuleType, tmp_path: Path):
    """Runs merge.py into a store, a record and a folder of benchmarks of the test; returns its exit status."""
    def merge(folder: Path) -> int:
        return scripts.merge.main([str(folder), "--record", str(tmp_path / "results" / "borrowed_gpu.csv"), "--benchmarks",
                                   str(tmp_path / "benchmarks"), "--runs", str(tmp_path / "here")])
    return merge


def test_results_maps_trainings_and_tables_come_back_with_the_name_of_the_gpu(take, returned, tmp_path, capsys):
    assert take(returned) == 0
    assert "2 results added, 0 kept, 0 damaged, 1 unfinished trainings" in capsys.readouterr().out
    (record,) = records(tmp_path / "results")
    assert record.name == "borrowed_gpu" and set(record.frame["machine"]) == {"GPU of a test"}
    assert sorted(record.frame["value"]) == [0.5, 0.6] and set(record.frame["device"]) == {"cuda"}
    for there in Store(tmp_path / "there").results():
        here = Store(tmp_path / "here").load(there.experiment)
        assert here == there
        assert Store(tmp_path / "here").maps(there.experiment)["bottle/good/000.png"].max() == there.experiment.seed
    assert (tmp_path / "here" / "uniad" / "0123456789abcdef" / "checkpoint-1234").is_file()
    assert (tmp_path / "benchmarks" / "gpu_kernels.csv").read_text() == "kernel\ngmm\n"


def test_a_result_that_is_here_is_kept_and_said_and_rows_of_others_stay_on_record(take, returned, tmp_path, capsys):
    assert take(returned) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "here").rglob("result.json")}
    shutil.rmtree(tmp_path / "there")
    scripts_out = tmp_path / "second"
    scripts_out.mkdir()
    stored(tmp_path / "there", seeds=(1, 2))
    assert sys.modules["run"].collect(tmp_path / "there", set(), scripts_out, 1 << 20) == (2, [])
    (scripts_out / "summary.json").write_text("{}")
    capsys.readouterr()
    assert take(scripts_out) == 0
    said = capsys.readouterr()
    assert "1 results added, 1 kept" in said.out and said.err.count("already, which is kept") == 1
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert sorted(records(tmp_path / "results")[0].frame["seed"]) == [0, 1, 2]


def test_a_damaged_result_is_left_out_with_status_1_and_the_others_are_taken(take, scripts, tmp_path, capsys):
    first, _ = stored(tmp_path / "there")
    text = (first / "result.json").read_text()
    (first / "result.json").write_text(text.replace("0.5", "0.9"))
    out = tmp_path / "measured"
    out.mkdir()
    scripts.run.collect(tmp_path / "there", set(), out, 1 << 20)
    (out / "summary.json").write_text("{}")
    assert take(out) == 1
    said = capsys.readouterr()
    assert "1 results added, 0 kept, 1 damaged" in said.out and "result.json is damaged (its digest does not fit)" in said.err
    assert list(records(tmp_path / "results")[0].frame["seed"]) == [1]


@pytest.mark.parametrize("name", ["results.tar.gz", "maps.tar"])
def test_a_damaged_archive_is_said_in_a_sentence(take, returned, name, capsys):
    content = (returned / name).read_bytes()
    (returned / name).write_bytes(content[:len(content) // 3])
    assert take(returned) == 1
    assert f"{name} cannot be read as a tar or zip archive" in capsys.readouterr().err


@pytest.mark.parametrize("trial", [{"tiny": True, "gpu": True}, {"tiny": False, "gpu": False}])
def test_what_was_only_tried_is_put_into_the_store_and_not_on_record(take, returned, trial, tmp_path):
    (returned / "summary.json").write_text(json.dumps(trial))
    assert take(returned) == 0
    assert len(list(Store(tmp_path / "here").results())) == 2
    assert not (tmp_path / "results").exists() and not (tmp_path / "benchmarks").exists()


def test_a_folder_of_something_else_is_refused(take, tmp_path, capsys):
    assert take(tmp_path) == 2
    assert "has no summary.json that can be read (FileNotFoundError): name the folder" in capsys.readouterr().err


def test_maps_and_trainings_that_do_not_fit_are_left_out_and_their_results_come_back(scripts, take, tmp_path):
    for folder in stored(tmp_path / "there"):
        one = Store(tmp_path / "there").load(next(r.experiment for r in Store(tmp_path / "there").results()
                                                  if r.experiment.key == folder.name))
        noise = np.random.default_rng(0).normal(size=(200, 200)).astype(np.float16)
        Store(tmp_path / "there").save(one, SCORES, {"bottle/good/000.png": noise})
    (tmp_path / "there" / "uniad" / "x").mkdir()
    (tmp_path / "there" / "uniad" / "x" / "checkpoint-1").write_bytes(bytes(300_000))
    out = tmp_path / "out"
    out.mkdir()
    number, said = scripts.run.collect(tmp_path / "there", set(), out, 120_000)
    assert number == 2 and said[0] == "the maps of 1 of 2 results did not fit"
    assert "uniad/x has 0 MiB and did not fit" in said[1]
    assert all(path.stat().st_size <= 120_000 for path in out.iterdir())
    (out / "summary.json").write_text("{}")
    assert take(out) == 0
    found = [len(Store(tmp_path / "here").maps(one.experiment)) for one in Store(tmp_path / "here").results()]
    assert sorted(found) == [0, 1]


def test_of_two_trainings_the_longer_is_kept(scripts, tmp_path):
    for count, wanted in ((2, 2), (5, 5), (3, 5)):
        folder = tmp_path / str(count) / "ds2" / "k"
        folder.mkdir(parents=True)
        torch.save({"losses": [0.0] * count}, folder / "checkpoint-1")
        scripts.merge.take_checkpoints(tmp_path / str(count), Store(tmp_path / "here"))
        assert scripts.merge.epochs(tmp_path / "here" / "ds2" / "k" / "checkpoint-1") == wanted


def test_results_of_the_store_travel_without_maps_and_are_not_collected_again(scripts, parts, tmp_path):
    stored_one = result({("all", "image_auroc"): 0.9}, dataset="mvtec_256", category="bottle+grid+screw", profile="open")
    Store().save(stored_one, SCORES, {"a/b/c.png": np.ones((2, 2), np.float16)})
    second = parts.experiments(parts.PARTS[1])[1]
    Store().folder(second).mkdir(parents=True)
    (Store().folder(second) / "checkpoint-1").write_text("x")
    scripts.pack.pack_results(tmp_path / "packed")
    packed = Store(tmp_path / "packed")
    assert packed.load(stored_one.experiment) == stored_one and packed.maps(stored_one.experiment) == {}
    assert (packed.folder(second) / "checkpoint-1").read_text() == "x"
    before = {path.parent for path in (tmp_path / "packed").glob("*/*/result.json")}
    (tmp_path / "out").mkdir()
    assert scripts.run.collect(tmp_path / "packed", before, tmp_path / "out", 1 << 20)[0] == 0


# --- run --------------------------------------------------------------------------------------------------------------------

def test_run_refuses_in_a_sentence_what_it_cannot_do(scripts, tmp_path, capsys):
    assert scripts.run.main(["1", "--packed", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    assert "none is not packed: run `python workflow/borrowed_gpu/pack.py`" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    assert scripts.run.main(["1", "--out", str(tmp_path / "full")]) == 2
    assert "is not empty: name another folder" in capsys.readouterr().err
    assert scripts.run.main(["1", "--minutes", "0.5", "--out", str(tmp_path / "out")]) == 2


def test_a_step_that_fails_or_hangs_with_its_children_is_ended_and_the_next_runs(scripts, tmp_path):
    log = scripts.run.Log(tmp_path / "log.txt", {}, time.monotonic() + 100)
    hangs = "import os, time; child = os.fork(); child and print('child', child, flush=True); time.sleep(60)"
    assert log.run("fails", [sys.executable, "-c", "raise SystemExit(3)"], 10) == 3
    assert log.run("hangs", [sys.executable, "-c", hangs], 4) == 124
    assert log.run("works", [sys.executable, "-c", "print('fine')"], 10) == 0
    assert [step["status"] for step in log.steps] == [3, 124, 0] and max(step["seconds"] for step in log.steps) < 30
    text = (tmp_path / "log.txt").read_text()
    assert "fine" in text and text.count("\n== ") == 3
    child = int(re.search(r"child (\d+)", text)[1])
    for _ in range(100):            # until its new parent has taken note of its end
        if not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes():
            return
        time.sleep(0.1)
    pytest.fail("a child went on")


def test_the_steps_use_what_is_packed_and_know_its_commit(scripts, tmp_path):
    (tmp_path / "packed.json").write_text('{"commit": "abcdef0123"}')
    found = scripts.run.environment(tmp_path / "work", tmp_path, "cpu")
    line = "import adcore, captum; from adcore.paths import data_folders, runs_folder; print(data_folders()[0], runs_folder())"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "captum.py").touch()
    done = subprocess.run([sys.executable, "-c", line], env=found, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split() == [str(tmp_path / "data"), str(tmp_path / "work" / "runs")], done.stderr
    assert found["ADCORE_COMMIT"] == "abcdef0123" and found["CUDA_VISIBLE_DEVICES"] == ""


def test_run_imports_only_pythons_own_library():
    """So that it can say what a machine lacks."""
    import ast
    for name in ("run.py", "parts.py"):
        tree = ast.parse((SCRIPTS / name).read_text(encoding="utf-8"))
        names = [alias.name if isinstance(node, ast.Import) else node.module for node in tree.body
                 if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
        assert {one.partition(".")[0] for one in names} <= {*sys.stdlib_module_names, "parts"}
