"""The benchmark that replaces one fast path of a whole method: the plain code is used, and gives the same scores and maps."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from adcore import memory
from adcore.kernels import kcenter, use_plain
from adcore.kernels.dropout import fast
from adcore.papers.heckler2023 import patchcore
from adcore.papers.uniad2022 import uniad

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_paths")


def test_each_path_has_a_context_in_which_its_plain_code_is_used(bench):
    points, first = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.linspace(8, 9, 40)
    with bench.PATHS["k-center"]():
        assert patchcore.kcenter is not kcenter
        picks = patchcore.kcenter(points, 5, initial=first, progress=False)
    assert torch.equal(picks, kcenter(points, 5, initial=first))
    with bench.PATHS["nearest"]():
        assert patchcore.nearest is bench.plain_nearest
    with bench.PATHS["kept memory"]():
        assert memory._glibc() is None
    with bench.PATHS["dropout"]():
        assert not fast.takes(points, 0.1)
    with bench.PATHS["mixture and colors"]():
        assert use_plain()
    config = uniad.UniADConfig(hidden=16, heads=2, ffn=16, neighbors=1, encoder_layers=1, decoder_layers=1)
    with bench.PATHS["attention"]():
        plain = uniad.UniADNetwork(8, (4, 4), config)
    kinds = [type(part).__name__ for part in plain.modules()]
    assert "Plain" in kinds and "Attention" not in kinds and fast.takes(points, 0.1)


def test_a_row_has_both_times_and_the_differences_of_scores_and_maps(bench, tmp_path, monkeypatch):
    out = tmp_path / "paths.csv"
    out.write_text("case,path\nanother,nearest\n", encoding="utf-8")
    assert bench.main(["--small", "--out", str(out)]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        another, row = csv.DictReader(file)
    assert another["case"] == "another" and (row["case"], row["path"]) == ("patchcore mini", "nearest")
    assert float(row["with_s"]) > 0 and float(row["without_s"]) > 0
    assert float(row["score"]) < 1e-4 and float(row["map"]) < 1e-4


def test_differences_are_fractions_of_the_largest_value(bench, tmp_path):
    np.savez(tmp_path / "with.npz", scores=np.array([1.0, 4.1]), maps=np.zeros(0))
    np.savez(tmp_path / "without.npz", scores=np.array([1.2, 4.0]), maps=np.zeros(0))
    assert bench.differences(tmp_path) == ("5e-02", "")


def test_a_run_that_fails_is_named_with_its_reason(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    with pytest.raises(bench.DiffersError, match=r"--case patchcore bottle, 10 % .*: .*mvtec_384"):
        bench.alone(["--case", "patchcore bottle, 10 %", "--path", "nearest", "--to", str(tmp_path / "with.npz")])
