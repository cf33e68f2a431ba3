"""Names that mean something to Snakemake, papermill, YAML or a shell are only names."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jupyter_client.manager import KernelManager
from support.notebooks import write_notebook

from adcore import cli, executor, notebook, plan, reproduce
from adcore.errors import ParameterError
from adcore.grids import load_grid
from adcore.notebook import notebook_name, run_notebook

NAMES = ["x (copy)", "a{x}", "{{job}}", "it's", 'q"', "per%cent", "br[a]ck", "st*r?", "do$llar $(touch pwned)", "back\\slash",
         "a: b #c", "new@0123abcd", "-dash", "plus+dot.x", "é&;|"]


def write_named(folder: Path, names: Sequence[str] = NAMES) -> Path:
    """A grid with a difficult path, of notebooks with difficult names."""
    paths = [write_notebook(folder / f"{name}.ipynb", "seed = 0") for name in names]
    grid = folder / "a: b #c {seed} [1] it's 100%.yaml"
    grid.write_text(yaml.safe_dump({"notebooks": [{"notebook": str(path)} for path in paths]}))
    return grid


def test_the_name_of_a_run_has_no_character_that_other_programs_read_as_a_pattern(tmp_path):
    names = [notebook_name(tmp_path / f"{name}.ipynb") for name in NAMES]
    assert names == ["x (copy)", "a_x_", "__job__", "it_s", "q_", "per_cent", "br_a_ck", "st_r_", "do_llar _(touch pwned)",
                     "back_slash", "a_ b _c", "new_0123abcd", "-dash", "plus+dot.x", "é___"]
    jobs = load_grid(str(write_named(tmp_path / "f{o}l")))
    assert {job.notebook for job in jobs} == set(names) and {job.path.stem for job in jobs} == set(NAMES)


def test_snakemake_plans_a_grid_with_difficult_names_and_repeats_what_changed(tmp_path, monkeypatch, capfd):
    runs = tmp_path / "r [9] *? 'q' \"d\" %s $H #c: y;&|é"
    monkeypatch.setenv("ADCORE_RUNS", str(runs))
    grid = write_named(tmp_path / "f{o}l {job}", NAMES[:5])
    for name in ("x (copy)", "a_x_"):                                         # damaged records: these two run again
        (runs / "notebooks").mkdir(parents=True, exist_ok=True)
        (runs / "notebooks" / f"{name}.json").write_text("{")
    assert reproduce.reproduce(str(grid), cores="1", dry_run=True) == 0
    printed = capfd.readouterr()
    assert re.search(r"^notebook +5$", printed.out + printed.err, re.MULTILINE)


def test_snakemake_gets_the_grid_s_path_encoded_and_the_runs_folder_absolute(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(reproduce.subprocess, "run", lambda words, **options: calls.append((words, options)) or
                        SimpleNamespace(returncode=0))
    monkeypatch.setenv("ADCORE_RUNS", "my runs")
    monkeypatch.chdir(tmp_path)
    grid = write_named(tmp_path)
    assert reproduce.reproduce(str(grid), dry_run=True) == 0
    ((words, options),) = calls
    (value,) = [word.partition("=")[2] for word in words if word.startswith("grid=")]
    assert re.fullmatch(r"[\w/.%~-]+", value) and yaml.safe_load(value) == value
    assert options["env"]["ADCORE_RUNS"] == str(tmp_path / "my runs")


def test_a_runs_folder_with_a_brace_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs{x}"))
    assert cli.main(["reproduce", "--dry-run"]) == 2
    message = r"adcore: the runs folder \S+/runs\{x\} has a brace in its path, .*: set ADCORE_RUNS to another folder\n"
    assert re.fullmatch(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_a_notebook_and_its_output_may_have_braces_in_their_names(tmp_path):
    path = write_notebook(tmp_path / "f{seed}" / "x (copy) {y}.ipynb", "seed = 0", "print('seed', seed)")
    output, record = tmp_path / "o{seed}" / "{}.ipynb", tmp_path / "o{seed}" / "{}.json"
    assert run_notebook(path, {"seed": 3}, output, record=record) == output
    assert "seed 3" in output.read_text() and json.loads(record.read_text())["executed"] == "{}.ipynb"
    assert sorted(found.name for found in output.parent.iterdir()) == ["{}.ipynb", "{}.json"]


def test_a_kernel_starts_with_the_package_s_own_path_also_when_it_has_braces(monkeypatch):
    monkeypatch.setattr(executor.adcore, "__file__", "/a{prefix}/adcore/__init__.py")
    argv = executor.ThisPython().kernel_spec.argv
    manager = KernelManager(kernel_name="python3")
    manager._kernel_spec = executor.ThisPython().kernel_spec
    code = manager.format_kernel_cmd()[argv.index("-c") + 1]
    words = {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}
    assert {"/a{prefix}", "/a{prefix}/adcore/__init__.py"} <= words


@pytest.mark.parametrize("name", ["a[b]", "a{b}"])
def test_the_report_finds_the_runs_of_a_notebook_with_a_difficult_name(tmp_path, monkeypatch, name):
    from adcore.report import card
    path = write_notebook(tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.setattr(notebook, "notebook_folder", lambda: tmp_path / "notebooks")
    for run in (notebook_name(path), f"{notebook_name(path)}@00000001"):
        write_notebook(tmp_path / "runs" / "notebooks" / f"{run}.ipynb")
    assert [(run.name, run.state) for run in card.notebook_runs(tmp_path / "runs")] == [
        ("a_b_", "failed"), ("a_b_@00000001", "failed")]


# --- the plan ---------------------------------------------------------------------------------------------------------------

def test_a_plan_executes_no_code_of_a_notebook(tmp_path, monkeypatch, capsys):
    mark = tmp_path / "mark"
    planted = f"open({str(mark)!r}, 'w').write('ran')"
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(plan, "records", lambda: [])
    grid = tmp_path / "grid.yaml"
    path = write_notebook(tmp_path / "00_start_here.ipynb", "categories = ['gear']\nseeds = [0]", planted, f"%run {planted}")
    grid.write_text(yaml.safe_dump({"notebooks": [{"notebook": str(path), "each": {"seeds": [[1]]}}]}))
    assert cli.main(["reproduce", "--grid", str(grid), "--plan"]) == 0
    assert "experiments and models to run" in capsys.readouterr().out and not mark.exists()
    for cell in (planted, f"seeds = {planted}", f"seeds = [0 for _ in [{planted}]]", f"seeds: {planted} = 0", f"%run {planted}",
                 f"seeds = f'{{{planted}}}'", f"@{planted}\ndef f(): pass", "x = '\0'", "(" * 5000,
                 *(f"x = {'-' * many}1" for many in (500, 5000, 100_000))):
        write_notebook(path, cell)
        assert cli.main(["reproduce", "--grid", str(grid), "--plan"]) == 2
        assert capsys.readouterr().err.startswith("adcore: 00_start_here.ipynb, parameters cell, ") and not mark.exists()


@pytest.mark.parametrize("name", ["00_grid", "00_as_tuples", "00_Experiment"])
def test_the_plan_calls_no_function_that_the_papers_module_only_imports(name):
    with pytest.raises(ParameterError, match=f"'{name}' is not a notebook of the collection"):
        plan.listings(name)
