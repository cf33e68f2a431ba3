"""Distance of each query to its nearest entries of a bank, without ever holding the matrix of all distances.

    |q - b|^2 = |q|^2 + |b|^2 - 2 q.b

so a block of distances is one matrix product, and of each block only the k smallest survive. Where Triton is chosen,
adcore/kernels/triton/nearest.py finds the nearest entry without a block in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels.choice import use_triton

CHUNK_BYTES = 256 * 2**20


def nearest(queries: Tensor, bank: Tensor, k: int = 1, *, chunk_bytes: int = CHUNK_BYTES) -> tuple[Tensor, Tensor]:
    """Euclidean distances to the k nearest bank entries, and their indices, nearest first.

    queries      (n, d)
    bank         (m, d)
    chunk_bytes  limit on the block of distances held at a time (by torch; Triton holds none)

    Returns (n, k) distances and (n, k) indices. Float32 products lose digits where a distance is tiny beside the norms,
    so the k winners' distances are taken again from the differences.

    Raises:
        ParameterError: dimensions differ, or k is not between 1 and the size of the bank.
    """
    m = len(bank)
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1] != bank.shape[1]:
        raise ParameterError(f"queries {tuple(queries.shape)} and bank {tuple(bank.shape)} are not (n, d) and (m, d)")
    if not 1 <= k <= m:
        raise ParameterError(f"k={k} neighbours of a bank of {m} entries: k must be between 1 and {m}")
    indices = _indices(queries, bank, k, chunk_bytes)
    distances = torch.stack([(queries - bank[indices[:, j]]).norm(dim=1) for j in range(k)], dim=1)
    if k > 1:
        distances, order = distances.sort(dim=1)
        indices = indices.gather(1, order)
    return distances, indices


def _indices(queries: Tensor, bank: Tensor, k: int, chunk_bytes: int) -> Tensor:
    """(n, k) the nearest entries, of which equally near ones may be in any order when k > 1."""
    if use_triton(queries, "nearest"):
        from adcore.kernels.triton import nearest as fused
        if fused.takes(queries, bank, k):
            return fused.nearest(queries, bank)[:, None]
    n, m = len(queries), len(bank)
    half_norms = bank.square().sum(1).div_(2)                            # (m,)
    rows = max(1, chunk_bytes // (m * queries.element_size()))
    indices = torch.empty(n, k, dtype=torch.long, device=queries.device)
    for start in range(0, n, rows):
        block = queries[start:start + rows]
        # Ordering by |b|^2 / 2 - q.b is ordering by distance: |q|^2 is the same for the whole row.
        closeness = torch.addmm(half_norms, block, bank.T, beta=-1)      # (rows, m), larger is nearer
        indices[start:start + rows] = closeness.argmax(1, keepdim=True) if k == 1 else closeness.topk(k, dim=1).indices
    return indices
