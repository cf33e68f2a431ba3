"""Splitting normal images for data sets that come without a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from adcore.data.sample import Sample

S = TypeVar("S")

SPLIT_SEED = 0  # one split for every experiment, so that seeds measure training and nothing else


def hold_out(samples: list[Sample], train_fraction: float) -> tuple[list[Sample], list[Sample]]:
    """Split at random, always the same way, keeping the order: (to train on, to test on).

    The first share is `floor(train_fraction * n)` images, 761 of MTD's 952 at 0.8.
    """
    return draw(samples, int(train_fraction * len(samples)))


def draw(samples: Sequence[S], count: int) -> tuple[list[S], list[S]]:
    """`count` samples at random, always the same ones, keeping the order: (drawn, left)."""
    chosen = np.random.default_rng(SPLIT_SEED).permutation(len(samples))[:count]
    inside = np.zeros(len(samples), bool)
    inside[chosen] = True
    return ([sample for sample, keep in zip(samples, inside, strict=True) if keep],
            [sample for sample, keep in zip(samples, inside, strict=True) if not keep])
