"""Nearest entry of a bank in Triton's interpreter against torch in float64; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import kernels, nearest
from adcore.kernels.triton import nearest as fused

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def agree(queries: Tensor, bank: Tensor, error: float) -> None:
    """Distances are close to float64's; another entry may be found only if it is equally near."""
    with kernels("triton"):
        assert fused.takes(queries, bank, 1)
        distances, indices = nearest(queries, bank)
    full = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert indices.shape == (len(queries), 1) and indices.dtype == torch.long and distances.dtype == queries.dtype
    torch.testing.assert_close(full.gather(1, indices), full.amin(1, keepdim=True), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(distances.double(), full.amin(1, keepdim=True), rtol=error, atol=error)


@pytest.mark.parametrize(("dtype", "error"), list(zip(DTYPES, (1e-5, 2e-3, 2e-2), strict=True)))
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (33, 129, 65), (130, 257, 32)])
def test_the_distance_is_the_smallest_of_the_full_matrix(n, m, d, dtype, error):
    agree(random(n, d, seed=1, dtype=dtype), random(m, d, seed=2, dtype=dtype), error)


@pytest.mark.parametrize("programs", [1, 3])
def test_a_bank_in_fewer_spans_gives_the_same(programs, monkeypatch):
    monkeypatch.setattr(fused, "PROGRAMS", programs)
    agree(random(5, 9, seed=1), random(700, 9, seed=2), 1e-5)


def test_transposed_and_strided_inputs_are_supported():
    queries, bank = random(6, 33, seed=1).T, random(150, 12, seed=2)[::2, ::2]
    assert not queries.is_contiguous() and not bank.is_contiguous()
    agree(queries, bank, 1e-5)


def test_of_equal_entries_the_first_wins_within_a_tile_between_tiles_and_between_spans(monkeypatch):
    bank = torch.arange(600.0)[:, None].repeat(1, 3)
    for twin in (100, 200, 599):                                    # the same tile, another, the last
        bank[twin] = bank[70]
    for programs in (1, 512):
        monkeypatch.setattr(fused, "PROGRAMS", programs)
        with kernels("triton"):
            assert nearest(torch.full((3, 3), 70.0), bank)[1].tolist() == [[70]] * 3
            assert nearest(torch.zeros(1, 3), torch.ones(300, 3))[1].item() == 0


def test_an_entry_has_distance_zero_to_itself_and_gradients_equal_torchs():
    bank = 30 * random(65, 20, seed=0)
    with kernels("triton"):
        distances, indices = nearest(bank, bank)
        assert not distances.any() and indices[:, 0].tolist() == list(range(65))
    gradients = []
    for choice in ("triton", "torch"):
        q, b = random(7, 5, seed=1).requires_grad_(), random(33, 5, seed=2).requires_grad_()
        with kernels(choice):
            gradients.append(torch.autograd.grad(nearest(q, b)[0].square().sum(), (q, b)))
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_nan_counts_as_nearest_as_in_torch():
    queries, bank = random(4, 3, seed=1), random(300, 3, seed=2)
    queries[1] = torch.nan
    for broken in (None, 260):
        if broken is not None:
            bank[broken] = torch.nan
        with kernels("triton"):
            found = nearest(queries, bank)[1]
        with kernels("torch"):
            assert torch.equal(found, nearest(queries, bank)[1])


def test_torch_computes_what_the_kernel_does_not_support_and_refusals_are_the_same():
    queries, bank = random(5, 3, seed=1), random(9, 3, seed=2)
    for a, b, k in ((queries, bank, 2), (queries[:0], bank, 1), (queries.double(), bank.double(), 1)):
        assert not fused.takes(a, b, k)
        with kernels("triton"):
            found = nearest(a, b, k)
        with kernels("torch"):
            for ours, theirs in zip(found, nearest(a, b, k), strict=True):
                assert torch.equal(ours, theirs)
    with kernels("triton"):
        with pytest.raises(ParameterError, match="are not \\(n, d\\) and \\(m, d\\)"):
            nearest(queries, bank[:, :2])
        with pytest.raises(ParameterError, match="must be between 1 and 0"):
            nearest(queries, bank[:0])
        with pytest.raises(RuntimeError):
            nearest(queries, bank.half())


def test_the_public_function_runs_the_kernel_only_when_selected(monkeypatch):
    def ran(*_: Tensor) -> Tensor:
        raise ZeroDivisionError
    monkeypatch.setattr(fused, "nearest", ran)
    with kernels("torch"):
        nearest(torch.zeros(2, 3), torch.zeros(4, 3))
    with pytest.raises(ZeroDivisionError), kernels("triton"):
        nearest(torch.zeros(2, 3), torch.zeros(4, 3))
