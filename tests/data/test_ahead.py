"""Results computed in advance by threads: in order, all of them, and only a few ahead of the caller."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adcore.ahead import ahead


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(), max_size=40), st.integers(1, 9), st.integers(1, 3))
def test_results_come_in_the_order_of_the_items(items, most, workers):
    assert list(ahead(lambda item: item * 2, items, most=most, workers=workers)) == [item * 2 for item in items]


@pytest.mark.parametrize("most", [1, 3, 8])
def test_no_more_than_the_most_are_computed_that_the_caller_has_not_taken(most):
    computed: list[int] = []
    results = ahead(lambda item: computed.append(item) or item, range(50), most=most)
    for taken in range(1, 6):
        assert next(results) == taken - 1
        time.sleep(0.02)
        assert taken <= len(computed) <= taken + most - 1
    results.close()
    assert len(computed) < 5 + most


def test_several_are_computed_at_the_same_time():
    all_here = threading.Barrier(4, timeout=20)     # a thread goes on only when four wait
    assert sorted(ahead(lambda item: all_here.wait(), range(4), workers=4)) == [0, 1, 2, 3]


def test_an_error_reaches_the_caller_at_its_item():
    results = ahead(lambda item: 1 // item, [2, 1, 0, 3], most=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
