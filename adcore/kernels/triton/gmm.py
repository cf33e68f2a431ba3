"""Log-density, responsibilities and gradient of a Gaussian mixture in one pass over the points, in Triton.

Symbols as in adcore/kernels/gmm.py. A program keeps a tile of points and loops over the components. Whitened points y_k exist
only as a tile, a few columns at a time:

    l_k = c_k - |y_k|^2 / 2,   c_k = log pi_k + sum_i log U_k[i, i] - d/2 log(2 pi)
    h   = -sum_k exp(l_k - log GMM) y_k U_k^T         relative to the largest l_k so far; sums are rescaled when it grows

Tested in Triton's interpreter and compiled for a GPU; it has not run on one yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adcore.kernels.triton.launch import on, precision, tile

LARGEST = 128  # dimensions; a tile of points, its pull and h must fit the registers
COLS = 32      # columns of U_k at a time


def takes(points: Tensor, means: Tensor) -> bool:
    """Whether the kernel supports these: float32, at most 128 dimensions, at least one point and one component."""
    return points.dtype == torch.float32 and points.shape[1] <= LARGEST and points.numel() > 0 and len(means) > 0


def gmm(points: Tensor, constants: Tensor, means: Tensor, factors: Tensor, graded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Log-density (n,), responsibilities (n, K) and, if `graded`, h (n, d), else an empty tensor.

    points (n, d), constants c_k (K,), means (K, d), factors (K, d, d); float32, any strides.
    """
    n, d = points.shape
    rows = 64 if d <= 64 else 32
    log_density, joint = points.new_empty(n), points.new_empty(n, len(means))
    h = points.new_empty(n, d) if graded else points.new_empty(0)
    with on(points):
        _gmm[(triton.cdiv(n, rows),)](points, constants.contiguous(), means, factors, log_density, joint, h, n, d, len(means),
                                      *points.stride(), *means.stride(), *factors.stride(), GRADED=graded, ROWS=rows,
                                      WIDTH=tile(d), COLS=min(COLS, tile(d)), PRECISION=precision(), num_warps=4, num_stages=2)
    return log_density, joint.sub_(log_density[:, None]).exp_(), h


@triton.jit
def _gmm(points, constants, means, factors, log_density, joint, h, n, d, K,
         pn, pd, mk, md, fk, fi, fj, GRADED: tl.constexpr, ROWS: tl.constexpr,
         WIDTH: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    width = tl.arange(0, WIDTH)
    inside = (rows < n)[:, None] & (width < d)[None, :]
    u = tl.load(points + rows[:, None].to(tl.int64) * pn + width[None, :] * pd, mask=inside, other=0.0)
    largest = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    pull = tl.zeros((ROWS, WIDTH), tl.float32)                                      # sum_k exp(l_k - largest) y_k U_k^T
    for k in range(0, K):
        mu = tl.load(means + k * mk + width * md, mask=width < d, other=0.0)
        away = tl.where(inside, u - mu[None, :], 0.0)
        square = tl.zeros((ROWS,), tl.float32)                                      # |y_k|^2
        own = tl.zeros((ROWS, WIDTH), tl.float32)                                   # y_k U_k^T
        for start in range(0, d, COLS):
            columns = start + tl.arange(0, COLS)
            U = tl.load(factors + k * fk + width[:, None] * fi + columns[None, :] * fj,
                        mask=(width < d)[:, None] & (columns < d)[None, :], other=0.0)
            y = tl.dot(away, U, input_precision=PRECISION)                          # (ROWS, COLS)
            square += tl.sum(y * y, 1)
            if GRADED:
                own = tl.dot(y, tl.trans(U), own, input_precision=PRECISION)
        term = tl.load(constants + k) - square / 2
        tl.store(joint + rows.to(tl.int64) * K + k, term, mask=rows < n)
        larger = tl.maximum(largest, term)
        base = tl.where(larger == float("-inf"), 0.0, larger)                       # if all components so far are switched off
        weight, shrink = tl.exp(term - base), tl.exp(largest - base)
        total = total * shrink + weight
        if GRADED:
            pull = pull * shrink[:, None] + weight[:, None] * own
        largest = larger
    tl.store(log_density + rows, largest + tl.log(total), mask=rows < n)
    if GRADED:
        tl.store(h + rows[:, None].to(tl.int64) * d + width[None, :], -pull / total[:, None], mask=inside)
