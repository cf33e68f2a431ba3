"""Steps of the greedy k-center, in Triton: distance to the newest center, minimum and argmax in one pass over the points.

    distance_i <- min(distance_i, |x_i - s|^2) for the newest center s;    s <- argmax_i distance_i

A pass writes the largest distance of each block of points; a single program then picks among the blocks. The pick stays on the
GPU, where the next pass reads it, so the host does not wait after each step. Of equal distances the first wins. Distances are
sums of squared differences, so the distance of a duplicate to a center is exactly 0.

Tested in Triton's interpreter and compiled for a GPU; it has not run on one yet.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from adcore.kernels.cpu.kcenter import PICKED
from adcore.kernels.triton.launch import FLOATS, on, tile

ROWS, DEPTH = 32, 64
TOPS = 1024  # blocks that the picking program compares at a time
AHEAD = 16   # picks before the first check; twice as many after each check that all picks pass


def takes(points: Tensor, initial: Tensor | None) -> bool:
    """Whether the kernel supports these: float32 distances, and points of at least one dimension that are not float64."""
    distances = points if initial is None else initial
    return points.dtype in FLOATS and distances.dtype == torch.float32 and points.shape[1] > 0


def pick_in_pool(near: Tensor, norms: Tensor, distance: Tensor, outside: float, wanted: int) -> Tensor:
    """A `Pick` (see adcore/kernels/cpu/kcenter.py) that makes several picks before it checks them: those before the first
    invalid one are the greedy picks. If each pick were checked, the host would wait for the GPU each time."""
    wanted = min(wanted, len(near))
    picks = torch.empty(wanted, dtype=torch.long, device=near.device)
    values = torch.empty(wanted, dtype=torch.float32, device=near.device)
    begin, ahead = 0, AHEAD
    while begin < wanted:
        end = min(begin + ahead, wanted)
        steps(near, distance, picks, values, begin, end, PICKED)
        valid = int((values[begin:end] >= outside).long().cumprod(0).sum())
        if begin + valid < end:
            return picks[:begin + valid]
        begin, ahead = end, 2 * ahead
    return picks


def steps(points: Tensor, distances: Tensor, picks: Tensor, values: Tensor, begin: int, end: int, picked: float) -> None:
    """Make the picks `begin` to `end - 1`: write the points' indices to `picks` and their distances at that time to `values`.

    points     (n, d), any strides
    distances  (n,) float32, squared, to the centers so far, contiguous; updated in place with all picks but the last
    picks      (p,) long and values (p,) float32, p >= end, contiguous; those before `begin` are from earlier calls
    picked     written in place of a pick's distance, below all others; also the value of a pick when no point is left

    Pick 0 is the largest of the given `distances`.
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
    # NaN counts as farthest, as in torch's argmax. Comparisons with NaN could otherwise give an index past the last point.
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
