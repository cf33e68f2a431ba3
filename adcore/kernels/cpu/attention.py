"""Masked attention with dropout on a CPU, forward and backward.

torch's own path for this case spends most of its time on random numbers, on a search for queries that see no key, and on new
memory. Here a few images are computed at a time, so that their attention weights stay in the cache between operations, and
dropout uses random bits (`adcore.kernels.cpu.dropout`). The backward pass computes the weights again from each query's maximum
and sum and from the same random bits, so they are not stored.

    E = 2^(log2(e) q k^T / sqrt(d) - max),    out = s (D E / sum) v,    D of 0 and 1, s = 1 / (1 - p)
    g = s dout / sum,    dv = (D E)^T g,    dlogits = E (D (g v^T) - g.out / s),    dq and dk as of any product
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adcore.kernels.cpu.dropout import Bits, levels, takes

__all__ = ["masked_attention", "takes"]

CACHED_BYTES = 4 * 2**20    # attention weights of a block


def masked_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float) -> Tensor:
    """As the public function, for p > 0 and inputs that `takes` accepts. Float64 stays float64, else float32 is computed."""
    hidden = torch.zeros(q.shape[2], k.shape[2], dtype=torch.float32)
    if visible is not None:
        hidden.masked_fill_(~visible, float("-inf"))
    with torch.autocast("cpu", enabled=False):
        wide = (x if x.dtype == torch.float64 else x.float() for x in (q, k, v))
        return _Attention.apply(*wide, hidden.to(torch.promote_types(q.dtype, torch.float32)), p).to(q.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, p: float) -> Tensor:
        images, heads, n, _ = q.shape
        bits, (lowest, scale) = Bits(), levels(p)
        out = q.new_empty(images, n, heads, v.shape[3]).transpose(1, 2)     # the layout that the projection after it needs
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
                g = gradient[block].flatten(0, 1) / total[rows]                                         # (b*heads, N, d)
                along = (g * out[block].flatten(0, 1)).sum(2, keepdim=True)
                g *= scale
                dlogits = torch.bmm(g, v[block].flatten(0, 1).mT).mul_(kept).sub_(along).mul_(weights).mul_(root)
                dv[block] = torch.bmm(weights.mul_(kept).mT, g).unflatten(0, (-1, heads))
                dq[block] = torch.bmm(dlogits, k[block].flatten(0, 1)).unflatten(0, (-1, heads))
                dk[block] = torch.bmm(dlogits.mT, q[block].flatten(0, 1)).unflatten(0, (-1, heads))
        return dq, dk, dv, None, None


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """A few images, their rows in (B*heads, ...), and two buffers (b*heads, N, M)."""
    images, heads, n, m = *q.shape[:3], k.shape[2]
    step = max(1, CACHED_BYTES // max(1, heads * n * m * q.element_size()))
    weights, kept = q.new_empty(2, min(step, images) * heads, n, m)
    for start in range(0, images, step):
        rows = slice(start * heads, min(start + step, images) * heads)
        size = rows.stop - rows.start
        yield slice(start, start + step), rows, weights[:size], kept[:size]


def _logits(q: Tensor, k: Tensor, hidden: Tensor, out: Tensor) -> None:
    """log2(e) q k^T / sqrt(d), -inf where hidden. Powers of two take half the time of powers of e."""
    q = q * (q.shape[3] ** -0.5 * math.log2(math.e))
    torch.baddbmm(hidden, q.flatten(0, 1), k.flatten(0, 1).mT, out=out)
