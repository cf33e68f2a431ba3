"""From a surface to a photograph: light, highlights, reflections, shadow, occlusion, lens and sensor.

    Surface (height, color, gloss, metal) --shade--> linear light --expose--> image in [0, 1] --sensor--> uint8
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from adcore.data.mini.shapes import FINE, SCALE, SIZE, Array, Part, blur, mix, reduce, resize, smooth
from adcore.data.mini.shot import CONTRAST, EXPOSURE, LIGHT, Shot


@dataclass
class Surface:
    """The scene under the camera, sampled on the plane.

    height   (FINE, FINE)     pixels above the table
    albedo   (FINE, FINE, 3)  linear RGB in [0, 1]
    gloss    (FINE, FINE)     strength of the highlight, 0 matt
    metal    (FINE, FINE)     1 where the surface reflects the room instead of scattering light, or None
    brushed  (FINE, FINE)     angle of the grinding marks, or None
    polish   exponent of the highlight: 10 broad, 100 sharp
    """

    height: Array
    albedo: Array
    gloss: Array
    metal: Array | None = None
    brushed: Array | None = None
    polish: float = 40.0

    def lay(self, cover: Array, height: Array | float | None = None, color: Array | None = None,
            gloss: Array | float | None = None, metal: Array | float | None = None, part: Part = ()) -> None:
        """Put a material on the surface where `cover` is 1. Properties that are None do not change.

        All arrays have the size of `part`, a window of the plane (shapes.window), by default the whole plane.
        """
        for name, value in (("height", height), ("albedo", color), ("gloss", gloss), ("metal", metal)):
            if value is not None:
                below = getattr(self, name)
                below[part] = mix(below[part], value, cover)


@dataclass(frozen=True)
class Light:
    """One lamp and the room around it. Azimuth 0 is light from the right, -pi/2 from the top of the image."""

    azimuth: float
    elevation: float
    lamp: float
    room: float
    warmth: float

    @property
    def direction(self) -> tuple[float, float, float]:
        """Unit vector towards the lamp: right, down, up from the table."""
        flat = math.cos(self.elevation)
        return flat * math.cos(self.azimuth), flat * math.sin(self.azimuth), math.sin(self.elevation)

    @property
    def color(self) -> Array:
        """(3,) linear RGB of the lamp."""
        return np.array([1 + self.warmth, 1.0, 1 - self.warmth], np.float32)


def light_of(shot: Shot, rng: np.random.Generator) -> Light:
    """The light of a shot: from the upper left, in a slightly different direction each time."""
    fraction = shot.between(CONTRAST, 0.62, 0.82)   # of the light that comes from the lamp
    return Light(azimuth=-2.3 + shot.between(LIGHT, -0.4, 0.4), elevation=rng.uniform(0.78, 1.02),
                 lamp=1.35 * fraction, room=1.25 * (1 - fraction), warmth=rng.uniform(-0.03, 0.05))


def shade(surface: Surface, light: Light) -> Array:
    """Linear light that reaches the camera from above, (FINE, FINE, 3)."""
    gy, gx = np.gradient(surface.height, 1 / SCALE)
    nz = 1 / np.sqrt(1 + gx * gx + gy * gy)
    nx, ny = -gx * nz, -gy * nz
    lx, ly, lz = light.direction

    lit = np.maximum(nx * lx + ny * ly + nz * lz, 0) * _shadow(surface.height, light)
    open_sky = _occlusion(surface.height)
    image = (lit * light.lamp)[..., None] * light.color
    image += (open_sky * light.room)[..., None]
    image *= surface.albedo

    length = math.sqrt(lx * lx + ly * ly + (1 + lz) ** 2)
    hx, hy, hz = lx / length, ly / length, (1 + lz) / length      # halfway between lamp and camera
    shine = np.maximum(nx * hx + ny * hy + nz * hz, 0) ** surface.polish
    if surface.brushed is not None:
        along = np.cos(surface.brushed) * hx + np.sin(surface.brushed) * hy
        # Grinding marks spread the highlight at right angles to them: the bow tie on turned metal.
        bow = np.maximum(1 - along * along * 9, 0)
        level = nz * nz * nz
        shine = 0.4 * shine + 1.5 * bow * bow * level * level
    if surface.metal is not None:
        image *= (1 - 0.8 * surface.metal)[..., None]
        image += surface.albedo * (surface.metal * open_sky * _room(nx, ny, nz, light))[..., None]
    image += (surface.gloss * shine * (0.3 + 0.7 * np.minimum(lit * 2, 1)))[..., None] * light.color
    return image


def _room(nx: Array, ny: Array, nz: Array, light: Light) -> Array:
    """The room that a mirror reflects: a bright ceiling towards the lamp, a dark floor, and a long window."""
    rx, ry = 2 * nz * nx, 2 * nz * ny
    toward = rx * math.cos(light.azimuth) + ry * math.sin(light.azimuth)
    window = np.exp(-((toward - 0.45) / 0.22) ** 2)
    return 0.62 + 0.35 * np.tanh(1.6 * toward) + 0.55 * light.lamp * window


def _shadow(height: Array, light: Light) -> Array:
    """1 in the light, towards 0 in the shadow. Steps from each finished pixel towards the lamp and compares heights."""
    low = reduce(height)
    reach, rise = 44, math.tan(light.elevation)
    padded = np.pad(low, reach, mode="edge")
    dx, dy = math.cos(light.azimuth), math.sin(light.azimuth)
    depth = np.zeros_like(low)
    for t in (1.5, 3, 5, 7, 10, 13, 17, 21, 26, 32, 40):
        i, j = reach + round(dy * t), reach + round(dx * t)
        above = padded[i:i + SIZE, j:j + SIZE] - low - t * rise
        depth = np.maximum(depth, above / (1 + 0.12 * t))
    dark = ndimage.gaussian_filter(smooth(0, 2.2, depth), 1.1)
    return resize(1 - 0.82 * dark, FINE)


def _occlusion(height: Array) -> Array:
    """Fraction of the room's light that reaches a point: less in grooves and at the bottom of steps."""
    near, far = blur(height, 2.5) - height, blur(height, 9) - height
    return 1 / (1 + 0.28 * np.maximum(near, 0) + 0.09 * np.maximum(far, 0))


