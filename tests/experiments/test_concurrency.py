"""Several processes need the same result: one computes it, the others wait and read it, and stale locks do not block."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from support.tiny import write_tiny

from adcore import training
from adcore.data import View
from adcore.data.mvtec import load_mvtec
from adcore.detector import Config, Detector, Prediction
from adcore.errors import StoreError
from adcore.experiments import Experiment, Store, fitted, load_results, run
from adcore.experiments.comparison import compare_values
from adcore.features import FeatureExtractor, cached_features
from adcore.files import one_at_a_time
from adcore.models import METHODS
from adcore.papers import published
from adcore.report.card import stored_comparison

FORK = multiprocessing.get_context("fork")                    # eight imports of torch would take longer than the tests
UNIAD = {"image_size": 64, "hidden": 16, "epochs": 2, "neighbors": 3, "heads": 2, "ffn": 16}


@dataclass(frozen=True, kw_only=True)
class GatedConfig(Config):
    power: float = 1.0


class Gated(Detector):
    """A method that logs each fit, and finishes it once the file `go` exists."""

    name: ClassVar[str] = "gated"
    paper: ClassVar[str] = "none"
    Config: ClassVar[type[Any]] = GatedConfig
    folder: ClassVar[Path]

    @property
    def view(self) -> View:
        return View(16)

    def fit(self, samples, *, checkpoint=None, progress=None):
        append(self.folder / "fits", f"fit {self.config.power}")
        time.sleep(0.2)                                       # time for another process to start the same fit
        wait_for(lambda: (self.folder / "go").exists())
        return self

    def _predict(self, images):
        plane = (1 - images.mean(1)) ** self.config.power
        return Prediction(plane.amax(dim=(1, 2)), plane)


def append(log: Path, line: str) -> None:
    with log.open("a") as file:
        file.write(f"{line}\n")


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.is_file() else []


def wait_for(happened: Callable[[], object], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, f"did not happen within {seconds} s"
        time.sleep(0.01)


@contextlib.contextmanager
def children(number: int, job: Callable[..., None], *arguments: Any) -> Iterator[list[Any]]:
    """Processes that each call `job` with the arguments and their own number; all are killed after the block."""
    def alone(*arguments: Any) -> None:
        torch.set_num_threads(1)                              # a fork does not have the parent's other threads
        job(*arguments)

    started = [FORK.Process(target=alone, args=(*arguments, i)) for i in range(number)]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def all_succeed(started: list[Any], seconds: float = 120) -> bool:
    for process in started:
        process.join(seconds)
    return [process.exitcode for process in started] == [0] * len(started)


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Register the method above and a tiny data set; the folder of the files `fits` and `go`."""
    monkeypatch.setattr(Gated, "folder", tmp_path, raising=False)
    monkeypatch.setitem(METHODS, "gated", Gated)
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    write_tiny(tmp_path / "data" / "tiny", train=4)
    return tmp_path


def gates(*powers: float) -> list[Experiment]:
    return [Experiment("gated", "tiny", "cloth", settings=(("power", power),)) for power in powers]


def run_them(folder: Path, powers: tuple[float, ...], number: int) -> None:
    """Run the experiments; keep the table in a file, and the messages in another."""
    with (folder / f"messages{number}").open("w", buffering=1) as file, contextlib.redirect_stderr(file):
        run(gates(*powers), device="cpu", progress=False).frame.to_pickle(folder / f"table{number}")


# --- experiments --------------------------------------------------------------------------------------------------------

def test_eight_processes_that_run_the_same_experiments_train_each_once_and_get_equal_numbers(gated):
    (gated / "go").touch()
    with children(8, run_them, gated, (1.0, 2.0)) as started:
        assert all_succeed(started)
    assert sorted(lines(gated / "fits")) == ["fit 1.0", "fit 2.0"]
    tables = [pd.read_pickle(gated / f"table{number}") for number in range(8)]
    for table in tables:
        pd.testing.assert_frame_equal(table, tables[0])
    assert not list((gated / "runs").rglob("*.lock"))


def test_the_lock_of_a_killed_process_does_not_block(gated):
    lock = Store().folder(gates(1.0)[0]).with_suffix(".lock")
    with children(1, run_them, gated, (1.0,)) as (first,):
        wait_for(lambda: lines(gated / "fits"))
        with children(1, lambda number: run_them(gated, (1.0,), 1)) as (second,):
            wait_for(lambda: lines(gated / "messages1"))
            message = "adcore: another process runs 'gated tiny cloth seed 0 power=1.0': waiting for it"
            assert lines(gated / "messages1") == [message]
            assert len(lines(gated / "fits")) == 1 and lock.exists()
            os.kill(first.pid, signal.SIGKILL)
            first.join()
            (gated / "go").touch()
            assert all_succeed([second])
    assert lines(gated / "fits") == ["fit 1.0"] * 2 and not lock.exists() and len(load_results()) > 0
    lock.touch()                                              # a stale lock file of a killed process
    run(gates(1.0, 3.0), device="cpu")
    assert len(lines(gated / "fits")) == 3


