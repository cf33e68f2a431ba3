"""Folders of data, weights, caches and results. An environment variable changes each of them.

    ADCORE_DATA      folders with real data sets (several joined as in PATH)
    ADCORE_WEIGHTS   folders with weights (several joined as in PATH)
    ADCORE_CACHE     files that can be computed again: embedded data, cached features
    ADCORE_RUNS      the results store

The cache is open to its user alone, because an entry is taken for what its name says: whoever can write one decides what a
later run measures. ADCORE_SHARED_CACHE=1 is for people who trust one another: entries of other users are then used too.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import platformdirs

from adcore.errors import StoreError


def repository() -> Path | None:
    """The checkout that this package runs from, or None when it is installed without one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "pyproject.toml").is_file() and (root / "data_manifest.csv").is_file() else None


def _folders(variable: str) -> list[Path]:
    return [Path(part).expanduser() for part in os.environ.get(variable, "").split(os.pathsep) if part]


def data_folders() -> list[Path]:
    """Folders searched for real data sets: those of ADCORE_DATA, then `data` in the user's adcore folder."""
    return [*_folders("ADCORE_DATA"), Path(platformdirs.user_data_dir("adcore")) / "data"]


def weight_folders() -> list[Path]:
    """Folders searched for weights: those of ADCORE_WEIGHTS, `weights` in the user's adcore folder, torch's own cache."""
    torch_home = Path(os.environ.get("TORCH_HOME", "~/.cache/torch")).expanduser()
    return [*_folders("ADCORE_WEIGHTS"), Path(platformdirs.user_data_dir("adcore")) / "weights",
            torch_home / "hub" / "checkpoints"]


def cache_folder() -> Path:
    """The folder of files that can be computed again: embedded data and cached features."""
    return Path(os.environ.get("ADCORE_CACHE") or platformdirs.user_cache_dir("adcore")).expanduser()


def cache_room(name: str) -> Path:
    """The folder `name` of the cache. Folders that are missing are made for this user alone (mode 0700)."""
    root = cache_folder()
    with contextlib.suppress(OSError):  # whoever writes an entry says that the folder cannot be written
        root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (root, root / name):
            folder.mkdir(mode=0o700, exist_ok=True)
    return root / name


def check_owner(path: Path) -> None:
    """Raise StoreError when a file or folder of the cache belongs to another user and ADCORE_SHARED_CACHE is not set."""
    if os.environ.get("ADCORE_SHARED_CACHE", "0") not in ("", "0") or not hasattr(os, "getuid"):
        return
    for state in (os.lstat, os.stat):  # a link, and what it points to
        with contextlib.suppress(OSError):  # nothing there, or nothing that can be read
            if (owner := state(path).st_uid) != os.getuid():
                raise StoreError(f"{path} belongs to another user (uid {owner}), who could have put anything there: name a "
                                 f"folder of your own in ADCORE_CACHE, or set ADCORE_SHARED_CACHE=1 if you trust all who write "
                                 f"to this one")


def runs_folder(out: str | Path | None = None) -> Path:
    """The results store: `out` if given, else ADCORE_RUNS, else `runs` in the checkout or in the current folder."""
    chosen = out or os.environ.get("ADCORE_RUNS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return (repository() or Path.cwd()) / "runs"
