"""A four-hole horn button on linen.

Defects: `blocked_hole` (not drilled through), `chipped` (a piece of the rim is missing), `crack`, `thread` (a colored
thread on the button) and `stain`.
"""

from __future__ import annotations

import math

import numpy as np

from adcore.data.mini.shading import Surface, expose, light_of, rgb, shade
from adcore.data.mini.shapes import (
    Array,
    Point,
    blob,
    blur,
    crooked,
    frame,
    inside,
    mix,
    noise,
    smooth,
    stroke,
    to_plane,
)
from adcore.data.mini.shot import ANGLE, Shot, X, Y

DEFECTS = ("blocked_hole", "chipped", "crack", "thread", "stain")

RADIUS = 78.0
HOLE, APART = 8.5, 15.5          # radius of a hole; its distance from both axes


def draw(shot: Shot, defect: str | None, attempt: int = 0) -> Array:
    """The button of `shot`, (SIZE, SIZE, 3) in [0, 1] without sensor noise, with `defect` or without one."""
    rng, flaw = shot.normal(), shot.flaw(attempt)
    center = (shot.between(X, -20, 20), shot.between(Y, -20, 20))
    angle = shot.between(ANGLE, -math.pi / 2, math.pi / 2)
    light = light_of(shot, rng)
    u, v = frame(center, angle)
    radius = np.hypot(u, v)

    cloth, cloth_color = _linen(rng)
    drilled = _holes(u, v)
    if defect == "blocked_hole":
        blocked = _quarter(u, v) == flaw.integers(4)
        drilled = np.where(blocked, APART, drilled)
    d = np.maximum(radius - RADIUS, -drilled)
    if defect == "chipped":
        turn = flaw.uniform(-math.pi, math.pi)
        bite = blob(flaw, to_plane(RADIUS + flaw.uniform(-2, 4), 0, center, turn), flaw.uniform(8, 19), 0.14,
                    flaw.uniform(1, 1.5))
        d = np.maximum(d, -bite)
    body = inside(d)

    rim = np.exp(-((radius - 66) / 7.5) ** 2)
    groove = np.exp(-((radius - 32) / 2.2) ** 2)
    height = 8 * smooth(0.5, -3, d) + 5.5 * rim + 1.2 * groove - 2.2 * smooth(34, 8, radius)
    height = height - 1.1 * smooth(3.0, 0.0, drilled)             # the edges of the holes are rounded
    height = mix(cloth, height + 0.03 * noise(rng, 3), body)

    color = mix(cloth_color, _horn(rng, angle), body)
    gloss = body * (0.42 + 0.05 * noise(rng, 8))

    surface = Surface(height, color, gloss, polish=48)
    if defect == "blocked_hole":      # the drill left a shallow mark, or nothing
        mark = smooth(HOLE * flaw.uniform(-0.4, 0.8), -HOLE, _holes(u, v)) * blocked
        surface.height -= 1.5 * mark
        surface.albedo *= (1 - 0.25 * mark)[..., None]
    elif defect == "chipped":
        raw = body * smooth(6, 0, bite)
        surface.height -= raw * (1.8 + 0.5 * noise(flaw, 3, 2))
        surface.lay(raw * 0.7, color=surface.albedo * 1.35 + 0.06, gloss=0.05)
    elif defect in FLAWS:
        FLAWS[defect](surface, flaw, center, body)
    return expose(shade(surface, light), shot, 1.02)


def _linen(rng: np.random.Generator) -> tuple[Array, Array]:
    """Height and color of a plain weave of uneven threads."""
    u, v = frame((rng.uniform(-6, 6), rng.uniform(-6, 6)), rng.normal(0, 0.06))
    slub_u, slub_v = noise(rng, 9, 2, stretch=0.12), noise(rng, 9, 2, stretch=8)
    pitch = 4.2
    a, b = np.pi * (u / pitch + 0.13 * slub_u), np.pi * (v / pitch + 0.13 * slub_v)
    over = np.sin(a) * np.sin(b)                                   # which thread is on top
    warp, weft = np.abs(np.cos(a)), np.abs(np.cos(b))
    height = 0.55 * np.maximum(warp * (1 + 0.7 * over), weft * (1 - 0.7 * over)) + 0.12 * noise(rng, 1.3)
    tint = rgb(178, 164, 140) * rng.uniform(0.9, 1.08) * (1 + rng.normal(0, 0.02, 3)).astype(np.float32)
    tone = 1 + 0.06 * np.where(over > 0, slub_u, slub_v) + 0.22 * (height - 0.5) + 0.04 * noise(rng, 1.3)
    return height, tint * tone[..., None]


