"""The benchmarks against their peers at tiny sizes: how they compare results, what they write, what they refuse."""

from __future__ import annotations

import csv
import importlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from pytest import approx

from adcore.errors import ParameterError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("color", "density", "features", "gmm", "kcenter", "nearest", "receptive_field")


@pytest.fixture(scope="module")
def load() -> Iterator[Callable[[str], ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield importlib.import_module


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", NAMES)
def test_each_benchmark_writes_one_row_per_installed_peer(load, name, tmp_path, monkeypatch, capsys):
    absent = ("anomalib", "faiss", "color_matcher", "ot")     # even if installed: their import takes seconds or starts threads
    for module in (*absent, *(module for module in sys.modules if module.partition(".")[0] in absent)):
        monkeypatch.setitem(sys.modules, module, None)
    bench = load(f"bench_{name}")
    if name == "kcenter":
        monkeypatch.setattr(bench, "memory", lambda sizes, path: None)
    out = tmp_path / "results.csv"
    assert bench.main(["--small", "--rounds", "1", "--out", str(out)]) == 0
    rows = rows_of(out)
    peers = {"color": 0, "density": 1, "features": 1, "gmm": 3, "kcenter": 1, "nearest": 1, "receptive_field": 1}
    assert len(rows) == peers[name]
    assert all(float(row["ratio"]) > 0 and row["rounds"] == "1" for row in rows)
    assert ("skipped, not installed here" in capsys.readouterr().out) == (name in ("kcenter", "nearest", "color"))


def test_a_peer_that_differs_is_not_timed_and_the_status_is_1(load, capsys):
    side = load("side_by_side")
    peer = side.Peer("another", lambda: lambda: 3)
    with pytest.raises(side.DiffersError, match="sum, 1 and 1: another gives 3 and we 2; not timed"):
        side.race("sum", "1 and 1", lambda: 2, [peer], lambda ours, theirs: f"gives {theirs} and we {ours}", 1)

    def main() -> int:
        raise side.DiffersError("what differs")
    assert side.status_of(main) == 1 and capsys.readouterr().err == "what differs\n"


def test_the_ratio_is_that_of_two_medians(load):
    side = load("side_by_side")
    rows = side.race("wait", "no size", lambda: time.sleep(0.01), [side.Peer("slow", lambda: lambda: time.sleep(0.1))],
                     lambda ours, theirs: None, 3)
    assert 0.01 <= float(rows[0]["ours_s"]) < float(rows[0]["peer_s"]) and float(rows[0]["ratio"]) > 2


def test_one_update_a_center_picks_what_distances_by_numpy_pick(load):
    bench = load("bench_kcenter")
    points = bench.gaussian(40, 3)
    full = np.linalg.norm(points.double()[:, None] - points.double()[None], axis=2)
    picked = [0]
    while len(picked) < 12:
        picked.append(int(full[:, picked].min(1).argmax()))
    assert bench.one_update_a_center(points, 12) == picked
    assert bench.radius(points, picked) == approx(full[:, picked].min(1).max(), rel=1e-5)


def test_selections_that_cover_worse_or_have_fewer_points_disagree(load):
    bench = load("bench_kcenter")
    line = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
    compare = bench.disagreement(line)
    assert compare(torch.tensor([0, 3]), [3, 0]) is None
    assert compare(torch.tensor([0, 3]), [0, 1]) == "leaves a point at 9 and we at 1"
    assert compare(torch.tensor([0, 3]), [0, 0]) == "picks 1 points and we 2"


@pytest.mark.parametrize(("name", "size"), [("kcenter", "10x3"), ("kcenter", "5x2x6"), ("nearest", "0x3x4"),
                                            ("nearest", "axbxc")])
def test_invalid_sizes_are_refused_with_an_example(load, name, size):
    with pytest.raises(ParameterError, match=f"size '{size}' is not .*, such as "):
        load(f"bench_{name}").parsed(size)


def test_peak_memory_includes_the_bank(load):
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak is read from /proc")
    assert load("bench_kcenter").peak_over_bank(4000, 64, 40) >= 1
    rise = load("side_by_side").peak_rise(lambda: np.ones(40_000_000, np.uint8))     # freed before the end, but counted
    assert 39e6 < rise < 60e6
    assert load("side_by_side").peak_rise(lambda: None) < 10e6


def test_the_mixture_has_the_densities_of_scikit_learn(load):
    bench = load("bench_gmm")
    log_weights, means, factors = bench.mixture(3, 5)
    assert torch.equal(factors, factors.triu()) and float(log_weights.exp().sum()) == approx(1)
    points = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    theirs = bench.torch_mixture(log_weights, means, factors).log_prob(points)
    assert bench.disagreement(bench.scikit_learn(points, log_weights, means, factors)(), theirs) is None
    assert "of the largest value" in bench.disagreement(theirs + 1, theirs)


def test_a_difference_of_two_steps_in_one_pixel_is_found(load):
    bench = load("bench_color")
    ours = bench.photograph(8, 0)
    theirs = ours[0].permute(1, 2, 0).numpy().copy()
    assert bench.disagreement(ours, theirs) is None
    theirs[3, 5, 2] = theirs[3, 5, 2] + 2 if theirs[3, 5, 2] < 100 else theirs[3, 5, 2] - 2
    assert bench.disagreement(ours, theirs) == "differs by 2 steps of 255"


def test_the_fitted_exponent_of_a_power_is_exact(load):
    growth = load("bench_growth")
    assert growth.exponent({n: 3e-9 * n**1.7 for n in (10, 20, 40, 80)}) == approx(1.7)


def test_growth_writes_one_row_per_size_with_machine_and_commit(load, tmp_path, monkeypatch):
    growth = load("bench_growth")
    quick = growth.Series("kernels.none", "items", (1, 2, 4), "nothing", 1, lambda n: lambda: time.sleep(0.001 * n))
    monkeypatch.setattr(growth, "all_series", lambda small: [quick])
    assert growth.main(["--rounds", "2", "--out", str(tmp_path / "growth.csv")]) == 0
    rows = rows_of(tmp_path / "growth.csv")
    assert [row["size"] for row in rows] == ["1", "2", "4"] and all(row["machine"] and row["commit"] for row in rows)
    assert 0.3 < float(rows[0]["exponent"]) < 1.5


def test_each_series_of_growth_runs_at_its_smallest_size(load):
    growth = load("bench_growth")
    for series in growth.all_series(small=True):
        assert len(growth.seconds({series.sizes[0]: series.prepare(series.sizes[0])}, 1)) == 1, series.kernel
    assert all(len(series.sizes) >= 4 for series in growth.all_series())


def test_anomalib_is_started_from_our_first_point_without_its_projection(load, monkeypatch):
    """With a stand-in for anomalib, whose import takes long: it must select k points of the given features themselves."""
    bench, seen = load("bench_kcenter"), {}

    class KCenterGreedy:
        def __init__(self, points, sampling_ratio):
            self.points, self.k = points, int(len(points) * sampling_ratio)

        def select_coreset_idxs(self):
            self.model.fit(self.points)
            seen["features"] = self.model.transform(self.points)
            start = torch.randint(high=len(self.points), size=(1,), device="cpu").squeeze()
            return [int(start), *(i for i in globals()["tqdm"](range(1, self.k), desc=""))]
    monkeypatch.setitem(globals(), "tqdm", None)
    monkeypatch.setitem(sys.modules, "anomalib", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "anomalib.models", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "anomalib.models.components", SimpleNamespace(KCenterGreedy=KCenterGreedy))
    points = bench.gaussian(100, 2)
    assert bench.anomalib(points, 7)() == list(range(7))
    assert seen["features"] is points
