"""Memory kept between the steps of a computation, measured by the pages that the process gets from the system."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator

import psutil
import pytest

from adcore import memory
from adcore.memory import kept_memory

glibc = pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
SIZE = 48 * 2**20                       # by default, glibc allocates a block of this size by mmap


def new_pages() -> int:
    """Number of pages that the system provides for a block of `SIZE` bytes, which is filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(SIZE)                     # not a tensor: glibc before 2.38 may skip a free block in search of an aligned one
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return psutil.Process().memory_info().rss


@pytest.fixture(autouse=True)
def small_pages() -> Iterator[None]:
    if new_pages() < 5000:
        pytest.skip("pages here are larger than 4 kB")
    yield
    assert memory._depth == 0


@glibc
def test_inside_kept_memory_a_second_allocation_takes_no_new_pages_and_afterwards_it_does():
    with kept_memory():
        new_pages()
        assert new_pages() < 500
    assert new_pages() > 5000


@glibc
def test_memory_is_returned_afterwards_even_if_the_block_fails():
    before = resident()
    with pytest.raises(ZeroDivisionError), kept_memory():
        new_pages()
        assert resident() > before + SIZE // 2
        raise ZeroDivisionError
    assert resident() < before + SIZE // 2


@glibc
def test_of_nested_and_parallel_blocks_the_last_one_returns_the_memory():
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with kept_memory():
            inside.set()
            leave.wait(30)

    thread = threading.Thread(target=other)
    with kept_memory():
        with kept_memory():
            new_pages()
        assert new_pages() < 500
        thread.start()
        inside.wait(30)
    try:
        assert new_pages() < 500
    finally:
        leave.set()
        thread.join()
    assert new_pages() > 5000


def test_without_glibc_the_block_runs_unchanged(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with kept_memory():
        assert sum(bytearray(3)) == 0
    assert new_pages() > 5000
