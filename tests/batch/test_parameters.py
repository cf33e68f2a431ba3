"""The parameters of a notebook: read, checked and parsed; and a run with them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.notebooks import PARAMETERS, write_notebook

from adcore import cli
from adcore.errors import AdcoreError, ParameterError
from adcore.grids import Job
from adcore.notebook import (
    all_notebooks,
    check_parameters,
    find_notebook,
    notebook_name,
    parse_assignments,
    read_parameters,
    run_notebook,
)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "toy.ipynb")


def test_the_parameters_are_the_literals_in_the_tagged_cell(notebook):
    assert read_parameters(notebook) == {"profile": "quick", "seeds": [0, 1], "rate": 0.5, "seed": -1, "noisy": False,
                                         "categories": []}


@pytest.mark.parametrize(("cell", "message"), [
    ("seed = 0\nseeds = list(range(3))", "line 2: expected name = literal, found 'seeds = list(range(3))'"),
    ("import os", "line 1: expected name = literal, found 'import os'"), ("a = b = 1", "found 'a = b = 1'"),
    ("a, b = 1, 2", "line 1: expected"), ("a.b = 1", "found 'a.b = 1'"), ("seed += 1", "found 'seed += 1'"),
    ("x = 1\n%matplotlib inline", "line 2: expected name = literal, found invalid Python")])
def test_a_parameters_cell_with_anything_but_literals_is_refused(tmp_path, cell, message):
    with pytest.raises(ParameterError, match=r"^toy\.ipynb, parameters cell, line \d: ") as caught:
        read_parameters(write_notebook(tmp_path / "toy.ipynb", cell))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_exactly_one_parameters_cell_or_that_is_not_a_notebook_is_refused(tmp_path, capsys):
    with pytest.raises(ParameterError, match=r"^none\.ipynb has 0 cells tagged 'parameters': expected one$"):
        read_parameters(write_notebook(tmp_path / "none.ipynb", None, "x = 1"))
    (tmp_path / "broken.ipynb").write_text('{"cells": [')
    assert cli.main(["run", str(tmp_path / "broken.ipynb")]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"adcore: {tmp_path}/broken.ipynb cannot be read as a notebook (") and err.count("\n") == 1


@pytest.mark.parametrize(("given", "checked"), [
    ({"rate": 2}, {"rate": 2.0}), ({"seeds": 3}, {"seeds": [3]}), ({"seeds": []}, {"seeds": []}),
    ({"categories": "brick"}, {"categories": ["brick"]}), ({"noisy": True, "seed": 4}, {"noisy": True, "seed": 4})])
def test_an_integer_is_accepted_for_a_float_and_a_single_value_for_a_list(notebook, given, checked):
    found = check_parameters(notebook, given)
    assert found == checked and [type(value) for value in found.values()] == [type(value) for value in checked.values()]


@pytest.mark.parametrize(("given", "message"), [
    ({"sed": 1}, "unknown parameter 'sed' for toy (did you mean 'seed'?); it takes profile, seeds, rate, seed, noisy, cat"),
    ({"xyz": 1}, "unknown parameter 'xyz' for toy; it takes profile"),
    ({"seed": "one"}, "parameter 'seed' of toy takes int like -1, not str 'one'"),
    ({"seed": 1.5}, "parameter 'seed' of toy takes int like -1, not float 1.5"),
    ({"seed": True}, "parameter 'seed' of toy takes int like -1, not bool True"),
    ({"rate": True}, "parameter 'rate' of toy takes float like 0.5, not bool True"),
    ({"profile": None}, "parameter 'profile' of toy takes str like 'quick', not NoneType None"),
    ({"seeds": ["a"]}, "parameter 'seeds' of toy takes a list like [0, 1], not ['a']")])
def test_a_wrong_name_or_type_is_refused(notebook, given, message):
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}"):
        check_parameters(notebook, given)


def test_command_line_values_are_read_as_json_or_as_yaml():
    words = ["a=1", "b=quick", "c=[0, 1]", "d=[brick, gear]", "e=0.5", "f=1e-5", "g=true", "h=x=y", 'i="1"', "j=a: b"]
    assert parse_assignments(words) == {"a": 1, "b": "quick", "c": [0, 1], "d": ["brick", "gear"], "e": 0.5, "f": 1e-5,
                                        "g": True, "h": "x=y", "i": "1", "j": {"a": "b"}}
    for wrong, message in (("seed", "'seed' is not name=value"), ("1x=2", "'1x=2' is not name=value"),
                        ("a=[1", r"the value of 'a=\[1' cannot be read: write strings plain, lists as \[a, b\]")):
        with pytest.raises(ParameterError, match=f"^{message}"):
            parse_assignments([wrong])


values = st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.from_regex(r"[a-z_]{1,6}", fullmatch=True).filter(str.isidentifier), values | st.lists(values)))
def test_the_command_line_options_of_a_job_are_parsed_to_its_parameters(parameters):
    words = shlex.split(Job("x", Path("x.ipynb"), parameters).words())
    assert words[::2] == ["-p"] * len(parameters)
    assert parse_assignments(words[1::2]) == parameters


def test_a_notebook_is_found_by_its_path_or_its_name(notebook, tmp_path, monkeypatch):
    write_notebook(tmp_path / "notebooks/paper/01_first.ipynb")
    write_notebook(tmp_path / "notebooks/.ipynb_checkpoints/01_first.ipynb")
    monkeypatch.setattr("adcore.notebook.repository", lambda: tmp_path)
    path = tmp_path / "notebooks/paper/01_first.ipynb"
    for name in ("paper/01_first", "notebooks/paper/01_first.ipynb", path, str(path)):
        assert find_notebook(name) == path and notebook_name(find_notebook(name)) == "paper/01_first"
    assert all_notebooks() == [path] and notebook_name(notebook) == "toy"
    with pytest.raises(ParameterError, match=r"^there is no notebook 'paper/01_frist' \(did you mean 'paper/01_first'\?\)"):
        find_notebook("paper/01_frist")


# --- running ----------------------------------------------------------------------------------------------------------------

def test_a_successful_run_writes_a_record_and_a_failed_run_writes_only_its_traceback(tmp_path):
    path = write_notebook(tmp_path / "toy.ipynb", PARAMETERS,
                          "import os\nprint(sum(seeds) * rate, os.environ['ADCORE_PROGRESS'])",
                          "assert seed == -1, 'seed is ' + str(seed) + chr(10) + 'and more'")
    before = path.read_bytes()
    out, record = tmp_path / "out" / "run.ipynb", tmp_path / "record.json"
    assert run_notebook(path, {"seeds": [20, 22], "rate": 1}, out, record=record) == out
    executed = nbformat.read(out, as_version=4)
    assert any("42.0 0" in output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert (one := json.loads(record.read_text())).pop("seconds") > 0
    assert len(one.pop("digest")) == 16
    assert one == {"notebook": "toy", "parameters": {"seeds": [20, 22], "rate": 1.0}, "executed": "run.ipynb"}

    failed, no_record = tmp_path / "out" / "failed.ipynb", tmp_path / "no.json"
    with pytest.raises(AdcoreError, match=rf"^toy failed in cell \d: AssertionError: seed is 5; see {failed}$"):
        run_notebook(path, {"seed": 5}, failed, record=no_record)
    assert "AssertionError" in failed.read_text() and "and more" in failed.read_text() and not no_record.exists()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["failed.ipynb", "run.ipynb"]
    assert path.read_bytes() == before


def test_the_run_command_checks_the_parameters_and_writes_into_the_runs_folder(capsys, notebook, tmp_path, monkeypatch):
    seen: dict[str, Any] = {}

    def executed(path: str, output: str, parameters: dict[str, Any], **options: Any) -> None:
        seen.update(path=path, parameters=parameters, **options)
        Path(output).write_text("{}")

    monkeypatch.setattr("papermill.execute_notebook", executed)
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    assert cli.main(["run", str(notebook), "-p", "seeds=7", "-p", "rate=1e-3"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'runs/notebooks/toy/run.ipynb'}\n"
    assert seen["parameters"] == {"seeds": [7], "rate": 0.001} and seen["path"] == str(notebook)
    assert seen["progress_bar"] is False
    assert cli.main(["run", str(notebook), "-o", str(tmp_path / "x.ipynb"), "--record", str(tmp_path / "x.json")]) == 0
    assert seen["parameters"] == {} and (tmp_path / "x.ipynb").is_file() and (tmp_path / "x.json").is_file()
