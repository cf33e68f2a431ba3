"""Two augmented views of each image, and a box that says which part of the image each view shows.

He et al. (DS2), supplement Sec. 2 and Table 1 (c). Settings that it leaves out are those of the published code.

    image -> random resized crop -> flip -> color jitter -> grayscale -> Gaussian blur -> solarize -> standardize

    boxes  (B, 4), (x0, y0, x1, y1): positions of a view's outermost pixels in the image. 0 is the center of the image's first
           pixel, 1 the center of its last. A flipped view has x0 > x1

Cropping and resizing are one matrix product per axis, so a whole batch is processed at once. A crop that is made smaller is
averaged, as Pillow's bilinear filter and torchvision with antialias do. All random numbers come from torch's random state on
the CPU, so a seed gives the same views on any device.
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
    """How one view is made. Ranges are sampled uniformly.

    scale         range of the crop's area, as a fraction of the image's
    ratio         range of the crop's width divided by its height, sampled in the logarithm
    flip          probability of a horizontal flip; jitter, grayscale, blur and solarize are probabilities too
    jitter_range  largest change of brightness, contrast, saturation and hue
    radius        range of the blur's standard deviation, in pixels of the view
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


# Recipes of view 1 and view 2, by the names of Table 1 (c): color jitter, Gaussian blur, grayscale, solarize.
AUGMENTATIONS: dict[str, tuple[Recipe, Recipe]] = {
    "cj": _recipes(gb=False), "gb": _recipes(cj=False), "cj+gb": _recipes(), "cj+gb+gs": _recipes(gs=True),
    "cj+gb+so": _recipes(so=True), "cj+gb+gs+so": _recipes(gs=True, so=True)}


@full_precision
def augmented(images: Tensor, recipe: Recipe, size: int = 224) -> tuple[Tensor, Tensor]:
    """A view of each image and its box: (B, 3, H, W), uint8 or in [0, 1] -> (B, 3, size, size) standardized, (B, 4)."""
    crops, boxes = cropped(images, recipe, size)
    return standardized(change_colors(crops, recipe)), boxes


# Crops.

@full_precision
def cropped(images: Tensor, recipe: Recipe, size: int = 224) -> tuple[Tensor, Tensor]:
    """A crop of each image, before any change of color, and its box: (B, 3, H, W) -> (B, 3, size, size) in [0, 1], (B, 4).

    Images are uint8 or floats in [0, 1].
    """
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    h, w = images.shape[-2:]
    crops = draw_crops(len(images), h, w, recipe)
    return resized(images, crops, size), crops.boxes(h, w).to(images.device)


