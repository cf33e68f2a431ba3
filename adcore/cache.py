"""Entries of the cache: a large file, and NAME.json beside it with the file's name and digest, by which it is known again.

An entry under a wrong name, a damaged one or one of another user is not used. A result keeps the digests of the entries that
it rests on (`cache` of its provenance), so that a wrong one can be found later.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from adcore.digests import file_digests
from adcore.files import write_json
from adcore.paths import check_owner

_used: ContextVar[dict[str, str] | None] = ContextVar("_used", default=None)


@contextlib.contextmanager
def entries_used() -> Iterator[dict[str, str]]:
    """A dictionary that fills with the entries read or written inside the block: 'features/NAME' -> digest."""
    found: dict[str, str] = {}
    token = _used.set(found)
    try:
        yield found
    finally:
        _used.reset(token)


def describe(path: Path, about: dict[str, Any], digest: str = "") -> None:
    """Write NAME.json beside a finished entry: `about`, and the entry's name and digest, by which `entry` knows it.

    digest  the entry's, as `file_digests` computes it, when the writer knows it; '' reads the entry
    """
    digest = digest or file_digests([path])[0]
    write_json(path.with_suffix(".json"), {**about, "entry": path.name, "digest": digest})
    _note(path, digest)


def entry(path: Path) -> dict[str, Any] | None:
    """What `describe` wrote about an entry, or None when the entry is missing or is not the one described.

    An entry that is damaged, or another one under this name, gives a warning: its user computes it again.

    Raises:
        StoreError: the entry belongs to another user, see `adcore.paths`.
    """
    beside = path.with_suffix(".json")
    check_owner(path)
    check_owner(beside)
    try:
        about = json.loads(beside.read_text(encoding="utf-8"))
        (digest,) = file_digests([path])
        if (about["entry"], about["digest"]) == (path.name, digest):
            _note(path, digest)
            return dict(about)
    except (FileNotFoundError, NotADirectoryError):
        return None  # a run that was killed between the two writes leaves an entry without a description
    except (OSError, ValueError, KeyError, TypeError):
        pass
    warnings.warn(f"{path} is damaged or another entry: it is computed again", stacklevel=3)
    return None


def _note(path: Path, digest: str) -> None:
    used = _used.get()
    if used is not None:
        used[f"{path.parent.name}/{path.name}"] = digest
