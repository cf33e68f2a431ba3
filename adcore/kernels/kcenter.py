"""Greedy k-center: pick, k times, the point that is farthest from everything picked so far.

    S <- {start};  repeat: s* = argmax_i min_{s in S} |x_i - x_s|,  S <- S + {s*}        (PatchCore, Sec. 3.2)

Done to the letter this passes over all n points for each pick. The minimum distances only ever shrink, so old ones are
upper bounds. Take the M points with the largest bounds, keep their distances exact and pick among them: as long as the
best of them is at least the (M+1)-th bound, no other point can be farther, and the pick is the greedy one. When that
fails, bring all n points up to date with the new picks by one matrix product, and take the top M again.

On a GPU to look at each pick is to wait for it. Where Triton is chosen, adcore/kernels/triton/kcenter.py picks several times
among the M, and then the picks are looked at together: those before the first that fails are the greedy ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels.choice import use_triton
from adcore.progress import progress_bar

POOL = 2048     # in Triton
CPU_POOL = 512  # in torch, which holds all distances within the pool
CENTERS = 1024  # in one product
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 2**20, 2**24
AHEAD = 16      # picks in Triton before the first look at them; as long as they all are good, twice as many the next time
PICKED = -1.0  # below every squared distance, so that no center is picked twice, not even among duplicates


def kcenter(points: Tensor, k: int, *, initial: Tensor | None = None, pool: int | None = None,
            progress: bool | None = None) -> Tensor:
    """Indices of k points by greedy k-center, in the order in which they are picked.

    points   (n, d) float32 or float64
    initial  (n,) distances to start from: the first pick is their largest, and a point's distance never counts for more
             than its own. None starts from the first point.
    pool     how many points the inner greedy watches at a time; changes the speed, never the picks (but for ties and
             rounding). None: 512 in torch, 2048 in Triton

    Returns (k,) long.

    Raises:
        ParameterError: k is not between 1 and n, or `initial` has not one distance a point.
    """
    n = len(points)
    if not 1 <= k <= n:
        raise ParameterError(f"k={k} centers out of {n} points: k must be between 1 and {n}")
    if initial is not None and initial.shape != (n,):
        raise ParameterError(f"initial distances {tuple(initial.shape)} are not one for each of {n} points")
    norms = torch.linalg.vector_norm(points, dim=1).square_()            # (n,), without another bank of squares
    # Squared distances; upper bounds of the true ones until refreshed; PICKED for a point that is a center already.
    bounds = torch.full_like(norms, torch.inf) if initial is None else initial.square()
    picked = [] if initial is not None else [0]
    if initial is None:
        _refresh(bounds, points, norms, picked)
    fresh = len(picked)                                                  # picks that the bounds know of
    with progress_bar(total=k, desc="coreset", enabled=progress) as bar:
        while len(picked) < k:
            picked += _greedy_among_top(bounds, points, norms, k - len(picked), pool)
            bar.update(len(picked) - bar.n)
            if len(picked) < k:
                _refresh(bounds, points, norms, picked[fresh:])
                fresh = len(picked)
    return torch.tensor(picked, device=points.device)


def _squared_distances(points: Tensor, norms: Tensor, centers: Tensor, center_norms: Tensor) -> Tensor:
    """(n, c) squared distances by one matrix product."""
    return torch.mm(points, centers.T).mul_(-2).add_(norms[:, None]).add_(center_norms).clamp_(min=0)


def _rows(points: Tensor, width: int) -> int:
    """Of how many points a block may hold `width` numbers each, beside a bank that fills the memory: a tenth of it."""
    share = max(MIN_BLOCK_BYTES, min(MAX_BLOCK_BYTES, points.numel() * points.element_size() // 10))
    return max(1, share // max(1, width * points.element_size()))


def _refresh(bounds: Tensor, points: Tensor, norms: Tensor, centers: list[int]) -> None:
    """Lower the bounds to the squared distances to `centers`, for all points, in blocks."""
    at = torch.tensor(centers, device=points.device)
    for some in at.split(CENTERS):                   # their coordinates are copied, and all of them may be half the bank
        chosen, half_norms = points[some], norms[some] / 2
        rows = _rows(points, len(some))
        room = points.new_empty(min(rows, len(points)) * len(some))
        for begin in range(0, len(points), rows):
            part = slice(begin, begin + rows)
            block = points[part]
            out = room[:len(block) * len(some)].view(len(block), len(some))
            # max_c x.c - |c|^2 / 2 decides; what is the same for the whole row is added to its one winner.
            closest = torch.addmm(half_norms, block, chosen.T, beta=-1, out=out).amax(1)
            torch.minimum(bounds[part], (norms[part] - 2 * closest).clamp_(min=0), out=bounds[part])
    bounds[at] = PICKED


def _greedy_among_top(bounds: Tensor, points: Tensor, norms: Tensor, wanted: int, pool: int | None) -> list[int]:
    """Picks from the points with the largest bounds, until one outside might be farther.

    The first pick is always good: it is the largest bound, and the caller has just made the bounds exact.
    """
    triton = use_triton(points, "kcenter")
    size = min((POOL if triton else CPU_POOL) if pool is None else pool, len(bounds))
    top = bounds.topk(min(size + 1, len(bounds)))
    inside = top.indices[:size]                                          # (M,)
    outside = float(top.values[size]) if len(bounds) > size else 0.0     # the (M+1)-th bound
    distance, near, near_norms = top.values[:size].clone(), points[inside], norms[inside]
    if triton:
        from adcore.kernels.triton import kcenter as fused
        if fused.takes(near, distance):
            return inside[_picked_ahead(near, distance, max(outside, 0.0), wanted)].tolist()
    # All distances within the pool at once: a product for each pick would be many small ones, and wake threads for each.
    between = _squared_distances(near, near_norms, near, near_norms)    # (M, M)
    picks: list[int] = []
    while len(picks) < wanted:
        best = int(distance.argmax())
        if float(distance[best]) < max(outside, 0.0):  # also when the whole pool is picked
            break
        picks.append(best)
        torch.minimum(distance, between[best], out=distance)
        distance[best] = PICKED
    return inside[picks].tolist()


def _picked_ahead(near: Tensor, distance: Tensor, outside: float, wanted: int) -> Tensor:
    """The picks of `_greedy_among_top` as positions in the pool, (picks,) long."""
    from adcore.kernels.triton.kcenter import steps
    wanted = min(wanted, len(near))
    picks = torch.empty(wanted, dtype=torch.long, device=near.device)
    values = torch.empty(wanted, dtype=torch.float32, device=near.device)
    begin, ahead = 0, AHEAD
    while begin < wanted:
        end = min(begin + ahead, wanted)
        steps(near, distance, picks, values, begin, end, PICKED)
        good = int((values[begin:end] >= outside).long().cumprod(0).sum())
        if begin + good < end:
            return picks[:begin + good]
        begin, ahead = end, 2 * ahead
    return picks
