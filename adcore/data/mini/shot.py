"""Identifies an image of `mini` and provides all its random numbers.

An image is a function of (category, split, index) alone. Its random numbers are of four kinds, each from its own generator,
so that drawing a defect does not change the object below it:

    spread    nuisances that a weak detector could exploit: exposure, light, position, angle, contrast
    normal    all other natural variation: colors, grain, small differences
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
    """One image: `split` is 'train', 'good' or 'defective'; `index` counts from 0 within the split."""

    category: str
    split: str
    index: int

    def _stream(self, *purpose: int) -> np.random.Generator:
        return np.random.default_rng([SEED, zlib.crc32(self.category.encode()), SPLITS.index(self.split),
                                      self.index, *purpose])

    def normal(self) -> np.random.Generator:
        """A generator for natural variation; it gives the same numbers at each call."""
        return self._stream(0)

    def flaw(self, attempt: int = 0) -> np.random.Generator:
        """A generator for the defect; another `attempt` gives another defect of the same kind."""
        return self._stream(1, attempt)

    def noise(self) -> np.random.Generator:
        """A generator for the sensor noise; it gives the same numbers at each call."""
        return self._stream(2)

    @property
    def spread(self) -> np.ndarray:
        """(6,) numbers in [0, 1): exposure, light direction, x, y, angle, contrast.

        They come from an additive recurrence (Roberts' R sequence) instead of a random generator, so that any run of
        indices covers the range evenly. Good and defective test images start at the same numbers: they have the same
        distribution of brightness and position, and a detector that uses only these stays near 50 % AUROC for any seed.
        """
        root = 1.5
        for _ in range(60):   # the positive solution of x ** (NUISANCES + 1) = x + 1
            root = (1 + root) ** (1 / (NUISANCES + 1))
        steps = root ** -np.arange(1.0, NUISANCES + 1)
        start = np.random.default_rng([SEED, zlib.crc32(self.category.encode()), int(self.split == "train")])
        return (start.random(NUISANCES) + self.index * steps) % 1.0

    def between(self, nuisance: int, low: float, high: float) -> float:
        """One of the six spread numbers, scaled to [low, high).

        >>> 0.85 <= Shot("brick", "train", 0).between(EXPOSURE, 0.85, 1.16) < 1.16
        True
        """
        return float(low + (high - low) * self.spread[nuisance])


EXPOSURE, LIGHT, X, Y, ANGLE, CONTRAST = range(NUISANCES)
