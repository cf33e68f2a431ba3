"""Which image of `mini` is being made, and every random number that goes into it.

An image is a function of (category, split, index) alone. Its numbers come in four kinds, each from a stream of its own,
so that drawing a defect never moves the object below it:

    spread    the nuisances that a weak detector could exploit: exposure, light, position, angle, contrast
    normal    all other natural variation: colors, grain, clutter
    flaw      the defect
    noise     the sensor
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

SEED = 20240
SPLITS = ("train", "good", "defective")
NUISANCES = 6


@dataclass(frozen=True)
class Shot:
    """One image to be: `split` is 'train', 'good' or 'defective', `index` counts from 0 within it."""

    category: str
    split: str
    index: int

    def _stream(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([SEED, zlib.crc32(self.category.encode()), SPLITS.index(self.split),
                                      self.index, *purpose])

    def normal(self) -> np.random.Generator:
        """Numbers for natural variation; the same ones at each call."""
        return self._stream(0)

    def flaw(self, attempt: int = 0) -> np.random.Generator:
        """Numbers for the defect; another `attempt` draws another defect of the same kind."""
        return self._stream(1, attempt)

    def noise(self) -> np.random.Generator:
        """Numbers for the sensor noise; the same ones at each call."""
        return self._stream(2)

    @property
    def spread(self) -> np.ndarray:
        """(6,) numbers in [0, 1): exposure, light direction, x, y, angle, contrast.

        Taken from an additive recurrence (Roberts' R sequence) instead of drawn at random: any run of indices covers
        the range evenly, and good and defective test images start at the same place. They then have the same
        distribution of brightness and position, and a detector that looks at nothing else stays near 50 % AUROC without
        a lucky seed.
        """
        root = 1.5
        for _ in range(60):   # the positive solution of x ** (NUISANCES + 1) = x + 1
            root = (1 + root) ** (1 / (NUISANCES + 1))
        steps = root ** -np.arange(1.0, NUISANCES + 1)
        start = np.random.default_rng([SEED, zlib.crc32(self.category.encode()), int(self.split == "train")])
        return (start.random(NUISANCES) + self.index * steps) % 1.0

    def between(self, nuisance: int, low: float, high: float) -> float:
        """One of the six spread numbers, stretched to [low, high)."""
        return float(low + (high - low) * self.spread[nuisance])


EXPOSURE, LIGHT, X, Y, ANGLE, CONTRAST = range(NUISANCES)
