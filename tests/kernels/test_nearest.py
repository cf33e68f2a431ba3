"""Nearest neighbors against torch.cdist in float64, and against the plain code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import kernels, nearest
from adcore.kernels.cpu import nearest as fast


def random_points(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("k", [1, 4])
def test_the_blocks_give_the_distances_entries_and_gradients_of_the_plain_code(k):
    runs = []
    for choice in ("torch", "plain"):
        queries, bank = (random_points(n, 6, seed).requires_grad_() for seed, n in ((1, 70), (2, 300)))
        with kernels(choice):
            distances, indices = nearest(queries, bank, k, chunk_bytes=5000)
        runs.append((distances, *torch.autograd.grad(distances.square().sum(), (queries, bank)), indices))
    for ours, plain in zip(*runs, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("k", [1, 3])
def test_neighbors_are_found_in_every_block_of_a_bank_and_of_queries(k, monkeypatch):
    monkeypatch.setattr(fast, "ENTRIES", 16)
    queries, bank = random_points(21, 4, 1), random_points(50, 4, 2)             # blocks of 16, 16, 16 and 2 entries
    wanted = torch.cdist(queries, bank, compute_mode="donot_use_mm_for_euclid_dist").topk(k, largest=False)
    for chunk_bytes in (8 * 3, 8 * 16 * 5, 2**20):
        distances, indices = nearest(queries, bank, k, chunk_bytes=chunk_bytes)
        torch.testing.assert_close(distances, wanted.values, rtol=0, atol=1e-12)
        assert torch.equal(indices, wanted.indices)


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
