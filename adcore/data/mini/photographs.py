"""Textures cut from three real photographs in scikit-image, 512 x 512 and gray; adcore adds the color.

    category  skimage.data  source and license as stated in scikit-image's docstrings
    brick     brick         cc0textures.com, Bricks25, CC0
    grass     grass         deviantart.com/linolafett, Grass-01, CC0
    gravel    gravel        cc0textures.com, Gravel04, CC0

Training and test images share no pixel: test images are cut from columns 288 to 511 of the bricks and rows 296 to 511 of
grass and gravel (transposed here, so that all are divided by column), training images from the rest of the photograph,
before any resampling. The parts were chosen so that what is normal in the test part (clover, a light stone) also occurs in
the training part.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import skimage.data
from PIL import Image
from scipy import ndimage

from adcore.data.mini import litter
from adcore.data.mini.shading import rgb
from adcore.data.mini.shapes import SIZE, Array
from adcore.data.mini.shot import ANGLE, CONTRAST, EXPOSURE, LIGHT, Shot, X, Y


class Texture(NamedTuple):
    """How a photograph becomes a category: its colors, the size of a crop, and its defects."""

    photograph: Callable[[], Array]
    stops: tuple[tuple[float, tuple[int, int, int]], ...]   # gray value -> sRGB
    side: tuple[float, float]                               # of a crop, in pixels of the photograph
    quarter_turns: int                                      # of the photograph, so that courses of bricks are level
    test: tuple[int, int]                                   # columns of test images; the others are for training
    flaws: dict[str, litter.Flaw]


TEXTURES = {
    "brick": Texture(
        skimage.data.brick, ((0, (38, 18, 14)), (80, (98, 52, 42)), (104, (144, 80, 64)), (130, (164, 114, 96)),
                             (175, (196, 184, 168)), (255, (240, 234, 224))), (176, 206), 1, (288, 512),
        {"crack": litter.crack, "hole": litter.spall, "stain": litter.bloom, "paint": litter.paint}),
    "grass": Texture(
        lambda: skimage.data.grass().T, ((0, (10, 16, 8)), (60, (40, 56, 20)), (120, (86, 108, 40)), (165, (146, 158, 78)),
                             (205, (204, 204, 142)), (255, (246, 244, 214))), (192, 205), 0, (296, 512),
        {"dry": litter.dry, "soil": litter.soil, "wire": litter.wire, "litter": litter.scrap}),
    "gravel": Texture(
        lambda: skimage.data.gravel().T, ((0, (16, 15, 16)), (70, (66, 62, 60)), (130, (128, 121, 114)), (180, (176, 169, 158)),
                              (215, (212, 205, 193)), (255, (246, 242, 234))), (188, 205), 0, (296, 512),
        {"oil": litter.oil, "twig": litter.twig, "leaf": litter.leaf, "paint": litter.paint}),
}


def columns(category: str, split: str) -> tuple[int, int]:
    """The columns of the photograph that a split may show: the first, and the one after the last."""
    low, high = TEXTURES[category].test
    return (0, low) if split == "train" else (low, high)


@lru_cache(maxsize=len(TEXTURES))
def colored(category: str) -> Array:
    """The whole photograph in color, (512, 512, 3) float32 sRGB in [0, 1]."""
    texture = TEXTURES[category]
    gray = texture.photograph().astype(np.float32)
    levels, stops = zip(*texture.stops, strict=True)
    image = np.stack([np.interp(gray, levels, channel) for channel in zip(*stops, strict=True)], 2) / 255
    rng = np.random.default_rng(11)
    if category == "grass":       # drier and greener places, and blades of different green
        lush = ndimage.gaussian_filter(rng.standard_normal(gray.shape), 22) * 22 * 2
        blades = ndimage.gaussian_filter(rng.standard_normal(gray.shape), 3) * 3 * 2
        tint = 0.035 * (lush + blades)[..., None] * np.array([1.0, 0.1, -0.6])
    else:                         # every brick and every stone has its own tint
        dark = gray < 128 if category == "brick" else gray > ndimage.gaussian_filter(gray, 5) - 6
        pieces, count = ndimage.label(ndimage.binary_opening(dark, iterations=1 if category == "brick" else 2))
        warm, light = rng.normal(0, 1, (2, count + 1))
        warm[0] = light[0] = 0
        each = ndimage.gaussian_filter(np.stack([warm[pieces], light[pieces]]), (0, 1.2, 1.2))
        amount = (0.030, 0.05) if category == "brick" else (0.028, 0.02)
        tint = (amount[0] * each[0][..., None] * np.array([1.0, 0.25, -0.7]) + amount[1] * each[1][..., None])
    return np.clip(image * (1 + tint), 0, 1).astype(np.float32)


def corners(shot: Shot) -> Array:
    """The square that a shot shows: (4, 2) corners x, y in the photograph, clockwise from the image's top left."""
    texture, rng = TEXTURES[shot.category], shot.normal()
    low, high = columns(shot.category, shot.split)
    angle = shot.between(ANGLE, -0.05, 0.05)
    wide = math.cos(angle) + abs(math.sin(angle))       # side of the square's bounding box / side of the square
    side = min(rng.uniform(*texture.side), (high - low) / wide - 1)
    room = side * wide
    center = np.array([low + room / 2 + shot.between(X, 0, 1) * (high - low - room),
                       room / 2 + shot.between(Y, 0, 1) * (512 - room)])
    square = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * side / 2
    if rng.random() < 0.5:
        square = square[[1, 0, 3, 2]]                   # mirrored
    if texture.quarter_turns and rng.random() < 0.5:
        square = square[[3, 2, 1, 0]]
    square = np.roll(square, texture.quarter_turns, axis=0)
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    return center + square @ turn.T


