"""Shapes on the drawing plane: distances, coverages, noise.

The plane has FINE x FINE samples, SCALE per pixel of the finished image along each axis. Lengths are in finished pixels; the
origin is the center, x points right and y down. A distance is negative inside its shape; a coverage is 1 inside, 0 outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

SIZE = 256
SCALE = 1.5
FINE = int(SIZE * SCALE)

Array = np.ndarray
Point = tuple[float, float]
Part = tuple[slice, ...]


@lru_cache(maxsize=1)
def plane() -> tuple[Array, Array]:
    """x and y of every sample, each (FINE, FINE) float32."""
    axis = (np.arange(FINE, dtype=np.float32) + 0.5) / SCALE - SIZE / 2
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


def frame(center: Point, angle: float) -> tuple[Array, Array]:
    """Coordinates u, v of every sample in a frame at `center` that is rotated clockwise by `angle` radians."""
    x, y = plane()
    cos, sin = math.cos(angle), math.sin(angle)
    dx, dy = x - float(center[0]), y - float(center[1])
    return cos * dx + sin * dy, cos * dy - sin * dx


def window(center: Point, reach: float) -> Part:
    """The part of the plane within `reach` of `center` along both axes, in which small objects are computed."""
    edges = [[min(max(int((c + SIZE / 2 + side) * SCALE), 0), FINE) for side in (-reach, reach)] for c in center]
    return slice(*edges[1]), slice(*edges[0])


def to_plane(u: float, v: float, center: Point, angle: float) -> Point:
    """The point (u, v) of a frame in coordinates of the plane."""
    cos, sin = math.cos(angle), math.sin(angle)
    return center[0] + cos * u - sin * v, center[1] + sin * u + cos * v


def box(u: Array, v: Array, half_u: float, half_v: float, radius: float = 0.0) -> Array:
    """Distance to a rectangle with rounded corners."""
    du, dv = np.abs(u) - (half_u - radius), np.abs(v) - (half_v - radius)
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - radius


def inside(distance: Array, soft: float = 0.7) -> Array:
    """Coverage of a shape whose edge is `soft` pixels wide."""
    return np.clip(0.5 - distance / soft, 0, 1)


def smooth(low: float, high: float, value: Array) -> Array:
    """0 below `low`, 1 above `high`, with a smooth step between (smoothstep).

    >>> smooth(0, 1, np.array([-1, 0.25, 0.5, 2])).tolist()
    [0.0, 0.15625, 0.5, 1.0]
    """
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: Array | float, b: Array | float, weight: Array) -> Array:
    """`a` where the weight is 0, `b` where it is 1; a weight (H, W) applies to all channels of a color image.

    >>> mix(np.zeros((1, 2)), np.ones((1, 2)), np.array([[0.0, 0.5]])).tolist()
    [[0.0, 0.5]]
    """
    if np.ndim(a) == 3 or np.ndim(b) in (1, 3):
        weight = weight[..., None]
    mixed = (b - a) * weight
    mixed += a
    return mixed


def resize(array: Array, size: int) -> Array:
    """(h, w) float32 resampled to (size, size), bicubic. Pillow is fast and releases the GIL."""
    image = Image.fromarray(np.ascontiguousarray(array, np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def reduce(array: Array) -> Array:
    """From the plane to finished pixels, (FINE, FINE) or (FINE, FINE, 3): the mean over each pixel's area."""
    if array.ndim == 3:
        return np.stack([reduce(array[..., channel]) for channel in range(array.shape[2])], 2)
    image = Image.fromarray(np.ascontiguousarray(array, np.float32))
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX))


