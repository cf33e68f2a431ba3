"""Digests of files, remembered between processes: a file is read again only when its size or its times have changed.

    <cache>/digests/KEY.json    one per folder: file name -> size, time of change of content and of the entry, digest

A file is remembered when it has been at rest for some seconds, because two writes in quick succession may leave the same times.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from adcore.ahead import ahead
from adcore.errors import StoreError
from adcore.files import digest_file, digest_text, write_text
from adcore.paths import cache_room, check_owner

AT_REST = 2.0  # seconds
STATE = 3      # numbers by which a file is recognized: size, mtime, ctime

_lock = threading.Lock()
_known: dict[Path, dict[str, list[Any]]] = {}  # file of the cache -> its content


def file_digests(paths: Iterable[Path], algorithm: str = "blake2b") -> list[str]:
    """The first 32 hexadecimal digits of each file's digest.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "word"
    >>> _ = path.write_text("first")
    >>> first = file_digests([path])
    >>> _ = path.write_text("other")
    >>> len(first[0]), first == file_digests([path])
    (32, False)

    Raises:
        OSError: a file is not there or cannot be read.
    """
    paths = list(paths)
    folders = {folder: _remembered(_place(folder, algorithm)) for folder in {path.parent for path in paths}}
    unknown = []
    states = [_state(path) for path in paths]
    for path, state in zip(paths, states, strict=True):
        known = folders[path.parent].get(path.name)
        if known is None or known[:STATE] != state:
            unknown.append((path, state))
    computed = ahead(lambda known: digest_file(known[0], algorithm)[:32], unknown)
    for (path, state), digest in zip(unknown, computed, strict=True):
        folders[path.parent][path.name] = [*state, digest]
    for folder in {path.parent for path, _ in unknown}:
        _remember(_place(folder, algorithm), folders[folder])
    return [folders[path.parent][path.name][-1] for path in paths]


def _state(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _place(folder: Path, algorithm: str) -> Path:
    return cache_room("digests") / f"{digest_text(f'{algorithm} {folder.absolute()}', 24)}.json"


def _remembered(place: Path) -> dict[str, list[Any]]:
    with _lock:
        if place not in _known:
            try:
                check_owner(place)
                content = json.loads(place.read_text(encoding="utf-8"))
                whole = all(len(one) == STATE + 1 and isinstance(one[-1], str) for one in content.values())
            except (OSError, ValueError, AttributeError, TypeError, StoreError):  # none yet, a damaged one, or another user's
                whole = False
            _known[place] = content if whole else {}
        return dict(_known[place])


def _remember(place: Path, entries: dict[str, list[Any]]) -> None:
    before = (time.time() - AT_REST) * 1e9
    content = {name: entry for name, entry in entries.items() if max(entry[1:STATE]) < before}
    with _lock:
        if content == _known[place]:
            return
        _known[place] = content
    with contextlib.suppress(StoreError):  # a cache that cannot be written costs time, not results
        write_text(place, json.dumps(content))


def folder_digest(folder: Path) -> str:
    """16 hexadecimal digits that change when a file below a folder changes, comes, goes or gets another name.

    Hidden files and folders do not count.

    Raises:
        OSError: a file cannot be read.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file()
                   and not any(part.startswith(".") for part in path.relative_to(folder).parts))
    lines = (f"{path.relative_to(folder).as_posix()} {digest}" for path, digest in zip(files, file_digests(files), strict=True))
    return digest_text("\n".join(lines))
