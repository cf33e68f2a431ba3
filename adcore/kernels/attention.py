"""Attention under a mask that is the same for all heads and images.

    out_i = sum_j softmax_j(q_i . k_j / sqrt(d)) v_j        over the keys j that query i may see

torch's fused kernel serves every case but two. Dropout on a CPU: it falls back to a path that spends most of its time on random
numbers, on looking for queries that see nothing and on new memory, so that case is written out here. A mask on a GPU: its
fastest kernel takes none, so without dropout adcore/kernels/triton/masked_attention.py does it where Triton is chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from adcore.kernels.choice import use_triton
from adcore.kernels.dropout import Bits, by_bits, levels

CACHED_BYTES = 4 * 2**20    # a block's attention weights


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None = None, p: float = 0.0) -> Tensor:
    """Scaled dot-product attention: (B, heads, N, d), (B, heads, M, d) x 2 -> (B, heads, N, d).

    visible  (N, M) bool, True where a query may look; every query must see a key. None: everywhere
    p        probability with which an attention weight is dropped
    """
    if p == 0 and use_triton(q, "attention"):
        from adcore.kernels.triton import masked_attention as fused
        operands = _under_autocast(q, k, v)
        if fused.takes(*operands, visible):
            return fused.masked_attention(*operands, visible)
    if p == 0 or q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, visible, p)
    return _dropped(q, k, v, visible, p) if by_bits(q, p) else _written_out(q, k, v, visible, p)


def _under_autocast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the dtype in which automatic mixed precision would have torch compute them."""
    if torch.is_autocast_enabled(q.device.type) and torch.float64 not in (q.dtype, k.dtype, v.dtype):
        dtype = torch.get_autocast_dtype(q.device.type)
        return q.to(dtype), k.to(dtype), v.to(dtype)
    return q, k, v


def _written_out(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """For a compiler, which joins these operations and not those within torch's fused kernel."""
    logits = q @ k.mT * q.shape[-1] ** -0.5
    if visible is not None:
        logits = logits.masked_fill(~visible, float("-inf"))
    return F.dropout(logits.softmax(-1), p) @ v


def _dropped(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    hidden = torch.zeros(q.shape[2], k.shape[2], dtype=torch.float32)
    if visible is not None:
        hidden.masked_fill_(~visible, float("-inf"))
    with torch.autocast("cpu", enabled=False):
        wide = (x if x.dtype == torch.float64 else x.float() for x in (q, k, v))
        return _Dropped.apply(*wide, hidden.to(torch.promote_types(q.dtype, torch.float32)), p).to(q.dtype)


class _Dropped(torch.autograd.Function):
    """Attention with dropout, a few images at a time, so that a block's weights stay in the cache from one operation to the
    next. The backward pass computes them again, from the maximum and the sum of each query's and from the same random bits.

        E = 2^(log2(e) q k^T / sqrt(d) - max),    out = s (D E / sum) v,    D of 0 and 1, s = 1 / (1 - p)
        g = s dout / sum,    dv = (D E)^T g,    dlogits = E (D (g v^T) - g.out / s),    dq and dk as of any product
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, p: float) -> Tensor:
        images, heads, n, _ = q.shape
        bits, (lowest, scale) = Bits(), levels(p)
        out = q.new_empty(images, n, heads, v.shape[3]).transpose(1, 2)                 # as the projection after it wants it
        largest, total = q.new_empty(2, images * heads, n, 1)
        for block, rows, weights, kept in _blocks(q, k):
            _logits(q[block], k[block], hidden, weights)
            torch.amax(weights, 2, keepdim=True, out=largest[rows])
            torch.sum(weights.sub_(largest[rows]).exp2_(), 2, keepdim=True, out=total[rows])
            weights *= torch.ge(bits.next(weights.numel()).view(weights.shape), lowest, out=kept)
            mixed = torch.bmm(weights, v[block].flatten(0, 1)).mul_(scale / total[rows])
            out[block] = mixed.unflatten(0, (-1, heads))
        ctx.save_for_backward(q, k, v, hidden, out, largest, total)
        ctx.seed, ctx.p = bits.seed, p
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, hidden, out, largest, total = ctx.saved_tensors
        heads, root = q.shape[1], q.shape[3] ** -0.5
        bits, (lowest, scale) = Bits(ctx.seed), levels(ctx.p)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            for block, rows, weights, kept in _blocks(q, k):
                _logits(q[block], k[block], hidden, weights)
                weights.sub_(largest[rows]).exp2_()
                torch.ge(bits.next(weights.numel()).view(weights.shape), lowest, out=kept)
                given = gradient[block].flatten(0, 1) / total[rows]                                     # (b*heads, N, d)
                along = (given * out[block].flatten(0, 1)).sum(2, keepdim=True)
                given *= scale
                dlogits = torch.bmm(given, v[block].flatten(0, 1).mT).mul_(kept).sub_(along).mul_(weights).mul_(root)
                dv[block] = torch.bmm(weights.mul_(kept).mT, given).unflatten(0, (-1, heads))
                dq[block] = torch.bmm(dlogits, k[block].flatten(0, 1)).unflatten(0, (-1, heads))
                dk[block] = torch.bmm(dlogits.mT, q[block].flatten(0, 1)).unflatten(0, (-1, heads))
        return dq, dk, dv, None, None


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """A few images, their rows of (B*heads, ...), and two buffers (b*heads, N, M)."""
    images, heads, n, m = *q.shape[:3], k.shape[2]
    step = max(1, CACHED_BYTES // max(1, heads * n * m * q.element_size()))
    weights, kept = q.new_empty(2, min(step, images) * heads, n, m)
    for start in range(0, images, step):
        rows = slice(start * heads, min(start + step, images) * heads)
        size = rows.stop - rows.start
        yield slice(start, start + step), rows, weights[:size], kept[:size]


def _logits(q: Tensor, k: Tensor, hidden: Tensor, out: Tensor) -> None:
    """log2(e) q k^T / sqrt(d), -inf where hidden: powers of two are found in half the time of those of e."""
    q = q * (q.shape[3] ** -0.5 * math.log2(math.e))
    torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).mT, out=out)
