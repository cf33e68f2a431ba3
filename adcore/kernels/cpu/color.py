"""Moments and affine maps of uint8 images on a CPU, in blocks of pixels.

The blocks reuse the same memory: large enough for the threads of each operation, and small enough for the cache. Products are
written out, because a matrix product of three rows is slower.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128 * 1024  # pixels
SUMMED = 1024       # pixels whose sums are exact in float32, in any order: products are at most 2^14, and 2^10 2^14 = 2^24


def takes(images: Tensor) -> bool:
    """Whether these functions support the images: uint8 on a CPU."""
    return images.dtype == torch.uint8 and images.device.type == "cpu"


def moments(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the public function without a mask: sums of the whole numbers x - 128, without rounding."""
    pixels = images.flatten(2)                                                  # (B, 3, N)
    batch, _, n = pixels.shape
    if n % SUMMED:
        pixels = F.pad(pixels, (0, -n % SUMMED), value=128)                     # these pixels add zero
    runs = pixels.view(batch, 3, -1, SUMMED).transpose(1, 2)                    # (B, runs, 3, SUMMED)
    sums, products = torch.empty(batch, runs.shape[1], 3), torch.empty(batch, runs.shape[1], 3, 3)          # of each run
    step = min(BLOCK // SUMMED, runs.shape[1])
    block, by = torch.empty(2, step, 3, SUMMED)
    for image in range(batch):
        for begin in range(0, runs.shape[1], step):
            part = slice(begin, begin + step)
            x = block[:len(runs[image, part])].copy_(runs[image, part]).sub_(128)
            sums[image, part] = x.sum(2)
            for channel in range(3):
                products[image, part, channel] = torch.mul(x, x[:, channel:channel + 1], out=by[:len(x)]).sum(2)
    mean = sums.sum(1, dtype=torch.float64) / n
    square = products.sum(1, dtype=torch.float64) / n
    covariance = square - mean[:, :, None] * mean[:, None, :]
    return (mean + 128) / 255, covariance / 255**2, torch.full((batch,), n, dtype=torch.float64)


@torch.no_grad()
def affine(images: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
    """As the public function, in units of 1/255 and relative to the whole number nearest to the center."""
    pixels, A, center, goal = images.flatten(2), A.double(), center.double(), goal.double()
    whole = (255 * center).round()                                              # (B, 3)
    start = 255 * goal[..., None] - A @ (255 * center - whole)[..., None]       # (B, 3, 1)
    start = start + 0.5                                     # conversion to uint8 rounds down, so this rounds to the nearest
    whole, start, A = whole[..., None].float(), start.float(), A.float()
    moved = torch.empty(pixels.shape, dtype=torch.uint8)
    block, other = torch.empty(2, 3 * min(BLOCK, pixels.shape[2]))
    for image, result in zip(range(len(pixels)), moved, strict=True):
        for some, to in zip(pixels[image].split(BLOCK, dim=1), result.split(BLOCK, dim=1), strict=True):
            off, new = (room[:some.numel()].view(some.shape) for room in (block, other))                    # (3, at most BLOCK)
            torch.addcmul(start[image], A[image, :, :1], off.copy_(some).sub_(whole[image])[0], out=new)
            for channel in (1, 2):
                new.addcmul_(A[image, :, channel:channel + 1], off[channel])
            to.copy_(new.clamp_(0, 255.5))
    return moved.view(images.shape)
