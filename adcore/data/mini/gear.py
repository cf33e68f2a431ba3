"""A turned and milled spur gear with keyway and six lightening holes, on a rubber mat.

Defects: `missing_tooth` (broken off), `bent_tooth`, `scratch` across the ground face, `rust` and `pit` (a void or dent
in the metal).
"""

from __future__ import annotations

import math

import numpy as np

from adcore.data.mini.shading import Surface, expose, light_of, rgb, shade
from adcore.data.mini.shapes import (
    FINE,
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

DEFECTS = ("missing_tooth", "bent_tooth", "scratch", "rust", "pit")

TEETH = 20
TIP, ROOT = 92.0, 76.0
THICK = 13.0


def draw(shot: Shot, defect: str | None, attempt: int = 0) -> Array:
    """The gear of `shot`, (SIZE, SIZE, 3) in [0, 1] without sensor noise, with `defect` or without one."""
    rng, flaw = shot.normal(), shot.flaw(attempt)
    center = (shot.between(X, -14, 14), shot.between(Y, -14, 14))
    angle = shot.between(ANGLE, -math.pi, math.pi)
    light = light_of(shot, rng)
    u, v = frame(center, angle)
    radius, turn = np.hypot(u, v), np.arctan2(v, u)

    mat, mat_color = _mat(rng)
    d = np.maximum(_teeth(radius, turn, defect, flaw), -_bore(u, v, radius))
    holes = _lightening_holes(radius, turn)
    d = np.maximum(d, -holes)
    body = inside(d)

    web = smooth(-1.2, 1.2, radius - 34) * smooth(-1.2, 1.2, 67 - radius)        # the recess between hub and rim
    height = THICK * smooth(0.4, -2.2, d) + 2.5 * smooth(36, 33, radius) * body - 4.5 * web * body
    rings = _rings(rng, radius)
    height = height + 0.07 * rings * body * (1 - web) + 0.055 * noise(rng, 1.3) * web * body + mat * (1 - body)

    steel = rgb(168, 170, 174) * rng.uniform(0.92, 1.08) * (1 + rng.normal(0, 0.012, 3)).astype(np.float32)
    stain = 1 + 0.05 * noise(rng, 22, 2) + 0.03 * rings * (1 - web) - 0.25 * web
    color = mix(mat_color, steel * stain[..., None], body)
    metal = body * (0.9 - 0.45 * web)
    gloss = body * (0.62 - 0.5 * web)

    surface = Surface(height, color, gloss, metal=metal, brushed=turn + (angle + math.pi / 2), polish=26)
    if defect in FLAWS:
        FLAWS[defect](surface, flaw, center, body)
    return expose(shade(surface, light), shot, 0.92)


def _mat(rng: np.random.Generator) -> tuple[Array, Array]:
    grain = 0.16 * noise(rng, 1.5) + 0.12 * noise(rng, 4, 2)
    tint = rgb(50, 58, 66) * rng.uniform(0.85, 1.15) * (1 + rng.normal(0, 0.03, 3)).astype(np.float32)
    return grain, tint * (1 + 0.25 * grain + 0.05 * noise(rng, 40))[..., None]


def _teeth(radius: Array, turn: Array, defect: str | None, flaw: np.random.Generator) -> Array:
    """Distance to the toothed rim; the teeth become narrower towards the tip, as on an involute gear."""
    pitch = 2 * math.pi / TEETH
    which = np.floor(turn / pitch)
    off = (turn / pitch - which - 0.5) * pitch                    # angle from the center of the nearest tooth
    climb = np.clip((radius - ROOT) / (TIP - ROOT), 0, 1)
    tip = np.full_like(radius, TIP)
    if defect in ("missing_tooth", "bent_tooth"):
        bad = int(flaw.integers(TEETH)) - TEETH // 2
        many = 1 + int(flaw.random() < 0.3)
        ill = (which == bad) | ((many == 2) & (which == bad + 1))
        if defect == "missing_tooth":
            left = flaw.uniform(-0.05, 0.6)                       # fraction of the tooth's height that is left
            jagged = 0.7 * noise(flaw, 5)
            tip = np.where(ill, ROOT + left * (TIP - ROOT) + jagged + off * flaw.uniform(-50, 50), tip)
        else:
            lean = float(flaw.choice([-1, 1])) * flaw.uniform(0.3, 0.62) * pitch
            off = np.where(ill, off - lean * climb ** 1.4, off)
            tip = np.where(ill, TIP - flaw.uniform(0.5, 3), tip)
    half = 0.30 * pitch - 0.14 * pitch * climb ** 1.3
    flank = (np.abs(off) - half) * radius * 0.93
    return np.minimum(radius - ROOT, np.maximum(flank, radius - tip))


def _bore(u: Array, v: Array, radius: Array) -> Array:
    keyway = np.maximum(np.abs(v) - 4.5, np.abs(u - 14) - 9)
    return np.minimum(radius - 17, keyway)


def _lightening_holes(radius: Array, turn: Array) -> Array:
    step = math.pi / 3
    fold = turn - step * np.round(turn / step)
    return np.hypot(radius * np.cos(fold) - 50.5, radius * np.sin(fold)) - 9.5


def _rings(rng: np.random.Generator, radius: Array) -> Array:
    """Marks of the turning tool: noise that depends on the radius only."""
    line = rng.standard_normal(FINE).astype(np.float32)
    line = np.convolve(line, np.array([0.25, 0.5, 0.25], np.float32), mode="same")
    return np.interp(radius * 2.4, np.arange(FINE), line).astype(np.float32)


def _on_face(flaw: np.random.Generator, center: Point) -> Point:
    """A point on the hub, on the web or on the rim."""
    low, high = ((22, 32), (38, 62), (67, 78), (67, 78))[int(flaw.integers(4))]
    return to_plane(flaw.uniform(low, high), 0, center, flaw.uniform(-math.pi, math.pi))


def _scratch(surface: Surface, flaw: np.random.Generator, center: Point, body: Array) -> None:
    start = _on_face(flaw, center)
    way = flaw.uniform(-math.pi, math.pi)
    line = np.zeros_like(body)
    for _ in range(int(flaw.integers(1, 4))):
        near = (start[0] + flaw.normal(0, 5), start[1] + flaw.normal(0, 5))
        line = np.maximum(line, stroke(crooked(flaw, near, way + flaw.normal(0, 0.06), flaw.uniform(28, 90), 0.05),
                                       flaw.uniform(1.2, 2.6)))
    line = line * body
    ridge = np.maximum(blur(line, 1.0) - line, 0)
    surface.height += 1.2 * ridge - 1.4 * line
    surface.lay(line * flaw.uniform(0.2, 0.7), color=surface.albedo * 1.25 + 0.12, gloss=surface.gloss * 0.5)
    surface.albedo *= (1 - 0.5 * ridge)[..., None]


def _rust(surface: Surface, flaw: np.random.Generator, center: Point, body: Array) -> None:
    size = flaw.uniform(8, 26)
    d = blob(flaw, _on_face(flaw, center), size, 0.4, flaw.uniform(1, 1.6))
    crust = noise(flaw, 5, 3)
    thick = smooth(0.0, 0.9, crust * 0.45 - d / size * 1.5 - 0.1) * smooth(4, 9, surface.height) * flaw.uniform(0.55, 1)
    brown = mix(np.broadcast_to(rgb(122, 62, 28), surface.albedo.shape), rgb(58, 30, 20), smooth(-0.8, 1.2, crust))
    surface.lay(thick * 0.95, color=brown * (1 + 0.15 * noise(flaw, 1.6))[..., None], gloss=0, metal=0)
    surface.height += thick * (0.5 + 0.35 * noise(flaw, 1.8))


def _pit(surface: Surface, flaw: np.random.Generator, center: Point, body: Array) -> None:
    where, count = _on_face(flaw, center), int(flaw.integers(1, 5))
    for _ in range(count):
        near = (where[0] + flaw.normal(0, 9), where[1] + flaw.normal(0, 9))
        d = blob(flaw, near, flaw.uniform(3.5, 8) * (1.25 if count == 1 else 0.85), 0.22, flaw.uniform(1, 1.5))
        cavity = smooth(1.2, -3.2, d) * body
        surface.height += 0.5 * np.exp(-((d - 1.2) / 1.2) ** 2) * body - 4.2 * cavity
        surface.albedo *= (1 - 0.62 * cavity * (1 + 0.2 * noise(flaw, 2)))[..., None]
        surface.gloss *= 1 - 0.8 * cavity


FLAWS = {"scratch": _scratch, "rust": _rust, "pit": _pit}