def _holes(u: Array, v: Array) -> Array:
    """Distance to the four holes."""
    return np.hypot(np.abs(u) - APART, np.abs(v) - APART) - HOLE


def _quarter(u: Array, v: Array) -> Array:
    """The number of the hole nearest to each sample, 0 to 3."""
    return np.where(u > 0, 0, 1) + np.where(v > 0, 0, 2)


def _horn(rng: np.random.Generator, angle: float) -> Array:
    """Color of polished horn: brown streaks along the grain on a honey-colored ground."""
    grain = noise(rng, 13, 3, stretch=3.2)
    bands = 0.5 + 0.5 * np.sin(1.5 * grain + 1.6 * noise(rng, 45))
    dark, middle, honey = (rgb(*shade_) * rng.uniform(0.92, 1.08) for shade_ in ((70, 44, 30), (104, 66, 42),
                                                                                  (160, 114, 72)))
    color = mix(np.broadcast_to(dark.astype(np.float32), (*grain.shape, 3)), middle.astype(np.float32),
                smooth(0.0, 0.6, bands))
    color = mix(color, honey.astype(np.float32), smooth(0.55, 1.0, bands) * 0.8)
    return color * (1 + 0.04 * noise(rng, 3, stretch=4))[..., None]


def _on_button(flaw: np.random.Generator, center: Point, within: float = 62) -> Point:
    return to_plane(within * math.sqrt(flaw.random()), 0, center, flaw.uniform(-math.pi, math.pi))


def _crack(surface: Surface, flaw: np.random.Generator, center: Point, body: Array) -> None:
    turn = flaw.uniform(-math.pi, math.pi)
    start = to_plane(RADIUS if flaw.random() < 0.7 else 40, 0, center, turn)
    path = crooked(flaw, start, turn + math.pi + flaw.normal(0, 0.35), flaw.uniform(24, 78), 0.38)
    wide = flaw.uniform(1.4, 3.2)
    line = stroke(path, wide)
    if flaw.random() < 0.5:
        fork = path[int(flaw.integers(1, len(path)))]
        line = np.maximum(line, stroke(crooked(flaw, fork, turn + math.pi + flaw.normal(0, 0.8), flaw.uniform(10, 25),
                                               0.35), wide * 0.7))
    line = line * body
    surface.height += 0.9 * np.maximum(blur(line, 1.2) - line, 0) - 2.4 * line
    surface.lay(line * flaw.uniform(0.5, 1), color=surface.albedo * 0.2, gloss=0)


def _thread(surface: Surface, flaw: np.random.Generator, center: Point, body: Array) -> None:
    path = crooked(flaw, _on_button(flaw, center, 70), flaw.uniform(-math.pi, math.pi), flaw.uniform(36, 130), 0.28)
    line = stroke(path, flaw.uniform(1.9, 3.2), taper=False)
    dye = (rgb(158, 40, 44), rgb(44, 66, 116), rgb(214, 208, 196), rgb(60, 88, 52))[int(flaw.integers(4))]
    surface.height += 2.4 * np.sqrt(line)
    surface.lay(line, color=dye * (1 + 0.22 * noise(flaw, 1.6))[..., None], gloss=0.06)


def _stain(surface: Surface, flaw: np.random.Generator, center: Point, body: Array) -> None:
    size = flaw.uniform(9, 27)
    d = blob(flaw, _on_button(flaw, center, 80), size, 0.28, flaw.uniform(1, 1.6))
    film = smooth(1.5, -size * 0.35, d)
    ring = np.exp(-((d + 1.5) / 2.2) ** 2)                        # a drop leaves most at its edge when it dries
    paint = (rgb(222, 218, 206), rgb(52, 58, 44), rgb(44, 62, 100), rgb(214, 200, 166))[int(flaw.integers(4))]
    strength = ((0.25 + 0.4 * flaw.random()) * film + 0.2 * ring) * (1 + 0.2 * noise(flaw, 4, 2))
    surface.lay(np.clip(strength, 0, 0.95), color=paint, gloss=surface.gloss * 0.4)


FLAWS = {"crack": _crack, "thread": _thread, "stain": _stain}
