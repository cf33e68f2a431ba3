"""Distance of each query to its nearest entries of a bank, without ever holding the matrix of all distances.

    |q - b|^2 = |q|^2 + |b|^2 - 2 q.b

so a block of distances is one matrix product, and of each block only the k smallest survive. Blocks go along the bank, which is
then read once for many queries and never copied. Where Triton is chosen,
adcore/kernels/triton/nearest.py finds the nearest entry without a block in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels.choice import use_triton

CHUNK_BYTES = 256 * 2**20
ENTRIES = 8192  # of the bank in a block: fewer make poor products, more leave a CPU's cache


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


@torch.no_grad()
def _indices(queries: Tensor, bank: Tensor, k: int, chunk_bytes: int) -> Tensor:
    """(n, k) the nearest entries, of which equally near ones may be in any order when k > 1."""
    if use_triton(queries, "nearest"):
        from adcore.kernels.triton import nearest as fused
        if fused.takes(queries, bank, k):
            return fused.nearest(queries, bank)[:, None]
    n, m = len(queries), len(bank)
    fitting = max(1, chunk_bytes // queries.element_size())              # distances held at a time
    columns = min(m, ENTRIES, fitting)
    rows = max(1, min(n, fitting // columns))
    # Ordering by |b|^2 / 2 - q.b is ordering by distance: |q|^2 is the same for the whole row.
    half_norms = torch.linalg.vector_norm(bank, dim=1).square_().div_(2)                                    # (m,)
    room = queries.new_empty(rows * columns)
    indices = torch.empty(n, k, dtype=torch.long, device=queries.device)
    for top in range(0, n, rows):
        block = queries[top:top + rows]
        best, found = None, None                                         # (rows, at most k), of the entries so far
        for left in range(0, m, columns):
            entries = bank[left:left + columns]
            out = room[:len(block) * len(entries)].view(len(block), len(entries))
            closeness = torch.addmm(half_norms[left:left + columns], block, entries.T, beta=-1, out=out)    # larger is nearer
            value, at = closeness.max(1, keepdim=True) if k == 1 else closeness.topk(min(k, len(entries)), dim=1)
            at = at + left
            if best is None or found is None:
                best, found = value, at
            elif k == 1:
                nearer = value > best
                best, found = torch.where(nearer, value, best), torch.where(nearer, at, found)
            else:
                values, ats = torch.cat([best, value], 1), torch.cat([found, at], 1)
                best, order = values.topk(min(k, values.shape[1]), dim=1)
                found = ats.gather(1, order)
        assert found is not None
        indices[top:top + rows] = found
    return indices
