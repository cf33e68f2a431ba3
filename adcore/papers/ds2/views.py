"""Two augmented views of each image, and where in the image they lie.

He et al. (DS2), supplement Sec. 2 and Table 1 (c); settings that it leaves out are those of the published code.

    image -> crop, resized -> flip -> color jitter -> grayscale -> blur -> solarize -> standardized

    boxes  (B, 4), (x0, y0, x1, y1) of a view's outermost pixels as shares of the image's: 0 is its first pixel's middle, 1 its
           last one's. A flipped view has x0 > x1: from left to right it shows the image from right to left

Crop and resize are one product with a matrix a side, so that a batch is made at once. Pixels are averaged where a crop
shrinks, as Pillow's bilinear filter does and torchvision's with antialias. Everything is drawn from torch's random state on
the CPU, so that a seed draws the same on any device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from adcore.features.backbones import IMAGENET
from adcore.papers.ds2 import photometric
from adcore.training import full_precision


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a view is made.

    scale         share of the image's area that a crop covers, drawn evenly
    ratio         a crop's width by its height, drawn evenly in the logarithm
    flip          probability of each: flip, jitter, grayscale, blur and solarize
    jitter_range  of brightness, contrast, saturation and hue
    radius        of the blur, a Gaussian's deviation in pixels of the view, drawn evenly
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    jitter_range: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grayscale: float = 0.0
    blur: float = 0.0
    radius: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0


def _recipes(cj: bool = True, gb: bool = True, gs: bool = False, so: bool = False) -> tuple[Recipe, Recipe]:
    both = Recipe(jitter=0.8 if cj else 0.0, grayscale=0.2 if gs else 0.0)
    return replace(both, blur=1.0 if gb else 0.0), replace(both, blur=0.1 if gb else 0.0, solarize=0.5 if so else 0.0)


# The recipes of both views, by the names of Table 1 (c): color jitter, Gaussian blur, grayscale, solarize.
AUGMENTATIONS: dict[str, tuple[Recipe, Recipe]] = {
    "cj": _recipes(gb=False), "gb": _recipes(cj=False), "cj+gb": _recipes(), "cj+gb+gs": _recipes(gs=True),
    "cj+gb+so": _recipes(so=True), "cj+gb+gs+so": _recipes(gs=True, so=True)}


class Crops(NamedTuple):
    """Rectangles of images in pixels: four of (B,) int64 each, and (B,) bool whether the crop is flipped."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor

    def boxes(self, h: int, w: int) -> Tensor:
        """(B, 4) float32, see above; of images (h, w)."""
        x0, y0 = self.left / max(w - 1, 1), self.top / max(h - 1, 1)
        x1, y1 = (self.left + self.width - 1) / max(w - 1, 1), (self.top + self.height - 1) / max(h - 1, 1)
        return torch.stack([torch.where(self.flipped, x1, x0), y0, torch.where(self.flipped, x0, x1), y1], 1)


@full_precision
def augmented(images: Tensor, recipe: Recipe, size: int = 224) -> tuple[Tensor, Tensor]:
    """A view of each image and its box: (B, 3, H, W), uint8 or in [0, 1] -> (B, 3, size, size) standardized, (B, 4)."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    h, w = images.shape[-2:]
    crops = random_crops(len(images), h, w, recipe)
    views = recolored(resized(images, crops, size), recipe)
    return standardized(views), crops.boxes(h, w).to(images.device)


@full_precision
def recolored(views: Tensor, recipe: Recipe) -> Tensor:
    """What of a recipe follows the flip: (B, 3, H, W) in [0, 1] -> (B, 3, H, W) in [0, 1]."""
    views = _sometimes(views, recipe.jitter, lambda count: _jitter(count, recipe.jitter_range))
    views = _sometimes(views, recipe.grayscale, lambda _: lambda x: photometric.grayscale(x).expand_as(x))
    views = _sometimes(views, recipe.blur, lambda count: _blur(count, recipe.radius))
    return _sometimes(views, recipe.solarize, lambda _: photometric.solarize)


def standardized(images: Tensor) -> Tensor:
    """By ImageNet's statistics: (B, 3, H, W) in [0, 1] -> (B, 3, H, W)."""
    mean, std = _statistics(images)
    return (images - mean) / std