def test_an_experiment_that_failed_in_one_process_can_run_in_the_next(gated, monkeypatch):
    (gated / "go").touch()
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(Gated, "fit", lambda *_, **__: 1 / 0)
        run(gates(1.0), device="cpu")
    assert len(run(gates(1.0), device="cpu").results) == 1 and not list((gated / "runs").rglob("*.lock"))


def test_on_a_file_system_without_locks_processes_run_without_waiting(gated, monkeypatch):
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    (gated / "go").touch()
    with children(2, run_them, gated, (1.0,)) as started:
        assert all_succeed(started)
    assert set(lines(gated / "fits")) == {"fit 1.0"}
    (table,) = {str(pd.read_pickle(gated / f"table{number}")["value"].tolist()) for number in range(2)}
    assert str(run(gates(1.0), device="cpu").frame["value"].tolist()) == table


def fit_it(folder: Path, number: int) -> None:
    epoch = training._epoch

    def counted(*arguments: Any) -> float:
        append(folder / "epochs", "epoch")
        time.sleep(0.3)                                       # time for the others, as above
        return epoch(*arguments)

    training._epoch = counted  # type: ignore[assignment]
    detector = fitted(uniad(), device="cpu", progress=False)
    torch.save(detector.network.expand.weight, folder / f"weight{number}")


def uniad() -> Experiment:
    return Experiment("uniad", "tiny", "cloth", settings=tuple(sorted(UNIAD.items())))


@pytest.mark.usefixtures("one_backbone")
def test_a_fitted_detector_that_several_processes_need_is_trained_once(gated):
    uniad().detector()                                        # builds the backbone before the fork
    with children(3, fit_it, gated) as started:
        assert all_succeed(started)
    assert len(lines(gated / "epochs")) == UNIAD["epochs"]
    weights = [torch.load(gated / f"weight{number}", weights_only=True) for number in range(3)]
    assert all(torch.equal(weight, weights[0]) for weight in weights)


def test_only_one_process_at_a_time_runs_the_locked_block(tmp_path):
    """Each process increments a number in a file so slowly that unlocked processes would lose increments."""
    def add(number: int) -> None:
        for _ in range(10):
            with one_at_a_time(tmp_path / "lock"):
                count = int((tmp_path / "count").read_text())
                time.sleep(0.002)
                (tmp_path / "count").write_text(str(count + 1))

    (tmp_path / "count").write_text("0")
    with children(8, add) as started:
        assert all_succeed(started)
    assert (tmp_path / "count").read_text() == "80" and not (tmp_path / "lock").exists()


def test_a_lock_file_removed_between_opening_and_locking_is_created_again(tmp_path, monkeypatch):
    path, flock, locked = tmp_path / "lock", fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not locked:
            path.unlink()                                     # as the process that held the lock does
        locked.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with one_at_a_time(path):
        assert path.exists() and len(locked) == 2


# --- read-only and full disks -------------------------------------------------------------------------------------------

