"""The benchmark of whole jobs on many images: what it draws, what it watches, and its rows."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from adcore.data import load_dataset
from adcore.data.verify import verify_dataset

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NO_PROC = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_large")


def test_the_images_that_it_draws_are_a_whole_data_set_with_blobs_under_the_masks(bench, tmp_path):
    bench.draw(tmp_path / "own", 3, 4)
    assert verify_dataset(tmp_path / "own", progress=False).endswith("3 training and 4 test images, 2 masks, all readable")
    for sample in load_dataset(tmp_path / "own").test:
        pixels = np.asarray(sample.image, float)[..., 0]
        assert sample.mask.any() == bool(sample.label)
        if sample.label:
            rows = sample.mask.any(1)                           # a blob is brighter than its neighbors in the same stripes
            assert pixels[sample.mask].mean() > pixels[rows][~sample.mask[rows]].mean() + 40


@NO_PROC
def test_memory_of_the_process_counts_and_that_of_mapped_files_does_not(bench, tmp_path):
    np.save(tmp_path / "file.npy", np.ones(2**24))                                              # 128 MB
    with bench.Watched() as own:
        held = np.ones(2**24)
        bench.time.sleep(0.1)
    with bench.Watched() as mapped:
        read = np.load(tmp_path / "file.npy", mmap_mode="r")
        assert read.sum() == held.sum()
        bench.time.sleep(0.1)
    del held
    assert mapped.memory < own.memory + 20
    assert mapped.resident > own.resident + 100 and own.memory > 128


@NO_PROC
def test_each_job_has_a_row_per_number_of_images(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "JOBS", {name: bench.JOBS[name] for name in ("PatchCore, test and metrics", "digests, again")})
    out = tmp_path / "large.csv"
    assert bench.main(["--small", "--out", str(out)]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["job"], row["images"]) for row in rows] == [(job, str(n)) for job in bench.JOBS for n in bench.SMALL]
    assert all(float(row["seconds"]) >= 0 and 100 < float(row["memory_mb"]) <= float(row["resident_mb"]) for row in rows)


def test_a_job_that_fails_is_named_with_its_reason(bench, tmp_path):
    with pytest.raises(importlib.import_module("side_by_side").DiffersError, match=r"^verify: .*nowhere"):
        bench.alone("verify", tmp_path / "nowhere")
