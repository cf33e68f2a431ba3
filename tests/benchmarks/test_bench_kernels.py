"""The benchmark of the Triton kernels without a GPU: its counts, its calls and its output."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from adcore.kernels import kernels


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        yield importlib.import_module("bench_kernels")


def test_bytes_and_operations_equal_counts_on_paper(bench):
    # One head of two tokens of three numbers, 4 bytes each: 6 numbers per tensor, a mask of 4 bytes, products of 2 x 2 x 3.
    assert bench.attention_cost(1, 1, 2, 3, 4, backward=False) == bench.Cost(4 * 6 * 4 + 4, 2 * 2 * 12)
    assert bench.attention_cost(5, 7, 2, 3, 2, backward=True) == bench.Cost(12 * 35 * 6 * 2 + 4, 7 * 35 * 2 * 12)
    # Two queries, three entries, five dimensions: 25 numbers in; two distances and two indices out; six products of five.
    assert bench.nearest_cost(2, 3, 5, 4) == bench.Cost(25 * 4 + 2 * 4 + 2 * 8, 60)
    # Three picks in a pool of ten points on a plane; a distance of 4 bytes is read and written.
    assert bench.kcenter_cost(3, 10, 2, 4) == bench.Cost(3 * 10 * (2 * 4 + 8), 3 * 10 * 2 * 3)
    # Four points, two components, three dimensions: in 12 + 2 (9 + 3 + 1), out 4 + 8 + 12; two 3 x 3 products each.
    assert bench.gmm_cost(4, 2, 3, 4) == bench.Cost((12 + 26 + 4 + 8 + 12) * 4, 4 * 2 * 2 * 18)
    assert bench.color_cost(10, mapped=False) == bench.Cost(30, 150)
    assert bench.color_cost(10, mapped=True).moved == 90


def test_the_limit_is_the_slower_of_memory_and_arithmetic(bench):
    assert bench.Cost(100, 10).limit(bandwidth=50, speed=10) == (2.0, "memory")
    assert bench.Cost(100, 1000).limit(bandwidth=50, speed=10) == (100.0, "arithmetic")


def test_every_case_runs_and_gives_the_same_twice(bench):
    found = bench.cases(torch.device("cpu"), batch=2, grid=8, queries=5, bank=40, points=300, side=9)
    assert len({(case.name, case.size) for case in found}) == len(found) == 9
    with kernels("torch"):
        for case in found:
            assert bench.difference(case.call(), case.call()) == 0, case.name


def test_the_table_is_aligned_and_names_the_faster(bench):
    case = bench.Case("nearest", "2 of 3", lambda: None, bench.Cost(1, 1))
    text = bench.as_table([bench.line(case, 0.002, 0.008, 0.004, (0.001, "memory")),
                           bench.line(case, 0.002, 0.001, None, (0.001, "arithmetic"))])
    head, first, second = text.splitlines()
    assert first.split() == ["nearest", "2", "of", "3", "2.000", "8.000", "4.000", "1.000", "50%", "memory", "2.00x", "faster"]
    assert second.endswith("arithmetic  2.00x slower: remove it") and "  -  " in second
    assert head.index("fraction") == first.index("50%") == second.index("50%")


def test_without_a_gpu_it_prints_one_sentence_and_returns_2(bench, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.main([]) == 2
    assert capsys.readouterr().err.strip().endswith("torch finds none here: run this where torch.cuda.is_available()")
