"""Interpolation of small maps, one value at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np


def linear(d: float) -> float:
    """The weight of a cell at distance d in a linear interpolation."""
    return max(0.0, 1 - abs(d))


def cubic(d: float) -> float:
    """The weight of a cell at distance d in a cubic convolution (Keys 1981) with a = -0.75, as in torch and OpenCV."""
    d, a = abs(d), -0.75
    return (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0


def enlarged(plane: np.ndarray, weight: Callable[[float], float], h: int, w: int) -> np.ndarray:
    """A map interpolated to (h, w): the outer edges are aligned, and values beyond the border equal those at it."""
    def along(line: np.ndarray, n: int) -> list[float]:
        at = [(i + 0.5) * len(line) / n - 0.5 for i in range(n)]
        return [sum(weight(p - j) * line[min(max(j, 0), len(line) - 1)] for j in range(math.floor(p) - 1, math.floor(p) + 3))
                for p in at]
    wide = np.array([along(row, w) for row in plane])
    return np.array([along(column, h) for column in wide.T]).T
