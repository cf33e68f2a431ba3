"""Dropout whose random numbers cost little on a CPU.

torch draws one Bernoulli number an element on a CPU, which takes longer there than the product it is applied to. Sixteen
random bits an element are enough: four elements share one 64-bit draw, and p is kept to 1/65536. They become factors of 0 and 1
a block at a time, while the block is in the cache, and are drawn again in the backward pass rather than kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16
BLOCK = 1 << 18     # elements that stay in a CPU's cache from one operation to the next


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zero each element with probability `p` and scale the rest by 1 / (1 - p); any shape, the same one back.

    On a GPU this is torch's own. On a CPU p is rounded to a multiple of 1/65536, and the scale is that of the rounded p,
    so that the expectation is exactly x. Repeatable under torch.manual_seed, and differentiable once.

    Raises:
        ValueError: p is not a probability.
    """
    if not training or p == 0:
        return x
    if not by_bits(x, p):
        return F.dropout(x, p, training)
    return _Dropout.apply(x, p)


def relu_dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """`dropout(relu(x), p)`, of which the backward pass needs nothing but the result."""
    if not training or p == 0 or not by_bits(x, p):
        return F.dropout(F.relu(x), p, training)
    return _ReluDropout.apply(x, p)


def by_bits(x: Tensor, p: float) -> bool:
    """Whether `x` is dropped by `Bits`. A compiler fuses torch's own dropout, and cannot look into ours."""
    return x.device.type == "cpu" and 0 <= p < 1 and not torch.compiler.is_compiling()


class Bits:
    """Random bits, a block after another; the same ones again from the same seed. By numpy, in half of torch's time."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = int(torch.randint(2**62, ())) if seed is None else seed     # by default of torch's random state
        self.generator = np.random.Generator(np.random.SFC64(self.seed))

    def next(self, count: int) -> Tensor:
        """(count,) int16, uniform over all its values."""
        words = self.generator.integers(0, 2**64 - 1, (count + 3) // 4, np.uint64, endpoint=True)
        return torch.from_numpy(words.view(np.int16)[:count])


def levels(p: float) -> tuple[int, float]:
    """From which bits on an element is kept, and the scale of what is kept."""
    dropped = min(round(p * LEVELS), LEVELS - 1)
    return dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


def _masked(x: Tensor, bits: Bits, p: float) -> Tensor:
    """`x` where the bits keep it, scaled; else 0."""
    lowest, scale = levels(p)
    x = x.contiguous()
    out = torch.empty_like(x)
    kept = x.new_empty(min(BLOCK, x.numel()))
    for given, block in _blocks(x, out):
        factors = torch.ge(bits.next(len(given)), lowest, out=kept[:len(given)])
        torch.mul(given, factors, out=block).mul_(scale)
    return out


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(x.view(-1).split(BLOCK) for x in tensors), strict=True)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        bits = Bits()
        ctx.seed, ctx.p = bits.seed, p
        return _masked(x, bits, p)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _masked(gradient, Bits(ctx.seed), ctx.p), None


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        out = _masked(x, Bits(), p).clamp_min_(0)
        ctx.save_for_backward(out)
        ctx.scale = levels(p)[1]
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (out,) = ctx.saved_tensors
        gradient = gradient.contiguous()
        found = torch.empty_like(gradient)
        passes = gradient.new_empty(min(BLOCK, gradient.numel()))
        for result, given, block in _blocks(out, gradient, found):
            factors = torch.gt(result, 0, out=passes[:len(block)])      # above zero is what relu and dropout let through
            torch.mul(given, factors, out=block).mul_(ctx.scale)
        return found, None


class Dropout(nn.Module):
    """`dropout` as a module."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
