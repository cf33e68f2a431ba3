"""Attention under a mask, forward and backward, in Triton, without an N x M matrix of logits or weights in memory.

    s_ij = q_i . k_j / sqrt(d),  -inf where i may not see j
    p_ij = exp(s_ij - L_i),      L_i = log sum_j exp(s_ij)         of the weights, only L is kept for the backward pass
    o_i  = sum_j p_ij v_j

    dv_j = sum_i p_ij do_i
    ds_ij = p_ij (do_i . v_j - D_i),   D_i = do_i . o_i            D_i = sum_j p_ij do_i . v_j
    dq_i = sum_j ds_ij k_j / sqrt(d),  dk_j = sum_i ds_ij q_i / sqrt(d)

Dao et al., "FlashAttention", NeurIPS 2022: a program keeps a tile of queries and loops over tiles of keys; sums are rescaled
when a larger maximum is found. The mask is read tile by tile as bytes, one (N, M) for all heads and images: 38 KB for UniAD's
14 x 14 cells, which fits a GPU's cache.

Tested in Triton's interpreter and compiled for a GPU; it has not run on one yet.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from adcore.kernels.triton.launch import FLOATS, on, precision, tile, widen

LARGEST = 128  # dimensions per head; larger tiles do not fit a multiprocessor


def takes(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> bool:
    """Whether the kernel supports these; torch computes, or refuses, the others."""
    if q.ndim != 4 or k.ndim != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        return False
    if visible is not None and (visible.dtype != torch.bool or visible.shape != (q.shape[2], k.shape[2])
                                or visible.device != q.device):
        return False
    return (q.dtype in FLOATS and q.dtype == k.dtype == v.dtype and q.device == k.device == v.device
            and q.shape[3] <= LARGEST and q.numel() > 0 and k.numel() > 0)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """(B, heads, N, d), (B, heads, M, d) x 2 -> (B, heads, N, d), for inputs that `takes` accepts; any strides.

    visible  (N, M) bool, True where a query may see a key. A query that sees no key gets 0 and no gradient

    Differentiable once, with respect to q, k and v. Float32, float16 or bfloat16; sums and softmax are float32.
    """
    return _Attention.apply(q, k, v, visible)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
        out = torch.empty_like(q)                                                   # with the strides of q
        lse = torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)        # (B, heads, N), in powers of 2
        block = _block(q)
        with on(q):
            _forward[_grid(q, q.shape[2], block)](*_operands(q, k, v, visible), out, lse, *out.stride(),
                                                  **_settings(q, visible, block))
        ctx.save_for_backward(q, k, v, visible, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, visible, out, lse = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        delta = (out.float() * gradient.float()).sum(3)                             # (B, heads, N), contiguous
        block = _block(q, backward=True)
        shared = (*_operands(q, k, v, visible), gradient, lse, delta, *gradient.stride())
        settings = _settings(q, visible, block)
        with on(q):
            _by_queries[_grid(q, q.shape[2], block)](*shared, dq, *dq.stride(), **settings)
            _by_keys[_grid(q, k.shape[2], block)](*shared, dk, dv, *dk.stride(), *dv.stride(), **settings)
        return dq, dk, dv, None


def _operands(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> tuple[Any, ...]:
    seen = q if visible is None else visible.view(torch.uint8)                      # q is never read as a mask
    heads, n, d = q.shape[1:]
    return (q, k, v, seen, d**-0.5, n, k.shape[2], d, heads, *q.stride(), *k.stride(), *v.stride(), *seen.stride()[-2:])


def _settings(q: Tensor, visible: Tensor | None, block: int) -> dict[str, Any]:
    return {"MASKED": visible is not None, "ROWS": block, "COLS": block, "WIDTH": tile(q.shape[3]), "PRECISION": precision(),
            "WIDE": widen(q), "num_warps": 4, "num_stages": 2}


def _block(q: Tensor, backward: bool = False) -> int:
    """Rows of a tile; the backward pass needs twice as many tiles."""
    return 64 if q.shape[3] <= (32 if backward else 64) else 32


def _grid(q: Tensor, rows: int, block: int) -> tuple[int]:
    return (triton.cdiv(rows, block) * q.shape[0] * q.shape[1],)


@triton.jit
def _tile(x, rows, columns, n, d, row_stride, column_stride, WIDE: tl.constexpr):
    """x[rows, columns], 0 outside (n, d)."""
    inside = (rows < n)[:, None] & (columns < d)[None, :]
    values = tl.load(x + rows[:, None] * row_stride + columns[None, :] * column_stride, mask=inside, other=0.0)
    return values.to(tl.float32) if WIDE else values


@triton.jit
def _logits(q_tile, k_tile, visible, rows, columns, slope, N, M, mn, mm,
            MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Logits of a tile in powers of 2, -inf where hidden."""
    seen = (rows < N)[:, None] & (columns < M)[None, :]
    if MASKED:
        seen = tl.load(visible + rows[:, None] * mn + columns[None, :] * mm, mask=seen, other=0) != 0
    s = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION) * (slope * 1.4426950408889634)    # log2(e)
    return tl.where(seen, s, float("-inf"))


