"""Moments of an image's colors, and an affine map of colors: what color transport does to every pixel.

    mean = 1/N sum_p x(p),   covariance = 1/N sum_p (x(p) - mean) (x(p) - mean)^T          over the N pixels p that count
    y(p) = A (x(p) - center) + goal

Images are (B, 3, H, W): floating colors, or uint8 whose 0..255 stand for [0, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.kernels.choice import use_triton

# Bytes are worked on in blocks of so many pixels, in memory that is taken once: enough for the threads that torch wakes for
# each operation, and few enough to stay in the cache. A matrix product of three rows would be slower than products written out.
BLOCK = 128 * 1024
SUMMED = 1024  # whole numbers up to 2^7 in size, whose products add up exactly in float32, in any order: 2^10 2^14 = 2^24


def moments(images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (B, 3), covariance (B, 3, 3) and number of pixels (B,) of each image's colors, in one pass over the pixels.

    images  (B, 3, H, W) with at least a pixel; half precision and uint8 are summed in float32, or better
    mask    (B, H, W) bool: only pixels where it is True count, whatever the others hold; at least one an image

    Mean and covariance are float32, or float64 of float64 and, without a mask, of uint8, whose sums are exact; the number is
    float64. Differentiable in the images.
    """
    if use_triton(images, "color"):
        from adcore.kernels.triton import color
        if color.takes(images):
            if images.dtype != torch.uint8:
                return color.moments(images, mask, _one_color(images, mask))
            if mask is None:
                return color.moments_uint8(images)
    if images.dtype == torch.uint8 and mask is None and images.device.type == "cpu":
        return _moments_of_bytes(images.flatten(2))
    # Sums of squares lose all digits when the spread is small beside the mean. So each image is shifted by one of its own
    # pixels first, which costs no second pass and makes the moments of a single color exact.
    pixels = _wide(images).flatten(2)                                           # (B, 3, N)
    shift = _one_color(pixels, mask)[..., None]                                # (B, 3, 1)
    off = pixels - shift
    if mask is None:
        number = torch.full((len(images),), pixels.shape[2], dtype=torch.float64, device=images.device)
    else:
        inside = mask.flatten(1)                                                # (B, N)
        off = torch.where(inside[:, None], off, 0.0)
        number = inside.sum(1).double()
    count = number.to(pixels.dtype)[:, None]
    mean = off.sum(2) / count
    # Row by row, because sum() adds in pairs: on a photograph of 512 x 512 a matrix product loses three digits more, and with
    # TF32 all but three.
    squares = torch.stack([(off * off[:, channel:channel + 1]).sum(2) for channel in range(3)], dim=1)
    covariance = squares / count[..., None] - mean[:, :, None] * mean[:, None, :]
    return shift[..., 0] + mean, covariance, number


def affine(images: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
    """A (x - center) + goal of every pixel: (B, 3, H, W) -> (B, 3, H, W) of the same dtype.

    A (B, 3, 3), center and goal (B, 3). uint8 is rounded to the nearest and cut to 0..255, and has no gradient; other images
    are not cut, and all four have one.
    """
    if use_triton(images, "color"):
        from adcore.kernels.triton import color
        if color.takes(images):
            return (color.affine_uint8 if images.dtype == torch.uint8 else color.affine)(images, A, center, goal)
    if images.dtype == torch.uint8 and images.device.type == "cpu":
        return _affine_of_bytes(images.flatten(2), A.double(), center.double(), goal.double()).view(images.shape)
    pixels = _wide(images).flatten(2)                                           # (B, 3, N)
    centered = pixels - center.to(pixels.dtype)[..., None]                       # first: A may be large, and would round
    moved = torch.baddbmm(goal[..., None].to(pixels.dtype), A.to(pixels.dtype), centered).reshape(images.shape)
    return (moved.clamp(0, 1) * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else moved.to(images.dtype)


def _moments_of_bytes(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`moments` of (B, 3, N) uint8: whole numbers about 128, summed without rounding."""
    batch, _, n = pixels.shape
    if n % SUMMED:
        pixels = F.pad(pixels, (0, -n % SUMMED), value=128)                     # which adds nothing
    runs = pixels.view(batch, 3, -1, SUMMED).transpose(1, 2)                    # (B, runs, 3, SUMMED)
    sums, products = torch.empty(batch, runs.shape[1], 3), torch.empty(batch, runs.shape[1], 3, 3)           # of each run
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
def _affine_of_bytes(pixels: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
    """`affine` of (B, 3, N) uint8, all else float64: in steps of 8 bits, from the whole number next to the center."""
    whole = (255 * center).round()                                              # (B, 3)
    start = 255 * goal[..., None] - A @ (255 * center - whole)[..., None]       # (B, 3, 1)
    start = start + 0.5                           # a byte is cut off below, which rounds without a pass of its own
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
    return moved


def _one_color(images: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 3) a color of each image, that of the first pixel which counts; no gradient."""
    if mask is None:
        return images.detach().flatten(2)[:, :, 0]
    first = mask.flatten(1).byte().argmax(1)[:, None, None].expand(-1, 3, 1)
    return images.detach().flatten(2).gather(2, first)[..., 0]


def _wide(images: Tensor) -> Tensor:
    """Sums of 65,000 half precision numbers need more than half precision."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
