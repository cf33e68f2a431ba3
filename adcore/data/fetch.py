"""A data set of data_manifest.csv, put in place whole: downloaded or taken from a file, checked, unpacked, counted.

    direct link           the file is downloaded
    page or repository    a person gets the file or clones the repository, and names it with --from
    both                  checksum -> unpack in a private folder -> count the images -> rename
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from adcore.data.archives import copy_folder, unpack, unwrap
from adcore.data.download import download
from adcore.data.manifest import Entry, check, direct_link, entry, flaw
from adcore.data.registry import DATASETS, find_dataset
from adcore.data.verify import check_layout, dataset_folder
from adcore.errors import DataError, ParameterError
from adcore.files import private_folder
from adcore.paths import data_folders

GROWTH = 1.1  # an archive of images unpacks to about its own size, because images are compressed already


def fetch(name: str, source: Path | None = None, root: Path | None = None, *, progress: bool | None = None) -> Path:
    """Put a data set in place and return its folder. A data set that is in place already is counted and not touched.

    source  an archive or a folder that a person downloaded; by default the archive is downloaded here, and removed when it
            is unpacked
    root    the folder below which it is put, by default the first of ADCORE_DATA

    >>> fetch("digits").name  # a file of scikit-learn: nothing to do
    'data'

    Raises:
        ParameterError: no data set of that name.
        DataError: a person must download it, or a step failed; nothing is half in place then. The message says what to do.
    """
    one = entry(name)
    if one.kind != "dataset":
        raise ParameterError(f"'{name}' is a checkpoint, not a data set: run `adcore weights fetch {name}`")
    if not one.url.startswith("http"):
        return dataset_folder(name)  # drawn on demand, or in a package: raises an error when that is not installed
    if name not in DATASETS:
        raise DataError(f"data set '{name}' has no layout that adcore reads, so it is not fetched: get {one.file} by hand from "
                        f"{one.url} ({one.license})")
    here = _in_place(name, root)
    if here is not None:
        return here
    if source is None and not direct_link(one):
        raise DataError(f"data set '{name}' has no direct link: {_by_hand(one)}")
    below = root or data_folders()[0]
    target = below / DATASETS[name].folders[0]
    try:
        with private_folder(target) as folder:
            here = _in_place(name, root)
            if here is not None:
                return here  # another process put it in place while this one waited
            archive = Path(source).expanduser() if source is not None else _download(one, below, progress)
            if not archive.exists():
                raise DataError(f"{archive} is not there: {_by_hand(one)}")
            files = archive.rglob("*") if archive.is_dir() else [archive]
            _check_room(below, int(GROWTH * sum(path.lstat().st_size for path in files)))
            if source is not None and not archive.is_dir():
                check(one, archive)
            content = folder / target.name
            content.mkdir()
            (copy_folder if archive.is_dir() else unpack)(archive, content)
            unwrap(content)
            _count(name, content, f"{archive} is not '{name}' as published", _by_hand(one))
            content.rename(target)
            if source is None:
                archive.unlink()
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}; make room, or name another folder in ADCORE_DATA") from error
    return target


def _in_place(name: str, root: Path | None) -> Path | None:
    """The folder of a data set that is here, with its published counts; None when it is not here."""
    if root is None:
        here = find_dataset(name)
    else:
        here = next((root / folder for folder in DATASETS[name].folders if (root / folder).is_dir()), None)
    if here is not None:
        _count(name, here, f"{here} is not '{name}' as published", f"remove it, then run `adcore data fetch {name}` again")
    return here


def _download(one: Entry, below: Path, progress: bool | None) -> Path:
    archive = below / one.file
    if one.bytes and not archive.is_file():
        _check_room(below, int(one.bytes * (1 + GROWTH)))
    return download(one.url, archive, size=one.bytes, progress=progress, remedy=_by_hand(one),
                    flaw=(lambda path: flaw(one, path)) if one.sha256 else None)


def _by_hand(one: Entry) -> str:
    if one.unpacks.startswith("git clone"):
        repository = PurePosixPath(one.url).name
        return f"run `git clone --depth 1 {one.url}.git`, then `adcore data fetch {one.name} --from {repository}`"
    # A row with a direct link names the page for people in its note.
    page = next((word.rstrip(",;") for word in one.note.split() if word.startswith("https://")), one.url)
    return f"get {one.file} by hand from {page} ({one.license}), then run `adcore data fetch {one.name} --from {one.file}`"


def _count(name: str, folder: Path, what: str, remedy: str) -> None:
    try:
        check_layout(name, folder)
    except (DataError, ParameterError) as error:
        why = str(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it")
        raise DataError(f"{what} ({why}): {remedy}") from error


def _check_room(folder: Path, needed: int) -> None:
    """Raise DataError when the disk has too little room. The estimate may be wrong: a full disk is reported later too."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(f"{folder} has {free / 1e9:.1f} GB of room where {needed / 1e9:.1f} GB are needed: make room, or name "
                        f"another folder with --to or ADCORE_DATA")
