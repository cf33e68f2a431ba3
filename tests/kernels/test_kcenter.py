"""Greedy k-center against a slow greedy loop in float64, and against the plain code."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import kcenter, kernels
from adcore.kernels.cpu import kcenter as fast


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
    """For each pick after the first: its distance to the picks before it, and the largest such distance of all points."""
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
    """Few distinct points, each many times; the number of picks; the pool size."""
    n, d = draw(st.integers(1, 30)), draw(st.integers(1, 3))
    cells = draw(st.lists(st.integers(0, 3), min_size=n * d, max_size=n * d))
    return torch.tensor(cells, dtype=torch.float64).view(n, d), draw(st.integers(1, n)), draw(st.sampled_from([1, 7, n]))


@pytest.mark.parametrize("pool", [1, 7, 60])
@pytest.mark.parametrize("started", [False, True])
def test_kcenter_picks_the_points_of_the_greedy_loop_for_any_pool_size(pool, started):
    for seed in range(3):
        points = random_points(60, 5, seed)
        initial = random_points(60, 1, seed + 9)[:, 0].abs() * 3 if started else None
        by_hand = greedy_by_hand(points.numpy(), 25, None if initial is None else initial.numpy())
        assert kcenter(points, 25, initial=initial, pool=pool).tolist() == by_hand


@pytest.mark.parametrize("started", [False, True])
def test_the_pool_gives_the_picks_of_the_plain_code(started):
    points = random_points(400, 8)
    initial = 2 * random_points(400, 1, 5)[:, 0].abs() if started else None
    with kernels("plain"):
        plain = kcenter(points, 150, initial=initial)
    assert torch.equal(kcenter(points, 150, initial=initial, pool=32), plain)


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


def test_with_initial_distances_the_first_pick_is_the_largest_and_they_are_upper_bounds():
    line = torch.tensor([[0.0], [1.0], [10.0], [4.0]])
    # The far point 10 starts at 0.1: it can never win against 4, 1 and 0.
    assert kcenter(line, 3, initial=torch.tensor([2.0, 3.0, 0.1, 9.0])).tolist() == [3, 1, 0]
    initial = torch.tensor([2.0, 3.0, 0.1, 9.0])
    kcenter(line, 3, initial=initial)
    assert initial.tolist() == pytest.approx([2.0, 3.0, 0.1, 9.0])


def test_all_points_can_be_picked_or_only_one():
    points = random_points(9, 2)
    assert sorted(kcenter(points, 9).tolist()) == list(range(9))
    assert kcenter(points, 1).tolist() == [0]


@pytest.mark.parametrize("k", [0, 6])
def test_kcenter_refuses_more_centers_than_points_or_none(k):
    with pytest.raises(ParameterError, match=f"k={k} centers out of 5 points: k must be between 1 and 5"):
        kcenter(torch.zeros(5, 2), k)


def test_kcenter_refuses_initial_distances_that_are_not_one_per_point():
    with pytest.raises(ParameterError, match=r"initial distances \(4,\) are not one for each of 5 points"):
        kcenter(torch.zeros(5, 2), 2, initial=torch.zeros(4))


def test_kcenter_is_the_greedy_loop_when_centers_and_points_come_in_many_blocks(monkeypatch):
    monkeypatch.setattr(fast, "CENTERS", 3)
    monkeypatch.setattr(fast, "MIN_BLOCK_BYTES", 64)
    points = random_points(60, 5)
    assert kcenter(points, 30, pool=9).tolist() == greedy_by_hand(points.numpy(), 30)
