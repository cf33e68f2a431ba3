"""Data sets by name, and the folders in which they are found.

A name is one of `DATASETS`, a folder in MVTec layout below ADCORE_DATA, the path of such a folder or of a csv file, or several
of those joined by '+', which makes one data set of them: `mtd+mvtec_512`. The category of `cifar10` and `digits` is the digits
of the normal classes: `02468`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from adcore.data import cifar10, digits, elpv, ksdd2, mtd, mvtec, mvtec_loco
from adcore.data.findings import Finding, folder_findings, tell_once
from adcore.data.manifest import load_manifest
from adcore.data.sample import Dataset
from adcore.data.source import Source
from adcore.data.table_file import load_table
from adcore.errors import DataError, ParameterError, did_you_mean, tell
from adcore.paths import data_folders


def _load_mini(root: Path | None, categories: Sequence[str] | None, **counts: int) -> Dataset:
    from adcore.data.mini import load_mini  # here, because drawing needs scikit-image, which is slow to import
    return load_mini(categories, root, **counts)


DATASETS: dict[str, Source] = {source.name: source for source in (
    Source("mini", _load_mini, options=("train", "good", "defective")), mvtec.SOURCE, mvtec_loco.SOURCE, ksdd2.SOURCE,
    mtd.SOURCE, elpv.SOURCE, cifar10.SOURCE, digits.SOURCE)}


_PLACES: dict[str, Path] = {}  # folders and csv files that were given as a path in this process, by the short name


def split_names(text: str, known: Collection[str], separator: str = "+") -> list[str]:
    """The names that `text` joins. A known name may itself contain the separator: the longest ones are tried first.

    >>> split_names("a+b+c", {"a+b", "c"}), split_names("a+b", {"a"})
    (['a+b', 'c'], ['a', 'b'])
    """
    pieces, names = text.split(separator), []
    while pieces:
        length = next((n for n in range(len(pieces), 1, -1) if separator.join(pieces[:n]) in known), 1)
        names.append(separator.join(pieces[:length]))
        pieces = pieces[length:]
    return names


def dataset_name(name_or_path: str | Path) -> str:
    """The short name of a data set, for keys, tables and messages. A path is remembered: for the rest of the process, its short
    name means the data set there.

    The name is that of the folder, or of the csv file without its ending. A folder that is called like a data set that adcore
    knows, such as mvtec_ad, is that data set.

    >>> dataset_name("mini"), dataset_name("mini+digits")
    ('mini', 'mini+digits')

    Raises:
        DataError: a path that is not there, or that has the name of another data set.
    """
    names = []
    for part in _parts(str(name_or_path)):
        name, place = _located(part)
        if place is not None and _PLACES.get(name) != place:
            if name in _PLACES:
                tell(f"data set '{name}' now is {place}, no longer {_PLACES[name]}")
            _PLACES[name] = place
        names.append(name)
    return "+".join(names)


def find_dataset(name: str | Path) -> Path | None:
    """The folder of a data set, or None when it is not here (`mini` is made on demand and needs no folder).

    name  a name, or the path of a folder or csv file, which is then returned as an absolute path

    >>> find_dataset("digits").name  # scikit-learn's folder of data
    'data'
    """
    text = str(name)
    if text in _PLACES:
        return _PLACES[text]
    source = DATASETS.get(text)
    if source and source.package:
        return source.find()
    if not _is_path(text):
        folders = [folder / called for folder in data_folders() for called in (source.folders if source else (text,))]
        found = next((folder for folder in folders if folder.is_dir()), None)
        if found is not None or source:
            return found
    return _place(text)


def load_dataset(name: str | Path, categories: Sequence[str] | str | None = None, *, root: Path | None = None,
                 **options: Any) -> Dataset:
    """A data set by name or path, all of it or some categories. What is left out or missing in a data set of one's own is
    printed on stderr once.

    name        see `adcore.data.registry`
    categories  the categories to load, all by default and for []; of `cifar10` and `digits` one, the digits of the normal
                classes, '01234' by default
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
    dataset, findings = list_dataset(name, categories, root=root, **options)
    tell_once(dataset.name, str(root or _PLACES.get(str(name)) or name), findings)
    return dataset