def blur(array: Array, sigma: float) -> Array:
    """Gaussian blur of a plane; `sigma` in finished pixels. A wide blur is computed on a coarser grid."""
    samples = sigma * SCALE
    if samples < 5:
        return ndimage.gaussian_filter(array, samples, truncate=3)
    coarse = 2 if samples < 10 else 4
    small = array.reshape(FINE // coarse, coarse, FINE // coarse, coarse).mean((1, 3), dtype=np.float32)
    return resize(ndimage.gaussian_filter(small, samples / coarse, truncate=3), FINE)


def noise(rng: np.random.Generator, cell: float, octaves: int = 1, stretch: float = 1.0) -> Array:
    """Smooth noise with a standard deviation of about 1. Its bumps are `cell` pixels high and `stretch` times as wide."""
    total, weight, power = np.zeros((FINE, FINE), np.float32), 1.0, 0.0
    for octave in range(octaves):
        rows = int(np.clip(SIZE / cell * 2 ** octave, 2, FINE))
        columns = int(np.clip(rows / stretch, 2, FINE))
        grid = rng.standard_normal((rows + 3, columns + 3), dtype=np.float32)
        # The grid is cropped by one cell at its border, where resampling would flatten it.
        image = Image.fromarray(grid).resize((FINE, FINE), Image.Resampling.BICUBIC,
                                             box=(1.5, 1.5, columns + 1.5, rows + 1.5))
        total += weight * 1.4 * np.asarray(image)
        power += weight ** 2
        weight *= 0.5
    return total / math.sqrt(power)


def blob(rng: np.random.Generator, center: Point, radius: float, ragged: float = 0.3, stretch: float = 1.0) -> Array:
    """Distance to an irregular patch; `ragged` is the deviation of its edge from a circle, `stretch` lengthens it."""
    u, v = frame(center, rng.uniform(0, math.pi))
    return np.hypot(u / stretch, v) - radius * (1 + ragged * noise(rng, max(radius * 0.7, 3), 2))


def crooked(rng: np.random.Generator, start: Point, angle: float, length: float, wander: float) -> list[Point]:
    """Points of a random line from `start`, one every 3 pixels.

    Each step turns by a normal random angle with standard deviation `wander` radians and returns partly to `angle`.
    """
    points, heading = [start], angle
    for _ in range(max(int(length / 3), 2)):
        heading += rng.normal(0, wander) - 0.25 * (heading - angle)
        points.append((points[-1][0] + 3 * math.cos(heading), points[-1][1] + 3 * math.sin(heading)))
    return points


def stroke(points: list[Point], width: float, taper: bool = True) -> Array:
    """Coverage of a line through `points`, `width` pixels wide and, if `taper`, thin at both ends."""
    over = 3   # drawn at three times the resolution, because Pillow's lines have hard edges
    canvas = Image.new("L", (FINE * over, FINE * over))
    draw = ImageDraw.Draw(canvas)
    where = [((x + SIZE / 2) * SCALE * over, (y + SIZE / 2) * SCALE * over) for x, y in points]
    for i in range(len(where) - 1):
        middle = (i + 0.5) / (len(where) - 1)
        thick = width * (0.35 + 0.65 * math.sin(math.pi * middle) if taper else 1.0) * SCALE * over
        draw.line([where[i], where[i + 1]], fill=255, width=max(round(thick), 1))
        x, y = where[i + 1]
        if thick > 4 and i < len(where) - 2:
            draw.ellipse([x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2], fill=255)
    return np.asarray(canvas.reduce(over), np.float32) / 255


def polygon(points: list[Point]) -> Array:
    """Coverage of a polygon with soft edges."""
    over = 3
    canvas = Image.new("L", (FINE * over, FINE * over))
    ImageDraw.Draw(canvas).polygon([((x + SIZE / 2) * SCALE * over, (y + SIZE / 2) * SCALE * over)
                                    for x, y in points], fill=255)
    return np.asarray(canvas.reduce(over), np.float32) / 255


def text(lines: Sequence[tuple[str, float, float, float]], center: Point, angle: float) -> Array:
    """Coverage of printed lines, each (words, u, v, height of a letter), centered at (u, v) of the frame."""
    canvas = Image.new("L", (FINE, FINE))
    draw = ImageDraw.Draw(canvas)
    for words, u, v, size in lines:
        draw.text((FINE / 2 + u * SCALE, FINE / 2 + v * SCALE), words, fill=255, anchor="mm",
                  font=ImageFont.load_default(size=size * SCALE * 1.35))
    return place(canvas, center, angle) / 255


def place(layer: Image.Image, center: Point, angle: float) -> Array:
    """A layer rotated clockwise around the center of its image and moved to `center`, float32 in 0..255."""
    cos, sin, middle = math.cos(angle), math.sin(angle), FINE / 2
    cx, cy = middle + center[0] * SCALE, middle + center[1] * SCALE
    backwards = (cos, sin, middle - cos * cx - sin * cy, -sin, cos, middle + sin * cx - cos * cy)
    moved = layer.transform((FINE, FINE), Image.Transform.AFFINE, backwards, Image.Resampling.BILINEAR)
    return np.asarray(moved, np.float32)
