"""Greedy k-center with few passes over all points.

The plain code passes over all n points for each pick. Distances to the nearest pick only ever shrink, so old ones are upper
bounds. The pool is the M points with the largest bounds; their distances are kept exact, and the picks are made among them.
As long as the farthest of them is at least as far as the (M+1)-th bound, no point outside the pool can be farther, so the pick
is the greedy one. Otherwise the bounds of all n points are updated with the new picks by one matrix product, and a new pool is
chosen.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adcore.progress import progress_bar

CENTERS = 1024  # in one product
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 2**20, 2**24
PICKED = -1.0   # in place of a pick's squared distance: below all others, so no point is picked twice, even among duplicates

# Points of the pool (M, d), their squared norms (M,), their squared distances (M,) to the nearest pick, the (M+1)-th bound,
# and how many picks are wanted -> positions of the picks in the pool, (picks,) long.
Pick = Callable[[Tensor, Tensor, Tensor, float, int], Tensor]


def kcenter(points: Tensor, k: int, initial: Tensor | None, pool: int, pick: Pick, progress: bool | None) -> Tensor:
    """As the public function; `pick` makes the picks within the pool."""
    norms = torch.linalg.vector_norm(points, dim=1).square_()            # (n,), without a copy of all points
    bounds = torch.full_like(norms, torch.inf) if initial is None else initial.square()     # of squared distances, (n,)
    picked = [] if initial is not None else [0]
    if initial is None:
        _refresh(bounds, points, norms, picked)
    fresh = len(picked)                                                  # picks that the bounds include
    with progress_bar(total=k, desc="coreset", enabled=progress) as bar:
        while len(picked) < k:
            top = bounds.topk(min(pool + 1, len(bounds)))
            inside = top.indices[:pool]                                  # (M,)
            outside = max(float(top.values[pool]), 0.0) if len(bounds) > pool else 0.0
            picks = pick(points[inside], norms[inside], top.values[:pool].clone(), outside, k - len(picked))
            picked += inside[picks].tolist()
            bar.update(len(picked) - bar.n)
            if len(picked) < k:
                _refresh(bounds, points, norms, picked[fresh:])
                fresh = len(picked)
    return torch.tensor(picked, device=points.device)


def pick_in_pool(near: Tensor, norms: Tensor, distance: Tensor, outside: float, wanted: int) -> Tensor:
    """A `Pick` in torch: it ends when a point outside the pool might be farther.

    The first pick is always valid: it is the largest bound, and the bounds are exact when a pool is chosen.
    """
    # All distances within the pool at once: one product per pick would be many small ones, each of which starts threads.
    between = torch.mm(near, near.T).mul_(-2).add_(norms[:, None]).add_(norms).clamp_(min=0)                # (M, M)
    picks: list[int] = []
    while len(picks) < wanted:
        best = int(distance.argmax())
        if float(distance[best]) < outside:                              # also when the whole pool has been picked
            break
        picks.append(best)
        torch.minimum(distance, between[best], out=distance)
        distance[best] = PICKED
    return torch.tensor(picks, dtype=torch.long, device=near.device)


def _rows(points: Tensor, width: int) -> int:
    """Points in a block with `width` numbers per point. A block has at most a tenth of the size of all points, which may nearly
    fill the memory."""
    size = max(MIN_BLOCK_BYTES, min(MAX_BLOCK_BYTES, points.numel() * points.element_size() // 10))
    return max(1, size // max(1, width * points.element_size()))


def _refresh(bounds: Tensor, points: Tensor, norms: Tensor, centers: list[int]) -> None:
    """Lower the bounds of all points to their squared distances to `centers`, in blocks."""
    at = torch.tensor(centers, device=points.device)
    for some in at.split(CENTERS):                   # their coordinates are copied, and all centers may be half of the points
        chosen, half_norms = points[some], norms[some] / 2
        rows = _rows(points, len(some))
        room = points.new_empty(min(rows, len(points)) * len(some))
        for begin in range(0, len(points), rows):
            part = slice(begin, begin + rows)
            block = points[part]
            out = room[:len(block) * len(some)].view(len(block), len(some))
            # |x - c|^2 is smallest where x.c - |c|^2 / 2 is largest; |x|^2 is added to that one value only.
            closest = torch.addmm(half_norms, block, chosen.T, beta=-1, out=out).amax(1)
            torch.minimum(bounds[part], (norms[part] - 2 * closest).clamp_(min=0), out=bounds[part])
    bounds[at] = PICKED
