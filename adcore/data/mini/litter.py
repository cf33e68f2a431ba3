"""Defects of a brick wall, a lawn and a gravel path: each function paints one onto a photograph.

All take the photograph as linear RGB (SIZE, SIZE, 3), a random generator and the azimuth of the sun, and return a new image.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy import ndimage

from adcore.data.mini.shading import rgb
from adcore.data.mini.shapes import Array, blob, crooked, inside, mix, noise, polygon, reduce, smooth, stroke

Flaw = Callable[[Array, np.random.Generator, float], Array]


def _anywhere(rng: np.random.Generator, margin: float = 22) -> tuple[float, float]:
    return rng.uniform(-128 + margin, 128 - margin), rng.uniform(-128 + margin, 128 - margin)


def _radius(rng: np.random.Generator, low: float, high: float) -> float:
    """A random radius. Small ones are more frequent, because the area grows with the square."""
    return low * (high / low) ** rng.uniform(0, 1)


def _relief(height: Array, sun: float) -> Array:
    """Brightness of a height map (SIZE, SIZE) in the sun, 1 where it is level."""
    gy, gx = np.gradient(height)
    facing = (0.8 - 0.6 * (gx * math.cos(sun) + gy * math.sin(sun))) / np.sqrt(1 + gx * gx + gy * gy)
    return np.clip(facing / 0.8, 0.15, 1.9)


def _cast(cover: Array, sun: float, far: float, soft: float = 1.2) -> Array:
    """Shadow on the ground of an object `far` pixels above it; 0 under the object itself."""
    shifted = ndimage.shift(cover, (-math.sin(sun) * far, -math.cos(sun) * far), order=1)
    return np.clip(ndimage.gaussian_filter(shifted, soft) - cover, 0, 1)


def _gray(image: Array) -> Array:
    return image @ np.array([0.3, 0.6, 0.1], np.float32)


def crack(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A branched crack through brick and mortar."""
    heading = rng.choice([-1, 1]) * (math.pi / 2 + rng.normal(0, 0.45))
    path = crooked(rng, _anywhere(rng, 30), heading, rng.uniform(50, 170), 0.5)
    wide = rng.uniform(1.7, 4.2)
    line = stroke(path, wide)
    for _ in range(int(rng.integers(0, 3))):
        fork = path[int(rng.integers(1, len(path)))]
        line = np.maximum(line, stroke(crooked(rng, fork, heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1),
                                               rng.uniform(15, 50), 0.5), wide * 0.6))
    depth = reduce(line * np.clip(0.85 + 0.25 * noise(rng, 4, 2), 0, 1))
    light = _relief(-1.3 * ndimage.gaussian_filter(depth, 0.7), sun)
    return image * ((1 - 0.9 * depth) * light)[..., None]