def expose(light: Array, shot: Shot, exposure: float = 1.0) -> Array:
    """Linear light (FINE, FINE, 3) to an image (SIZE, SIZE, 3) in [0, 1] without noise: lens blur, vignette, gamma."""
    image = reduce(light)
    image = ndimage.gaussian_filter(image, (0.55, 0.55, 0), truncate=3)
    axis = np.linspace(-1, 1, SIZE, dtype=np.float32)
    vignette = 1 - 0.09 * (axis[:, None] ** 2 + axis ** 2)
    image = image * (vignette * exposure * shot.between(EXPOSURE, 0.82, 1.2))[..., None]
    image = np.where(image > 0.7, 0.7 + 0.3 * np.tanh((image - 0.7) / 0.3), image)   # highlights saturate softly, as on film
    return encode(image)


def encode(linear: Array) -> Array:
    """Linear light in [0, 1] to sRGB values in [0, 1].

    >>> encode(np.array([0.0, 0.5, 1.0])).round(3).tolist()
    [0.0, 0.735, 1.0]
    """
    linear = np.clip(linear, 0, 1)
    return np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def rgb(red: int, green: int, blue: int) -> Array:
    """An sRGB color in 0..255 as linear RGB, (3,) float32.

    >>> rgb(255, 0, 0).tolist()
    [1.0, 0.0, 0.0]
    """
    value = np.array([red, green, blue], np.float32) / 255
    return np.where(value < 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)


def sensor(image: Array, shot: Shot) -> Array:
    """An image in [0, 1] as the camera stores it: shot noise that grows with light, read noise, 8 bits."""
    grain = shot.noise().standard_normal(image.shape, dtype=np.float32)
    grain = 0.75 * grain + 0.25 * grain.mean(2, keepdims=True) * 3 ** 0.5
    noisy = image + grain * (0.006 + 0.011 * np.sqrt(np.maximum(image, 0)))
    return (np.clip(noisy, 0, 1) * 255 + 0.5).astype(np.uint8)
