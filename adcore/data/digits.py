"""Handwritten digits (Alpaydin and Kaynak, UCI repository, 1998) as scikit-learn carries them, some against the others.

1,797 gray images of 8x8 pixels in ten classes: real data for many against many that need no download, where the papers
take CIFAR-10. There is no published split: of each class 70 % are for training, drawn once with a fixed seed. The same
hands wrote both parts.
"""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from adcore.data.classes import SPLITS, many_versus_many
from adcore.data.packed import Pack, PackedSample, open_pack
from adcore.data.sample import Dataset
from adcore.data.split import draw
from adcore.errors import DataError

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FILE = "digits.csv.gz"


def digits_folder() -> Path | None:
    """scikit-learn's data folder, or None when it is not installed."""
    found = importlib.util.find_spec("sklearn")
    return Path(found.origin).parent / "datasets" / "data" if found and found.origin else None


def load_digits(root: Path, name: str = "digits", *, normal: str = SPLITS[0]) -> Dataset:
    """The digits named by `normal` as one normal pseudo-class; image level only, see `many_versus_many`.

    Raises:
        ParameterError: `normal` is not some different digits, or leaves none to be anomalous.
        DataError: the file is missing or not in order.
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
    return many_versus_many(name, train, test, CLASSES, normal)


def read_digits(path: Path) -> Pack:
    """Images (n, 8, 8), their 17 levels spread over 0 to 255, and classes.

    Raises:
        DataError: the file is cut off, or not rows of 64 levels and a digit.
    """
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            rows = np.loadtxt(file, delimiter=",", ndmin=2)
    except Exception as error:  # gzip and numpy raise OSError, EOFError, zlib.error, ValueError, ...
        raise DataError(f"{path} cannot be read as rows of numbers ({error}): install scikit-learn again") from error
    if rows.shape[1] != 65 or not np.isin(rows[:, :64], range(17)).all() or not np.isin(rows[:, 64], range(10)).all():
        raise DataError(f"{path} is not rows of 64 levels from 0 to 16 and a digit: install scikit-learn again")
    return Pack(np.round(rows[:, :64] * 255 / 16).astype(np.uint8).reshape(-1, 8, 8), rows[:, 64].astype(int))
