"""Greedy k-center: pick, k times, the point that is farthest from all points picked so far (PatchCore, Sec. 3.2).

    S <- {start};  repeat: s* = argmax_i min_{s in S} |x_i - x_s|,  S <- S + {s*}
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels.choice import use_plain, use_triton
from adcore.kernels.cpu import kcenter as fast

POOL, TRITON_POOL = 512, 2048   # default size of the pool, in torch and in Triton


def plain_kcenter(points: Tensor, k: int, initial: Tensor | None = None) -> Tensor:
    """`kcenter` with one pass over all points per pick.

    >>> plain_kcenter(torch.tensor([[0.0], [1.0], [10.0], [4.0]]), 3)
    tensor([0, 2, 3])
    """
    distance = points.new_full((len(points),), torch.inf) if initial is None else initial.clone()           # (n,)
    picked: list[int] = []
    for _ in range(k):
        picked.append(int(distance.argmax()))                               # the first of equally far points
        distance = torch.minimum(distance, torch.cdist(points, points[picked[-1:]])[:, 0])
        distance[picked[-1]] = -torch.inf                                   # never picked again, even among duplicates
    return torch.tensor(picked, device=points.device)


def kcenter(points: Tensor, k: int, *, initial: Tensor | None = None, pool: int | None = None,
            progress: bool | None = None) -> Tensor:
    """Indices (k,) long of k points by greedy k-center, in the order in which they are picked.

    points   (n, d) float32 or float64
    initial  (n,) distances to start from: the first pick is their largest, and they are upper bounds of the points' distances
             from then on. None starts from the first point
    pool     number of points in the pool (see adcore/kernels/cpu/kcenter.py); changes the speed, and the picks only through
             ties and rounding. None: 512 in torch, 2048 in Triton

    >>> kcenter(torch.tensor([[0.0], [1.0], [10.0], [4.0]]), 3)
    tensor([0, 2, 3])
    >>> kcenter(torch.tensor([[0.0], [1.0], [10.0], [4.0]]), 2, initial=torch.tensor([2.0, 3.0, 0.1, 9.0]))
    tensor([3, 1])

    Raises:
        ParameterError: k is not between 1 and n, or `initial` does not have one distance per point.
    """
    n = len(points)
    if not 1 <= k <= n:
        raise ParameterError(f"k={k} centers out of {n} points: k must be between 1 and {n}")
    if initial is not None and initial.shape != (n,):
        raise ParameterError(f"initial distances {tuple(initial.shape)} are not one for each of {n} points")
    if use_plain():
        return plain_kcenter(points, k, initial)
    pick, size = fast.pick_in_pool, POOL
    if use_triton(points, "kcenter"):
        from adcore.kernels.triton import kcenter as fused
        if fused.takes(points, initial):
            pick, size = fused.pick_in_pool, TRITON_POOL
    return fast.kcenter(points, k, initial, size if pool is None else pool, pick, progress)
