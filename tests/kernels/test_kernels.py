"""Greedy k-center against a slow greedy loop, nearest neighbors against torch.cdist, both in float64."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import kcenter, nearest


def random_points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def greedy_by_hand(points: np.ndarray, k: int, initial: np.ndarray | None = None) -> list[int]:
    """The loop of PatchCore's Algorithm 1, one distance at a time."""
    picked = [] if initial is not None else [0]
    while len(picked) < k:
        best, farthest = -1, -1.0
        for i in range(len(points)):
            distance = np.inf if initial is None else initial[i]
            for j in picked:
                distance = min(distance, float(np.sqrt(((points[i] - points[j]) ** 2).sum())))
            if i not in picked and distance > farthest:
                best, farthest = i, distance
        picked.append(best)
    return picked


def radii(points: Tensor, picked: Tensor, initial: Tensor | None = None) -> tuple[list[float], list[float]]:
    """Of each pick after the first: its distance to the picks before it, and the largest such distance there was."""
    distance = torch.full((len(points),), torch.inf, dtype=torch.float64) if initial is None else initial.double().clone()
    own, largest = [], []
    for i in picked.tolist():
        own.append(float(distance[i]))
        largest.append(float(distance.max()))
        distance = torch.minimum(distance, (points.double() - points[i].double()).norm(dim=1))
        distance[i] = -1
    return own[initial is None:], largest[initial is None:]


