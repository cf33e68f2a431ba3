"""Data sets by name, and where they lie.

A name is one of `DATASETS`, a folder in MVTec layout below ADCORE_DATA, or several of those joined by '+', which makes
one data set of them: `mtd+mvtec_512`. The category of `cifar10` and `digits` is the digits of the normal classes: `02468`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adcore.data.cifar10 import load_cifar10
from adcore.data.classes import SPLITS
from adcore.data.digits import digits_folder, load_digits
from adcore.data.elpv import elpv_folder, load_elpv
from adcore.data.ksdd2 import load_ksdd2
from adcore.data.manifest import load_manifest
from adcore.data.mtd import load_mtd
from adcore.data.mvtec import categories_in, load_mvtec
from adcore.data.mvtec_loco import load_mvtec_loco
from adcore.data.sample import Dataset
from adcore.errors import DataError, ParameterError, did_you_mean
from adcore.paths import data_folders

# What a data set's folder below ADCORE_DATA may be called.
DATASETS: dict[str, tuple[str, ...]] = {
    "mini": (),
    "mvtec_ad": ("mvtec_ad", "mvtec_anomaly_detection", "mvtec"),
    "mvtec_loco": ("mvtec_loco", "mvtec_loco_anomaly_detection"),
    "ksdd2": ("ksdd2", "KolektorSDD2"),
    "mtd": ("mtd", "Magnetic-tile-defect-datasets."),
    "elpv": (),
    "cifar10": ("cifar10", "cifar-10-batches-py"),
    "digits": (),
}

# Layouts of their own.
LOADERS: dict[str, Callable[..., Dataset]] = {"mtd": load_mtd, "elpv": load_elpv, "ksdd2": load_ksdd2,
                                            "mvtec_loco": load_mvtec_loco}

# What `load_dataset` hands on to the loader of a data set.
OPTIONS: dict[str, tuple[str, ...]] = {"mini": ("train", "good", "defective"), "mvtec_loco": ("logical",)}

# Ten classes, of which the caller says which are normal.
TEN_CLASSES: dict[str, Callable[..., Dataset]] = {"cifar10": load_cifar10, "digits": load_digits}


def find_dataset(name: str) -> Path | None:
    """The folder of a data set, or None when it is not here (`mini` is made on demand and needs no folder)."""
    if name == "elpv":
        return elpv_folder()
    if name == "digits":
        return digits_folder()
    for folder in data_folders():
        for called in DATASETS.get(name, (name,)):
            if (folder / called).is_dir():
                return folder / called
    return None


def load_dataset(name: str, categories: Sequence[str] | str | None = None, *, root: Path | None = None,
                 **options: Any) -> Dataset:
    """A data set by name, whole or in part.

    categories  the ones to keep, all by default; of `cifar10` and `digits` one, the normal classes, '01234' by default
    root        where it lies; by default it is looked for in ADCORE_DATA
    options     train, good, defective: how many images of each category of `mini`
                logical: True for the logical anomalies of `mvtec_loco` as well

    Raises:
        ParameterError: an unknown data set or category.
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
        parts = [load_dataset(part, root=root, **options) for part in names]
        whole = parts[0]
        for part in parts[1:]:
            whole = whole + part
        return whole.only(categories) if categories else whole
    surplus = [option for option in options if option not in OPTIONS.get(name, ())]
    if surplus:
        owners = [owner for owner, taken in OPTIONS.items() if set(surplus) <= set(taken)]
        raise ParameterError(f"data set '{name}' takes no option {', '.join(surplus)}"
                             + (f"; those are for '{owners[0]}'" if owners else ""))
    if name == "mini":
        from adcore.data.mini import load_mini  # here, because drawing needs scikit-image, which is slow to import
        return load_mini(categories, root, **options)
    folder = root or find_dataset(name)
    if folder is None:
        raise _missing(name)
    if name in TEN_CLASSES:
        normal = categories or [SPLITS[0]]
        if len(normal) > 1:
            raise ParameterError(f"data set '{name}' cannot be split into normal classes {', '.join(normal)} at once: each "
                                 f"split is a data set of its own, name one")
        return TEN_CLASSES[name](folder, name, normal=normal[0])
    if name in LOADERS:
        dataset = LOADERS[name](folder, **options)
        return dataset.only(categories) if categories else dataset
    return load_mvtec(folder, name, categories)


def _missing(name: str) -> Exception:
    local = sorted({path.name for folder in data_folders() if folder.is_dir() for path in folder.iterdir()
                    if path.is_dir() and categories_in(path)})
    if name == "elpv":
        return DataError("data set 'elpv' needs the package elpv-dataset: pip install 'adcore[elpv]'")
    if name == "digits":
        return DataError("data set 'digits' is scikit-learn's: pip install scikit-learn")
    if name not in DATASETS and name in load_manifest() and load_manifest()[name].kind == "dataset":
        return DataError(f"data set '{name}' is in data_manifest.csv, but adcore has no reader for its layout yet; those with "
                         f"one are {', '.join(DATASETS)}")
    if name not in DATASETS:
        known = [*DATASETS, *local]
        there = ", ".join(dict.fromkeys(known))
        return ParameterError(f"unknown data set '{name}'{did_you_mean(name, known)}; there are {there}")
    entry = load_manifest()[name]
    places = " or ".join(str(folder / DATASETS[name][0]) for folder in data_folders())
    return DataError(f"data set '{name}' is not here: fetch it from {entry.url} and unpack it to {places}, or let "
                     f"`adcore data fetch {name}` place it, then run `adcore data verify {name}`")
