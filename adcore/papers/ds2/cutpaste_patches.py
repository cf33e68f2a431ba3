"""The three classes of CutPaste's proxy task, made from crops of normal images, a batch at once.

Li et al., "CutPaste: Self-supervised learning for anomaly detection and localization", CVPR 2021, Sec. 2.1-2.2, in the sizes of
the DS2 supplement (Sec. 3) for crops of 64 x 64 pixels; what it leaves out is that of the code to which it points.

    images (B, 3, H, W) -> colors jittered, sometimes -> one crop -> as it is | CutPaste | scar

    CutPaste  a rectangle of the crop, its colors jittered, put elsewhere in the crop
    scar      a thin one, which is turned first; only what it covers is replaced

Images are in [0, 1] and stay there: a network's own mean and deviation come after. Everything is drawn from torch's random
state on the CPU, so that a seed draws the same on any device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.errors import ParameterError
from adcore.papers.ds2 import photometric
from adcore.training import full_precision

AREA = (0.02, 0.15)
ASPECT = (0.3, 1 / 0.3)
SCAR_WIDTH, SCAR_HEIGHT = (1.0, 4.0), (5.0, 6.0)
ANGLE = 45.0
JITTER = 0.1  # of brightness, contrast, saturation and hue, of images and of what is pasted
SIDE = 64


class Rectangles(NamedTuple):
    """One rectangle an image, in pixels: (B,) int64 each."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def mask(self, h: int, w: int, device: torch.device) -> Tensor:
        """(B, 1, h, w) bool, True inside."""
        rows, columns = ((start[:, None] <= side) & (side < (start + length)[:, None]) for start, length, side in (
            (self.top, self.height, torch.arange(h)), (self.left, self.width, torch.arange(w))))
        return (rows.to(device)[:, :, None] & columns.to(device)[:, None])[:, None]


@full_precision
def three_ways(images: Tensor, side: int = SIDE, jitter: float = JITTER) -> Tensor:
    """A crop of each image as it is, with CutPaste and with a scar: (B, 3, H, W) -> (3, B, 3, side, side).

    Half of the images, as drawn, have their colors jittered before.

    Raises:
        ParameterError: images smaller than the crop, or a crop in which a scar has no room.
    """
    h, w = _size(images, side)
    chosen = (torch.rand(len(images)) < 0.5).nonzero()[:, 0].to(images.device)
    some = images[chosen]
    images = images.index_copy(0, chosen, recolored(some, torch.ones_like(some[:, :1], dtype=torch.bool), jitter))
    top, left = _places(len(images), h - side), _places(len(images), w - side)
    crops = _shifted(images, top, left)[..., :side, :side]
    return torch.stack([crops, cutpaste(crops, jitter=jitter), scarred(crops, jitter=jitter)])


def cutpaste(images: Tensor, area: tuple[float, float] = AREA, aspect: tuple[float, float] = ASPECT,
             jitter: float = JITTER) -> Tensor:
    """Each image with a rectangle of its own elsewhere: (B, 3, H, W) -> (B, 3, H, W).

    area    of the rectangle, a share of the image's, drawn evenly
    aspect  width by height, drawn evenly in the logarithm
    """
    h, w = _size(images)
    pixels = h * w * _even(len(images), *area)
    ratio = _even(len(images), math.log(aspect[0]), math.log(aspect[1])).exp()
    width, height = (square.sqrt().round().long().clamp(1, most) for square, most in ((pixels * ratio, w), (pixels / ratio, h)))
    cut, to = (Rectangles(_places(len(images), h - height), _places(len(images), w - width), height, width) for _ in range(2))
    patches = recolored(images, cut.mask(h, w, images.device), jitter)
    return torch.where(to.mask(h, w, images.device), _shifted(patches, cut.top - to.top, cut.left - to.left), images)


