"""Dropout whose random numbers cost little on a CPU.

torch draws one Bernoulli number an element on a CPU, which takes longer there than the product it is applied to. Sixteen
random bits an element are enough: four elements share one 64-bit draw, and p is kept to 1/65536.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 1 << 16


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each element with probability `p` and scale the rest by 1 / (1 - p); any shape, the same one back.

    On a GPU this is torch's own. On a CPU p is rounded to a multiple of 1/65536, and the scale is that of the rounded p,
    so that the expectation is exactly x. Repeatable under torch.manual_seed.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or p >= 1:
        return F.dropout(x, p, training)
    return x * keep_mask(x, p)


def keep_mask(like: Tensor, p: float) -> Tensor:
    """A mask to multiply with: 0 where dropped, 1 / (1 - p) elsewhere; shape and type of `like`."""
    threshold = round(p * LEVELS)
    bits = torch.empty((like.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    kept = bits[: like.numel()].view(like.shape) >= threshold - LEVELS // 2
    return kept.to(like.dtype).mul_(LEVELS / (LEVELS - threshold))


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
