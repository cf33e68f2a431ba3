"""The parameters of a notebook: read, checked and parsed; and a run with them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.notebooks import PARAMETERS, write_notebook

import adcore.errors
from adcore import cli
from adcore.errors import AdcoreError, ParameterError
from adcore.grids import Job
from adcore.notebook import (
    all_notebooks,
    check_parameters,
    checked,
    find_notebook,
    notebook_name,
    read_parameters,
    run_notebook,
)
from adcore.parameters import EXAMPLES, parse_assignments, parse_settings, typed


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


# --- the check inside a notebook ---------------------------------------------------------------------------------------------

CELL = "profile = 'quick'  # quick or paper\nheight = 64\nalpha = 0.5\nseeds = [0, 1]\nsettings = {}\n"
LINE = "from adcore.notebook import checked\nchecked('toy', globals())"


def namespace(*cells: str) -> dict[str, Any]:
    """The variables of a notebook in which these cells have run; IPython adds `In`."""
    variables: dict[str, Any] = {"In": ["", *cells, LINE]}
    for cell in cells:
        exec(cell, variables)
    return variables


@pytest.mark.parametrize(("cells", "message"), [
    ((CELL, "# Parameters\nheight = 'abc'\n"), "parameter 'height' of toy takes int like 64, not str 'abc'"),
    ((CELL, "# Parameters\nseeds = ['a']\n"), "parameter 'seeds' of toy takes a list like [0, 1], not ['a']"),
    ((CELL, "# Parameters\nalpha = float('nan')\n"), "parameter 'alpha' of toy takes float like 0.5, not float nan"),
    ((CELL, "# Parameters\nprofile = 3\n"), "parameter 'profile' of toy takes str like 'quick', not int 3"),
    ((CELL, "# Parameters\nheigth = 3\n"), "unknown parameter 'heigth' for toy (did you mean 'height'?); it takes profile, "
                                            "height, alpha, seeds, settings"),
    ((CELL, "# Parameters\ndataset = 'mini'\n"), "unknown parameter 'dataset' for toy; it takes profile, height"),
    ((CELL + "heigth = 3\n",), "unknown parameter 'heigth' for toy (did you mean 'height'?); it takes profile, height"),
    ((CELL.replace("64", "'abc'"),), "parameter 'height' of toy takes int like 256, not str 'abc'"),
    ((CELL.replace("64", "'abc'"), "x = 1", CELL.replace("64", "None"), "y = 2"),
     "parameter 'height' of toy takes int like 256, not NoneType None")],
    ids=range(9))
def test_a_running_notebook_refuses_a_wrong_name_or_type_by_papermill_or_in_an_edited_cell(cells, message):
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}"):
        checked("toy", namespace(*cells))


@pytest.mark.parametrize("cells", [
    (CELL, "# Parameters\nalpha = 1\nseeds = '(7, 8)'\nheight = '32'\nsettings = '{lr: 1e-3}'\n"),
    (CELL.replace("0.5", "1").replace("[0, 1]", "(7, 8)").replace("64", "32").replace("{}", "{'lr': 1e-3}"),),
    ("x = 1", CELL, "# Parameters\nheigth = 3\n", CELL, "alpha, seeds = 1, [7, 8]", "height = 32", "settings = {'lr': 1e-3}")])
def test_a_running_notebook_converts_what_the_command_line_converts(cells):
    variables = namespace(*cells)
    checked("toy", variables)
    found = {name: variables[name] for name in ("profile", "height", "alpha", "seeds", "settings")}
    assert same(found, {"profile": "quick", "height": 32, "alpha": 1.0, "seeds": [7, 8], "settings": {"lr": 0.001}})


def test_outside_ipython_nothing_is_checked():
    variables = {"height": "abc"}
    checked("toy", variables)
    assert variables == {"height": "abc"}


@pytest.mark.parametrize("path", all_notebooks(), ids=notebook_name)
def test_a_parameter_has_the_same_type_in_every_notebook(path):
    parameters = read_parameters(path)
    assert parameters.keys() <= EXAMPLES.keys(), "add the new parameter to EXAMPLES in adcore/parameters.py"
    for name, value in parameters.items():
        assert same(typed(value, EXAMPLES[name]), value)


@pytest.mark.parametrize("word", ["height=abc", "heigth=3"])
def test_papermill_and_the_run_command_end_with_the_same_sentence(tmp_path, capsys, word):
    path = write_notebook(tmp_path / "toy.ipynb", CELL, LINE)
    assert cli.main(["run", str(path), "-p", word]) == 2
    sentence = capsys.readouterr().err.removeprefix("adcore: ")
    program = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3", "-p", *word.split("=")]
    done = subprocess.run([*program, path, tmp_path / "out.ipynb"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.rstrip().endswith(f"ParameterError: {sentence.rstrip()}")


def read(text: str, default: Any) -> Any:
    """What `-p x=text` gives for a parameter with this default."""
    return typed(parse_assignments([f"x={text}"])["x"], default)


def same(found: Any, right: Any) -> bool:
    """Equal, with the same types throughout."""
    return repr(found) == repr(right)


@pytest.mark.parametrize(("text", "right"), [
    ("01", "01"), ("no", "no"), ("2024-01-02", "2024-01-02"), ("", ""), ("null", "null"), ("1e5", "1e5"), ("true", "true"),
    ("x=y", "x=y"), ("a: b", "a: b"), ("[abc", "[abc"), ("[a, b]", "[a, b]"), ('"1"', "1"), ("'it''s'", "it's"),
    (" a ", " a "), ("mini:gear+chip", "mini:gear+chip"), (r"C:\new", r"C:\new"),
    (r'"C:\data"', r"C:\data"), ('"a" b', '"a" b'), ("~", "~")])
def test_text_stays_text_where_the_default_is_text(text, right):
    assert same(read(text, "quick"), right)


@pytest.mark.parametrize(("text", "right"), [
    ("[01, 02, 03]", ["01", "02", "03"]), ("no", ["no"]), ("0", ["0"]), ("01234", ["01234"]),
    ("[1, 1.0, 1e3]", ["1", "1.0", "1e3"]),
    ("[no, null, true]", ["no", "null", "true"]), ("[mini:chip, ds+x]", ["mini:chip", "ds+x"]),
    ('["a, b", it\'s]', ["a, b", "it's"]),
    ("[brick (new), b]", ["brick (new)", "b"]), ("(a, b)", ["a", "b"]), ("", []), ("[]", []), ("[ ]", []), ("[a, ]", ["a"]),
    ('"[old] brick"', ["[old] brick"]), ("a b", ["a b"])])
def test_names_in_a_list_stay_text_also_where_the_default_list_is_empty(text, right):
    assert same(read(text, ["brick"]), right) and same(read(text, []), right)


@pytest.mark.parametrize(("text", "default", "right"), [
    ("3", 0, 3), ("007", 0, 7), ("-3", 0, -3), ("2", 0.5, 2.0), ("1e-5", 0.5, 1e-5), ("1e5", 0.5, 1e5), (".5", 0.1, 0.5),
    ("True", False, True), ("yes", False, True), ("no", True, False), ("false", True, False), ("7", [0], [7]),
    ("[0, 1]", [0], [0, 1]),
    ("[1, 1e-3]", [0.5], [1.0, 0.001]), ("(1, 2)", [0], [1, 2]), ("[2, 3]", (1,), (2, 3)),
    ("[[0], [1, 2]]", [[0]], [[0], [1, 2]]),
    ("[[01]]", [["a"]], [["01"]]), ("", {}, {})])
def test_numbers_and_truth_values_have_the_type_of_the_default(text, default, right):
    assert same(read(text, default), right)


@pytest.mark.parametrize(("text", "right"), [
    ("{lr: 1e-5}", {"lr": 1e-5}), ("{lr: 1e5, n: 10, x: .5}", {"lr": 1e5, "n": 10, "x": 0.5}),
    ("{a: yes, b: no, c: on, d: off}", {"a": "yes", "b": "no", "c": "on", "d": "off"}),
    ("{a: 012, b: 1_000}", {"a": "012", "b": "1_000"}),
    ("{a: true, b: False, c: null, d: None}", {"a": True, "b": False, "c": None, "d": None}),
    ("{d: 2024-01-02}", {"d": "2024-01-02"}),
    ("{taps: (2, 3), one: (2,), lone: (2), none: ()}", {"taps": (2, 3), "one": (2,), "lone": (2,), "none": ()}),
    ('{"taps": [(2,), (4,)]}', {"taps": [(2,), (4,)]}), ("{a: {b: [1, x]}}", {"a": {"b": [1, "x"]}}),
    ("{01: 1}", {"01": 1}), ('{s: "1", t: \'no\'}', {"s": "1", "t": "no"}), ("{p: mini:gear}", {"p": "mini:gear"}),
    ("{x: 1e999, y: .inf, z: nan}", {"x": "1e999", "y": ".inf", "z": "nan"})])
def test_settings_are_read_as_in_yaml_1_2(text, right):
    assert same(read(text, {}), right) and same(read(text, {"lr": 0.1, "heads": 2}), right)


def test_an_entry_of_a_dictionary_stays_text_where_the_default_has_text():
    assert same(read("{01: [1, no], brick: 2}", {"brick": ["crack"]}), {"01": ["1", "no"], "brick": ["2"]})
    assert same(read("{01: 02}", {"brick": "crack"}), {"01": "02"})
    assert same(read("{backbone: 18, epochs: 18}", {"backbone": "resnet18", "epochs": 2}), {"backbone": "18", "epochs": 18})
    assert same(read("{a: {backbone: 18}}", {"a": {"backbone": "x", "n": 1}}), {"a": {"backbone": "18"}})


@pytest.mark.parametrize(("text", "default"), [
    ("1.5", 0), ("1e3", 0), ("True", 0), ("one", 0), ('"1"', 0), ("", 0), ("nan", 0.5), ("inf", 0.5), ("1e999", 0.5),
    ("true", 0.5),
    ("1", False), ("on", False), ("", 0.5), ("[1.5]", [0]), ("[a]", [0]), ("[[a]]", ["a"]), ("{a: 1}", ["a"]),
    ("x", {}), ("[1]", {}),
    ("[1, 2]", 0), ("{brick: [[a]]}", {"brick": ["a"]})])
def test_a_word_of_another_type_is_refused(text, default):
    with pytest.raises(TypeError):
        read(text, default)


@pytest.mark.parametrize(("value", "default"), [
    (float("nan"), 0.5), (float("inf"), 0.5), (10**400, 0.5), ([float("inf")], [0.5]), ({"lr": float("nan")}, {})])
def test_a_number_that_is_not_finite_is_refused(value, default):
    with pytest.raises(TypeError):
        typed(value, default)


@pytest.mark.parametrize(("name", "text"), [
    ("seed", "9" * 5000), ("seed", "-" + "0" * 5000), ("rate", "9" * 5000), ("rate", "1e999"), ("seeds", f"[{'9' * 5000}]"),
    ("seeds", "[" * 21 + "]" * 21), ("seeds", "[" * 100_000), ("categories", "{a: " * 5000), ("seeds", f"[{'0, ' * 30_000}x]")])
def test_absurd_numbers_and_nestings_are_refused_in_a_short_sentence(notebook, capsys, name, text):
    assert cli.main(["run", str(notebook), "-p", f"{name}={text}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(("adcore: parameter", "adcore: the value of")) and err.count("\n") == 1 and len(err) < 500


def test_settings_that_are_nested_too_deeply_or_too_long_are_refused_in_a_short_sentence():
    for text in ("[" * 5000, "(" * 21 + ")" * 21, "{a: " * 5000 + "}" * 5000):
        with pytest.raises(ParameterError, match=r"^the value of 'taps=.*cannot be read.*at most 20 brackets in each other$"):
            parse_settings([f"taps={text}"], {"taps": (1,)})
    assert parse_settings(["n=" + "9" * 5000], {}) == {"n": "9" * 5000}
    with pytest.raises(ParameterError, match=r"^setting 'name' takes \['a'\] or the like, not .* characters\)$") as caught:
        parse_settings(["name={" + "a: 1, " * 500 + "}"], {"name": ["a"]})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["[1", "[1]]", "[1, , 2]", "(1", "{a}", "{a: }", "{a: 1", "{a, b: 1}", "{[a]: 1}", '["a',
                                  "['a]", "[a] b", '["a" b]', "[,]", "[" * 100_000])
def test_brackets_or_quotes_that_do_not_match_are_refused_in_a_sentence(notebook, text):
    with pytest.raises(ParameterError, match=r"^the value of 'seeds=.*' cannot be read: write lists as \[a, b\], and quotes"):
        check_parameters(notebook, parse_assignments([f"seeds={text}"]))


def test_words_without_an_equals_sign_or_a_name_are_refused():
    for wrong in ("seed", "1x=2", "=2", "a-b=1"):
        with pytest.raises(ParameterError, match=f"^'{wrong}' is not name=value$"):
            parse_assignments([wrong])


def test_settings_on_the_command_line_are_read_by_the_configs_defaults():
    defaults = {"backbone": "resnet50", "taps": (1, 2), "scales": ("c4",), "coreset": 0.1, "jitter": True}
    words = ["backbone=18", "taps=[2, 3]", "scales=[4, c5]", "coreset=500", "jitter=false", "new=1e-3"]
    assert same(parse_settings(words, defaults), {"backbone": "18", "taps": [2, 3], "scales": ("4", "c5"), "coreset": 500,
                                                  "jitter": False, "new": 0.001})
    with pytest.raises(ParameterError, match=r"^the value of 'taps=\[1' cannot be read"):
        parse_settings(["taps=[1"], defaults)
    with pytest.raises(ParameterError, match=r"^setting 'scales' takes \('c4',\) or the like, not '\[\[a\]\]'$"):
        parse_settings(["scales=[[a]]"], defaults)


names = st.text(max_size=8)
numbers = st.integers(-10**18, 10**18) | st.floats(allow_nan=False, allow_infinity=False)
leaves = st.none() | st.booleans() | numbers | names
setting = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple)
                       | st.dictionaries(names, inner, max_size=3), max_leaves=8)
KINDS = [  # a default, and values of its type
    ("quick", names), (0, st.integers(-10**18, 10**18)), (0.5, st.floats(allow_nan=False, allow_infinity=False)),
    (False, st.booleans()),
    ([0], st.lists(st.integers(-99, 99))), ([0.5], st.lists(st.floats(-9, 9))), (["a"], st.lists(names)),
    ([], st.lists(names)),
    ([["a"]], st.lists(st.lists(names))), ({}, st.dictionaries(names, setting, max_size=4)),
    ({"brick": ["crack"]}, st.dictionaries(names, st.lists(names), max_size=4)),
    ({"a": "b"}, st.dictionaries(names, names, max_size=4)), ((1,), st.lists(st.integers(-9, 9)).map(tuple))]


@settings(max_examples=100, deadline=None)
@given(st.tuples(*(values for _, values in KINDS)))
def test_the_command_line_options_of_a_job_are_parsed_to_exactly_its_parameters(values):
    parameters = {f"p{i}": value for i, value in enumerate(values)}
    words = shlex.split(Job("x", Path("x.ipynb"), parameters).words())
    assert words[::2] == ["-p"] * len(parameters)
    found = {name: typed(word, KINDS[int(name[1:])][0]) for name, word in parse_assignments(words[1::2]).items()}
    assert same(found, parameters)
    assert same({name: typed(value, KINDS[int(name[1:])][0]) for name, value in parameters.items()}, parameters)


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


def test_a_notebook_runs_this_copy_of_adcore_whatever_kernel_and_folder_are_there(tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"       # as of another environment, which is gone
    kernel.parent.mkdir(parents=True)
    kernel.write_text(json.dumps({"argv": ["false", "{connection_file}"], "display_name": "x", "language": "python"}))
    (tmp_path / "here" / "adcore").mkdir(parents=True)
    (tmp_path / "here" / "adcore" / "__init__.py").write_text("raise ImportError('another copy')")
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.chdir(tmp_path / "here")
    path = write_notebook(tmp_path / "toy.ipynb", "settings = {}\nname = ''",
                          "import sys, adcore.errors\nprint(sys.executable, adcore.errors.__file__, settings, repr(name))")
    out = run_notebook(path, {"settings": {"taps": [(2,), (4,)]}, "name": 'a"\\n\n'}, tmp_path / "run.ipynb")
    executed = nbformat.read(out, as_version=4)
    (text,) = [output.text for cell in executed.cells for output in cell.get("outputs", [])]
    assert text.split(maxsplit=2) == [sys.executable, str(adcore.errors.__file__),
                                      "{'taps': [(2,), (4,)]} " + repr('a"\\n\n') + "\n"]
    assert executed.metadata.kernelspec.name == "python3"


def test_a_kernel_that_does_not_start_or_is_killed_ends_in_a_sentence(tmp_path, monkeypatch):
    path = write_notebook(tmp_path / "toy.ipynb", PARAMETERS, "import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(AdcoreError, match=r"^toy has lost its kernel, the process that runs its cells \(.+\); see .*\.ipynb$"):
        run_notebook(path, {}, tmp_path / "run.ipynb", record=tmp_path / "record.json")
    assert (tmp_path / "run.ipynb").is_file() and not (tmp_path / "record.json").exists()
    monkeypatch.setattr("adcore.executor.adcore.__file__", str(tmp_path / "adcore" / "__init__.py"))
    with pytest.raises(AdcoreError, match=r"^toy has lost its kernel"):              # it would have imported another copy
        run_notebook(path, {}, tmp_path / "run.ipynb")


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