def spall(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A pit with raw clay, where a piece of the surface has broken off."""
    d = blob(rng, _anywhere(rng), _radius(rng, 8, 27), 0.35, rng.uniform(1, 1.7))
    pit, grain = reduce(inside(d, 1.5)), reduce(noise(rng, 3, 3))
    depth = reduce(smooth(1, -9, d)) * 5
    raw = mix(image, rgb(158, 84, 62) * (0.8 + 0.22 * grain + 0.08 * reduce(noise(rng, 14)))[..., None], pit * 0.85)
    light = _relief(-depth + 0.5 * grain * pit, sun)
    shadow = np.clip(ndimage.shift(1 - pit, (-math.sin(sun) * 3, -math.cos(sun) * 3), order=1, mode="nearest"), 0, 1)
    return raw * (light * (1 - 0.55 * ndimage.gaussian_filter(shadow, 1.0) * pit))[..., None]


def bloom(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A white stain of salt or, as often, a dark stain of soot."""
    size = _radius(rng, 12, 40)
    d = blob(rng, _anywhere(rng), size, 0.5, rng.uniform(1, 1.8))
    patchy = reduce(np.clip(0.6 - d / size * 1.2 + 0.28 * noise(rng, 6, 3), 0, 1))
    film = smooth(0.15, 0.95, patchy) * rng.uniform(0.6, 1)
    if rng.random() < 0.5:
        return mix(image, 0.72 * rgb(226, 222, 214) + 0.3 * image, film * 0.75)
    return image * (1 - 0.72 * film)[..., None] + 0.01 * film[..., None]


def paint(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A spray of paint or a painted line; the texture stays visible under it."""
    pigment = (rgb(186, 44, 40), rgb(44, 84, 158), rgb(224, 222, 212), rgb(26, 26, 30), rgb(212, 164, 42),
               rgb(40, 110, 74))[int(rng.integers(6))]
    where = _anywhere(rng)
    if rng.random() < 0.5:
        line = stroke(crooked(rng, where, rng.uniform(0, 2 * math.pi), rng.uniform(45, 120), 0.15), rng.uniform(5, 11))
        cover = ndimage.gaussian_filter(reduce(line), 1.3) * np.clip(0.9 + 0.2 * reduce(noise(rng, 3, 2)), 0, 1)
    else:
        size = _radius(rng, 12, 32)
        d = blob(rng, where, size, 0.18, rng.uniform(1, 1.4))
        mist = np.exp(-np.maximum(d + size * 0.5, 0) / (size * 0.22))
        cover = reduce(np.clip(mist + 0.35 * noise(rng, 1.3) * mist * (1 - mist) * 2, 0, 1))
    texture = _gray(image) / max(float(_gray(image).mean()), 1e-3)
    return mix(image, pigment * np.clip(0.55 + 0.45 * texture, 0.1, 1.6)[..., None], cover * rng.uniform(0.7, 0.96))


def dry(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A patch of dry grass: straw-colored, with the blades still visible."""
    size = _radius(rng, 20, 44)
    d = blob(rng, _anywhere(rng), size, 0.4, rng.uniform(1, 1.7))
    patch = reduce(smooth(0.15, 0.9, 0.55 - d / size * 1.3 + 0.22 * noise(rng, 4, 2))) * rng.uniform(0.7, 1)
    gray = _gray(image)
    matted = 0.65 * gray + 0.35 * ndimage.gaussian_filter(gray, 2.5)      # dry blades are flat and cast no shadows
    straw = (rgb(226, 186, 122) / 0.30) * (matted * rng.uniform(0.85, 1.25))[..., None]
    return mix(image, straw, patch)


def soil(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A patch of bare earth with crumbs; blades of grass cover its edge."""
    size = _radius(rng, 13, 32)
    d = blob(rng, _anywhere(rng), size, 0.35, rng.uniform(1, 1.6))
    gray = _gray(image)
    ragged = reduce(d) + 9 * (ndimage.gaussian_filter(gray, 0.8) - 0.14) / 0.14
    bare = smooth(1.5, -3.5, ragged)
    crumbs, lumps = reduce(noise(rng, 3.2, 3)), reduce(noise(rng, 9, 2))
    earth = rgb(92, 70, 50) * (0.75 + 0.2 * crumbs + 0.14 * lumps)[..., None]
    light = _relief(1.5 * crumbs + 2.0 * lumps, sun) * (1 - 0.5 * _cast(1 - bare, sun, 4, 2) * bare)
    return mix(image, earth * light[..., None], bare)


def wire(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A piece of bent wire or cable on the lawn, partly covered by blades of grass."""
    path = crooked(rng, _anywhere(rng, 30), rng.uniform(0, 2 * math.pi), rng.uniform(55, 190), 0.33)
    thick = rng.uniform(3.0, 6.0)
    line = reduce(stroke(path, thick, taper=False))
    core = ndimage.gaussian_filter(line, thick * 0.35)
    coat = (rgb(150, 88, 52), rgb(150, 152, 156), rgb(40, 42, 46), rgb(176, 40, 38))[int(rng.integers(4))]
    hidden = smooth(0.28, 0.5, _gray(image)) * (reduce(noise(rng, 7)) > 0.7)
    line = line * (1 - 0.9 * hidden)
    shine = 0.25 * np.clip(_relief(core * thick * 1.5, sun) - 1.1, 0, 1)
    body = coat * (_relief(core * thick, sun) * 0.85)[..., None] + shine[..., None]
    return mix(image * (1 - 0.6 * _cast(line, sun, 2.5))[..., None], body, line)


def scrap(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A scrap of paper, a bottle cap or a cigarette end."""
    x, y = _anywhere(rng)
    kind = int(rng.integers(3))
    if kind == 0:
        size = _radius(rng, 9, 24)
        turn = rng.uniform(0, 2 * math.pi)
        angles = np.sort(turn + np.array([0, 1.5, 3.0, 4.6]) + rng.normal(0, 0.3, 4))
        cover = reduce(polygon([(x + size * rng.uniform(0.7, 1.2) * math.cos(a),
                                 y + size * rng.uniform(0.7, 1.2) * math.sin(a)) for a in angles]))
        creases = reduce(np.abs(noise(rng, size * 0.7, 2)))
        paper = (rgb(226, 224, 216), rgb(206, 190, 150), rgb(186, 204, 216))[int(rng.integers(3))]
        skin = paper * (_relief(2.4 * creases * min(size / 10, 1.6), sun) * 0.72)[..., None]
        high = 2.5
    elif kind == 1:
        size = rng.uniform(7.5, 11.5)
        axis = np.arange(256) - 127.5
        r, turn_ = np.hypot(axis - x, (axis - y)[:, None]), np.arctan2((axis - y)[:, None], axis - x)
        edge = r - size * (1 + 0.05 * np.cos(21 * turn_))
        cover = np.clip(0.5 - edge, 0, 1)
        dome = 2.6 * smooth(0.5, -2.4, edge) + 0.5 * np.cos(21 * turn_) * smooth(-3, -1, edge)
        lacquer = (rgb(176, 38, 34), rgb(196, 160, 70), rgb(46, 74, 122), rgb(176, 178, 182))[int(rng.integers(4))]
        gleam = 0.35 * np.exp(-((axis - x + 3) ** 2 + (axis[:, None] - y + 3) ** 2) / 9)
        skin = lacquer * (0.9 * _relief(dome, sun))[..., None] + gleam[..., None]
        high = 3.0
    else:
        turn = rng.uniform(0, 2 * math.pi)
        end = (x + 34 * math.cos(turn), y + 34 * math.sin(turn))
        middle = (x + 13 * math.cos(turn), y + 13 * math.sin(turn))
        cover = reduce(stroke([(x, y), end], 8, taper=False))
        tip = reduce(stroke([(x, y), middle], 8.6, taper=False))
        round_ = ndimage.gaussian_filter(cover, 2.2) * 6
        tone = mix(np.broadcast_to(rgb(222, 220, 212), image.shape), rgb(192, 128, 66), tip)
        skin = tone * (0.85 * _relief(round_, sun) * (1 + 0.05 * reduce(noise(rng, 2))))[..., None]
        high = 3.5
    blades = smooth(0.30, 0.46, _gray(image)) * (reduce(noise(rng, 6)) > 0.75)
    cover = cover * (1 - 0.9 * blades)
    return mix(image * (1 - 0.65 * _cast(cover, sun, high, 1.5))[..., None], skin, cover)


def oil(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A dark stain of oil with a mirror in the gaps between the stones, or a pale stain of lime."""
    size = _radius(rng, 16, 40)
    d = blob(rng, _anywhere(rng), size, 0.3, rng.uniform(1, 1.6))
    gray = _gray(image)
    wet = reduce(smooth(3, -4, d + 2 * noise(rng, 5, 2))) * rng.uniform(0.6, 1)
    if rng.random() < 0.4:      # spilled lime or cement
        dust = wet * np.clip(0.75 + 0.3 * reduce(noise(rng, 3, 2)), 0, 1)
        return mix(image, 0.72 * rgb(226, 222, 212) + 0.3 * image, dust * 0.9)
    # Oil fills the gaps between the stones and mirrors the sky; the stones above it are wet.
    level = ndimage.gaussian_filter(gray, 1.5)
    pool = smooth(1.25, 0.75, level / float(level.mean()))
    sky = 0.05 + 0.22 * smooth(0.9, 1.6, reduce(noise(rng, 13)))
    mirror = sky[..., None] * np.array([0.9, 1.0, 1.15], np.float32)
    soaked = image * np.array([0.24, 0.21, 0.19], np.float32) + 0.35 * smooth(0.30, 0.5, gray)[..., None]
    return mix(image, mix(soaked, mirror, pool), wet)


def twig(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A dry twig with side shoots."""
    heading = rng.uniform(0, 2 * math.pi)
    path = crooked(rng, _anywhere(rng, 30), heading, rng.uniform(60, 170), 0.13)
    thick = rng.uniform(3.4, 7.5)
    line = stroke(path, thick)
    for _ in range(int(rng.integers(1, 4))):
        fork = path[int(rng.integers(2, max(len(path) - 2, 3)))]
        line = np.maximum(line, stroke(crooked(rng, fork, heading + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9),
                                               rng.uniform(12, 34), 0.15), thick * 0.55))
    cover = reduce(line)
    bark = reduce(noise(rng, 2.4, 2))
    round_ = ndimage.gaussian_filter(cover, thick * 0.3) * thick + 0.25 * bark * cover
    wood = (rgb(112, 84, 58), rgb(150, 128, 100), rgb(74, 58, 46))[int(rng.integers(3))]
    skin = wood * ((1 + 0.16 * bark) * _relief(round_, sun))[..., None]
    return mix(image * (1 - 0.7 * _cast(cover, sun, 3.5, 1.4))[..., None], skin, cover)


def leaf(image: Array, rng: np.random.Generator, sun: float) -> Array:
    """A fallen leaf with its veins, from spring green to autumn brown."""
    center, turn = _anywhere(rng, 30), rng.uniform(0, 2 * math.pi)
    long = _radius(rng, 14, 40)
    axis = np.arange(256) - 127.5
    dx, dy = axis - center[0], (axis - center[1])[:, None]
    u = (math.cos(turn) * dx + math.sin(turn) * dy) / long
    v = (-math.sin(turn) * dx + math.cos(turn) * dy) / long
    v = v + rng.normal(0, 0.12) * u * u                       # the midrib is bent
    half = 0.44 * np.clip(1 - u * u, 0, 1) ** 0.8 * (1 - 0.35 * u)
    half = half * (1 + 0.05 * np.sin(u * rng.uniform(26, 36)))
    cover = np.clip(0.5 - (np.abs(v) - half) * long, 0, 1) * (np.abs(u) < 1)
    stalk = np.clip(0.5 - (np.abs(v - 0.1 * (u + 1) ** 2) * long - 0.9), 0, 1) * (u < -0.9) * (u > -1.45)
    midrib = np.exp(-(v * long / 1.0) ** 2)
    side = np.exp(-(np.sin((u * 1.0 - np.abs(v) * 1.1) * 17) / 0.22) ** 2) * 0.5
    hue = (rgb(150, 92, 34), rgb(180, 132, 40), rgb(122, 52, 32), rgb(96, 116, 44))[int(rng.integers(4))]
    blotch = reduce(noise(rng, 7, 3))
    height = 3.0 * np.abs(v) * long / 14 + 0.9 * side + 1.2 * blotch * 0.4
    skin = hue * ((1 + 0.16 * blotch + 0.35 * np.maximum(midrib, side * 0.7)) * _relief(height, sun))[..., None]
    cover = np.maximum(cover, stalk)
    return mix(image * (1 - 0.7 * _cast(cover, sun, 3.5, 1.8))[..., None], skin.astype(np.float32), cover)
