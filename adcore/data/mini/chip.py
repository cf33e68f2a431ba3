"""A quad flat package soldered to a green circuit board, with traces, vias, two capacitors and a resistor.

Defects: `bent_pin`, `missing_pin`, `misprint` on the package, `scratch` across package and board, and `solder` (a
bridge between pins, or a splash on the board).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from adcore.data.mini.shading import Surface, expose, light_of, rgb, shade
from adcore.data.mini.shapes import (
    FINE,
    SCALE,
    Array,
    Point,
    blob,
    blur,
    box,
    crooked,
    frame,
    inside,
    mix,
    noise,
    place,
    smooth,
    stroke,
    text,
    to_plane,
    window,
)
from adcore.data.mini.shot import ANGLE, Shot, X, Y

DEFECTS = ("bent_pin", "missing_pin", "misprint", "scratch", "solder")

BODY = 49.0                       # half the package's width
PINS, PITCH, PIN = 9, 9.6, 4.4    # pins per side; distance from pin to pin; width of a pin
FOOT = 71.0                       # where the pins end
PARTS = ((-92.0, -70.0, 0.0, "capacitor"), (-92.0, 62.0, math.pi / 2, "resistor"), (92.0, 64.0, 0.0, "capacitor"))

LEGEND = [("U7", 62, -92, 9), ("C12", -92, -88, 7), ("C13", 92, 83, 7)]


def draw(shot: Shot, defect: str | None, attempt: int = 0) -> Array:
    """The board of `shot`, (SIZE, SIZE, 3) in [0, 1] without sensor noise, with `defect` or without one."""
    rng, flaw = shot.normal(), shot.flaw(attempt)
    center = (shot.between(X, -9, 9), shot.between(Y, -9, 9))
    angle = shot.between(ANGLE, -0.07, 0.07)
    light = light_of(shot, rng)

    surface = _board(rng, center, angle)
    _pins(surface, rng, flaw, defect, center, angle)
    _package(surface, rng, center, angle, _print(rng, flaw, defect == "misprint", center, angle))
    for x, y, turn, kind in PARTS:
        slip = rng.normal(0, 0.8, 2)
        _part(surface, to_plane(x + slip[0], y + slip[1], center, angle), angle + turn + rng.normal(0, 0.03), kind)
    if defect == "scratch":
        _scratch(surface, flaw, center, angle)
    elif defect == "solder":
        _solder(surface, flaw, center, angle)
    return expose(shade(surface, light), shot, 1.22)


@lru_cache(maxsize=1)
def _artwork() -> Image.Image:
    """The layers of the board as red, green and blue: copper under the solder mask, tinned pads and vias, white legend."""
    over, rng = 4, np.random.default_rng(7)
    size, middle = FINE * over, FINE * over / 2
    copper, tin, legend = (Image.new("L", (size, size)) for _ in range(3))
    lines, pads, marks = (ImageDraw.Draw(layer) for layer in (copper, tin, legend))

    def at(x: float, y: float) -> tuple[float, float]:
        return middle + x * SCALE * over, middle + y * SCALE * over

    def dot(layer: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: int) -> None:
        layer.ellipse([*at(x - r, y - r), *at(x + r, y + r)], fill=fill)

    for side in range(4):
        turn = side * math.pi / 2
        for pin in range(PINS):
            along = (pin - (PINS - 1) / 2) * PITCH
            corners = [(FOOT - 13, along - 2.9), (FOOT + 3, along - 2.9), (FOOT + 3, along + 2.9),
                       (FOOT - 13, along + 2.9)]
            pads.polygon([at(*to_plane(*corner, (0, 0), turn)) for corner in corners], fill=255)
            if rng.random() < 0.78:     # a trace leaves the pad and fans out
                out, fan = FOOT + rng.uniform(6, 16), along * rng.uniform(1.15, 1.5)
                path = [(FOOT, along), (out, along), (out + abs(fan - along), fan), (190, fan)]
                lines.line([at(*to_plane(*point, (0, 0), turn)) for point in path], fill=255,
                           width=round(2.4 * SCALE * over), joint="curve")
                if rng.random() < 0.4:
                    x, y = to_plane(out + abs(fan - along) + rng.uniform(4, 14), fan, (0, 0), turn)
                    dot(lines, x, y, 4.6, 255)
                    dot(pads, x, y, 3.2, 200)
    for corner in range(4):
        turn = corner * math.pi / 2
        path = [(FOOT + 7, FOOT - 1), (FOOT + 7, FOOT + 7), (FOOT - 1, FOOT + 7)]
        marks.line([at(*to_plane(*point, (0, 0), turn)) for point in path], fill=255, width=round(1.4 * SCALE * over))
    dot(marks, -FOOT - 12, -FOOT + 16, 2.6, 255)
    legend.paste(255, mask=Image.fromarray(np.uint8(text(LEGEND, (0, 0), 0) * 255)).resize((size, size)))
    legend.paste(255, mask=Image.fromarray(np.uint8(text([("R4", 0, 0, 7)], (-108, 62), -math.pi / 2) * 255)
                                           ).resize((size, size)))
    return Image.merge("RGB", [layer.reduce(over) for layer in (copper, tin, legend)])


def _board(rng: np.random.Generator, center: Point, angle: float) -> Surface:
    copper, tin, legend = np.moveaxis(place(_artwork(), center, angle), 2, 0) / 255
    weave = noise(rng, 2.6) * 0.022
    green = rgb(18, 92, 58) * rng.uniform(0.88, 1.12, 3).astype(np.float32)
    color = green * (1 + 0.05 * noise(rng, 30, 2) + 0.8 * weave)[..., None]
    color = mix(color, rgb(46, 132, 78), copper * 0.75)
    color = mix(color, rgb(226, 228, 220), legend * 0.9)
    color = mix(color, rgb(196, 198, 200), tin)
    height = 0.55 * blur(copper, 0.7) + blur(tin, 1.1) + weave * (1 - tin) + 0.15 * legend
    return Surface(height, color, 0.16 + 0.3 * tin - 0.1 * legend, metal=tin * 0.55, polish=34)


def _pins(surface: Surface, rng: np.random.Generator, flaw: np.random.Generator, defect: str | None, center: Point,
          angle: float) -> None:
    shift = rng.normal(0, 0.25, 4 * PINS).astype(np.float32)
    present = np.ones(4 * PINS, np.float32)
    lean, lift = np.zeros_like(present), np.zeros_like(present)
    if defect in ("missing_pin", "bent_pin"):
        bad = int(flaw.integers(4 * PINS))
        ill = [bad, bad + 1] if flaw.random() < 0.35 and bad % PINS < PINS - 1 else [bad]
        if defect == "missing_pin":
            present[ill] = 0
        else:
            lean[ill] = flaw.choice([-1, 1]) * flaw.uniform(0.16, 0.3)
            lift[ill] = flaw.uniform(0, 3)

    part = window(center, FOOT * 1.1 + 4)
    u, v = (axis[part] for axis in frame(center, angle))
    sideways = np.abs(u) > np.abs(v)
    along, across = np.where(sideways, v, u), np.maximum(np.abs(u), np.abs(v))
    side = np.where(sideways, np.where(u > 0, 0, 1), np.where(v > 0, 2, 3))
    cell = np.floor(along / PITCH + PINS / 2)
    foot, level = np.zeros_like(u), np.zeros_like(u)
    for step in (0,) if not lean.any() else (-1, 0, 1):    # a bent pin may reach into its neighbor's cell
        near = np.clip(cell + step, 0, PINS - 1)
        pin = (side * PINS + near).astype(np.intp)
        off = np.abs(along - (near - (PINS - 1) / 2) * PITCH - shift[pin] - lean[pin] * (across - BODY))
        cover = inside(np.maximum(off - PIN / 2, np.abs(across - (BODY + FOOT) / 2 + 3) - (FOOT - BODY) / 2 - 3))
        cover = cover * present[pin] * ((cell + step == near) if step == 0 else (lean[pin] != 0))
        # A pin leaves the package at the top, bends down and ends on its pad.
        rests = 2 + lift[pin] + 6.5 * smooth(61, 53, across) - 0.2 * np.maximum(off - 1.1, 0) ** 2
        level = np.where(cover > foot, rests, level)
        foot = np.maximum(foot, cover)
    tinned = rgb(190, 192, 196) * (1 + 0.06 * noise(rng, 3)[part])[..., None]
    solder = smooth(FOOT - 12, FOOT - 6, across)
    surface.lay(foot, height=level, color=tinned, gloss=0.6 - 0.2 * solder, metal=0.85, part=part)


def _package(surface: Surface, rng: np.random.Generator, center: Point, angle: float, printed: Array) -> None:
    part = window(center, BODY * 1.1 + 4)
    u, v = (axis[part] for axis in frame(center, angle))
    d = box(u, v, BODY, BODY, 3)
    grain = noise(rng, 1.4)[part]
    dimple = inside(np.hypot(u + 36, v + 36) - 4.5, 1.6)          # marks pin 1
    top = 12 * smooth(0.5, -3.5, d) + 0.07 * grain - 1.3 * dimple
    epoxy = rgb(46, 46, 49) * (1 + 0.07 * grain + 0.05 * noise(rng, 25)[part])[..., None]
    epoxy = mix(epoxy, rgb(172, 172, 166), printed[part] * 0.72)
    surface.lay(inside(d), height=top, color=epoxy, gloss=0.17 - 0.08 * dimple, metal=0.0, part=part)


def _print(rng: np.random.Generator, flaw: np.random.Generator, wrong: bool, center: Point, angle: float) -> Array:
    """Coverage of the three lines on the package; the lot number differs from image to image."""
    lot = f"{rng.integers(10, 30)}{rng.integers(10, 53)}-{'ABCDEFGH'[rng.integers(8)]}"
    names, slip, tilt = ["ADC0RE", "QF36-M7"], rng.normal(0, 0.7, 2), 0.0
    kind = int(flaw.integers(4)) if wrong else -1
    if kind == 0:       # another part's name
        names = [str(flaw.choice(["AC0RE", "ADCOPE", "BDC0RE", "ADC0"])),
                 str(flaw.choice(["QF36-H1", "Q-36M7", "QE38-N7"]))]
    elif kind == 1:     # printed at an angle
        tilt = float(flaw.choice([-1, 1])) * flaw.uniform(0.09, 0.22)
    printed = text([(names[0], 0, -18, 14), (names[1], 0, 1, 11), (lot, 0, 18, 9)],
                   to_plane(slip[0] - 4 * tilt, slip[1] + 4, center, angle), angle + tilt)
    if kind == 2:       # rubbed off in a patch
        spot = to_plane(flaw.uniform(-22, 22), flaw.uniform(-14, 14), center, angle)
        printed = printed * smooth(-3, 2, blob(flaw, spot, flaw.uniform(9, 18), 0.4))
    elif kind == 3:     # printed twice
        shift = (int(flaw.integers(4, 9)), int(flaw.choice([-1, 1]) * flaw.integers(3, 8)))
        printed = np.maximum(printed, 0.75 * np.roll(printed, shift, (0, 1)))
    return printed


def _part(surface: Surface, where: Point, turn: float, kind: str) -> None:
    """A surface-mounted resistor or capacitor between two pieces of solder."""
    part = window(where, 24)
    u, v = (axis[part] for axis in frame(where, turn))
    d, ends = box(u, v, 13, 7, 1.2), smooth(7.6, 8.4, np.abs(u))
    surface.lay(inside(box(np.abs(u) - 13, v, 6, 6.5, 3)), height=2.6 - 0.35 * np.maximum(np.abs(u) - 14, 0),
                color=rgb(186, 188, 192), gloss=0.6, metal=0.85, part=part)
    ceramic = rgb(34, 34, 38) if kind == "resistor" else rgb(160, 124, 92)
    tone = mix(np.broadcast_to(ceramic, (*u.shape, 3)), rgb(192, 194, 198), ends)
    if kind == "resistor":
        tone = mix(tone, rgb(228, 228, 224), text([("472", 0, 0, 6.5)], where, turn)[part] * 0.85)
    surface.lay(inside(d), height=6.5 * smooth(0.4, -1.6, d), color=tone, gloss=0.3, metal=0.8 * ends, part=part)


def _scratch(surface: Surface, flaw: np.random.Generator, center: Point, angle: float) -> None:
    if flaw.random() < 0.6:           # across the package
        start = to_plane(flaw.uniform(-44, 44), flaw.uniform(-44, 44), center, angle)
        way = flaw.uniform(-math.pi, math.pi)
    else:                             # along the board
        start = to_plane(flaw.uniform(-105, 60), float(flaw.choice([-1, 1])) * flaw.uniform(88, 105), center, angle)
        way = flaw.normal(0, 0.25)
    line = stroke(crooked(flaw, start, way, flaw.uniform(34, 95), 0.09), flaw.uniform(1.3, 2.9))
    line = line * np.clip(0.75 + 0.35 * noise(flaw, 3), 0.2, 1)
    lacquer = (surface.albedo[..., 1] > surface.albedo[..., 0] * 1.4)[..., None]
    bare = np.where(lacquer, rgb(170, 150, 96), surface.albedo * 1.5 + 0.13)
    surface.height += 0.8 * np.maximum(blur(line, 0.9) - line, 0) - 0.9 * line
    surface.lay(line * flaw.uniform(0.35, 0.9), color=bare, gloss=0.3)


def _solder(surface: Surface, flaw: np.random.Generator, center: Point, angle: float) -> None:
    side = int(flaw.integers(4)) * math.pi / 2
    if flaw.random() < 0.65:          # a bridge over the gap between two pins
        gap = (int(flaw.integers(PINS - 1)) - (PINS - 2) / 2) * PITCH
        where = to_plane(flaw.uniform(FOOT - 9, FOOT - 1), gap, center, angle + side)
        drops = [blob(flaw, where, flaw.uniform(5, 8), 0.12, flaw.uniform(1, 1.5))]
    else:                             # a splash
        where = to_plane(flaw.uniform(84, 104), flaw.uniform(-60, 60), center, angle + side)
        drops = [blob(flaw, (where[0] + flaw.normal(0, 8), where[1] + flaw.normal(0, 8)), flaw.uniform(2.5, 7.5), 0.08)
                 for _ in range(int(flaw.integers(2, 6)))]
    for d in drops:
        dome = np.sqrt(np.maximum(-d, 0) * 2.2)
        surface.lay(inside(d), height=np.maximum(surface.height * 0.3, 0) + 1.5 + 1.3 * dome, color=rgb(190, 192, 196),
                    gloss=0.7, metal=0.9)
