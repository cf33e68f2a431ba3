"""Color operations and blur on a batch, each image with a strength of its own.

Images are (B, 3, H, W) in [0, 1] and stay there, strengths (B,) on the same device. The operations are torchvision's on
tensors, which take one strength for all; blurring is a Gaussian's whose deviation is what Pillow calls its radius.
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
    """0 is black, 1 the image."""
    return _blend(images, torch.zeros_like(images), factor)


def contrast(images: Tensor, factor: Tensor, where: Tensor | None = None) -> Tensor:
    """0 is the mean of the image's gray everywhere, 1 the image.

    where  (B, 1, H, W) bool, the pixels whose mean it is; None takes all
    """
    if where is None:
        return _blend(images, grayscale(images).mean((2, 3), keepdim=True), factor)
    share = where / where.sum((2, 3), keepdim=True).to(images)
    return _blend(images, (grayscale(images) * share).sum((2, 3), keepdim=True), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """0 is the image's gray, 1 the image."""
    return _blend(images, grayscale(images), factor)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Hues moved along their circle, of which `turn` is a share: 0 and 1 are the image, 1/3 makes red green."""
    value, least = images.amax(1), images.amin(1)
    chroma = value - least
    red, green, blue = images.unbind(1)
    span = torch.where(chroma > 0, chroma, 1.0)
    # In sixths of the circle, from the largest color's own place. Where all three are equal any hue will do.
    sixths = torch.where(red == value, (green - blue) / span,
                         torch.where(green == value, 2 + (blue - red) / span, 4 + (red - green) / span))
    sixths = sixths + 6 * turn[:, None, None]
    # A color is at its least opposite of its own place and rises from there within a sixth of the circle.
    places = images.new_tensor([5.0, 3.0, 1.0])[:, None, None]
    k = (sixths[:, None] + places) % 6                                                     # (B, 3, H, W)
    return (value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)).clamp(0, 1)


def color_jitter(images: Tensor, order: Tensor, strength: Tensor, where: Tensor | None = None) -> Tensor:
    """Brightness, contrast, saturation and hue changed one after the other, as torchvision's ColorJitter does.

    order     (B, 4) the changes 0 to 3 in the order in which an image takes them
    strength  (4, B) of each change: three factors and a turn
    where     see `contrast`
    """
    images = images.clone()
    for turn in order.T:
        for step, change in enumerate((brightness, contrast, saturation, hue)):
            mine = (turn == step).nonzero()[:, 0]
            here, by = mine.to(images.device), strength[step, mine].to(images)
            masked = change is contrast and where is not None
            images[here] = contrast(images[here], by, where[here]) if masked else change(images[here], by)   # type: ignore[index]
    return images


def solarize(images: Tensor, threshold: float = 128 / 255) -> Tensor:
    """What is as bright as the threshold or brighter is inverted, color by color."""
    return torch.where(images >= threshold, 1 - images, images)


def gaussian_blur(images: Tensor, sigma: Tensor, reach: float = 4.0) -> Tensor:
    """Each image blurred by a Gaussian of its own: (B, C, H, W), (B,) in pixels -> (B, C, H, W).

    Beyond the border the border's own pixels go on, as in Pillow, so that images may be smaller than the window. All share
    the widest image's window.

    reach  where the window ends, in deviations
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
    share = factor[:, None, None, None]
    return (share * images + (1 - share) * other).clamp(0, 1)
