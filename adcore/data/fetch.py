"""A data set of data_manifest.csv, put in place whole: downloaded or taken from a file, checked, unpacked, counted.

    page, repository  ->  the person gets the file by hand  --from-->
                                                                     checksum -> unpack beside -> count -> rename
    direct link       ->  <folder>/<file>.part -> <folder>/<file> -->
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from adcore.data.archives import copy_folder, placing, unpack, unwrap
from adcore.data.download import download
from adcore.data.manifest import Entry, check, direct_link, entry, flaw
from adcore.data.registry import DATASETS, find_dataset
from adcore.data.verify import check_layout, dataset_folder
from adcore.errors import DataError, ParameterError
from adcore.paths import data_folders

GROWTH = 1.1  # an archive of images unpacks to about its own size


def fetch(name: str, source: Path | None = None, root: Path | None = None, *, progress: bool | None = None) -> Path:
    """Put a data set in place; the folder it is in. One that is in place already is counted and left alone.

    source  an archive or a folder got by hand; by default the archive is downloaded, and removed when it is unpacked
    root    the folder to put it below, by default the first of ADCORE_DATA

    Raises:
        ParameterError: no data set of that name.
        DataError: it has to be got by hand, or a step failed; nothing is half in place then. The message says what to do.
    """
    one = entry(name)
    if one.kind != "dataset":
        raise ParameterError(f"'{name}' is a checkpoint, not a data set: run `adcore weights fetch {name}`")
    if not one.url.startswith("http"):
        return dataset_folder(name)  # drawn on demand, or in a package; says which when that is missing
    if name not in DATASETS:
        raise DataError(f"data set '{name}' has no layout that adcore reads, so it is not fetched: get {one.file} by hand from "
                        f"{one.url} ({one.license})")
    here = _here(name, root)
    if here is not None:
        _count(name, here, f"{here} is not '{name}' as published", f"remove it, then run `adcore data fetch {name}` again")
        return here
    below = root or data_folders()[0]
    target = below / DATASETS[name][0]
    if source is not None:
        _place(one, Path(source).expanduser(), target)
    elif direct_link(one):
        if one.bytes:
            arrived = [path.stat().st_size for path in (below / one.file, below / f"{one.file}.part") if path.is_file()]
            _make_sure_of_room(below, int(one.bytes * (1 + GROWTH)) - sum(arrived))
        archive = download(one.url, below / one.file, size=one.bytes, progress=progress, remedy=_by_hand(one),
                           flaw=(lambda path: flaw(one, path)) if one.sha256 else None)
        _place(one, archive, target, checked=True)
        archive.unlink()
    else:
        raise DataError(f"data set '{name}' has no direct link: {_by_hand(one)}")
    return target


def _here(name: str, root: Path | None) -> Path | None:
    if root is None:
        return find_dataset(name)
    return next((root / called for called in DATASETS[name] if (root / called).is_dir()), None)


def _by_hand(one: Entry) -> str:
    if one.unpacks.startswith("git clone"):
        repository = PurePosixPath(one.url).name
        return f"run `git clone --depth 1 {one.url}.git`, then `adcore data fetch {one.name} --from {repository}`"
    return (f"get {one.file} by hand from {_page(one)} ({one.license}), then run `adcore data fetch {one.name} --from "
            f"{one.file}`")


def _page(one: Entry) -> str:
    """Where a person finds the file: the page, when the row has a direct link and names its page in the note."""
    return next((word.rstrip(",;") for word in one.note.split() if word.startswith("https://")), one.url)


def _place(one: Entry, source: Path, target: Path, *, checked: bool = False) -> None:
    """Check, unpack or copy, count, rename. Nothing is left when one of these fails."""
    if source.is_dir():
        size = sum(path.lstat().st_size for path in source.rglob("*"))
    elif source.is_file():
        if not checked:
            check(one, source)
        size = int(source.stat().st_size * GROWTH)
    else:
        raise DataError(f"{source} is not there: {_by_hand(one)}")
    _make_sure_of_room(target.parent, size)
    with placing(target) as folder:
        if source.is_dir():
            copy_folder(source, folder)
        else:
            unpack(source, folder)
        unwrap(folder)
        _count(one.name, folder, f"{source} is not '{one.name}' as published", _by_hand(one))


def _count(name: str, folder: Path, what: str, remedy: str) -> None:
    try:
        check_layout(name, folder)
    except (DataError, ParameterError) as error:
        why = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it")
        raise DataError(f"{what} ({why}): {remedy}") from error


def _make_sure_of_room(folder: Path, needed: int) -> None:
    """Raises DataError when the disk has too little. What an archive needs is an estimate; a disk that fills up is seen too."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise DataError(f"{folder} has {free / 1e9:.1f} GB of room where {needed / 1e9:.1f} GB are needed: make room, or name "
                        f"another folder with --to or ADCORE_DATA")
