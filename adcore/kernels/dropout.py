"""Dropout: torch's own, but for CPUs, where adcore/kernels/cpu/dropout.py draws the random numbers in less time."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adcore.kernels.choice import use_plain
from adcore.kernels.cpu import dropout as fast


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p); any shape -> the same shape.

    On a CPU p is rounded to a multiple of 1/65536 and the scale is that of the rounded p, so the expectation is exactly x.
    Repeatable under torch.manual_seed, and differentiable once.

    >>> import torch
    >>> kept = dropout(torch.ones(10_000), 0.25)
    >>> torch.unique(kept).tolist() == [0, torch.tensor(4 / 3).item()], round(kept.mean().item(), 1)
    (True, 1.0)

    Raises:
        ValueError: p is not a probability.
    """
    if not training or p == 0:
        return x
    if use_plain() or not fast.takes(x, p):
        return F.dropout(x, p)
    return fast.dropout(x, p)


def relu_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`dropout(relu(x), p, training)`. Its backward pass needs the result and nothing else.

    >>> import torch
    >>> relu_dropout(torch.tensor([-1.0, 2.0]), 0.5, training=False)
    tensor([0., 2.])

    Raises:
        ValueError: p is not a probability.
    """
    if not training or p == 0 or use_plain() or not fast.takes(x, p):
        return F.dropout(F.relu(x), p, training)
    return fast.relu_dropout(x, p)


class Dropout(nn.Module):
    """`dropout` as a module.

    >>> import torch
    >>> Dropout(0.5).eval()(torch.ones(3))
    tensor([1., 1., 1.])
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
