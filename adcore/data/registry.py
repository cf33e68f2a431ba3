"""Data sets by name, and the folders in which they are found.

A name is one of `DATASETS`, a folder in MVTec layout below ADCORE_DATA, or several of those joined by '+', which makes one
data set of them: `mtd+mvtec_512`. The category of `cifar10` and `digits` is the digits of the normal classes: `02468`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adcore.data import cifar10, digits, elpv, ksdd2, mtd, mvtec, mvtec_loco
from adcore.data.manifest import load_manifest
from adcore.data.sample import Dataset
from adcore.data.source import Source
from adcore.errors import DataError, ParameterError, did_you_mean
from adcore.paths import data_folders


def _load_mini(root: Path | None, categories: Sequence[str] | None, **counts: int) -> Dataset:
    from adcore.data.mini import load_mini  # here, because drawing needs scikit-image, which is slow to import
    return load_mini(categories, root, **counts)


DATASETS: dict[str, Source] = {source.name: source for source in (
    Source("mini", _load_mini, options=("train", "good", "defective")), mvtec.SOURCE, mvtec_loco.SOURCE, ksdd2.SOURCE,
    mtd.SOURCE, elpv.SOURCE, cifar10.SOURCE, digits.SOURCE)}


def find_dataset(name: str) -> Path | None:
    """The folder of a data set, or None when it is not here (`mini` is made on demand and needs no folder).

    >>> find_dataset("digits").name  # scikit-learn's folder of data
    'data'
    """
    source = DATASETS.get(name)
    if source and source.package:
        return source.find()
    folders = [folder / called for folder in data_folders() for called in (source.folders if source else (name,))]
    return next((folder for folder in folders if folder.is_dir()), None)


def load_dataset(name: str, categories: Sequence[str] | str | None = None, *, root: Path | None = None,
                 **options: Any) -> Dataset:
    """A data set by name, all of it or some categories.

    categories  the categories to load, all by default; of `cifar10` and `digits` one, the digits of the normal classes,
                '01234' by default
    root        the data set's folder; by default it is looked for in ADCORE_DATA
    options     train, good, defective: how many images of each category of `mini`
                logical: True for the logical anomalies of `mvtec_loco` as well

    >>> data = load_dataset("mini", ["brick"], train=8, good=2, defective=4)
    >>> data.categories, len(data.train), [sample.defect for sample in data.test]
    (('brick',), 8, ['good', 'good', 'crack', 'hole', 'stain', 'paint'])

    Raises:
        ParameterError: an unknown data set, category or option.
        DataError: the data set is not here (the message says how to get it), or its files are not in order.
    """
    if isinstance(categories, str):
        categories = None if categories == "all" else [categories]
    if categories is not None:
        categories = list(dict.fromkeys(categories))
    if "+" in name:
        names = name.split("+")
        if "" in names or len(set(names)) < len(names):
            raise ParameterError(f"data set '{name}' is not some different names joined by '+'")
        whole, *others = (load_dataset(part, root=root, **options) for part in names)
        for other in others:
            whole = whole + other
        return whole.only(categories)
    source = DATASETS.get(name)
    surplus = [option for option in options if source is None or option not in source.options]
    if surplus:
        owner = next((other.name for other in DATASETS.values() if set(surplus) <= set(other.options)), None)
        raise ParameterError(f"data set '{name}' takes no option {', '.join(surplus)}"
                             + (f"; those are for '{owner}'" if owner else ""))
    folder = root or find_dataset(name)
    if folder is None and name != "mini":
        raise _missing(name)
    if source is None:
        assert folder is not None
        return mvtec.load_mvtec(folder, name, categories)
    return source.load(folder, categories, **options)


def _missing(name: str) -> Exception:
    """The error for a data set that is not here, with the way to get it."""
    if name not in DATASETS:
        local = sorted({path.name for folder in data_folders() if folder.is_dir() for path in folder.iterdir()
                        if path.is_dir() and mvtec.categories_in(path)})
        known = list(dict.fromkeys([*DATASETS, *local]))
        if name in load_manifest() and load_manifest()[name].kind == "dataset":
            return DataError(f"data set '{name}' is in data_manifest.csv, but adcore has no reader for its layout yet; those "
                             f"with one are {', '.join(DATASETS)}")
        return ParameterError(f"unknown data set '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}")
    if DATASETS[name].package:
        return DataError(f"data set '{name}' comes in a Python package: pip install {DATASETS[name].package}")
    entry = load_manifest()[name]
    places = " or ".join(str(folder / DATASETS[name].folders[0]) for folder in data_folders())
    return DataError(f"data set '{name}' is not here: fetch it from {entry.url} and unpack it to {places}, or let "
                     f"`adcore data fetch {name}` place it, then run `adcore data verify {name}`")
