"""Memory that a long computation on a CPU keeps between its steps.

glibc returns freed memory to the system as soon as much of it is free. A training step frees all it made, so the next one is
given every page anew, filled with zeros one by one: that may take longer than the arithmetic, as in EfficientNet-Lite0.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of malloc.h: bytes that may lie free before they are given back (-1: any), and blocks that may be the system's own. The
# values to go back to are those that glibc ends with by its own rule once large blocks were freed.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
KEEP, RETURN = (-1, 0), (64 * 2**20, 65536)

_lock = threading.Lock()
_depth = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within the block memory that is freed stays with the process, for its next use; afterwards the system has it back.

    Blocks may be nested and may overlap in several threads: the last one to end gives back. Results do not depend on it. On
    systems without glibc (macOS, Windows, musl) it does nothing.
    """
    global _depth
    with _lock:
        _depth += 1
        if _depth == 1:
            _set(*KEEP)
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _set(*RETURN)
                _trim()


def _set(trim_threshold: int, mmap_max: int) -> None:
    if library := _glibc():
        library.mallopt(TRIM_THRESHOLD, trim_threshold)
        library.mallopt(MMAP_MAX, mmap_max)


def _trim() -> None:
    if library := _glibc():
        library.malloc_trim(ctypes.c_size_t(0))


@functools.lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version, library.mallopt, library.malloc_trim  # noqa: B018
    except (OSError, AttributeError, TypeError):  # TypeError: Windows knows no library of the process itself
        return None
    return library