def scarred(images: Tensor, width: tuple[float, float] = SCAR_WIDTH, height: tuple[float, float] = SCAR_HEIGHT,
            angle: float = ANGLE, jitter: float = JITTER) -> Tensor:
    """Each image with a thin rectangle of its own, turned by up to `angle` degrees, elsewhere: (B, 3, H, W) -> (B, 3, H, W).

    width, height  in pixels, drawn evenly and rounded

    Raises:
        ParameterError: images in which a scar may have no room.
    """
    h, w = _size(images, math.ceil(math.hypot(width[1], height[1])))
    wide, high = (_even(len(images), *size).round().long() for size in (width, height))
    cut = Rectangles(_places(len(images), h - high), _places(len(images), w - wide), high, wide)
    turn = _even(len(images), -angle, angle) * math.pi / 180
    # The upright box about a turned rectangle: anywhere in the image, but not beyond it.
    cos, sin = turn.cos().abs(), turn.sin().abs()
    box_h, box_w = ((a * cos + b * sin).ceil().long() for a, b in ((high, wide), (wide, high)))
    middle = torch.stack([_places(len(images), most - box) + (box - 1) / 2 for most, box in ((h, box_h), (w, box_w))], 1)
    return turned(recolored(images, cut.mask(h, w, images.device), jitter), images, cut, turn, middle)


def turned(sources: Tensor, images: Tensor, cut: Rectangles, turn: Tensor, middle: Tensor) -> Tensor:
    """Images with a rectangle of `sources` in them, both (B, C, H, W). A pixel takes the nearest one, as in Pillow's rotation.

    turn    (B,) radians, counterclockwise to the eye
    middle  (B, 2) where the rectangle's middle comes to lie: y, x in pixels, of which 0 is the first one's middle
    """
    h, w = images.shape[-2:]
    half, side = images.new_tensor([w / 2, h / 2]), images.new_tensor([(w - 1) / 2, (h - 1) / 2])            # x before y
    corner, extent = (torch.stack(pair, 1).to(images) for pair in ((cut.left, cut.top), (cut.width, cut.height)))
    cos, sin = turn.cos().to(images), turn.sin().to(images)
    back = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)                        # (B, 2, 2)
    to, source = (middle.to(images).flip(1) - side) / half, (corner + (extent - 1) / 2 - side) / half
    back = back * half / half[:, None]                                  # in halves of the image, as torch counts
    theta = torch.cat([back, (source - (back @ to[:, :, None])[:, :, 0])[:, :, None]], 2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)                                    # (B, H, W, 2)
    source, extent = source[:, None, None], extent[:, None, None]
    offset = (grid - source) * half                                      # from the rectangle's middle, in pixels
    inside = ((offset >= -extent / 2) & (offset < extent / 2)).all(3)
    offset = offset.clamp((1 - extent) / 2, (extent - 1) / 2)            # to the middles of its own pixels
    found = F.grid_sample(sources, source + offset / half, mode="nearest", padding_mode="border", align_corners=False)
    return torch.where(inside[:, None], found, images)


def recolored(images: Tensor, where: Tensor, jitter: float) -> Tensor:
    """Brightness, contrast, saturation and hue changed by up to `jitter`, in an order that each image draws: (B, 3, H, W).

    where  (B, 1, H, W) bool: only these pixels decide the gray to which contrast is relative, as if they were an image
    """
    order = torch.rand(len(images), 4).argsort(1)
    strength = 1 + _even((4, len(images)), -jitter, jitter)
    strength[3] -= 1                                                                     # hue is turned, the others are factors
    return photometric.color_jitter(images, order, strength, where)


def _size(images: Tensor, least: int = 1) -> tuple[int, int]:
    if images.ndim != 4 or min(images.shape[2:]) < least:
        raise ParameterError(f"images {tuple(images.shape)} to cut and paste in: expected (B, 3, H, W) of at least "
                             f"{least}x{least} pixels")
    return images.shape[2], images.shape[3]


def _shifted(images: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Pixel (y, x) of the result is (y + down, x + right) of the image, or the nearest one there is."""
    h, w = images.shape[-2:]
    rows, columns = ((torch.arange(n) + by[:, None]).clamp(0, n - 1).to(images.device) for n, by in ((h, down), (w, right)))
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def _places(count: int, most: int | Tensor) -> Tensor:
    """(count,) int64 drawn evenly from 0 to `most`, included; (count,) or the same for all."""
    return torch.minimum((torch.rand(count) * (most + 1)).long(), torch.as_tensor(most))


def _even(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.empty(shape).uniform_(low, high)
