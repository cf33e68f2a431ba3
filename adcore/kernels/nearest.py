"""Distance of each query to its k nearest entries of a bank (PatchCore's search).

    d_ij = |q_i - b_j|,    the k smallest of each row i
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels.choice import use_plain, use_triton
from adcore.kernels.cpu import nearest as fast


def plain_nearest(queries: Tensor, bank: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """`nearest` with the whole (n, m) matrix of distances in memory.

    >>> plain_nearest(torch.tensor([[0.0], [4.0]]), torch.tensor([[1.0], [3.0]]))
    (tensor([[1.],
            [1.]]), tensor([[0],
            [1]]))
    """
    distances, indices = torch.cdist(queries, bank).topk(k, largest=False)
    return distances, indices


def nearest(queries: Tensor, bank: Tensor, k: int = 1, *, chunk_bytes: int = 256 * 2**20) -> tuple[Tensor, Tensor]:
    """Euclidean distances to the k nearest bank entries, and their indices, nearest first.

    queries      (n, d)
    bank         (m, d)
    chunk_bytes  limit on the block of distances in memory at a time (in torch; Triton stores none)

    Returns (n, k) distances, differentiable, and (n, k) indices. The search uses float32 products, which lose digits where a
    distance is tiny beside the norms, so the distances of the k winners are computed again from the differences.

    >>> distances, indices = nearest(torch.tensor([[0.0, 0.0]]), torch.tensor([[6.0, 8.0], [3.0, 4.0]]), k=2)
    >>> distances.tolist(), indices.tolist()
    ([[5.0, 10.0]], [[1, 0]])

    Raises:
        ParameterError: dimensions differ, or k is not between 1 and the size of the bank.
    """
    m = len(bank)
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ParameterError(f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} are not (n, d) and (m, d)")
    if not 1 <= k <= m:
        raise ParameterError(f"k={k} neighbors of a bank of {m} entries: k must be between 1 and {m}")
    if use_plain():
        return plain_nearest(queries, bank, k)
    indices = _indices(queries, bank, k, chunk_bytes)
    distances = torch.stack([(queries - bank[indices[:, j]]).norm(dim=1) for j in range(k)], dim=1)
    if k > 1:
        distances, order = distances.sort(dim=1)
        indices = indices.gather(1, order)
    return distances, indices


def _indices(queries: Tensor, bank: Tensor, k: int, chunk_bytes: int) -> Tensor:
    if use_triton(queries, "nearest"):
        from adcore.kernels.triton import nearest as fused
        if fused.takes(queries, bank, k):
            return fused.nearest(queries, bank)[:, None]
    return fast.nearest(queries, bank, k, chunk_bytes)
