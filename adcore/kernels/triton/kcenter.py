"""Steps of the greedy k-center, in Triton: distance to the newest center, minimum and argmax in one pass over the points.

    distance_i <- min(distance_i, |x_i - s|^2) for the newest center s;    s <- argmax_i distance_i

A pass leaves the largest distance of each block of points; a single program then picks among the blocks. The pick stays on
the GPU, where the next pass finds it, so that many steps are taken without the host waiting for one. Of equal distances the
first wins. Distances are sums of squared differences: a duplicate of a center is at exactly 0.

Run in Triton's interpreter only so far: it compiles for a GPU, but has neither run nor been timed on one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adcore.kernels.triton.launch import FLOATS, on, tile

ROWS, DEPTH = 32, 64
TOPS = 1024  # blocks that the picking program looks at together


def takes(points: Tensor, distances: Tensor) -> bool:
    """Whether the kernel is written for these: float32 distances to points that are not float64, of at least one dimension."""
    return points.dtype in FLOATS and distances.dtype == torch.float32 and points.shape[1] > 0


def steps(points: Tensor, distances: Tensor, picks: Tensor, values: Tensor, begin: int, end: int, picked: float) -> None:
    """Make picks number `begin` to `end - 1`: points' indices go to `picks`, the distances they had until then to `values`.

    points     (n, d), any strides
    distances  (n,) float32, squared, to the centers so far, contiguous; brought up to date in place for all picks but the last
    picks      (p,) long and values (p,) float32, p >= end, contiguous; those before `begin` are as the last call left them
    picked     put in the place of a pick's distance, below all others; the value of a pick when none is left

    Pick 0 is the largest of `distances` as they are.
    """
    n, d = points.shape
    blocks = triton.cdiv(n, ROWS)
    tops = torch.empty(blocks, dtype=torch.float32, device=points.device)
    leaders = torch.empty(blocks, dtype=torch.long, device=points.device)
    with on(points):
        for step in range(begin, end):
            _update[(blocks,)](points, distances, picks, tops, leaders, step, n, d, *points.stride(), picked, ROWS=ROWS,
                               DEPTH=min(DEPTH, tile(d, 1)))
            _pick[(1,)](tops, leaders, picks, values, step, blocks, BLOCK=TOPS)


@triton.jit(do_not_specialize=["step"])
def _update(points, distances, picks, tops, leaders, step, n, d, pn, pd,
            picked, ROWS: tl.constexpr, DEPTH: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    distance = tl.load(distances + rows, mask=rows < n, other=float("-inf"))
    if step > 0:
        center = tl.load(picks + step - 1)
        away = tl.zeros((ROWS,), tl.float32)
        for begin in range(0, d, DEPTH):
            deep = begin + tl.arange(0, DEPTH)
            x = tl.load(points + rows[:, None].to(tl.int64) * pn + deep[None, :] * pd,
                        mask=(rows < n)[:, None] & (deep < d)[None, :], other=0.0).to(tl.float32)
            s = tl.load(points + center * pn + deep * pd, mask=deep < d, other=0.0).to(tl.float32)
            away += tl.sum((x - s[None, :]) * (x - s[None, :]), 1)
        distance = tl.where(rows == center, picked, tl.minimum(distance, away))
        tl.store(distances + rows, distance, mask=rows < n)
    # NaN is farthest, as in torch's argmax; unordered, it might send the search past the last point.
    distance = tl.where(distance != distance, float("inf"), distance)
    distance = tl.where(rows < n, distance, float("-inf"))
    top, where = tl.max(distance, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(tops + tl.program_id(0), top)
    tl.store(leaders + tl.program_id(0), (tl.program_id(0) * ROWS + where).to(tl.int64))


@triton.jit(do_not_specialize=["step"])
def _pick(tops, leaders, picks, values, step, blocks, BLOCK: tl.constexpr):
    """The first block with the largest distance gives the pick."""
    best = tl.load(tops)
    at = tl.program_id(0)                                                           # 0, since there is one program
    for start in range(0, blocks, BLOCK):
        block = start + tl.arange(0, BLOCK)
        top, where = tl.max(tl.load(tops + block, mask=block < blocks, other=float("-inf")), 0, return_indices=True,
                            return_indices_tie_break_left=True)
        at = tl.where(top > best, start + where, at)
        best = tl.maximum(best, top)
    tl.store(picks + step, tl.load(leaders + at))
    tl.store(values + step, best)
