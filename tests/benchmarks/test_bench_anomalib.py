"""The benchmark of whole methods beside anomalib's: its rows, and what it says without anomalib. The runs need real images."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
from support.tiny import write_tiny

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench_anomalib")


def run(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "fit_s": seconds - 1, "test_s": 1.0, "peak_gb": 2.0, "image_auroc": 90.0, "pixel_auroc": 80.0,
            "aupro": 70.0}


def test_rows_are_medians_and_name_how_many_times_faster_than_anomalib(bench):
    runs = {"anomalib": [run(100), run(300), run(120)], "adcore": [run(40), run(60)]}
    theirs, ours = bench.rows("patchcore bottle, 1 %", runs)
    columns = dict(zip(bench.COLUMNS, ours, strict=True))
    assert theirs[:6] == ["patchcore bottle, 1 %", "anomalib", "120.0", "119.0", "1.0", "2.00"]
    assert (columns["seconds"], columns["times faster"], columns["rounds"], columns["aupro"]) == ("50.0", "2.4", "2", "70.00")


def test_an_experiment_has_the_settings_of_its_case_and_random_weights(bench, tmp_path, monkeypatch):
    write_tiny(tmp_path / "mvtec_384")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    for case, (method, settings) in bench.CASES.items():
        one = bench.experiment(case, "cloth", None)
        config = one.config()
        assert (one.method, one.category, config.weights) == (method, "cloth", "random")
        assert all(getattr(config, name) == value for name, value in settings.items())
    assert bench.experiment("fastflow {}, 20 epochs", "cloth", 1).config().epochs == 1


def test_the_scores_of_five_starts_go_into_the_row_of_adcore_and_no_other(bench, tmp_path, monkeypatch):
    out = tmp_path / "whole.csv"
    out.write_text("case,way,image_auroc\n\"fastflow cloth, 20 epochs\",adcore,1\n\"patchcore cloth, 1 %\",anomalib,2\n"
                   "\"patchcore cloth, 1 %\",adcore,3\n", encoding="utf-8")
    monkeypatch.setattr(bench, "alone", lambda *words: {"low": 64.24, "high": 76.78} if words[2] == "starts" else {})
    assert bench.main(["--starts", "--cases", "patchcore {}, 1 %", "--categories", "cloth", "--out", str(out)]) == 0
    with out.open(newline="", encoding="utf-8") as file:
        rows = [row for _, *row in csv.reader(file)][1:]
    assert [(row[0], row[1], row[-1]) for row in rows] == [("adcore", "1", ""), ("anomalib", "2", ""),
                                                          ("adcore", "3", "64.2 to 76.8")]


def test_another_start_gives_another_coreset_of_the_same_features(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(write_tiny(tmp_path / "mvtec_384").parent))
    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(bench.CASES, "small", ("patchcore", {"coreset": 3, "backbone": "resnet18", "taps": (1, 2),
                                                             "image_size": 64, "crop": None, "embed_dim": 0}))
    found = bench.by_start(bench.experiment("small", "cloth", None))
    assert 0 <= found["low"] <= found["high"] <= 100
    assert len(list((tmp_path / "cache" / "features").glob("*.npy"))) == 1


def test_without_anomalib_it_says_how_to_install_it(bench, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert bench.main(["--out", str(tmp_path / "whole.csv")]) == 2
    assert "pip install 'adcore[bench]'" in capsys.readouterr().err and not (tmp_path / "whole.csv").exists()


def test_the_readme_names_the_ratios_that_are_on_record():
    whole = pd.read_csv(BENCHMARKS / "whole.csv")
    text = (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    for method, sentence in (("patchcore", "PatchCore is {} to {} times as fast"), ("fastflow", "FastFlow {} to {} times,")):
        ours, theirs = (whole[whole["case"].str.startswith(method) & (whole["way"] == way)] for way in ("adcore", "anomalib"))
        assert sentence.format(ours["times faster"].min(), ours["times faster"].max()) in text
        assert len(ours) >= 2 and (ours["peak_gb"].to_numpy() < theirs["peak_gb"].to_numpy()).all()
