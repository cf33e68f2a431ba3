"""A notebook run is current while notebook, parameters, package, data and weights have the same contents; times of files do not
count."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

import adcore
from adcore.grids import load_grid
from adcore.notebook import check_parameters, is_current, parse_assignments, run_notebook
from adcore.run_digest import RunDigests
from adcore.source import package_digest


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    cells = [new_markdown_cell("Prose."), new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
             new_code_cell("print(seed)")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that a test may edit."""
    shutil.copytree(Path(adcore.__file__).parent, tmp_path / "adcore", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(adcore, "__file__", str(tmp_path / "adcore" / "__init__.py"))
    return tmp_path / "adcore"


def edit(notebook: Path, change: Callable[[Any], object]) -> None:
    content = nbformat.read(notebook, as_version=4)
    change(content)
    nbformat.write(content, notebook)


def test_the_digest_of_a_run_covers_the_cells_the_parameters_and_the_package(notebook):
    digests = [RunDigests("a").of(notebook, given) for given in ({"seed": 1}, {"seed": 2}, {})]
    digests.append(RunDigests("b").of(notebook, {"seed": 1}))
    changes: list[Callable[[Any], object]] = [
        lambda content: content.cells[0].update(source="Other prose."),
        lambda content: content.cells[2].update(source="print(seed + 1)"),
        lambda content: content.cells.append(new_raw_cell(content.cells.pop().source)),
        lambda content: content.cells[1].metadata.update(tags=[]),
        lambda content: content.cells.reverse(), lambda content: content.cells.pop()]
    for change in changes:
        edit(notebook, change)
        digests.append(RunDigests("a").of(notebook, {"seed": 1}))
    assert len(set(digests)) == 4 + len(changes)


def test_outputs_and_file_times_leave_the_digest_of_a_run_unchanged(notebook):
    before = RunDigests("a").of(notebook, {"seed": 1})
    edit(notebook, lambda content: content.cells[2].update(outputs=[new_output("stream", text="7\n")], execution_count=3))
    edit(notebook, lambda content: content.metadata.update(language_info={"name": "python", "version": "3.99"}))
    os.utime(notebook, (0, 0))
    assert RunDigests("a").of(notebook, {"seed": 1}) == before


def test_the_digest_of_the_package_covers_code_and_tables_but_not_comments_times_or_the_report(copied):
    before = package_digest()
    metrics, report = copied / "metrics.py", copied / "report" / "card.py"
    metrics.write_text(metrics.read_text() + "\n# a comment\n")
    report.write_text(report.read_text() + "\nX = 1\n")
    (copied / "__pycache__").mkdir()
    (copied / "__pycache__" / "metrics.pyc").write_bytes(b"x")
    for path in copied.rglob("*.py"):
        os.utime(path, (0, 0))
    assert package_digest() == before
    seen = {before}
    for name, more in (("metrics.py", "X = 1\n"), ("papers/exhibits.csv", "x\n"), ("features/new.py", ""), ("new.csv", "a\n")):
        with (copied / name).open("a") as file:
            file.write(more)
        assert package_digest() not in seen
        seen.add(package_digest())
    (copied / "features" / "new.py").rename(copied / "features" / "newer.py")
    assert package_digest() not in seen


@pytest.mark.parametrize("parameter", [
    "own", ["own"], "own+mini", {"images": "own:part"}, "own/part/train/good", ["brick", "FOLDER/own"], "FOLDER/own/list.csv"])
def test_the_digest_of_a_run_covers_the_files_of_every_data_set_or_path_that_a_parameter_names(
        notebook, tmp_path, monkeypatch, parameter):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    image = tmp_path / "own" / "part" / "train" / "good" / "0.png"
    image.parent.mkdir(parents=True)
    (tmp_path / "own" / "list.csv").write_text("first")
    image.write_bytes(b"first")
    given = {"images": json.loads(json.dumps(parameter).replace("FOLDER", str(tmp_path)))}
    before = RunDigests("a").of(notebook, given)
    os.utime(image, (0, 0))
    assert RunDigests("a").of(notebook, given) == before
    (tmp_path / "own" / "list.csv").write_text("other")
    image.write_bytes(b"other")
    assert RunDigests("a").of(notebook, given) != before
    assert RunDigests("a").of(notebook, {"images": "another"}) == RunDigests("a").of(notebook, {"images": "another"})


def test_the_digest_of_a_run_covers_the_checkpoints_that_are_here(notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path))
    digests = [RunDigests("a").of(notebook, {})]
    for content in (b"first", b"other"):
        (tmp_path / "resnet18-f37072fd.pth").write_bytes(content)
        digests.append(RunDigests("a").of(notebook, {}))
    assert len(set(digests)) == 3


def executed(source: str, output: str, *_: object, **__: object) -> None:
    shutil.copyfile(source, output)


def test_a_record_is_current_until_the_notebook_the_parameters_or_the_package_change(notebook, tmp_path, monkeypatch):
    monkeypatch.setattr("papermill.execute_notebook", executed)
    record, now = tmp_path / "runs" / "toy.json", RunDigests()
    assert not is_current(record, notebook, {"seed": 3}, now)
    run_notebook(notebook, {"seed": 3}, tmp_path / "runs" / "toy.ipynb", record=record)
    for time in (0, 4_000_000_000):                           # the clock was set back, or the checkout is new
        os.utime(notebook, (time, time))
        assert is_current(record, notebook, {"seed": 3}, now)
    assert not is_current(record, notebook, {"seed": 4}, now)
    assert not is_current(record, notebook, {"seed": 3}, RunDigests("other"))
    edit(notebook, lambda content: content.cells[2].update(source="print(-seed)"))
    os.utime(notebook, (0, 0))
    assert not is_current(record, notebook, {"seed": 3}, now)


def test_a_record_belongs_to_the_package_as_it_was_when_the_run_started(copied, notebook, tmp_path, monkeypatch):
    def edited(source: str, output: str, *_: object, **__: object) -> None:
        executed(source, output)
        (copied / "metrics.py").write_text("X = 1\n")

    monkeypatch.setattr("papermill.execute_notebook", edited)
    before, record = RunDigests(), tmp_path / "runs" / "toy.json"
    run_notebook(notebook, {}, tmp_path / "runs" / "toy.ipynb", record=record)
    assert is_current(record, notebook, {}, before) and not is_current(record, notebook, {}, RunDigests())


OLD = b'{"notebook": "toy", "parameters": {}, "seconds": 1.0, "executed": "toy.ipynb"}'


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"null", OLD, b"[" * 100_000, b"\xff"])
def test_a_record_that_is_damaged_or_without_a_digest_is_not_current(notebook, tmp_path, content):
    (tmp_path / "toy.json").write_bytes(content)              # toy.ipynb exists beside it
    assert not is_current(tmp_path / "toy.json", notebook, {}, RunDigests("a"))


def test_a_record_without_its_executed_notebook_is_not_current(notebook, tmp_path):
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"digest": RunDigests("a").of(notebook, {}), "executed": "copy.ipynb"}))
    assert not is_current(record, notebook, {}, RunDigests("a"))
    (tmp_path / "copy.ipynb").write_text("{}")
    assert is_current(record, notebook, {}, RunDigests("a"))


@pytest.mark.parametrize("grid", ["quick", "paper"])
def test_the_command_line_of_every_committed_job_is_parsed_to_its_parameters(grid):
    for job in load_grid(grid):
        words = shlex.split(job.words())
        assert check_parameters(job.path, parse_assignments([word for word in words if word != "-p"])) == job.parameters
