"""Attention cropping: from where a network looks to the part of the image that it looks at again (Algorithm 1 of atacnet).

    attention (B, h, w) -> share of its maximum -> upsampled -> above the threshold -> box (B, 4) -> crop -> resized

    paper     code         meaning
    C_attn    attention    channel-wise mean of the attention block, or any other map
    omega     threshold    share of the maximum from which a pixel counts
    x_c       crops        the box, brought back to the size of the image
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

READINGS = ("relative", "as_printed")


@torch.no_grad()
def attention_boxes(attention: Tensor, size: tuple[int, int], threshold: float = 0.5, reading: str = "relative",
                    smallest: int = 32) -> Tensor:
    """The box around all pixels where attention passes the threshold (Algorithm 1, lines 1 to 6).

    attention  (B, h, w), any scale
    size       (H, W) of the image
    reading    line 1 sets the threshold to omega * max(C), line 2 divides the map by max(C). 'relative' compares in one
               scale, omega with the divided map. 'as_printed' compares omega * max(C) with the divided map
    smallest   sides in pixels that a box has at least; a smaller one grows around its middle

    Where the map is nowhere positive or not finite, or nothing passes, the box is the whole image.

    Returns (B, 4) int64: top, left, bottom, right; the last two are outside.
    """
    top = attention.flatten(1).amax(1)[:, None, None]
    shares = F.interpolate((attention / top)[:, None], size, mode="bilinear", align_corners=False)[:, 0]   # (B, H, W)
    least = threshold * top if reading == "as_printed" else torch.full_like(top, threshold)
    inside = (shares >= least) & (top > 0) & torch.isfinite(top)                                            # (B, H, W)
    inside |= ~inside.flatten(1).any(1)[:, None, None]
    sides = [_span(inside.any(dim=axis), smallest) for axis in (2, 1)]                                      # rows, columns
    return torch.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], dim=1)


def _span(inside: Tensor, smallest: int) -> tuple[Tensor, Tensor]:
    """First and behind last True of each row, at least `smallest` apart: (B, n) -> (B,), (B,)."""
    n = inside.shape[1]
    first, last = inside.int().argmax(1), n - inside.flip(1).int().argmax(1)
    missing = (min(smallest, n) - (last - first)).clamp(min=0)
    first = (first - missing // 2).clamp(min=0)
    last = torch.maximum(last, first + min(smallest, n)).clamp(max=n)
    return torch.minimum(first, (last - min(smallest, n)).clamp(min=0)), last


def crop(images: Tensor, boxes: Tensor) -> Tensor:
    """Each image's box, bilinearly back to the image's size (line 7): (B, C, H, W), (B, 4) -> (B, C, H, W)."""
    size = images.shape[-2:]
    cut = [image[None, :, t:b, left:r] for image, (t, left, b, r) in zip(images, boxes.tolist(), strict=True)]
    return torch.cat([part if part.shape[-2:] == size else F.interpolate(part, size, mode="bilinear", align_corners=False)
                      for part in cut])


def paste(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps of crops back where they were cut, zero around them: (B, h, w), (B, 4) -> (B, H, W)."""
    whole = maps.new_zeros(len(maps), *size)
    for target, small, (t, left, b, r) in zip(whole, maps, boxes.tolist(), strict=True):
        target[t:b, left:r] = F.interpolate(small[None, None], (b - t, r - left), mode="bilinear", align_corners=False)[0, 0]
    return whole
