"""Log-density and responsibilities of a full-covariance Gaussian mixture, with the gradient in closed form.

    paper      code           shape       meaning
    u          points         (n, d)
    log pi     log_weights    (K,)
    mu         means          (K, d)
    U          factors        (K, d, d)   upper triangular, U U^T = Sigma^-1, as in scikit-learn's precisions_cholesky_

    y_k      = (u - mu_k) U_k                                                  whitened: |y_k| is the Mahalanobis distance
    l_k      = log pi_k + sum_i log U_k[i, i] - d/2 log(2 pi) - |y_k|^2 / 2
    log GMM  = logsumexp_k l_k,    P(z = k | u) = exp(l_k - log GMM)
    h        = -sum_k Sigma_k^-1 (u - mu_k) P(z = k | u) = -sum_k P(z = k | u) y_k U_k^T        (artola2024, Eq. 16)

Whitened points of all components take K times the memory of the points, so they exist for one block of points at a time. Of a
block they are a matrix product, u [U_1 ... U_K] - [mu_1 U_1 ... mu_K U_K], about the middle of the means, in parts that leave
out most of the zeros below the diagonals; where a mean lies far from the middle for its component's width, that difference
would lose digits, and u - mu_k is taken first. The gradient needs them again: it is taken in the same pass and is all that the
backward pass keeps. Where Triton is chosen, adcore/kernels/triton/gmm.py makes that pass.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from adcore.errors import ParameterError
from adcore.kernels.choice import use_triton

NARROWEST = 32               # columns of a product that are worth a product of their own
CACHED_BYTES = 8 * 2**20     # a block whose product is worth the threads that a CPU wakes for it
BATCHED_BYTES = 256 * 2**20  # a block that keeps a GPU busy
FAR = 64.0                   # whitened distance of a mean from the middle: in float32 1e-5 of a whitened point's unit is lost


def gmm(points: Tensor, log_weights: Tensor, means: Tensor, factors: Tensor, *,
        chunk_bytes: int | None = None) -> tuple[Tensor, Tensor]:
    """Log-density (n,) and responsibilities (n, K) of points under a mixture.

    points       (n, d) float32 or float64; half precision is computed in float32, also under autocast
    log_weights  (K,), -inf for a component that is switched off
    means        (K, d)
    factors      (K, d, d) upper triangular Cholesky factors of the precision matrices; what stands below the diagonals is not
                 read
    chunk_bytes  limit on the whitened points held at a time (by torch; Triton holds none); changes speed and memory, not the
                 result

    The log-density is differentiable once, by the points alone: its gradient is h(u) of Eq. (16). Responsibilities carry no
    gradient.

    Raises:
        ParameterError: shapes that do not belong together, or a parameter of the mixture that requires a gradient.
    """
    d, k = points.shape[-1], len(log_weights)
    if points.ndim != 2 or log_weights.shape != (k,) or means.shape != (k, d) or factors.shape != (k, d, d):
        raise ParameterError(f"points {tuple(points.shape)}, log weights {tuple(log_weights.shape)}, means "
                             f"{tuple(means.shape)} and factors {tuple(factors.shape)} are not (n, d), (K,), (K, d), (K, d, d)")
    if log_weights.requires_grad or means.requires_grad or factors.requires_grad:
        raise ParameterError("the mixture's parameters get no gradient from gmm: detach them")
    if points.dtype not in (torch.float32, torch.float64):
        points = points.float()
    log_weights, means, factors = (x.to(points.dtype) for x in (log_weights, means, factors.triu()))
    if chunk_bytes is None:
        chunk_bytes = CACHED_BYTES if points.device.type == "cpu" else BATCHED_BYTES
    rows = max(1, chunk_bytes // max(1, k * d * points.element_size()))
    log_density, shares, _ = _Mixture.apply(points, log_weights, means, factors, rows,
                                            points.requires_grad and torch.is_grad_enabled())
    return log_density, shares


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor, log_weights: Tensor, means: Tensor, factors: Tensor, rows: int,
                graded: bool) -> tuple[Tensor, Tensor, Tensor]:
        n, d = points.shape
        # What a component adds whatever the point: log pi_k + log |Sigma_k|^-1/2 - d/2 log(2 pi).
        constant = log_weights + factors.diagonal(dim1=1, dim2=2).log().sum(1) - d / 2 * math.log(2 * math.pi)      # (K,)
        if use_triton(points, "gmm"):
            from adcore.kernels.triton import gmm as fused
            if fused.takes(points, means):
                log_density, shares, h = fused.gmm(points, constant, means, factors, graded)
                ctx.save_for_backward(h)
                ctx.mark_non_differentiable(shares, h)
                return log_density, shares, h
        k = len(means)
        middle = means.mean(0)
        with torch.autocast(points.device.type, enabled=False):
            offsets = torch.bmm((middle - means)[:, None], factors)                                         # (K, 1, d)
        near = k > 0 and bool(offsets.norm(dim=2).max() <= FAR)
        parts = _column_parts(factors, offsets)
        # One for all blocks: new memory costs time.
        buffers = [points.new_empty(min(rows, n) if near else 0, matrix.shape[1]) for _, _, matrix in parts]
        log_density, shares = points.new_empty(n), points.new_empty(n, k)
        h = torch.empty_like(points, memory_format=torch.contiguous_format) if graded else points.new_empty(0)
        with torch.autocast(points.device.type, enabled=False):
            for start in range(0, n, rows):
                block = slice(start, start + rows)
                u = points[block]
                if near:
                    centered = torch.cat([u.new_ones(len(u), 1), u - middle], 1)                             # (rows, 1 + d)
                    flat = [torch.mm(centered[:, :1 + end], matrix, out=buffer[:len(u)])
                            for (_, end, matrix), buffer in zip(parts, buffers, strict=True)]
                else:
                    whole = torch.bmm(u - means[:, None], factors).transpose(0, 1)                          # (rows, K, d)
                    flat = [whole[..., begin:end].reshape(len(u), -1) for begin, end, _ in parts]
                whitened = [part.view(len(u), k, -1) for part in flat]
                lengths = sum(torch.linalg.vector_norm(part, dim=2).square_() for part in whitened)
                joint = torch.add(constant, lengths, alpha=-0.5)                                            # (rows, K)
                log_density[block] = joint.logsumexp(1)
                share = torch.softmax(joint, 1, out=shares[block])
                if graded:
                    h[block] = 0
                    for (_, end, matrix), part, y in zip(parts, flat, whitened, strict=True):
                        y.mul_(share[:, :, None])
                        h[block, :end].addmm_(part, matrix[1:].T, alpha=-1)
        ctx.save_for_backward(h)
        ctx.mark_non_differentiable(shares, h)
        return log_density, shares, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        (h,) = ctx.saved_tensors
        return weight[:, None] * h, None, None, None, None, None


def _column_parts(factors: Tensor, offsets: Tensor) -> list[tuple[int, int, Tensor]]:
    """Columns begin..end of all factors side by side, each below its mean's offset: (begin, end, matrix (1 + end, K * width)).

    Below row `end` a triangular factor is zero in these columns: two parts save a quarter of the product, four three eighths.
    """
    k, d = len(factors), factors.shape[-1]
    count = min(4, max(1, d // NARROWEST))
    edges = [round(i * d / count) for i in range(count + 1)]
    return [(begin, end, torch.cat([offsets[:, 0, begin:end].reshape(1, -1),
                                    factors[:, :end, begin:end].transpose(0, 1).reshape(end, k * (end - begin))]))
            for begin, end in itertools.pairwise(edges)]
