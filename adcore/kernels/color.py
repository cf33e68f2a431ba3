"""Moments of an image's colors, and an affine map of its colors: the two passes over the pixels in color transport.

    mean = 1/N sum_p x(p),   covariance = 1/N sum_p (x(p) - mean) (x(p) - mean)^T          over the N pixels p that count
    y(p) = A (x(p) - center) + goal

Images are (B, 3, H, W): floating-point colors, or uint8 where 0..255 stands for [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.kernels.choice import use_plain, use_triton
from adcore.kernels.cpu import color as fast


def plain_moments(images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """`moments` in plain torch, which is also the default for floating-point images.

    Sums of squares lose all digits when the spread is small beside the mean. So one of the image's own pixels is subtracted
    first: this needs no second pass, and the moments of an image of one color are exact.

    >>> plain_moments(torch.tensor([0.0, 1.0]).expand(1, 3, 1, 2))[1][0, 0]
    tensor([0.2500, 0.2500, 0.2500])
    """
    pixels = _wide(images).flatten(2)                                           # (B, 3, N)
    shift = _one_color(pixels, mask)[..., None]                                 # (B, 3, 1)
    off = pixels - shift
    if mask is None:
        number = torch.full((len(images),), pixels.shape[2], dtype=torch.float64, device=images.device)
    else:
        inside = mask.flatten(1)                                                # (B, N)
        off = torch.where(inside[:, None], off, 0.0)
        number = inside.sum(1).double()
    count = number.to(pixels.dtype)[:, None]
    mean = off.sum(2) / count
    # Row by row, because sum() adds in pairs: for 512 x 512 pixels a matrix product loses three digits more, with TF32 all but
    # three.
    squares = torch.stack([(off * off[:, channel:channel + 1]).sum(2) for channel in range(3)], dim=1)
    covariance = squares / count[..., None] - mean[:, :, None] * mean[:, None, :]
    return shift[..., 0] + mean, covariance, number


def plain_affine(images: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
    """`affine` in plain torch, which is also the default for floating-point images.

    >>> black = torch.zeros(1, 3, 1, 1)
    >>> plain_affine(black, torch.eye(3)[None], torch.full((1, 3), 0.5), torch.full((1, 3), 0.75)).flatten()
    tensor([0.2500, 0.2500, 0.2500])
    """
    pixels = _wide(images).flatten(2)                                           # (B, 3, N)
    centered = pixels - center.to(pixels.dtype)[..., None]                      # first, since a large A would amplify rounding
    moved = torch.baddbmm(goal[..., None].to(pixels.dtype), A.to(pixels.dtype), centered).reshape(images.shape)
    return (moved.clamp(0, 1) * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else moved.to(images.dtype)


def moments(images: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (B, 3), covariance (B, 3, 3) and number of pixels (B,) of each image's colors, in one pass over the pixels.

    images  (B, 3, H, W) with at least one pixel; half precision and uint8 are summed in float32 or better
    mask    (B, H, W) bool: only pixels where it is True count, and the others may have any value; at least one per image

    Mean and covariance are float64 for float64 images and for uint8 images without a mask, whose sums are exact; otherwise
    float32. The number is float64. Differentiable with respect to the images.

    >>> mean, covariance, number = moments(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 1, 2))
    >>> mean[0].tolist(), covariance[0, 0, 0].item(), number.item()
    ([0.5, 0.5, 0.5], 0.25, 2.0)
    """
    if not use_plain():
        if use_triton(images, "color"):
            from adcore.kernels.triton import color as fused
            if fused.takes(images):
                if images.dtype != torch.uint8:
                    return fused.moments(images, mask, _one_color(images, mask))
                if mask is None:
                    return fused.moments_uint8(images)
        if fast.takes(images) and mask is None:
            return fast.moments(images)
    return plain_moments(images, mask)


def affine(images: Tensor, A: Tensor, center: Tensor, goal: Tensor) -> Tensor:
    """A (x - center) + goal for every pixel: (B, 3, H, W) -> (B, 3, H, W) of the same dtype.

    A (B, 3, 3), center and goal (B, 3). uint8 images are rounded to the nearest value and clipped to 0..255, and have no
    gradient. Other images are not clipped, and all four arguments have a gradient.

    >>> white = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    >>> affine(white, 0.5 * torch.eye(3)[None], torch.zeros(1, 3), torch.zeros(1, 3)).flatten()
    tensor([128, 128, 128], dtype=torch.uint8)
    """
    if not use_plain():
        if use_triton(images, "color"):
            from adcore.kernels.triton import color as fused
            if fused.takes(images):
                return (fused.affine_uint8 if images.dtype == torch.uint8 else fused.affine)(images, A, center, goal)
        if fast.takes(images):
            return fast.affine(images, A, center, goal)
    return plain_affine(images, A, center, goal)


def _one_color(images: Tensor, mask: Tensor | None) -> Tensor:
    """(B, 3) the color of each image's first pixel that counts; no gradient."""
    if mask is None:
        return images.detach().flatten(2)[:, :, 0]
    first = mask.flatten(1).byte().argmax(1)[:, None, None].expand(-1, 3, 1)
    return images.detach().flatten(2).gather(2, first)[..., 0]


def _wide(images: Tensor) -> Tensor:
    """Colors in at least float32: half precision is too coarse for sums over 65,000 pixels."""
    if images.dtype == torch.uint8:
        return images.float() / 255
    return images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
