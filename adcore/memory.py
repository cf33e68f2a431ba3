"""Keep freed memory in the process between the steps of a long computation on a CPU.

glibc returns freed memory to the operating system when much of it is free. A training step frees its tensors, and the next
step gets new pages, which the system fills with zeros. This can take longer than the arithmetic, as in EfficientNet-Lite0.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt, as in malloc.h: the free bytes at which memory is returned (-1: never), and the number of blocks that
# may be allocated by mmap, which are returned when they are freed. RETURN holds the values that glibc itself reaches after
# large blocks were freed.
TRIM_THRESHOLD, MMAP_MAX = -1, -4
KEEP, RETURN = (-1, 0), (64 * 2**20, 65536)

_lock = threading.Lock()
_depth = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """A block, or a decorated function, in which the process keeps freed memory; it is returned to the system at the end.

    Blocks may be nested, and may overlap in several threads: the last block that ends returns the memory. Numbers do not
    depend on it. Without glibc (macOS, Windows, musl) it does nothing.
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
                if library := _glibc():
                    library.malloc_trim(ctypes.c_size_t(0))


def _set(trim_threshold: int, mmap_max: int) -> None:
    if library := _glibc():
        library.mallopt(TRIM_THRESHOLD, trim_threshold)
        library.mallopt(MMAP_MAX, mmap_max)


@functools.lru_cache(maxsize=1)
def _glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version, library.mallopt, library.malloc_trim  # noqa: B018
    except (OSError, AttributeError, TypeError):  # TypeError: on Windows, CDLL(None) does not exist
        return None
    return library
