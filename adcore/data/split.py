"""Training and test images of data sets that have no published split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from adcore.data.sample import Sample

S = TypeVar("S")

SPLIT_SEED = 0  # the same split in every experiment: its seeds then measure the training alone


def hold_out(samples: list[Sample], train_fraction: float) -> tuple[list[Sample], list[Sample]]:
    """A random split, always the same one, in the given order: (training images, test images).

    `floor(train_fraction * n)` images are for training: 761 of MTD's 952 at 0.8.

    >>> from pathlib import Path
    >>> train, test = hold_out([Sample(Path(f"{i}.png"), "tile", 0) for i in range(10)], 0.8)
    >>> len(train), [sample.path.name for sample in test]
    (8, ['1.png', '8.png'])
    """
    return draw(samples, int(train_fraction * len(samples)))


def draw(samples: Sequence[S], count: int) -> tuple[list[S], list[S]]:
    """`count` random samples, always the same ones, in the given order: (drawn, the others).

    >>> draw("abcdefgh", 3)
    (['c', 'd', 'e'], ['a', 'b', 'f', 'g', 'h'])
    """
    chosen = np.random.default_rng(SPLIT_SEED).permutation(len(samples))[:count]
    inside = np.zeros(len(samples), bool)
    inside[chosen] = True
    return ([sample for sample, keep in zip(samples, inside, strict=True) if keep],
            [sample for sample, keep in zip(samples, inside, strict=True) if not keep])
