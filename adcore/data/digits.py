"""Handwritten digits (Alpaydin and Kaynak, UCI repository, 1998) as scikit-learn carries them, some against the others.

1,797 gray images of 8x8 pixels in ten classes: real data without a download, for the experiments in which the papers use
CIFAR-10. There is no published split: 70 % of each class are for training, drawn once with a fixed seed. The same people wrote
the training and the test images.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from adcore.data.classes import many_versus_many
from adcore.data.packed import Pack, PackedSample, open_pack
from adcore.data.sample import Dataset
from adcore.data.source import Source
from adcore.data.split import draw
from adcore.errors import DataError
from adcore.files import open_plain

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FILE = "digits.csv.gz"


def digits_folder() -> Path | None:
    """The folder of scikit-learn's data, or None when scikit-learn is not installed."""
    found = importlib.util.find_spec("sklearn")
    return Path(found.origin).parent / "datasets" / "data" if found and found.origin else None


def load_digits(root: Path, normal: str | Sequence[str] | None = None) -> Dataset:
    """The digits in `normal` as one normal pseudo-class; labels for whole images only, see `many_versus_many`.

    Raises:
        ParameterError: `normal` is not several different digits, or leaves none to be anomalous.
        DataError: the file is missing or malformed.

    >>> data = load_digits(digits_folder(), normal="02468")
    >>> data.categories, len(data.train), data.test[-1].defect
    (('02468',), 620, 'nine')
    """
    path = Path(root) / FILE
    classes = open_pack(path, read_digits).classes
    train: list[PackedSample] = []
    test: list[PackedSample] = []
    for kind in range(len(CLASSES)):
        samples = [PackedSample(path, str(kind), 0, index=int(i), reader=read_digits) for i in np.flatnonzero(classes == kind)]
        fit, held_out = draw(samples, len(samples) * 7 // 10)
        train += fit
        test += held_out
    return many_versus_many("digits", train, test, CLASSES, normal)


def read_digits(path: Path) -> Pack:
    """Images (n, 8, 8), whose 17 levels are scaled to 0 to 255, and classes.

    Raises:
        DataError: the file is cut off, or is not rows of 64 levels and a digit.
    """
    try:
        with open_plain(path) as packed, gzip.open(packed, "rt", encoding="ascii") as file:
            rows = np.loadtxt(file, delimiter=",", ndmin=2)
    except Exception as error:  # gzip and numpy raise OSError, EOFError, zlib.error, ValueError, ...
        raise DataError(f"{path} cannot be read as rows of numbers ({error}): install scikit-learn again") from error
    if rows.shape[1] != 65 or not np.isin(rows[:, :64], range(17)).all() or not np.isin(rows[:, 64], range(10)).all():
        raise DataError(f"{path} is not rows of 64 levels from 0 to 16 and a digit: install scikit-learn again")
    return Pack(np.round(rows[:, :64] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8), rows[:, 64].astype(int))


SOURCE = Source("digits", load_digits, package="scikit-learn", find=digits_folder)