@st.composite
def crowded_points(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Few distinct points, many times each; how many to pick, and the pool."""
    n, d = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    cells = draw(st.lists(st.integers(0, 3), min_size=n * d, max_size=n * d))
    return torch.tensor(cells, dtype=torch.float64).view(n, d), draw(st.integers(1, n)), draw(st.sampled_from([1, 7, n]))


@pytest.mark.parametrize("pool", [1, 7, 60])
@pytest.mark.parametrize("started", [False, True])
def test_kcenter_picks_the_points_of_the_greedy_loop_whatever_the_pool(pool, started):
    for seed in range(3):
        points = random_points(60, 5, seed)
        initial = random_points(60, 1, seed + 9)[:, 0].abs() * 3 if started else None
        by_hand = greedy_by_hand(points.numpy(), 25, None if initial is None else initial.numpy())
        assert kcenter(points, 25, initial=initial, pool=pool).tolist() == by_hand


@settings(max_examples=60, deadline=None)
@given(crowded_points())
def test_among_duplicates_every_pick_is_a_farthest_point_and_none_is_picked_twice(case):
    points, k, pool = case
    picked = kcenter(points, k, pool=pool)
    own, largest = radii(points, picked)
    assert len(set(picked.tolist())) == k
    np.testing.assert_allclose(own, largest, atol=1e-6)


@pytest.mark.parametrize("pool", [1, 3, 2048])
@pytest.mark.parametrize("initial", [None, torch.zeros(12), torch.arange(12.0)], ids=["first", "zeros", "rising"])
def test_twelve_copies_of_one_point_are_twelve_different_picks(pool, initial):
    points = torch.full((12, 3), 0.3)
    assert sorted(kcenter(points, 12, pool=pool, initial=initial).tolist()) == list(range(12))


def test_the_radius_never_grows_and_every_pick_is_farthest_in_single_precision_too():
    points = random_points(700, 16).float()
    own, largest = radii(points, kcenter(points, 200, pool=64))
    assert all(later <= earlier + 1e-4 for earlier, later in itertools.pairwise(own))
    np.testing.assert_allclose(own, largest, rtol=1e-4)


def test_with_initial_distances_the_first_pick_is_the_largest_and_no_point_counts_for_more_than_its_own():
    line = torch.tensor([[0.0], [1.0], [10.0], [4.0]])
    # The far point 10 starts at 0.1: it can never win against 4, 1 and 0.
    assert kcenter(line, 3, initial=torch.tensor([2.0, 3.0, 0.1, 9.0])).tolist() == [3, 1, 0]
    initial = torch.tensor([2.0, 3.0, 0.1, 9.0])
    kcenter(line, 3, initial=initial)
    assert initial.tolist() == pytest.approx([2.0, 3.0, 0.1, 9.0])


def test_all_points_may_be_picked_and_one_may_be():
    points = random_points(9, 2)
    assert sorted(kcenter(points, 9).tolist()) == list(range(9))
    assert kcenter(points, 1).tolist() == [0]


@pytest.mark.parametrize("k", [0, 6])
def test_kcenter_refuses_more_centers_than_points_or_none(k):
    with pytest.raises(ParameterError, match=f"k={k} centers out of 5 points: k must be between 1 and 5"):
        kcenter(torch.zeros(5, 2), k)


def test_kcenter_refuses_initial_distances_that_are_not_one_a_point():
    with pytest.raises(ParameterError, match=r"initial distances \(4,\) are not one for each of 5 points"):
        kcenter(torch.zeros(5, 2), 2, initial=torch.zeros(4))


SHAPES = [(1, 1, 1), (5, 123, 3), (123, 5, 7), (64, 257, 33)]


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
@pytest.mark.parametrize("chunk_bytes", [1, 4096, 2**28])
def test_nearest_gives_the_smallest_entries_of_torchs_full_distance_matrix(n, m, d, chunk_bytes):
    queries, bank = random_points(n, d, 1), random_points(m, d, 2)
    full = torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist")
    for k in {1, min(3, m), m}:
        distances, indices = nearest(queries, bank, k, chunk_bytes=chunk_bytes)
        wanted = full.topk(k, largest=False, sorted=True)
        torch.testing.assert_close(distances, wanted.values, rtol=0, atol=1e-12)
        assert torch.equal(indices, wanted.indices)


def test_neighbors_come_nearest_first_in_single_precision_where_products_lose_the_order():
    queries, bank = random_points(40, 8, 3).float() + 300, random_points(90, 8, 4).float() + 300
    distances, indices = nearest(queries, bank, k=5)
    assert bool((distances.diff(dim=1) >= 0).all())
    torch.testing.assert_close(distances, (queries[:, None] - bank[indices]).norm(dim=2), rtol=1e-6, atol=0)
    assert all(len(set(row)) == 5 for row in indices.tolist())


def test_the_distance_of_an_entry_to_itself_is_exactly_zero():
    bank = random_points(50, 20).float() * 30
    distances, indices = nearest(bank, bank)
    assert bool((distances == 0).all()) and indices[:, 0].tolist() == list(range(50))


@pytest.mark.parametrize("k", [1, 3])
def test_neighbors_are_found_in_every_block_of_a_bank_and_of_queries(k, monkeypatch):
    monkeypatch.setattr(sys.modules["adcore.kernels.nearest"], "ENTRIES", 16)
    queries, bank = random_points(21, 4, 1), random_points(50, 4, 2)             # blocks of 16, 16, 16 and 2 entries
    wanted = torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False)
    for chunk_bytes in (8 * 3, 8 * 16 * 5, 2**20):
        distances, indices = nearest(queries, bank, k, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(distances, wanted.values, rtol=0, atol=1e-12)
        assert torch.equal(indices, wanted.indices)


def test_kcenter_is_the_greedy_loop_when_centers_and_points_come_in_many_blocks(monkeypatch):
    module = sys.modules["adcore.kernels.kcenter"]
    monkeypatch.setattr(module, "CENTERS", 3)
    monkeypatch.setattr(module, "MIN_BLOCK_BYTES", 64)
    points = random_points(60, 5)
    assert kcenter(points, 30, pool=9).tolist() == greedy_by_hand(points.numpy(), 30)


def test_nearest_takes_transposed_and_strided_input():
    queries, bank = random_points(6, 30).T, random_points(80, 6)[::2]
    distances, indices = nearest(queries, bank, k=2, chunk_bytes=500)
    again, same = nearest(queries.contiguous(), bank.contiguous(), k=2)
    assert not queries.is_contiguous() and not bank.is_contiguous()
    torch.testing.assert_close(distances, again)
    assert torch.equal(indices, same)


def test_nearest_refuses_other_dimensions_and_more_neighbors_than_entries():
    with pytest.raises(ParameterError, match=r"queries \(2, 3\) and bank \(4, 5\) are not \(n, d\) and \(m, d\)"):
        nearest(torch.zeros(2, 3), torch.zeros(4, 5))
    for k in (0, 5):
        with pytest.raises(ParameterError, match=f"k={k} neighbors of a bank of 4 entries: k must be between 1 and 4"):
            nearest(torch.zeros(2, 3), torch.zeros(4, 3), k)
