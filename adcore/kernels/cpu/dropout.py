"""Dropout on a CPU, forward and backward, with random numbers that cost little.

On a CPU torch draws one Bernoulli number per element, which takes longer than the product that dropout is applied to. Sixteen
random bits per element are enough: four elements share one 64-bit draw, and p is rounded to a multiple of 1/65536. The bits
become factors 0 and 1 one block at a time, while the block is in the cache. The backward pass draws them again from the same
seed, so they are not stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEVELS = 1 << 16
BLOCK = 1 << 18     # elements that fit a CPU's cache


def takes(x: Tensor, p: float) -> bool:
    """Whether this dropout supports `x`: on a CPU, p in [0, 1), and not under torch.compile, which fuses torch's own."""
    return x.device.type == "cpu" and 0 <= p < 1 and not torch.compiler.is_compiling()


def dropout(x: Tensor, p: float) -> Tensor:
    """As the public function in training, for inputs that `takes` accepts."""
    return _Dropout.apply(x, p)


def relu_dropout(x: Tensor, p: float) -> Tensor:
    """As the public function in training, for inputs that `takes` accepts."""
    return _ReluDropout.apply(x, p)


class Bits:
    """Random bits, block after block; the same seed gives the same bits. numpy needs half of torch's time for them."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = int(torch.randint(2**62, ())) if seed is None else seed     # a new seed depends on torch.manual_seed
        self.generator = np.random.Generator(np.random.SFC64(self.seed))

    def next(self, count: int) -> Tensor:
        """(count,) int16, uniform over all 2^16 values."""
        words = self.generator.integers(0, 2**64 - 1, (count + 3) // 4, np.uint64, endpoint=True)
        return torch.from_numpy(words.view(np.int16)[:count])


def levels(p: float) -> tuple[int, float]:
    """The smallest int16 for which an element is kept, and the factor by which kept elements are scaled."""
    dropped = min(round(p * LEVELS), LEVELS - 1)
    return dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)


def _masked(x: Tensor, bits: Bits, p: float) -> Tensor:
    """`x` times the scale where the bits keep it, else 0."""
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
            factors = torch.gt(result, 0, out=passes[:len(block)])      # ReLU and dropout both let it through
            torch.mul(given, factors, out=block).mul_(ctx.scale)
        return found, None
