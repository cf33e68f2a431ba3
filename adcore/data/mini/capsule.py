"""A two-colored hard gelatin capsule on a paper-covered tray.

Defects: `crack` in the shell, `squeeze` (the shell is pressed in), `hole`, `misprint` (faulty imprint) and
`contamination` (powder or a hair on the shell).
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
    text,
    to_plane,
)
from adcore.data.mini.shot import ANGLE, Shot, X, Y

DEFECTS = ("crack", "squeeze", "hole", "misprint", "contamination")

HALF_LENGTH, RADIUS = 50.0, 35.0     # of the straight part; of the cap, which is the wider half
RIM = 4.0                            # the cap reaches from the left end to here


def draw(shot: Shot, defect: str | None, attempt: int = 0) -> Array:
    """The capsule of `shot`, (SIZE, SIZE, 3) in [0, 1] without sensor noise, with `defect` or without one."""
    rng, flaw = shot.normal(), shot.flaw(attempt)
    center = (shot.between(X, -16, 16), shot.between(Y, -22, 22))
    angle = shot.between(ANGLE, -0.3, 0.3)
    light = light_of(shot, rng)
    u, v = frame(center, angle)

    tray, tray_color = _tray(rng)
    shell, body = _shell(u, v)
    rough = noise(rng, 2.2) * 0.008 + noise(rng, 18) * 0.10
    height = np.where(shell > 0, shell + rough, 0) + tray * (1 - body)

    cap_color = rgb(24, 104, 132) * rng.uniform(0.85, 1.15, 3).astype(np.float32)
    body_color = rgb(232, 220, 196) * rng.uniform(0.93, 1.03, 3).astype(np.float32)
    color = mix(np.broadcast_to(body_color, (*u.shape, 3)), cap_color, inside(u - RIM, 1.0))
    # Gelatin is translucent: it is brighter where the shell is seen edge-on.
    edge_on = 1 - np.clip(shell / RADIUS, 0, 1)
    color = color * (1 + 0.35 * edge_on ** 3 + 0.025 * noise(rng, 5, 2))[..., None]
    light_ink, dark_ink = _imprint(center, angle, rng.uniform(13.5, 14.5), defect == "misprint", flaw)
    color = mix(color, rgb(240, 244, 244), light_ink * 0.82)
    color = mix(color, rgb(40, 62, 92), dark_ink * 0.8)
    gloss = body * (0.8 + 0.08 * noise(rng, 9)) * (1 - 0.4 * np.maximum(light_ink, dark_ink))

    surface = Surface(height, mix(tray_color, color, body), gloss, polish=38)
    if defect in FLAWS:
        FLAWS[defect](surface, flaw, center, angle)
    return expose(shade(surface, light), shot, 1.02)


def _tray(rng: np.random.Generator) -> tuple[Array, Array]:
    fibers = noise(rng, 4, 2, stretch=1.7) * 0.07 + noise(rng, 1.2) * 0.04
    tint = rgb(206, 208, 210) * rng.uniform(0.94, 1.03) * (1 + rng.normal(0, 0.01, 3)).astype(np.float32)
    return fibers, tint * (1 + 0.03 * fibers + 0.02 * noise(rng, 60))[..., None]


def _shell(u: Array, v: Array) -> tuple[Array, Array]:
    """Height of the shell above the tray, and the coverage of the shell."""
    axis = np.hypot(np.maximum(np.abs(u) - HALF_LENGTH, 0), v)
    radius = RADIUS - 1.6 * smooth(RIM - 0.6, RIM + 0.6, u)      # the body is inside the cap
    radius = radius - 0.7 * np.exp(-((u + 20) / 1.8) ** 2)       # the ring that locks cap and body
    height = np.sqrt(np.maximum(radius ** 2 - axis ** 2, 0))
    return height, inside(axis - radius)


def _imprint(center: Point, angle: float, size: float, wrong: bool, flaw: np.random.Generator) -> tuple[Array, Array]:
    """Coverage of the light ink on the cap and of the dark ink on the body."""
    words = ["ADC", "500"]
    if not wrong:
        return text([(words[0], -31, 0, size)], center, angle), text([(words[1], 31, 0, size)], center, angle)
    kind, which = int(flaw.integers(4)), int(flaw.integers(2))
    u, v, askew = (-31.0, 31.0)[which], 0.0, 0.0
    if kind == 0:       # another strength or name
        words[which] = str(flaw.choice((["ACD", "AD", "ABC"], ["200", "505", "50"])[which]))
    elif kind == 1:     # printed at an angle
        u, v = u + flaw.uniform(-5, 5), flaw.uniform(-6, 6)
        askew = float(flaw.choice([-1, 1])) * flaw.uniform(0.35, 0.8)
    ink = text([(words[which], 0, 0, size)], to_plane(u, v, center, angle), angle + askew)
    if kind == 2:       # part of it did not print
        spot = to_plane(u + flaw.uniform(-10, 10), flaw.uniform(-4, 4), center, angle)
        ink = ink * smooth(-2, 1.5, blob(flaw, spot, flaw.uniform(8, 15)))
    elif kind == 3:     # smeared while wet
        reach = int(flaw.integers(12, 30))
        trail = sum(np.roll(ink, step, axis=1) for step in range(0, reach, 2)) * 0.13
        ink = np.maximum(ink * 0.8, np.minimum(trail, 0.6)).astype(np.float32)
    other = text([(words[1 - which], -u if kind != 1 else (31.0, -31.0)[which], 0, size)], center, angle)
    return (ink, other) if which == 0 else (other, ink)


def _spot(flaw: np.random.Generator, center: Point, angle: float, reach: float = 0.55) -> tuple[Point, float]:
    """A point on the shell that the camera sees well, and the direction from it to the center of the capsule."""
    u = flaw.uniform(-HALF_LENGTH - 10, HALF_LENGTH + 10)
    v = flaw.uniform(-reach, reach) * RADIUS
    return to_plane(u, v, center, angle), math.atan2(-v, -u) + angle


def _crack(surface: Surface, flaw: np.random.Generator, center: Point, angle: float) -> None:
    start, inward = _spot(flaw, center, angle)
    path = crooked(flaw, start, inward + flaw.normal(0, 0.6), flaw.uniform(26, 80), 0.45)
    wide = flaw.uniform(1.5, 3.4)
    line = stroke(path, wide)
    for _ in range(int(flaw.integers(0, 3))):
        fork = path[int(flaw.integers(1, len(path)))]
        line = np.maximum(line, stroke(crooked(flaw, fork, inward + flaw.normal(0, 0.9), flaw.uniform(10, 26), 0.4),
                                       wide * 0.65))
    line = line * smooth(2, 8, surface.height)
    surface.height += 1.6 * np.maximum(blur(line, 1.6) - line, 0) - 2.6 * line
    surface.lay(line * flaw.uniform(0.55, 1), color=surface.albedo * 0.16, gloss=0)


def _squeeze(surface: Surface, flaw: np.random.Generator, center: Point, angle: float) -> None:
    where, _ = _spot(flaw, center, angle, 0.5)
    size = flaw.uniform(11, 24)
    dent = 1 - smooth(-size * 0.95, size * 0.3, blob(flaw, where, size, 0.07, flaw.uniform(1, 1.6)))
    pressed = surface.height - flaw.uniform(0.12, 0.3) * size * dent * smooth(0.5, 6, surface.height)
    surface.height = np.maximum(pressed, np.minimum(surface.height, 0.5))


def _hole(surface: Surface, flaw: np.random.Generator, center: Point, angle: float) -> None:
    where, _ = _spot(flaw, center, angle)
    d = blob(flaw, where, flaw.uniform(5, 12), 0.2, flaw.uniform(1, 1.5))
    cut = inside(d, 1.2) * smooth(1, 4, surface.height)
    powder = rgb(214, 206, 186) * (0.30 + 0.05 * noise(flaw, 3, 2) - 0.012 * np.minimum(-d, 8))[..., None]
    surface.height -= cut * np.minimum(8, -np.minimum(d, 0) * 2.5)
    surface.lay(cut, color=powder, gloss=0)
    wall = np.exp(-((d + 0.4) / 1.1) ** 2) * cut                  # the broken thickness of the shell, pale
    surface.lay(wall * 0.6, color=rgb(200, 204, 202))


def _contamination(surface: Surface, flaw: np.random.Generator, center: Point, angle: float) -> None:
    where, _ = _spot(flaw, center, angle, 0.8)
    if flaw.random() < 0.4:                                       # a hair across shell and tray
        hair = stroke(crooked(flaw, where, flaw.uniform(0, 2 * math.pi), flaw.uniform(50, 95), 0.3), 1.7)
        surface.height += 1.2 * hair
        surface.lay(hair * 0.9, color=rgb(46, 34, 28), gloss=0.2)
        return
    size = flaw.uniform(9, 22)                                    # or powder
    d = blob(flaw, where, size, 0.35, flaw.uniform(1, 1.8))
    grains = noise(flaw, 1.9, 2)
    heap = smooth(0.1, 1.3, grains * 0.7 - d / size * 1.7)        # dense in the center, single grains outside
    dust = (rgb(238, 234, 222), rgb(190, 164, 122), rgb(84, 78, 72))[int(flaw.integers(3))]
    surface.height += heap * (1.2 + 0.4 * noise(flaw, 3))
    surface.lay(heap * 0.93, color=dust * (1 + 0.14 * grains)[..., None], gloss=0)


FLAWS = {"crack": _crack, "squeeze": _squeeze, "hole": _hole, "contamination": _contamination}
