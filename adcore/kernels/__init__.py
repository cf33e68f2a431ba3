"""Computations that decide the speed of the methods: one a file, a fast path and a plain reference side by side."""

from adcore.kernels.kcenter import kcenter
from adcore.kernels.nearest import nearest

__all__ = ["kcenter", "nearest"]
