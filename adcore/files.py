"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from adcore.errors import StoreError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well and vanishes when it does not.

    A reader sees the old file or the new one, never half of one, also after a kill or a full disk.

    Raises:
        StoreError: the folder cannot be written or has no room left.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}{path.suffix}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask; mkstemp's 0o600 would stay
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        # An error about another file (an unreadable image, say) is not about this folder: leave it as it is.
        about_another_file = error.filename is not None and Path(str(error.filename)).parent != path.parent
        if about_another_file and not _inside(path, str(error.filename)):
            raise
        reason = error.strerror or str(error)
        raise StoreError(f"cannot write {path}: {reason}; free the folder or name another one (--out, ADCORE_RUNS, "
                         f"ADCORE_CACHE)") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _inside(path: Path, culprit: str) -> bool:
    """True when `culprit` is a folder on the way to `path`, as when making that folder failed."""
    return Path(culprit) in path.parents


def hold(path: Path | str, flags: int) -> int:
    """Open a file or folder, with the flags of `os.open`, for this process alone; the descriptor. The system lets go of it when
    the process ends, however that is. A system without such locks just opens it.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be opened.
    """
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            if fcntl is not None:
                _lock(descriptor)
            # Renamed by the one that held it before, it is no longer what the path names.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(path)):  # noqa: PTH116
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if isinstance(error, BlockingIOError):
            raise                               # any other comes from a network folder without locks: nobody waits there


@contextlib.contextmanager
def one_at_a_time(path: Path | str, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """A block that one process is in, and before which the others wait. `path` is an empty file that is there meanwhile; one
    that a killed process left stops nobody. In a folder that cannot be written, or that knows no locks, nobody waits.

    waiting  called once by those who have to wait
    """
    path, descriptor = Path(path), -1
    pause = first_pause = 0.02  # seconds
    while descriptor < 0:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = hold(path, os.O_RDWR | os.O_CREAT)
        except BlockingIOError:
            if pause == first_pause:
                waiting()
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        except OSError:
            break  # whether the block writes there at all is its own affair
    try:
        yield
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: whoever has it open learns from `hold` that it is gone
            os.close(descriptor)


def write_text(path: Path | str, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` to `path` atomically, as sorted, indented JSON without NaN."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def digest_file(path: Path | str, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file, read in blocks."""
    hasher = hashlib.new(algorithm)
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()


def digest_text(text: str, length: int = 16) -> str:
    """The first `length` hexadecimal digits of the SHA-256 of `text`."""
    return hashlib.sha256(text.encode()).hexdigest()[:length]
