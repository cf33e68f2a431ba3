"""Nearest entries of a bank, one block of distances at a time.

    argmin_j |q - b_j|^2 = argmax_j  q.b_j - |b_j|^2 / 2           since |q|^2 is the same for all j

A block of these values is one matrix product, and only its k largest are kept. Blocks advance along the bank, which is thus
read once for many queries and never copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

ENTRIES = 8192  # of the bank in a block: fewer make slow products, more do not fit a CPU's cache
GROUP = 64      # entries of which only the largest value is computed at first


@torch.no_grad()
def nearest(queries: Tensor, bank: Tensor, k: int, chunk_bytes: int) -> Tensor:
    """Indices (n, k) of the nearest entries. If k > 1, equally near ones may be in any order."""
    n, m = len(queries), len(bank)
    fitting = max(1, chunk_bytes // queries.element_size())              # values that the block may have
    columns = min(m, ENTRIES, fitting)
    rows = max(1, min(n, fitting // columns))
    half_norms = torch.linalg.vector_norm(bank, dim=1).square_().div_(2)                                    # (m,)
    room = queries.new_empty(rows * columns)
    indices = torch.empty(n, k, dtype=torch.long, device=queries.device)
    for top in range(0, n, rows):
        block = queries[top:top + rows]
        indices[top:top + rows] = (_nearest_one(block, bank, half_norms, columns, room) if k == 1 else
                                   _nearest_few(block, bank, half_norms, columns, room, k))
    return indices


def _nearest_one(queries: Tensor, bank: Tensor, half_norms: Tensor, columns: int, room: Tensor) -> Tensor:
    """(rows, 1). The bank is the left factor of the products, which is faster. An argmax takes twenty times as long as a
    maximum, so it is computed only within the group of entries that has the largest value."""
    rows = len(queries)
    across = queries.T.contiguous()                                                             # (d, rows)
    best = queries.new_full((rows,), -torch.inf)
    found = torch.zeros(rows, dtype=torch.long, device=queries.device)
    for left in range(0, len(bank), columns):
        entries = bank[left:left + columns]
        out = room[:rows * len(entries)].view(len(entries), rows)
        closeness = torch.addmm(half_norms[left:left + columns, None], entries, across, beta=-1, out=out)   # larger is nearer
        start = 0
        for group in (GROUP, 1):                                         # whole groups, then the remaining entries
            stop = start + (len(entries) - start) // group * group
            if stop > start:
                largest, which = closeness[start:stop].view(-1, group, rows).amax(1).max(0)      # (rows,) each
                nearer = (~(largest <= best) & ~best.isnan()).nonzero()[:, 0]    # the first NaN is kept, so that it is noticed
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
