"""Attention-based cropping: crop an image to the region that its attention marks (Algorithm 1 of ATAC-Net's supplement).

    attention (B, h, w) -> divided by its maximum -> upsampled -> threshold -> box (B, 4) -> crop, resized (B, C, H, W)

    paper     code         shape          meaning
    C_attn    attention    (B, h, w)      channel-wise mean of the attention block's output, or any other map
    omega     threshold    scalar         fraction of the maximum that a pixel must reach; the paper does not print it
    omega_c   omega_c      (B, 1, 1)      the threshold that the upsampled map is compared with
    iH, iW    size         (2,)           height and width of the image
    C_mask    mask         (B, H, W)      pixels that reach the threshold
    x         images       (B, C, H, W)   images to crop
    x_c       crop         (B, C, H, W)   the content of the box, resized to the size of the image
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

READINGS = ("relative", "as_printed")


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of maps to the size of the image: (B, h, w) -> (B, H, W)."""
    return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]


@torch.no_grad()
def attention_boxes(attention: Tensor, size: tuple[int, int], threshold: float = 0.5, reading: str = "relative",
                    smallest: int = 32) -> Tensor:
    """The smallest box around all pixels whose attention reaches the threshold (Algorithm 1, lines 1 to 6).

    attention  (B, h, w), any scale
    size       (H, W) of the image
    reading    Line 1 sets the threshold to omega * max(C), line 2 divides the map by max(C). 'relative' compares omega with
               the divided map, so that both have one scale. 'as_printed' compares omega * max(C) with the divided map
    smallest   least length of a side in pixels; a shorter side grows on both ends

    The box is the whole image where the attention is nowhere positive or not finite, and where no pixel reaches the threshold.

    Returns (B, 4) int64: top, left, bottom, right; bottom and right are exclusive.
    """
    maximum = attention.flatten(1).amax(1)[:, None, None]                                                # (B, 1, 1)
    omega_c = threshold * maximum if reading == "as_printed" else torch.full_like(maximum, threshold)    # line 1
    normalized = attention / maximum                                                                     # line 2
    mask = (upsample(normalized, size) >= omega_c) & (maximum > 0) & torch.isfinite(maximum)             # lines 3 and 4
    mask |= ~mask.flatten(1).any(1)[:, None, None]
    top, bottom = _span(mask.any(dim=2), smallest)                                                       # lines 5 and 6
    left, right = _span(mask.any(dim=1), smallest)
    return torch.stack([top, left, bottom, right], dim=1)


def _span(mask: Tensor, smallest: int) -> tuple[Tensor, Tensor]:
    """Start and end (exclusive) of the True values in each row, at least `smallest` apart: (B, n) -> (B,), (B,)."""
    n = mask.shape[1]
    first, last = mask.int().argmax(1), n - mask.flip(1).int().argmax(1)
    missing = (min(smallest, n) - (last - first)).clamp(min=0)
    first = (first - missing // 2).clamp(min=0)
    last = torch.maximum(last, first + min(smallest, n)).clamp(max=n)
    return torch.minimum(first, (last - min(smallest, n)).clamp(min=0)), last


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Cut out each image's box and resize it to the image's size (Algorithm 1, line 7): (B, C, H, W), (B, 4) -> (B, C, H, W).

    The paper does not mention the resizing. Bilinear; a box that is the whole image is left as it is.
    """
    size = images.shape[-2:]
    cut = [image[None, :, t:b, left:r] for image, (t, left, b, r) in zip(images, boxes.tolist(), strict=True)]
    return torch.cat([part if part.shape[-2:] == size else F.interpolate(part, size, mode="bilinear", align_corners=False)
                      for part in cut])


def paste(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Put the maps of crops back into their boxes, zero outside: (B, h, w), (B, 4) -> (B, H, W)."""
    whole = maps.new_zeros(len(maps), *size)
    for target, small, (t, left, b, r) in zip(whole, maps, boxes.tolist(), strict=True):
        target[t:b, left:r] = upsample(small[None], (b - t, r - left))[0]
    return whole