@pytest.fixture
def locked_away(tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """A function that makes the disk mounted at tmp_path/disk read-only and returns its folder; only root may mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no mount is permitted here")

    def lock() -> Path:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        return disk

    try:
        yield lock
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.usefixtures("one_backbone")
def test_a_read_only_store_returns_results_and_fitted_detectors_and_refuses_new_results(gated, locked_away, monkeypatch):
    disk = gated / "disk"
    monkeypatch.setenv("ADCORE_RUNS", str(disk))
    (gated / "go").touch()
    table = run(gates(1.0), device="cpu")
    weight = fitted(uniad(), device="cpu").network.expand.weight
    locked_away()
    monkeypatch.setattr(training, "_epoch", None)             # a second training would need it
    with children(2, run_them, gated, (1.0,)) as started:
        assert all_succeed(started)
    assert lines(gated / "fits") == ["fit 1.0"] and lines(gated / "messages0") == []
    assert pd.read_pickle(gated / "table0")["value"].tolist() == table.frame["value"].tolist()
    assert torch.equal(fitted(uniad(), device="cpu").network.expand.weight, weight)
    with pytest.raises(StoreError, match=r"^cannot write .*params\.yaml: Read-only file system; free the folder or name"):
        run(gates(2.0), device="cpu")


# --- features and exhibits ----------------------------------------------------------------------------------------------

def take_features(samples: Any, extractor: FeatureExtractor, folder: Path, number: int) -> None:
    features = cached_features(samples, View(32), extractor, lambda maps: maps[0], "first", folder=folder / "cache",
                               progress=False)
    np.save(folder / f"features{number}", features.numpy())


def test_eight_processes_that_need_the_same_features_get_them_and_leave_one_complete_entry(tmp_path):
    samples = load_mvtec(write_tiny(tmp_path / "tiny"), "tiny").train
    extractor = FeatureExtractor("resnet18", (1,), "random")
    with children(8, take_features, samples, extractor, tmp_path) as started:
        assert all_succeed(started)
    direct = torch.cat([extractor(View(32).image(sample.image)[None])[0] for sample in samples])
    for number in range(8):
        assert np.allclose(np.load(tmp_path / f"features{number}.npy"), direct, atol=1e-5)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


def test_cached_features_on_a_read_only_disk_are_read_and_new_ones_are_refused(tmp_path, locked_away):
    samples = load_mvtec(write_tiny(tmp_path / "tiny"), "tiny").train
    extractor = FeatureExtractor("resnet18", (1,), "random")
    (tmp_path / "disk" / "cache").mkdir()
    take_features(samples, extractor, tmp_path / "disk", 0)
    locked_away()
    again = cached_features(samples, View(32), extractor, lambda maps: maps[0], "first", folder=tmp_path / "disk" / "cache")
    assert np.array_equal(again, np.load(tmp_path / "disk" / "features0.npy"))
    with pytest.raises(StoreError, match=r"^cannot write .*\.npy: Read-only file system; free the folder or name"):
        cached_features(samples[:1], View(32), extractor, lambda maps: maps[0], "first", folder=tmp_path / "disk" / "cache")


def test_a_disk_that_fills_up_during_the_writing_of_features_leaves_no_entry(tmp_path, locked_away):
    disk = tmp_path / "disk"
    samples = load_mvtec(write_tiny(tmp_path / "tiny", train=40), "tiny").train
    extractor = FeatureExtractor("resnet18", (1,), "random")
    (disk / "filler").write_bytes(bytes(3 << 20))
    room = {"folder": disk / "cache", "batch_size": 4, "progress": False}
    with pytest.raises(StoreError, match=r"^cannot write .*\.npy: No space left on device; free the folder or name"):
        cached_features(samples, View(96), extractor, lambda maps: maps[0], "first", **room)      # 40 x 64 x 24 x 24 floats
    assert list((disk / "cache").iterdir()) == []
    (disk / "filler").unlink()
    assert len(cached_features(samples[:4], View(96), extractor, lambda maps: maps[0], "first", **room)) == 4


EXHIBIT = "uniad2022.table_s2"


def record_it(root: Path, number: int) -> None:
    (first, *_) = published(EXHIBIT).itertuples()
    for _ in range(10):
        compare_values(EXHIBIT, {(first.row, first.column): float(number)}, root=root)
        (row, *_) = stored_comparison(EXHIBIT, root)["rows"]           # None if the file is incomplete
        assert row["measured"] in range(8)


def test_eight_processes_that_store_the_same_exhibit_leave_one_complete_file(tmp_path):
    with children(8, record_it, tmp_path) as started:
        assert all_succeed(started)
    (path,) = (tmp_path / "exhibits").iterdir()
    rows = json.loads(path.read_text())["rows"]
    assert rows[0]["measured"] in range(8) and len(rows) == len(published(EXHIBIT))


def test_an_exhibit_on_a_full_or_read_only_disk_keeps_its_old_file(tmp_path, locked_away):
    disk = tmp_path / "disk"
    (first, *_) = published(EXHIBIT).itertuples()
    at = first.row, first.column
    compare_values(EXHIBIT, {at: 1.0}, root=disk)
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)) == 4096:
            pass
    with pytest.raises(StoreError, match=r"^cannot write .*table_s2\.json: No space left on device; free the folder or name"):
        compare_values(EXHIBIT, {at: 2.0}, root=disk)
    (disk / "filler").unlink()
    locked_away()
    with pytest.raises(StoreError, match=r"^cannot write .*table_s2\.json: Read-only file system; free the folder or name"):
        compare_values(EXHIBIT, {at: 2.0}, root=disk)
    assert stored_comparison(EXHIBIT, disk)["rows"][0]["measured"] == 1.0
