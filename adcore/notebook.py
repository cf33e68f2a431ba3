"""Running a notebook in batch, with parameters that are checked before anything starts.

papermill alone only warns of an unknown parameter and runs the default; here it is an error.
"""

from __future__ import annotations

import ast
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from adcore.errors import AdcoreError, ParameterError, did_you_mean
from adcore.files import atomic, write_json
from adcore.paths import repository
from adcore.source import package_digest, run_digest


def notebook_folder() -> Path:
    """The checkout's notebooks. Raises AdcoreError outside a checkout."""
    root = repository()
    if root is None:
        raise AdcoreError("the notebooks are part of the checkout: clone the repository and run this from there")
    return root / "notebooks"


def all_notebooks() -> list[Path]:
    """Every notebook of the collection, in reading order."""
    return sorted(path for path in notebook_folder().rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def find_notebook(name: str | Path) -> Path:
    """A notebook by path or by name as in the exhibits ('uniad2022/02_ablations').

    Raises:
        ParameterError: there is none; the message suggests the nearest.
    """
    path = Path(name)
    if path.is_file():
        return path.resolve()
    named = notebook_folder() / f"{str(name).removeprefix('notebooks/').removesuffix('.ipynb')}.ipynb"
    if named.is_file():
        return named
    known = [notebook_name(path) for path in all_notebooks()]
    raise ParameterError(f"there is no notebook '{name}'{did_you_mean(str(name), known)}; there are {', '.join(known)}")


def notebook_name(path: Path) -> str:
    """'uniad2022/02_ablations' for a notebook of the collection, its stem for any other."""
    try:
        return path.resolve().relative_to(notebook_folder()).with_suffix("").as_posix()
    except (ValueError, AdcoreError):
        return path.stem


def read_parameters(path: Path) -> dict[str, Any]:
    """Names and default values in the cell tagged `parameters`.

    Raises:
        ParameterError: no such cell, or something in it that is not `name = literal`.
    """
    import nbformat

    try:
        notebook = nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat has half a dozen of its own
        raise ParameterError(f"{path} cannot be read as a notebook ({type(error).__name__}): restore the file") from error
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    if len(cells) != 1:
        raise ParameterError(f"{path.name} has {len(cells)} cells tagged 'parameters': expected one")
    parameters = {}
    try:
        statements = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ParameterError(f"{path.name}, parameters cell, line {error.lineno}: expected name = literal, found what is no "
                             f"Python") from error
    for statement in statements:
        try:
            if not isinstance(statement, ast.Assign):
                raise ValueError
            (target,) = statement.targets
            parameters[target.id] = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        except (ValueError, AttributeError):
            raise ParameterError(f"{path.name}, parameters cell, line {statement.lineno}: expected name = literal, found "
                                 f"'{ast.unparse(statement)}'") from None
    return parameters


def check_parameters(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values, made sure to be parameters of the notebook and of their types.

    An integer may stand for a float, a single value for a list of one.

    Raises:
        ParameterError: an unknown name or a wrong type.
    """
    known = read_parameters(path)
    checked: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ParameterError(f"unknown parameter '{name}' for {notebook_name(path)}{did_you_mean(name, known)}; it takes "
                                 f"{', '.join(known)}")
        default = known[name]
        if isinstance(default, list) and not isinstance(value, list):
            value = [value]
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if isinstance(default, list) and default and isinstance(default[0], float):
            value = [float(item) if type(item) is int else item for item in value]
        if type(value) is not type(default):
            raise ParameterError(f"parameter '{name}' of {notebook_name(path)} takes {type(default).__name__} like "
                                 f"{default!r}, not {type(value).__name__} {value!r}")
        if isinstance(default, list) and default and any(type(item) is not type(default[0]) for item in value):
            raise ParameterError(f"parameter '{name}' of {notebook_name(path)} takes a list like {default!r}, not {value!r}")
        checked[name] = value
    return checked


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """['seeds=[0, 1]', 'profile=quick'] -> values, read as JSON or else YAML (to which 1e-5 is a word).

    Raises:
        ParameterError: anything else.
    """
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError(f"'{assignment}' is not name=value")
        try:
            values[name] = json.loads(text)
            continue
        except ValueError:
            pass
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ParameterError(f"the value of '{assignment}' cannot be read: write strings plain, lists as [a, b]") from None
    return values


def run_notebook(name: str | Path, parameters: Mapping[str, Any], output: Path, *, record: Path | None = None) -> Path:
    """Execute a notebook with parameters and write the executed copy to `output`, also when a cell fails.

    record  a small JSON file written only when all went well: notebook, parameters, seconds, and of what it was made

    Raises:
        ParameterError: see `check_parameters`.
        AdcoreError: a cell raised; the message names the error and where the executed copy lies.
    """
    import papermill

    path = find_notebook(name)
    checked = check_parameters(path, parameters)
    os.environ["ADCORE_PROGRESS"] = "0"  # a bar redrawn a thousand times would end up in the notebook
    start = time.perf_counter()
    made_of = ""
    if record is not None:
        record.unlink(missing_ok=True)  # of an earlier run, which may have gone better
        made_of = run_digest(path, checked, package_digest())  # now: files may change while a long run lasts
    with atomic(output) as temporary:
        failure = None
        try:
            papermill.execute_notebook(str(path), str(temporary), checked, kernel_name="python3", progress_bar=False)
        except papermill.PapermillExecutionError as error:
            failure = error
    if failure is not None:
        raise AdcoreError(f"{notebook_name(path)} failed in cell {failure.exec_count}: {failure.ename}: "
                          f"{failure.evalue.splitlines()[0] if failure.evalue else ''}; see {output}")
    if record is not None:
        write_json(record, {"notebook": notebook_name(path), "parameters": checked,
                            "seconds": round(time.perf_counter() - start, 1), "executed": output.name, "made_of": made_of})
    return output


def is_current(record: Path, notebook: Path, parameters: Mapping[str, Any], package: str) -> bool:
    """True when a record was left by a run of this notebook with these parameters and this package (a `package_digest`), and
    the executed copy is there. No time of a file is asked: a clock may have been set back, and a checkout makes all files new.
    """
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return bool(found["made_of"] == run_digest(notebook, parameters, package)
                    and (record.parent / found["executed"]).is_file())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # also one that is damaged
        return False


def refresh(name: str | Path) -> Path:
    """Execute a notebook in place with its defaults, so that its committed outputs are today's code's.

    Timings, widget states and versions are left out: they would differ on every machine.

    Raises:
        AdcoreError: a cell raised; the notebook is left as it was.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    path = find_notebook(name)
    content = nbformat.read(path, as_version=4)
    os.environ["ADCORE_PROGRESS"] = "0"
    try:
        NotebookClient(content, kernel_name="python3", timeout=600, record_timing=False).execute()
    except CellExecutionError as error:
        raise AdcoreError(f"{notebook_name(path)} failed: {error.ename}: {error.evalue}") from error
    content.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}})
    for cell in content.cells:
        cell.metadata.pop("execution", None)
    with atomic(path) as temporary:
        nbformat.write(content, temporary)
    return path
