"""Moments of an image's colours, and an affine map of colours: what colour transport does to every pixel.

    mean = 1/N sum_p x(p),   covariance = 1/N sum_p (x(p) - mean) (x(p) - mean)^T          over the N pixels p that count
    y(p) = A (x(p) - centre) + goal

Images are (B, 3, H, W): floating colours, or uint8 whose 0..255 stand for [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.kernels.choice import use_triton


def moments(images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (B, 3), covariance (B, 3, 3) and number of pixels (B,) of each image's colours, in one pass over the pixels.

    images  (B, 3, H, W) with at least a pixel; half precision and uint8 are summed in float32, or better
    mask    (B, H, W) bool: only pixels where it is True count, whatever the others hold; at least one an image

    Mean and covariance are float32, or float64 of float64 (and, on a GPU, of uint8); the number is float64. Differentiable in
    the images.
    """
    if use_triton(images, "color"):
        from adcore.kernels.triton import color
        if color.takes(images):
            if images.dtype != torch.uint8:
                return color.moments(images, mask, _one_colour(images, mask))
            if mask is None:
                return color.moments_uint8(images)
    # Sums of squares lose all digits when the spread is small beside the mean. So each image is shifted by one of its own
    # pixels first, which costs no second pass and makes the moments of a single colour exact.
    pixels = _wide(images).flatten(2)                                           # (B, 3, N)
    shift = _one_colour(pixels, mask)[..., None]                                # (B, 3, 1)
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


def affine(images: Tensor, A: Tensor, centre: Tensor, goal: Tensor) -> Tensor:
    """A (x - centre) + goal of every pixel: (B, 3, H, W) -> (B, 3, H, W) of the same dtype.

    A (B, 3, 3), centre and goal (B, 3). uint8 is rounded to the nearest and cut to 0..255, and has no gradient; other images
    are not cut, and all four have one.
    """
    if use_triton(images, "color"):
        from adcore.kernels.triton import color
        if color.takes(images):
            return (color.affine_uint8 if images.dtype == torch.uint8 else color.affine)(images, A, centre, goal)
    pixels = _wide(images).flatten(2)                                           # (B, 3, N)
    centred = pixels - centre.to(pixels.dtype)[..., None]                       # first: A may be large, and would round
    moved = torch.baddbmm(goal[..., None].to(pixels.dtype), A.to(pixels.dtype), centred).reshape(images.shape)
    return (moved.clamp(0, 1) * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else moved.to(images.dtype)


def _one_colour(images: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 3) a colour of each image, that of the first pixel which counts; no gradient."""
    if mask is None:
        return images.detach().flatten(2)[:, :, 0]
    first = mask.flatten(1).byte().argmax(1)[:, None, None].expand(-1, 3, 1)
    return images.detach().flatten(2).gather(2, first)[..., 0]


def _wide(images: Tensor) -> Tensor:
    """Sums of 65,000 half precision numbers need more than half precision."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
