"""Color operations and blur on a batch, each image with its own strength.

Images are (B, 3, H, W) in [0, 1] and stay there; strengths are (B,) on the same device. The operations are those of torchvision
on tensors, which takes one strength for all images. The blur is a Gaussian whose standard deviation Pillow calls the radius.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)


def grayscale(images: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, 1, H, W)."""
    return (images * images.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 gives black, 1 the image."""
    return _blend(images, torch.zeros_like(images), factor)


def contrast(images: Tensor, factor: Tensor, where: Tensor | None = None) -> Tensor:
    """Factor 0 gives the image's mean gray everywhere, 1 the image.

    where  (B, 1, H, W) bool, the pixels over which the mean is taken; None takes all
    """
    if where is None:
        return _blend(images, grayscale(images).mean((2, 3), keepdim=True), factor)
    weight = where / where.sum((2, 3), keepdim=True).to(images)
    return _blend(images, (grayscale(images) * weight).sum((2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Factor 0 gives the gray image, 1 the image."""
    return _blend(images, grayscale(images), factor)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Hues shifted along the color circle. `shift` is a fraction of it: 0 and 1 give the image, 1/3 turns red into green."""
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    red, green, blue = images.unbind(1)
    span = torch.where(chroma > 0, chroma, 1.0)
    # In sixths of the circle, counted from the largest color. Where all three are equal any hue will do.
    sixths = torch.where(red == value, (green - blue) / span,
                         torch.where(green == value, 2 + (blue - red) / span, 4 + (red - green) / span))
    sixths = sixths + 6 * shift[:, None, None]
    # A color is smallest opposite its own place on the circle, and within a sixth of the circle it rises from there.
    places = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (sixths[:, None] + places) % 6                                                     # (B, 3, H, W)
    return (value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)


def color_jitter(images: Tensor, order: Tensor, strength: Tensor, where: Tensor | None = None) -> Tensor:
    """Brightness, contrast, saturation and hue changed one after the other, as torchvision's ColorJitter does.

    order     (B, 4), the order in which each image gets the changes 0 to 3
    strength  (4, B), the strength of each change: three factors and a shift
    where     see `contrast`
    """
    images = images.clone()
    for position in order.T:
        for number, change in enumerate((brightness, contrast, saturation, hue)):
            mine = (position == number).nonzero()[:, 0]
            here, by = mine.to(images.device), strength[number, mine].to(images)
            masked = change is contrast and where is not None
            images[here] = contrast(images[here], by, where[here]) if masked else change(images[here], by)   # type: ignore[index]
    return images


def solarize(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    """Invert every color value that reaches the threshold."""
    return torch.where(images >= threshold, 1 - images, images)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: float = 4.0) -> Tensor:
    """Each image blurred with its own standard deviation: (B, C, H, W), (B,) in pixels -> (B, C, H, W).

    Border pixels are repeated outside the image, as in Pillow, so images may be smaller than the window. All images use the
    window of the largest deviation.

    reach  where the window ends, in standard deviations
    """
    b, c, h, w = images.shape
    if b == 0:
        return images
    half = max(1, math.ceil(reach * float(sigma.max())))
    offset = torch.arange(-half, half + 1, device=images.device, dtype=images.dtype)
    window = (-0.5 * (offset / sigma[:, None].to(images)) ** 2).exp()
    window = (window / window.sum(1, keepdim=True)).repeat_interleave(c, 0)                # (B * C, 2 * half + 1)
    padded = F.pad(images, [half] * 4, mode="replicate").reshape(1, b * c, h + 2 * half, w + 2 * half)
    rows = F.conv2d(padded, window[:, None, None, :], groups=b * c)
    return F.conv2d(rows, window[:, None, :, None], groups=b * c).reshape(b, c, h, w)


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    weight = factor[:, None, None, None]
    return (weight * images + (1 - weight) * other).clamp(0, 1)
