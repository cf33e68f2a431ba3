"""Solar cells in electroluminescence (Deitsch et al., Solar Energy 2019), from the PyPI package `elpv-dataset`.

2,624 gray images of 300x300 pixels, each one cell, with a probability of being defective (0, 1/3, 2/3, 1) and no masks. Two
categories: `mono` and `poly` (crystalline). Probability 0 is normal, 2/3 and 1 are anomalous; cells of probability 1/3 are left
out, because the annotators were unsure.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from adcore.data.sample import Dataset, Sample
from adcore.data.source import Source
from adcore.data.split import hold_out
from adcore.errors import DataError


def elpv_folder() -> Path | None:
    """The folder of the package's data, or None when the package is not installed."""
    found = importlib.util.find_spec("elpv_dataset")
    return Path(found.origin).parent / "data" if found and found.origin else None


def load_elpv(root: Path, categories: Sequence[str] | None = None, *, train_fraction: float = 0.8) -> Dataset:
    """List ELPV; labels for whole images only, no masks.

    Raises:
        DataError: the list of labels is missing or malformed.
    """
    labels = Path(root) / "labels.csv"
    if not labels.is_file():
        raise DataError(f"{labels} is not there: install elpv-dataset again")
    train: list[Sample] = []
    test: list[Sample] = []
    cells = _read_labels(labels)
    for category in ("mono", "poly"):
        normal = [Sample(path, category, 0) for path, probability, kind in cells if kind == category and probability == 0]
        fit, held_out = hold_out(normal, train_fraction)
        train += fit
        test += held_out
        test += [Sample(path, category, 1, "defective" if probability == 1 else "likely_defective")
                 for path, probability, kind in cells if kind == category and probability > 0.5]
    return Dataset("elpv", tuple(train), tuple(test)).only(categories)


def _read_labels(labels: Path) -> list[tuple[Path, float, str]]:
    cells = []
    with labels.open(newline="") as file:
        for number, row in enumerate(csv.reader((" ".join(line.split()) for line in file), delimiter=" "), start=1):
            try:
                name, probability, kind = row
                cells.append((labels.parent / name, float(probability), kind))
            except ValueError:
                raise DataError(f"{labels}, line {number}: expected 'image probability type', found {row}") from None
    return cells


SOURCE = Source("elpv", load_elpv, package="'adcore[elpv]'", find=elpv_folder)
