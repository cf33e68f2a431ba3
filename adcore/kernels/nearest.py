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
GROUP = 64      # of them among which the nearest one's place is looked up last


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
        raise ParameterError(f"k={k} neighbors of a bank of {m} entries: k must be between 1 and {m}")
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
        indices[top:top + rows] = (_nearest_one(block, bank, half_norms, columns, room) if k == 1 else
                                   _nearest_few(block, bank, half_norms, columns, room, k))
    return indices


def _nearest_one(queries: Tensor, bank: Tensor, half_norms: Tensor, columns: int, room: Tensor) -> Tensor:
    """(rows, 1). The bank stands on the left of its products, which is faster. The largest is found group by group: its place
    takes twenty times as long as its value."""
    rows = len(queries)
    across = queries.T.contiguous()                                                             # (d, rows)
    best = queries.new_full((rows,), -torch.inf)
    found = torch.zeros(rows, dtype=torch.long, device=queries.device)
    for left in range(0, len(bank), columns):
        entries = bank[left:left + columns]
        out = room[:rows * len(entries)].view(len(entries), rows)
        closeness = torch.addmm(half_norms[left:left + columns, None], entries, across, beta=-1, out=out)   # larger is nearer
        start = 0
        for group in (GROUP, 1):                                         # whole groups, then the entries that fill none
            stop = start + (len(entries) - start) // group * group
            if stop > start:
                largest, which = closeness[start:stop].view(-1, group, rows).amax(1).max(0)      # (rows,) each
                nearer = (~(largest <= best) & ~best.isnan()).nonzero()[:, 0]    # the first NaN stays, to be seen
                best[nearer] = largest[nearer]
                within = closeness[start:stop].view(-1, group, rows)[which[nearer], :, nearer]   # (nearer, group)
                found[nearer] = left + start + which[nearer] * group + within.argmax(1)
            start = stop
    return found[:, None]


def _nearest_few(queries: Tensor, bank: Tensor, half_norms: Tensor, columns: int, room: Tensor, k: int) -> Tensor:
    """(rows, k)."""
    best, found = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for left in range(0, len(bank), columns):
        entries = bank[left:left + columns]
        out = room[:len(queries) * len(entries)].view(len(queries), len(entries))
        closeness = torch.addmm(half_norms[left:left + columns], queries, entries.T, beta=-1, out=out)
        value, at = closeness.topk(min(k, len(entries)), dim=1)
        values, ats = torch.cat([best, value], 1), torch.cat([found, at + left], 1)
        best, order = values.topk(min(k, values.shape[1]), dim=1)
        found = ats.gather(1, order)
    return found
