"""Files and folders that appear whole or not at all, locks between processes, digests."""

from __future__ import annotations

import contextlib
import errno
import getpass
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from filelock import BaseFileLock, FileLock, Timeout

from adcore.errors import ParameterError, StoreError, tell

REMIND = 60.0             # seconds until a process that waits for a lock says again that it waits
SIGN = b"adcore process "  # a lock file begins so, and goes on with the holder
PRIVATE = 0o1700          # of the folders made here: no other folder of a user is private and has the sticky bit


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
    be written, or on a file system without locks, the block runs without a lock. Yields whether the lock is held. The file
    names its holder, and who waits for long prints that name once a minute.

    waiting  called once if another process holds the lock

    Raises:
        StoreError: the lock was not released within the seconds of ADCORE_LOCK_TIMEOUT (no limit by default).
        ParameterError: ADCORE_LOCK_TIMEOUT is not a number of seconds.
    """
    path = Path(path)
    lock = FileLock(path, mode=0o666, fallback_to_soft=False)  # so that other accounts can lock it too
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            _wait(lock, path)
        _sign(path)
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # before the release: a process that waits for the removed file opens a new one
            lock.release()


def _wait(lock: BaseFileLock, path: Path) -> None:
    """Wait for a lock. Raises StoreError after ADCORE_LOCK_TIMEOUT."""
    text = os.environ.get("ADCORE_LOCK_TIMEOUT", "")
    if text and not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text):
        raise ParameterError(f"ADCORE_LOCK_TIMEOUT={text} is not a number of seconds")
    limit, waited = float(text or "inf"), 0.0
    while True:
        step = min(REMIND, limit - waited)
        try:
            lock.acquire(timeout=step)
            return
        except Timeout:
            waited += step
        holder = _read_start(path) or "another process"
        if waited >= limit:
            raise StoreError(f"{path} is locked by {holder}, and not released in {limit:g} seconds (ADCORE_LOCK_TIMEOUT): wait "
                             f"for that process or end it, then run this again")
        tell(f"still waiting for {holder}, after {waited:g} seconds; ADCORE_LOCK_TIMEOUT=SECONDS limits the wait ({path})")


def _sign(path: Path) -> None:
    """Write into the lock file which process holds it. A file with other content is left alone: a link, or another's file that
    somebody has given the name of the lock, is not one of ours."""
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    with contextlib.suppress(OSError, KeyError), open(path, "r+b", opener=lambda name, _: os.open(name, flags)) as file:
        found = os.fstat(file.fileno())
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and (found.st_size == 0 or file.read(len(SIGN)) == SIGN):
            file.seek(0)
            file.truncate()
            file.write(SIGN + f"{os.getpid()} of {getpass.getuser()} on {platform.node()}".encode())


def _read_start(path: Path) -> str:
    """The holder's name in a lock file, '' if there is none."""
    with contextlib.suppress(OSError), open_plain(path) as file:
        text = file.read(300)
        return text.decode(errors="replace") if text.startswith(SIGN) else ""
    return ""


@contextlib.contextmanager
def private_folder(target: Path) -> Iterator[Path]:
    """A new folder beside `target`, open to this user alone, in which `target` is made; removed at the end.

    One process at a time makes `target`; the others say so on stderr and wait. Folders that killed processes left behind are
    removed first.

    Raises:
        OSError: the folder cannot be made.
        StoreError, ParameterError: see `one_at_a_time`.
    """
    def waiting() -> None:
        tell(f"another process is writing {target}: waiting for it")

    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}.new-"
    with one_at_a_time(target.with_name(f".{target.name}.lock"), waiting) as locked:
        for left in target.parent.iterdir() if locked else ():
            if left.name.startswith(prefix):
                _remove(left, stat.S_IFDIR | PRIVATE)
        folder = target.with_name(f"{prefix}{secrets.token_hex(6)}")
        folder.mkdir(mode=PRIVATE)
        made = folder.lstat().st_mode
        try:
            yield folder
        finally:
            _remove(folder, made)


def _remove(folder: Path, mode: int) -> None:
    """Remove a folder of `private_folder`. In a shared folder others may have given its name to a link, or to a folder of this
    user that was private already: neither has this mode."""
    with contextlib.suppress(OSError):
        found = folder.lstat()
        if found.st_mode == mode and found.st_uid == os.geteuid():
            shutil.rmtree(folder, ignore_errors=True)


def open_plain(path: Path | str) -> BufferedReader:
    """A plain file, opened to read bytes. Links are followed. A pipe or a device, which could block forever, is refused.

    Raises:
        OSError: the file is not there, cannot be read, or is no plain file.
    """
    # O_NONBLOCK: a pipe would otherwise wait here for a writer.
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return file


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
    """Hexadecimal digest of a file, read in blocks. Raises OSError as `open_plain`."""
    hasher = hashlib.new(algorithm)
    with open_plain(path) as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def digest_text(text: str, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `text`.

    >>> digest_text("abc", 8)
    'ba7816bf'
    """
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def on_disk(blocks: Iterable[np.ndarray]) -> np.ndarray:
    """Blocks (b, ...) of one shape and dtype after another as one array (n, ...), mapped from a temporary file.

    For what may not fit the memory, such as the maps of all test images. The file is in the folder that `tempfile` uses
    (TMPDIR); it has no name, and is gone with the array.

    >>> on_disk(np.zeros((b, 3)) for b in (2, 1)).shape
    (3, 3)

    Raises:
        StoreError: that folder has no room left.
    """
    n, block = 0, np.zeros(0)
    try:
        # Written as a file, not through the map: on a full disk a map kills the process, a write raises an error.
        with tempfile.TemporaryFile() as file:
            for block in blocks:
                file.write(np.ascontiguousarray(block).data)
                n += len(block)
            file.flush()
            shape = (n, *block.shape[1:])
            return np.memmap(file, block.dtype, "c", shape=shape) if math.prod(shape) else np.zeros(shape, block.dtype)
    except OSError as error:
        raise StoreError(f"cannot write to the temporary folder {tempfile.gettempdir()} ({error.strerror or error}): free it, "
                         f"or set TMPDIR to another one") from error