@triton.jit
def _forward(q, k, v, visible, slope, N, M, D, heads,
             qb, qh, qn, qd, kb, kh, kn, kd, vb, vh, vn, vd,
             mn, mm, out, lse, ob, oh, on_, od,
             MASKED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
             WIDE: tl.constexpr):
    blocks = tl.cdiv(N, ROWS)
    which = tl.program_id(0) // blocks                                              # of the B * heads
    b, h = (which // heads).to(tl.int64), (which % heads).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    width = tl.arange(0, WIDTH)
    q_tile = _tile(q + b * qb + h * qh, rows, width, N, D, qn, qd, WIDE)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, M, COLS):
        columns = start + tl.arange(0, COLS)
        k_tile = _tile(k + b * kb + h * kh, columns, width, M, D, kn, kd, WIDE)
        v_tile = _tile(v + b * vb + h * vh, columns, width, M, D, vn, vd, WIDE)
        s = _logits(q_tile, k_tile, visible, rows, columns, slope, N, M, mn, mm, MASKED, PRECISION)
        larger = tl.maximum(largest, tl.max(s, 1))
        base = tl.where(larger == float("-inf"), 0.0, larger)                       # no visible key so far: avoids -inf + inf
        p = tl.exp2(s - base[:, None])
        shrink = tl.exp2(largest - base)
        total = total * shrink + tl.sum(p, 1)
        mixed = mixed * shrink[:, None] + tl.dot(p.to(v_tile.dtype), v_tile, input_precision=PRECISION)
        largest = larger
    blind = total == 0.0
    mixed = mixed / tl.where(blind, 1.0, total)[:, None]
    tl.store(out + b * ob + h * oh + rows[:, None] * on_ + width[None, :] * od, mixed.to(out.dtype.element_ty),
             mask=(rows < N)[:, None] & (width < D)[None, :])
    log_total = tl.where(blind, 0.0, largest + tl.log2(tl.where(blind, 1.0, total)))
    tl.store(lse + which.to(tl.int64) * N + rows, log_total, mask=rows < N)