def unstandardized(images: Tensor) -> Tensor:
    """Back in [0, 1]."""
    mean, std = _statistics(images)
    return (images * std + mean).clamp(0, 1)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.new_tensor(IMAGENET[0])[:, None, None], images.new_tensor(IMAGENET[1])[:, None, None]


def random_crops(count: int, h: int, w: int, recipe: Recipe, attempts: int = 10) -> Crops:
    """Crops of images (h, w), drawn as torchvision's RandomResizedCrop draws them.

    Of the attempts the first counts that fits into the image. Where none does, it is the largest in the middle whose ratio
    is within its range.
    """
    area = h * w * _even((count, attempts), *recipe.scale)
    ratio = _even((count, attempts), math.log(recipe.ratio[0]), math.log(recipe.ratio[1])).exp()
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)                   # (B, attempts)
    first = fits.int().argmax(1, keepdim=True)
    width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    limit = min(max(w / h, recipe.ratio[0]), recipe.ratio[1])
    none = ~fits.any(1)
    width = torch.where(none, min(w, round(h * limit)), width)
    height = torch.where(none, min(h, round(w / limit)), height)
    place = torch.rand(2, count)
    top, left = (torch.where(none, free // 2, (share * (free + 1)).long().clamp(max=free))
                 for share, free in zip(place, (h - height, w - width), strict=True))
    return Crops(top, left, height, width, torch.rand(count) < recipe.flip)


def resized(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Crops at one size, flipped where they are: (B, C, H, W) floats -> (B, C, size, size)."""
    h, w = images.shape[-2:]
    to_rows, to_columns = (_resampling(start.to(images), length.to(images), n, size) for start, length, n in (
        (crops.top, crops.height, h), (crops.left, crops.width, w)))
    to_columns = torch.where(crops.flipped.to(images.device)[:, None, None], to_columns.flip(1), to_columns)
    return to_rows[:, None] @ (images @ to_columns.mT[:, None])


def jittered(images: Tensor, ranges: tuple[float, float, float, float]) -> Tensor:
    """Brightness, contrast, saturation and hue changed in an order that each image draws, as torchvision's ColorJitter does:
    (B, 3, H, W) in [0, 1] -> (B, 3, H, W).

    ranges  the first three are factors in [max(0, 1 - r), 1 + r], hue is turned by [-r, r] of its circle
    """
    return _jitter(len(images), ranges)(images)


Change = Callable[[Tensor], Tensor]  # an augmentation with its random numbers drawn: (n, 3, H, W) -> (n, 3, H, W)


def _jitter(count: int, ranges: tuple[float, float, float, float]) -> Change:
    order = torch.rand(count, 4).argsort(1)
    strength = torch.stack([_even(count, max(0.0, 1 - r), 1 + r) for r in ranges[:3]] + [_even(count, -ranges[3], ranges[3])])
    return lambda images: photometric.color_jitter(images, order, strength)


def _blur(count: int, radius: tuple[float, float]) -> Change:
    sigma = _even(count, *radius)
    return lambda images: photometric.gaussian_blur(images, sigma)


def _resampling(start: Tensor, length: Tensor, n: int, size: int) -> Tensor:
    """Weights by which `length` pixels from `start` of a side of n become `size`: (B, size, n), rows sum to 1.

    A triangle around the new pixel's middle, one old pixel wide to either side, or one new pixel where those are larger.
    Nothing beyond the crop counts.
    """
    scale = (length / size)[:, None, None]
    middle = (torch.arange(size).to(start)[:, None] + 0.5) * scale                         # (B, size, 1), from the start on
    pixel = (torch.arange(n).to(start) - start[:, None])[:, None]                          # (B, 1, n)
    weight = (1 - (pixel + 0.5 - middle).abs() / scale.clamp(min=1)).clamp(min=0)          # (B, size, n)
    weight = weight * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


def _even(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.empty(shape).uniform_(low, high)


def _sometimes(images: Tensor, probability: float, draw: Callable[[int], Change]) -> Tensor:
    """The change made to images drawn with this probability: (B, 3, H, W) -> (B, 3, H, W)."""
    chosen = (torch.rand(len(images)) < probability).nonzero()[:, 0]
    if not len(chosen):
        return images
    change, chosen = draw(len(chosen)), chosen.to(images.device)
    return images.index_copy(0, chosen, change(images[chosen]))