class Crops(NamedTuple):
    """One rectangle per image, in pixels, (B,) int64 each; and whether the crop is flipped, (B,) bool."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    flipped: Tensor

    def boxes(self, h: int, w: int) -> Tensor:
        """Boxes in images (h, w), as the module docstring defines them: (B, 4) float32."""
        x0, y0 = self.left / max(w - 1, 1), self.top / max(h - 1, 1)
        x1, y1 = (self.left + self.width - 1) / max(w - 1, 1), (self.top + self.height - 1) / max(h - 1, 1)
        return torch.stack([torch.where(self.flipped, x1, x0), y0, torch.where(self.flipped, x0, x1), y1], 1)


def draw_crops(count: int, h: int, w: int, recipe: Recipe, attempts: int = 10) -> Crops:
    """Crops of images (h, w), drawn as torchvision's RandomResizedCrop draws them.

    The first attempt that fits into the image is taken. If none fits, the crop is the largest central one whose ratio is in
    the recipe's range.
    """
    area = h * w * _uniform((count, attempts), *recipe.scale)
    ratio = _uniform((count, attempts), math.log(recipe.ratio[0]), math.log(recipe.ratio[1])).exp()
    widths, heights = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (widths > 0) & (widths <= w) & (heights > 0) & (heights <= h)                   # (B, attempts)
    first = fits.int().argmax(1, keepdim=True)
    width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    limit = min(max(w / h, recipe.ratio[0]), recipe.ratio[1])
    none = ~fits.any(1)
    width = torch.where(none, min(w, round(h * limit)), width)
    height = torch.where(none, min(h, round(w / limit)), height)
    place = torch.rand(2, count)
    top, left = (torch.where(none, free // 2, (fraction * (free + 1)).long().clamp(max=free))
                 for fraction, free in zip(place, (h - height, w - width), strict=True))
    return Crops(top, left, height, width, torch.rand(count) < recipe.flip)


def resized(images: Tensor, crops: Crops, size: int) -> Tensor:
    """Crops at one size, with their flips: (B, C, H, W) floats -> (B, C, size, size)."""
    h, w = images.shape[-2:]
    to_rows, to_columns = (_resampling(start.to(images), length.to(images), n, size) for start, length, n in (
        (crops.top, crops.height, h), (crops.left, crops.width, w)))
    to_columns = torch.where(crops.flipped.to(images.device)[:, None, None], to_columns.flip(1), to_columns)
    return to_rows[:, None] @ (images @ to_columns.mT[:, None])


def _resampling(start: Tensor, length: Tensor, n: int, size: int) -> Tensor:
    """Weights that resize `length` pixels from `start` on, of an axis of n pixels, to `size`: (B, size, n), rows sum to 1.

    The filter is a triangle around the new pixel's center. It reaches one old pixel to either side, or one new pixel where
    new pixels are larger. Pixels outside the crop get no weight.
    """
    scale = (length / size)[:, None, None]
    center = (torch.arange(size).to(start)[:, None] + 0.5) * scale                         # (B, size, 1), from `start` on
    pixel = (torch.arange(n).to(start) - start[:, None])[:, None]                          # (B, 1, n)
    weight = (1 - (pixel + 0.5 - center).abs() / scale.clamp(min=1)).clamp(min=0)          # (B, size, n)
    weight = weight * ((pixel >= 0) & (pixel < length[:, None, None]))
    return weight / weight.sum(2, keepdim=True)


# Colors.

@full_precision
def change_colors(views: Tensor, recipe: Recipe) -> Tensor:
    """The steps of a recipe after the flip: (B, 3, H, W) in [0, 1] -> (B, 3, H, W) in [0, 1]."""
    views = _sometimes(views, recipe.jitter, lambda count: _jitter(count, recipe.jitter_range))
    views = _sometimes(views, recipe.grayscale, lambda _: lambda x: photometric.grayscale(x).expand_as(x))
    views = _sometimes(views, recipe.blur, lambda count: _blur(count, recipe.radius))
    return _sometimes(views, recipe.solarize, lambda _: photometric.solarize)


Change = Callable[[Tensor], Tensor]  # an augmentation with its random numbers drawn: (n, 3, H, W) -> (n, 3, H, W)


def _sometimes(images: Tensor, probability: float, draw: Callable[[int], Change]) -> Tensor:
    """Each image changed with this probability: (B, 3, H, W) -> (B, 3, H, W).

    draw  number of images to change -> the change
    """
    chosen = (torch.rand(len(images)) < probability).nonzero()[:, 0]
    if not len(chosen):
        return images
    change, chosen = draw(len(chosen)), chosen.to(images.device)
    return images.index_copy(0, chosen, change(images[chosen]))


def _jitter(count: int, ranges: tuple[float, float, float, float]) -> Change:
    """Color jitter as torchvision's ColorJitter: factors in [max(0, 1 - r), 1 + r], hue shifted by [-r, r] of its circle."""
    order = torch.rand(count, 4).argsort(1)
    strength = torch.stack([*(_uniform(count, max(0.0, 1 - r), 1 + r) for r in ranges[:3]),
                            _uniform(count, -ranges[3], ranges[3])])
    return lambda images: photometric.color_jitter(images, order, strength)


def _blur(count: int, radius: tuple[float, float]) -> Change:
    sigma = _uniform(count, *radius)
    return lambda images: photometric.gaussian_blur(images, sigma)


def _uniform(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return torch.empty(shape).uniform_(low, high)


# Standardization.

def standardized(images: Tensor) -> Tensor:
    """Subtract ImageNet's mean and divide by its standard deviation: (B, 3, H, W) in [0, 1] -> (B, 3, H, W)."""
    mean, std = _statistics(images)
    return (images - mean) / std


def unstandardized(images: Tensor) -> Tensor:
    """The inverse of `standardized`, clipped to [0, 1]."""
    mean, std = _statistics(images)
    return (images * std + mean).clamp(0, 1)


def _statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    return images.new_tensor(IMAGENET[0])[:, None, None], images.new_tensor(IMAGENET[1])[:, None, None]