@triton.jit
def _by_queries(q, k, v, visible, slope, N, M, D, heads,
                qb, qh, qn, qd, kb, kh, kn, kd, vb, vh, vn, vd,
                mn, mm, gradient, lse, delta, gb, gh, gn, gd,
                dq, dqb, dqh, dqn, dqd,
                MASKED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
                WIDE: tl.constexpr):
    """dq of a tile of queries, in a loop over all keys."""
    blocks = tl.cdiv(N, ROWS)
    which = tl.program_id(0) // blocks
    b, h = (which // heads).to(tl.int64), (which % heads).to(tl.int64)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    width = tl.arange(0, WIDTH)
    q_tile = _tile(q + b * qb + h * qh, rows, width, N, D, qn, qd, WIDE)
    g_tile = _tile(gradient + b * gb + h * gh, rows, width, N, D, gn, gd, WIDE)
    log_total = tl.load(lse + which.to(tl.int64) * N + rows, mask=rows < N, other=0.0)
    inner = tl.load(delta + which.to(tl.int64) * N + rows, mask=rows < N, other=0.0)
    pull = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, M, COLS):
        columns = start + tl.arange(0, COLS)
        k_tile = _tile(k + b * kb + h * kh, columns, width, M, D, kn, kd, WIDE)
        v_tile = _tile(v + b * vb + h * vh, columns, width, M, D, vn, vd, WIDE)
        s = _logits(q_tile, k_tile, visible, rows, columns, slope, N, M, mn, mm, MASKED, PRECISION)
        dp = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        ds = tl.exp2(s - log_total[:, None]) * (dp - inner[:, None])
        pull += tl.dot(ds.to(k_tile.dtype), k_tile, input_precision=PRECISION)
    tl.store(dq + b * dqb + h * dqh + rows[:, None] * dqn + width[None, :] * dqd,
             (pull * slope).to(dq.dtype.element_ty), mask=(rows < N)[:, None] & (width < D)[None, :])


@triton.jit
def _by_keys(q, k, v, visible, slope, N, M, D, heads,
             qb, qh, qn, qd, kb, kh, kn, kd, vb, vh, vn, vd,
             mn, mm, gradient, lse, delta, gb, gh, gn, gd,
             dk, dv, dkb, dkh, dkn, dkd, dvb, dvh, dvn, dvd,
             MASKED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
             WIDE: tl.constexpr):
    """dk and dv of a tile of keys, in a loop over all queries."""
    blocks = tl.cdiv(M, COLS)
    which = tl.program_id(0) // blocks
    b, h = (which // heads).to(tl.int64), (which % heads).to(tl.int64)
    columns = (tl.program_id(0) % blocks) * COLS + tl.arange(0, COLS)
    width = tl.arange(0, WIDTH)
    k_tile = _tile(k + b * kb + h * kh, columns, width, M, D, kn, kd, WIDE)
    v_tile = _tile(v + b * vb + h * vh, columns, width, M, D, vn, vd, WIDE)
    pull_k = tl.zeros((COLS, WIDTH), tl.float32)
    pull_v = tl.zeros((COLS, WIDTH), tl.float32)
    for start in range(0, N, ROWS):
        rows = start + tl.arange(0, ROWS)
        q_tile = _tile(q + b * qb + h * qh, rows, width, N, D, qn, qd, WIDE)
        g_tile = _tile(gradient + b * gb + h * gh, rows, width, N, D, gn, gd, WIDE)
        log_total = tl.load(lse + which.to(tl.int64) * N + rows, mask=rows < N, other=0.0)
        inner = tl.load(delta + which.to(tl.int64) * N + rows, mask=rows < N, other=0.0)
        s = _logits(q_tile, k_tile, visible, rows, columns, slope, N, M, mn, mm, MASKED, PRECISION)
        p = tl.exp2(s - log_total[:, None])
        pull_v += tl.dot(tl.trans(p.to(g_tile.dtype)), g_tile, input_precision=PRECISION)
        dp = tl.dot(g_tile, tl.trans(v_tile), input_precision=PRECISION)
        ds = p * (dp - inner[:, None])
        pull_k += tl.dot(tl.trans(ds.to(q_tile.dtype)), q_tile, input_precision=PRECISION)
    inside = (columns < M)[:, None] & (width < D)[None, :]
    tl.store(dk + b * dkb + h * dkh + columns[:, None] * dkn + width[None, :] * dkd,
             (pull_k * slope).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv + b * dvb + h * dvh + columns[:, None] * dvn + width[None, :] * dvd,
             pull_v.to(dv.dtype.element_ty), mask=inside)