def list_dataset(name: str | Path, categories: Sequence[str] | str | None = None, *, root: Path | None = None,
                 **options: Any) -> tuple[Dataset, list[Finding]]:
    """As `load_dataset`, but what is left out or missing is returned and not printed."""
    if isinstance(categories, str):
        categories = None if categories == "all" else [categories]
    categories = list(dict.fromkeys(categories or ())) or None  # [] is all, as in the notebooks
    parts = _parts(str(name)) if root is None else [str(name)]
    if len(parts) > 1:
        if "" in parts or len({_located(part)[0] for part in parts}) < len(parts):
            raise ParameterError(f"data set '{name}' is not some different names joined by '+'")
        (whole, findings), *others = (list_dataset(part, **options) for part in parts)
        for other, more in others:
            whole, findings = whole + other, [*findings, *more]
        return whole.only(categories), findings
    short, place = _located(parts[0]) if root is None else (parts[0], Path(root))
    source = DATASETS.get(short)
    surplus = [option for option in options if source is None or option not in source.options]
    if surplus:
        owner = next((other.name for other in DATASETS.values() if set(surplus) <= set(other.options)), None)
        raise ParameterError(f"data set '{short}' takes no option {', '.join(surplus)}"
                             + (f"; those are for '{owner}'" if owner else ""))
    place = place or find_dataset(short)
    if place is None and short != "mini":
        raise _missing(short)
    if source is not None:
        return source.load(place, categories, **options), []
    assert place is not None
    if place.is_file():
        return load_table(place, short, categories)
    dataset = mvtec.load_mvtec(place, short, categories)
    return dataset, folder_findings(place, dataset, categories)


def _parts(text: str) -> list[str]:
    """The names and paths that '+' joins; a name or path that itself has a '+' is one of them."""
    pieces = text.split("+")
    joined = ("+".join(pieces[i:j]) for i in range(len(pieces)) for j in range(i + 2, len(pieces) + 1))
    return split_names(text, {name for name in joined if find_dataset(name) is not None})


def _located(name: str) -> tuple[str, Path | None]:
    """The short name of a name or path, and the place of a path.

    Raises:
        DataError: a path that is not there, or that has the name of another data set.
    """
    if name in _PLACES or name in DATASETS or (not _is_path(name) and any((below / name).is_dir() for below in data_folders())):
        return name, None
    place = _place(name)
    if place is None:
        if _is_path(name):
            raise DataError(f"{name} is not there, or is no folder or csv file: name one that is")
        return name, None
    short = place.stem if place.is_file() else place.name
    owner = next((source for source in DATASETS.values() if short in (source.name, *source.folders)), None)
    if not short or (owner and (place.is_file() or not owner.folders)):
        raise DataError(f"{place} has the name of a data set that adcore knows: rename it" if short else
                        f"{place} is no folder of a data set: name the folder that has the categories")
    return owner.name if owner else short, place


def _place(text: str) -> Path | None:
    """The folder or csv file at a path, looked for from the current folder and in ADCORE_DATA."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # too long, with a null byte, ~nobody
        for path in (Path(text).expanduser(), *(below / text for below in data_folders() if _is_path(text))):
            if path.is_dir() or (path.is_file() and path.suffix.lower() == ".csv"):
                # Links are kept, because their names are what the user typed.
                return path.resolve() if ".." in path.parts else path.absolute()
    return None


def _is_path(text: str) -> bool:
    """Whether a text can only be a path."""
    return "/" in text or os.sep in text or text in (".", "..") or text.startswith("~") or text.lower().endswith(".csv")


def _missing(name: str) -> Exception:
    """The error for a data set that is not here, with the way to get it."""
    if name not in DATASETS:
        local = sorted({path.name for folder in data_folders() if folder.is_dir() for path in folder.iterdir()
                        if path.is_dir() and mvtec.category_folders(path)})
        known = list(dict.fromkeys([*DATASETS, *local]))
        if name in load_manifest() and load_manifest()[name].kind == "dataset":
            return DataError(f"data set '{name}' is in data_manifest.csv, but adcore has no reader for its layout yet; those "
                             f"with one are {', '.join(DATASETS)}")
        return ParameterError(f"unknown data set '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}, or "
                              f"name the path of a folder or csv file")
    if DATASETS[name].package:
        return DataError(f"data set '{name}' comes in a Python package: pip install {DATASETS[name].package}")
    entry = load_manifest()[name]
    places = " or ".join(str(folder / DATASETS[name].folders[0]) for folder in data_folders())
    return DataError(f"data set '{name}' is not here: fetch it from {entry.url} and unpack it to {places}, or let "
                     f"`adcore data fetch {name}` place it, then run `adcore data verify {name}`")