def draw(shot: Shot, defect: str | None, attempt: int = 0) -> Array:
    """The crop of `shot`, (SIZE, SIZE, 3) in [0, 1] without sensor noise, with `defect` or without one."""
    low, high = columns(shot.category, shot.split)
    area = colored(shot.category)[:, low:high]          # cut first: resampling must not mix pixels across the border
    top_left, top_right, _, bottom_left = corners(shot) - (low, 0)
    across, down = (top_right - top_left) / SIZE, (bottom_left - top_left) / SIZE
    way = (across[0], down[0], top_left[0], across[1], down[1], top_left[1])
    planes = [Image.fromarray(np.ascontiguousarray(area[..., c])).transform(
        (SIZE, SIZE), Image.Transform.AFFINE, way, Image.Resampling.BICUBIC) for c in range(3)]
    image = np.stack([np.asarray(plane) for plane in planes], 2)
    # The crop is enlarged by up to 1.7: sharpen the edges that resampling has blurred.
    image = image + 0.4 * (image - ndimage.gaussian_filter(image, (1.2, 1.2, 0)))
    image = np.clip(image, 0.004, 1) ** 2.2             # approximately linear
    sun = -2.3 + shot.between(LIGHT, -0.5, 0.5)
    if defect is not None:
        flaw = TEXTURES[shot.category].flaws[defect]
        image = flaw(image.astype(np.float32), shot.flaw(attempt), sun)
    return _developed(image, shot, sun)


def _developed(image: Array, shot: Shot, sun: float) -> Array:
    """The image with uneven light, an exposure and a contrast, as sRGB."""
    rng = shot.normal().spawn(1)[0]
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    slope = rng.uniform(0.02, 0.10)
    falloff = 1 + slope * (math.cos(sun) * axis + math.sin(sun) * axis[:, None])
    falloff = falloff - 0.05 * (axis ** 2 + axis[:, None] ** 2)
    cast = (1 + rng.normal(0, 0.018, 3)).astype(np.float32)
    linear = np.clip(image * (falloff * shot.between(EXPOSURE, 0.85, 1.16))[..., None] * cast, 0, None)
    contrast = shot.between(CONTRAST, 0.92, 1.08)
    gray = float(rgb(118, 118, 118)[0])
    return np.clip((gray * (linear / gray) ** contrast) ** (1 / 2.2), 0, 1).astype(np.float32)
