"""Files and folders that appear whole or not at all, locks between processes, digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from adcore.errors import StoreError


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path`. It is renamed to `path` when the block succeeds and removed when it raises.

    A reader sees the old file or the new one, never half of one, even after a kill or on a full disk.

    Raises:
        StoreError: the folder cannot be written or has no room left.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # minus the umask; mkstemp would give 0o600
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # An error about another file (an unreadable image, for example) is not about this folder: it is raised unchanged.
        culprit = path if error.filename is None else Path(str(error.filename))
        if culprit.parent != path.parent and culprit not in path.parents:
            raise
        raise StoreError(f"cannot write {path}: {error.strerror or error}; free the folder or name another one (--out, "
                         f"ADCORE_RUNS, ADCORE_CACHE)") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


@contextlib.contextmanager
def one_at_a_time(path: Path | str, waiting: Callable[[], object] = lambda: None) -> Iterator[bool]:
    """A block that one process at a time runs; the others wait. `path` is the lock file, removed at the end.

    The operating system releases the lock when the process ends, so stale lock files do not block. In a folder that cannot
    be written, or on a file system without locks, the block runs without a lock. Yields whether the lock is held.

    waiting  called once if another process holds the lock
    """
    lock = FileLock(path, fallback_to_soft=False)
    with contextlib.suppress(OSError):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire()
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                Path(path).unlink()  # before the release: a process that waits for the removed file opens a new one
            lock.release()


@contextlib.contextmanager
def private_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, open to this user alone, in which `target` is made; removed at the end.

    One process at a time makes `target`; the others say so on stderr and wait. Folders that killed processes left behind are
    removed first.

    Raises:
        OSError: the folder cannot be made.
    """
    def waiting() -> None:
        print(f"adcore: another process is writing {target}: waiting for it", file=sys.stderr)

    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.new-"
    with one_at_a_time(target.with_name(f".{target.name}.lock"), waiting) as locked:
        for left in target.parent.iterdir() if locked else ():
            if left.name.startswith(prefix):
                shutil.rmtree(left, ignore_errors=True)  # leaves links and files alone
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` atomically, as indented JSON with sorted keys.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def digest_file(path: Path | str, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in blocks."""
    hasher = hashlib.new(algorithm)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def digest_text(text: str, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `text`.

    >>> digest_text("abc", 8)
    'ba7816bf'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:length]
