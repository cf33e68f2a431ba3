"""Index of the bank entry nearest to each query, in Triton, with one tile of distances at a time, in registers.

    argmin_j |q_i - b_j|^2 = argmax_j q_i . b_j - |b_j|^2 / 2

A program has a tile of queries and a span of the bank. Several spans use the whole GPU even for few queries; their winners are
compared in a (spans, n) table. Of equal entries the first wins, and NaN counts as nearest, both as in torch's argmax.

Tested in Triton's interpreter and compiled for a GPU; it has not run on one yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adcore.kernels.triton.launch import FLOATS, on, precision, widen

PROGRAMS = 512  # a few for each multiprocessor
ROWS, COLS, DEPTH = 128, 128, 32


def takes(queries: Tensor, bank: Tensor, k: int) -> bool:
    """Whether the kernel supports these: one neighbor, no float64, at least one query."""
    return (k == 1 and len(queries) > 0 and queries.dtype in FLOATS and queries.dtype == bank.dtype
            and queries.device == bank.device)


@torch.no_grad()
def nearest(queries: Tensor, bank: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n,) long, for inputs that `takes` accepts; any strides. Products and their sums are float32."""
    n, m, d = len(queries), len(bank), queries.shape[1]
    half_norms = torch.linalg.vector_norm(bank, dim=1, dtype=torch.float32).square_().div_(2)
    blocks = triton.cdiv(n, ROWS)
    span = COLS * triton.cdiv(triton.cdiv(m, COLS), max(1, PROGRAMS // blocks))    # whole tiles
    spans = triton.cdiv(m, span)
    closeness = torch.empty(spans, n, dtype=torch.float32, device=queries.device)
    index = torch.empty(spans, n, dtype=torch.long, device=queries.device)
    with on(queries):
        _nearest[(blocks * spans,)](queries, bank, half_norms, closeness, index, n, m, d, span, *queries.stride(),
                                    *bank.stride(), ROWS=ROWS, COLS=COLS, DEPTH=DEPTH, PRECISION=precision(),
                                    WIDE=widen(queries), num_warps=8, num_stages=2)
    return index.gather(0, closeness.argmax(0, keepdim=True))[0]


@triton.jit
def _nearest(queries, bank, half_norms, closeness, index, n, m, d, span,
             qn, qd, bm, bd, ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr,
             PRECISION: tl.constexpr, WIDE: tl.constexpr):
    blocks = tl.cdiv(n, ROWS)
    part = tl.program_id(0) // blocks
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    first = part * span
    best = tl.full((ROWS,), float("-inf"), tl.float32)
    at = tl.zeros((ROWS,), tl.int32) + first                                        # a valid entry even if all values are -inf
    for start in range(first, tl.minimum(first + span, m), COLS):
        columns = start + tl.arange(0, COLS)
        product = tl.zeros((ROWS, COLS), tl.float32)
        for begin in range(0, d, DEPTH):
            deep = begin + tl.arange(0, DEPTH)
            q = tl.load(queries + rows[:, None].to(tl.int64) * qn + deep[None, :] * qd,
                        mask=(rows < n)[:, None] & (deep < d)[None, :], other=0.0)
            b = tl.load(bank + columns[None, :].to(tl.int64) * bm + deep[:, None] * bd,
                        mask=(columns < m)[None, :] & (deep < d)[:, None], other=0.0)
            if WIDE:
                q, b = q.to(tl.float32), b.to(tl.float32)
            product = tl.dot(q, b, product, input_precision=PRECISION)
        near = product - tl.load(half_norms + columns, mask=columns < m, other=0.0)[None, :]
        near = tl.where(near != near, float("inf"), near)
        near = tl.where((columns < m)[None, :], near, float("-inf"))
        top, where = tl.max(near, 1, return_indices=True, return_indices_tie_break_left=True)
        at = tl.where(top > best, start + where, at)
        best = tl.maximum(best, top)
    tl.store(closeness + part.to(tl.int64) * n + rows, best, mask=rows < n)
    tl.store(index + part.to(tl.int64) * n + rows, at.to(tl.int64), mask=rows < n)
