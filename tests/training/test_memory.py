"""Memory kept between the steps of a computation, seen by the pages that the system hands out."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator

import psutil
import pytest

from adcore import memory
from adcore.memory import kept_memory

glibc = pytest.mark.skipif(memory._glibc() is None, reason="needs glibc")
SIZE = 48 * 2**20                       # more than glibc ever takes from what it holds, unless told to


def new_pages() -> int:
    """Pages that a block of `SIZE` bytes takes from the system when it is made, filled and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(SIZE)                     # no tensor: glibc before 2.38 may look past a free block for one that is aligned
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
def test_a_second_block_takes_no_new_pages_within_and_takes_them_again_afterwards():
    with kept_memory():
        new_pages()
        assert new_pages() < 500
    assert new_pages() > 5000


@glibc
def test_the_system_has_the_memory_back_afterwards_also_when_the_block_fails():
    before = resident()
    with pytest.raises(ZeroDivisionError), kept_memory():
        new_pages()
        assert resident() > before + SIZE // 2
        raise ZeroDivisionError
    assert resident() < before + SIZE // 2


@glibc
def test_of_blocks_within_each_other_and_side_by_side_the_last_one_gives_back():
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


def test_where_there_is_no_glibc_the_block_runs_as_it_is(monkeypatch):
    monkeypatch.setattr(memory, "_glibc", lambda: None)
    with kept_memory():
        assert sum(bytearray(3)) == 0
    assert new_pages() > 5000
