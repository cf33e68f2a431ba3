"""Steps of k-center in Triton's interpreter against a greedy loop in float64; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import kcenter, kernels
from adcore.kernels.triton import kcenter as fused

PICKED = -1.0


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def greedy(points: Tensor, distances: Tensor, number: int) -> tuple[list[int], list[float], Tensor]:
    """Picks, their squared distances and all distances but for the last pick, in float64; the first of equals wins."""
    distances, x = distances.double().clone(), points.double()
    picks, values = [], []
    for step in range(number):
        if step:
            distances = torch.minimum(distances, (x - x[picks[-1]]).square().sum(1))
            distances[picks[-1]] = PICKED
        picks.append(distances.tolist().index(distances.max()))
        values.append(float(distances.max()))
    return picks, values, distances


@pytest.mark.parametrize(("n", "d", "number", "dtype"), [
    (1, 1, 1, torch.float32), (33, 65, 9, torch.float32), (130, 129, 5, torch.float32), (7, 3, 7, torch.float16),
    (33, 65, 4, torch.bfloat16)])
def test_the_steps_equal_the_greedy_loop(n, d, number, dtype):
    points, start = random(n, d, seed=n).to(dtype), 3 * d * random(n, seed=2).abs()
    distances, picks, values = start.clone(), torch.empty(number, dtype=torch.long), torch.empty(number)
    for begin, end in ((0, number // 2), (number // 2, number)):     # in two calls, with the same result as one
        fused.steps(points, distances, picks, values, begin, end, PICKED)
    expected, heights, left = greedy(points, start, number)
    assert picks.tolist() == expected
    torch.testing.assert_close(values.double(), torch.tensor(heights, dtype=torch.float64), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(distances.double(), left, rtol=1e-6, atol=1e-6)


def test_transposed_and_strided_points_are_supported():
    for points in (random(5, 70, seed=1).T, random(140, 10, seed=2)[::2, ::2]):
        assert not points.is_contiguous()
        distances, picks, values = torch.full((70,), 9.0), torch.empty(8, dtype=torch.long), torch.empty(8)
        fused.steps(points, distances, picks, values, 0, 8, PICKED)
        assert picks.tolist() == greedy(points, torch.full((70,), 9.0), 8)[0]


def test_of_equally_far_points_the_first_wins_within_a_block_and_between_blocks(monkeypatch):
    points = torch.zeros(1200, 2)                                    # 38 blocks of 32
    distances = torch.ones(1200)
    for twin in (40, 45, 70, 1199):
        distances[twin] = 5.0
    picks, values = torch.empty(1, dtype=torch.long), torch.empty(1)
    fused.steps(points, distances, picks, values, 0, 1, PICKED)
    assert picks.item() == 40 and values.item() == 5
    monkeypatch.setattr(fused, "TOPS", 16)                           # more blocks than are compared at a time
    fused.steps(points, distances, picks, values, 0, 1, PICKED)
    assert picks.item() == 40
    distances[[40, 45, 70]] = 1.0
    distances[[700, 1000]] = 5.0
    fused.steps(points, distances, picks, values, 0, 1, PICKED)
    assert picks.item() == 700


def test_picks_are_valid_indices_even_when_all_points_are_picked_or_a_distance_is_nan():
    points = random(5, 2, seed=0)
    distances, picks, values = torch.ones(5), torch.empty(9, dtype=torch.long), torch.empty(9)
    fused.steps(points, distances, picks, values, 0, 9, PICKED)
    assert sorted(picks[:5].tolist()) == list(range(5)) and values[5:].tolist() == [PICKED] * 4
    points[3] = torch.nan
    distances = torch.tensor([1.0, torch.nan, 1.0, torch.nan, 1.0])
    fused.steps(points, distances, picks, values, 0, 9, PICKED)
    assert picks[0] == 1 and bool(((picks >= 0) & (picks < 5)).all())


@pytest.mark.parametrize("pool", [1, 7, 2048])
@pytest.mark.parametrize("started", [False, True])
def test_kcenter_picks_the_same_as_torch_for_any_pool_size(pool, started):
    points = random(40, 5, seed=3)
    initial = 3 * random(40, seed=4).abs() if started else None
    with kernels("triton"):
        found = kcenter(points, 18, initial=initial, pool=pool)
    with kernels("torch"):
        expected = kcenter(points.double(), 18, initial=None if initial is None else initial.double(), pool=pool)
    assert found.dtype == expected.dtype and torch.equal(found, expected)


def test_among_duplicates_all_points_are_picked_once():
    points = torch.randint(0, 2, (40, 2), generator=torch.Generator().manual_seed(0)).float()[:20]
    with kernels("triton"):
        assert sorted(kcenter(points, 20, pool=7).tolist()) == list(range(20))


def test_the_public_function_runs_the_kernel_only_when_selected_and_refuses_the_same(monkeypatch):
    points = random(9, 2, seed=0)
    with kernels("triton"), pytest.raises(ParameterError, match="k=10 centers out of 9 points"):
        kcenter(points, 10)

    def ran(*_: object) -> None:
        raise ZeroDivisionError
    monkeypatch.setattr(fused, "steps", ran)
    with kernels("triton"), pytest.raises(ZeroDivisionError):
        kcenter(points, 3)
    with kernels("torch"):
        kcenter(points, 3)
    with kernels("triton"):
        kcenter(points.double(), 3)
