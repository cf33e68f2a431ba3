"""The benchmarks for a borrowed GPU, without one: what they refuse, how they go on after a failure, what they compare."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import pytest
import torch

from adcore.models import UniAD
from adcore.paths import repository


@pytest.fixture(scope="module")
def benches() -> Iterator[list[ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository() / "benchmarks"))
        yield [importlib.import_module(f"bench_gpu_{name}") for name in ("kernels", "uniad")]


def test_without_a_gpu_they_print_one_sentence_and_return_2(benches, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for bench in benches:
        assert bench.main([]) == 2
        assert capsys.readouterr().err.strip().endswith("torch finds none here: run this where torch.cuda.is_available()")


def test_a_kernel_that_fails_or_differs_gets_a_row_and_the_next_is_measured(benches, monkeypatch, tmp_path):
    bench, values = benches[0], iter([1.0, 3.0])

    def fails() -> torch.Tensor:
        raise RuntimeError("no such instruction\nmore")
    found = [bench.Case("broken", "s", fails, SimpleNamespace(limit=None)),
             bench.Case("wrong", "s", lambda: torch.tensor(next(values)), SimpleNamespace(limit=None)),
             bench.Case("right", "s", lambda: torch.ones(3), SimpleNamespace(limit=lambda *_: (1e-9, "memory")))]
    monkeypatch.setattr(bench, "cases", lambda *_, **__: found)
    assert bench.main(["--device", "cpu", "--out", str(tmp_path / "k.csv")]) == 1
    broken, wrong, right = csv.DictReader((tmp_path / "k.csv").open())
    assert broken["verdict"] == "failed: RuntimeError: no such instruction" and broken["ms"] == ""
    assert wrong["verdict"] == "differs from torch by 2: not timed"
    assert float(right["ms"]) > 0 and right["bound by"] == "memory" and right["machine"]
    assert bench.main(["--device", "cpu", "--minutes", "-1", "--out", str(tmp_path / "none.csv")]) == 0
    assert not (tmp_path / "none.csv").exists(), "the time was up before the first"


def test_every_way_starts_from_the_same_loss_and_trains(benches):
    bench = benches[1]
    config = UniAD.Config(hidden=16, heads=2, ffn=16, encoder_layers=1, decoder_layers=1, neighbors=1, lr=1e-2)
    detector = SimpleNamespace(config=config, grid=(4, 4), extractor=SimpleNamespace(channels=[5, 3]))
    features = torch.randn(12, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    eager, tf32, bf16 = (bench.losses_of(way, detector, features, 4, 30, 2)[0] for way in bench.WAYS[:3])
    assert eager == tf32, "TF32 is a GPU's"
    assert eager[0] == pytest.approx(bf16[0], rel=2e-2) and eager != bf16
    assert sum(eager[-5:]) < sum(eager[:5]) and torch.get_float32_matmul_precision() == "highest"
