"""Run notebooks in batch; a notebook's parameters are checked before it starts.

papermill only warns about an unknown parameter and then runs the default value; here an unknown parameter is an error, also
in a notebook that papermill or an editor runs (`checked`).
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adcore.errors import AdcoreError, ParameterError, did_you_mean
from adcore.files import atomic, write_json
from adcore.parameters import EXAMPLES, Word, short, typed, unreadable
from adcore.parameters import parse_assignments as parse_assignments  # part of this interface
from adcore.paths import repository

if TYPE_CHECKING:
    from adcore.run_digest import RunDigests  # it needs torch, and `adcore doctor` must work without


def notebook_folder() -> Path:
    """The folder of the checkout's notebooks. Raises AdcoreError outside a checkout."""
    root = repository()
    if root is None:
        raise AdcoreError("the notebooks are part of the checkout: clone the repository and run this from there")
    return root / "notebooks"


def all_notebooks() -> list[Path]:
    """All notebooks of the checkout, in reading order."""
    return sorted(path for path in notebook_folder().rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def find_notebook(name: str | Path) -> Path:
    """Find a notebook by its path, or by its name as in exhibits.csv ('uniad2022/02_ablations').

    Raises:
        ParameterError: no such notebook; the message suggests the most similar name.
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
    """The name of a notebook: 'uniad2022/02_ablations' inside the notebook folder, the stem of the file elsewhere.

    Its runs have this name too, so that characters with a meaning to Snakemake, to shells or in web addresses become '_':
    braces, quotes, '*', '@', '%' and the like. 'x (copy)' stays.
    """
    try:
        name = path.resolve().relative_to(notebook_folder()).with_suffix("").as_posix()
    except (ValueError, AdcoreError):
        name = path.stem
    return re.sub(r"[^\w ./()+-]", "_", name)


def read_parameters(path: Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters: the assignments in its cell tagged `parameters`.

    Raises:
        ParameterError: the file is not a notebook, it has no such cell, or the cell has more than `name = literal` lines.
    """
    try:  # as plain JSON: a machine that only measures experiments has no nbformat
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ())]
        source = "".join(cells[0]["source"]) if cells else ""
    except Exception as error:  # what another file raises is not foreseen
        raise ParameterError(f"{path} cannot be read as a notebook ({type(error).__name__}): restore the file") from error
    if len(cells) != 1:
        raise ParameterError(f"{path.name} has {len(cells)} cells tagged 'parameters': expected one")
    parameters = {}
    try:
        statements = ast.parse(source).body  # read, never executed
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:  # the others: absurd text
        line = f"line {error.lineno}" if isinstance(error, SyntaxError) else "all lines"
        raise ParameterError(f"{path.name}, parameters cell, {line}: expected name = literal, found invalid Python") from error
    lines = source.splitlines()
    for statement in statements:
        try:
            if not isinstance(statement, ast.Assign):
                raise ValueError
            (target,) = statement.targets
            parameters[target.id] = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        except (ValueError, AttributeError):
            raise ParameterError(f"{path.name}, parameters cell, line {statement.lineno}: expected name = literal, found "
                                 f"'{short(lines[statement.lineno - 1].strip())}'") from None
    return parameters


def check_parameters(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values with the types of the notebook's defaults, see `adcore.parameters.typed`.

    given  values, or words from `parse_assignments`

    Raises:
        ParameterError: unknown name, wrong type, or a word that cannot be read.
    """
    return _checked(given, read_parameters(path), notebook_name(path))


def checked(name: str, namespace: dict[str, Any]) -> None:
    """Check the parameters of the notebook that runs, and give them the types of `adcore.parameters.EXAMPLES`.

    Every notebook calls it in the cell after its parameters: papermill accepts any type and only warns about an unknown name,
    and a reader may edit the parameters cell itself. The sentences are those of `check_parameters`.

    name       of the notebook
    namespace  its `globals()`. IPython's `In` in it holds the source of each executed cell.

    Raises:
        ParameterError: unknown name, or wrong type.
    """
    written: dict[str, Any] = {}
    injected: dict[str, Any] = {}
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):   # papermill's cell, which follows the parameters cell
            injected = _literals(source)
        elif "profile" in (values := _literals(source)):
            written, injected = values, {}
    known = {one: value if _fits(value, EXAMPLES[one]) else EXAMPLES[one] for one, value in written.items() if one in EXAMPLES}
    given = {one: namespace[one] for one in {**written, **injected} if one in namespace}
    words = {one: Word(value) for one, value in given.items() if isinstance(value, str) and not isinstance(known.get(one), str)}
    namespace.update(_checked({**given, **words}, known, name))


def _literals(source: str) -> dict[str, Any]:
    """The assignments `name = value` of a cell that has nothing else, or {}; a value that is no literal counts as None."""
    values: dict[str, Any] = {}
    try:
        for statement in ast.parse(source).body:
            target, = statement.targets           # type: ignore[attr-defined]
            values[target.id] = None
            with contextlib.suppress(ValueError):  # papermill writes float('nan')
                values[target.id] = ast.literal_eval(statement.value)  # type: ignore[attr-defined]
    except (SyntaxError, ValueError, AttributeError):
        return {}
    return values


def _fits(value: Any, example: Any) -> bool:
    try:
        return repr(typed(value, example)) == repr(value)
    except (TypeError, ValueError):
        return False


def _checked(given: Mapping[str, Any], known: Mapping[str, Any], notebook: str) -> dict[str, Any]:
    """The given values with the types of the known ones. Raises ParameterError, see `check_parameters`."""
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise ParameterError(f"unknown parameter '{name}' for {notebook}{did_you_mean(name, known)}; it takes "
                                 f"{', '.join(known)}")
        default = known[name]
        shown = str(value) if isinstance(value, Word) else value
        try:
            values[name] = typed(value, default)
        except ValueError:
            raise unreadable(name, str(value)) from None
        except TypeError:
            several = isinstance(default, (list, tuple, dict))
            raise ParameterError(f"parameter '{name}' of {notebook} takes {'a ' if several else ''}"
                                 f"{type(default).__name__} like {default!r}, not "
                                 f"{'' if several else f'{type(shown).__name__} '}{short(repr(shown))}") from None
    return values


def run_notebook(name: str | Path, parameters: Mapping[str, Any], output: Path, *, record: Path | None = None) -> Path:
    """Execute a notebook with parameters and write the executed copy to `output`, also when a cell fails.

    record  a small JSON file, written only after a successful run: notebook, parameters, seconds, `RunDigests.of` it

    Raises:
        ParameterError: see `check_parameters`.
        AdcoreError: a cell raised an error, or the kernel ended; the message names the error and the executed copy.
    """
    import papermill

    from adcore.executor import ThisPython

    path = find_notebook(name)
    values = check_parameters(path, parameters)
    os.environ["ADCORE_PROGRESS"] = "0"  # the notebook would keep every redrawn progress bar
    start = time.perf_counter()
    digest = ""
    if record is not None:
        record.unlink(missing_ok=True)  # from an earlier run: if this run fails, no record may remain
        from adcore.run_digest import RunDigests
        digest = RunDigests().of(path, values)  # before the run: files may change while it lasts
    with atomic(output) as temporary:
        failure = ""
        try:
            # papermill formats both paths with the parameters.
            names = [str(one).replace("{", "{{").replace("}", "}}") for one in (path, temporary)]
            papermill.execute_notebook(*names, values, kernel_name="python3", progress_bar=False,
                                       kernel_manager_class=ThisPython)
        except papermill.PapermillExecutionError as error:
            failure = f"failed in cell {error.exec_count}: {error.ename}: {(error.evalue.splitlines() or [''])[0]}"
        except RuntimeError as error:  # of nbclient: the process did not start, or was killed, for instance for its memory
            failure = f"has lost its kernel, the process that runs its cells ({error})"
    if failure:
        raise AdcoreError(f"{notebook_name(path)} {failure}; see {output}")
    if record is not None:
        write_json(record, {"notebook": notebook_name(path), "parameters": values,
                            "seconds": round(time.perf_counter() - start, 1), "executed": output.name, "digest": digest})
    return output


def is_current(record: Path, notebook: Path, parameters: Mapping[str, Any], digests: RunDigests) -> bool:
    """True when the record is from such a run, with the data and the package that are here, and the executed copy exists.

    Contents are compared, not the times of files: a clock may have been set back, and a fresh checkout makes all files new.
    """
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
        return bool(found["digest"] == digests.of(notebook, parameters) and (record.parent / found["executed"]).is_file())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # a damaged record is not current
        return False


def refresh(name: str | Path) -> Path:
    """Execute a notebook in place with its default parameters, so that its committed outputs come from the current code.

    Timings, widget states and versions are not kept: they differ between machines.

    Raises:
        AdcoreError: a cell raised an error; the file is unchanged.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    from adcore.executor import ThisPython

    path = find_notebook(name)
    content = nbformat.read(path, as_version=4)
    os.environ["ADCORE_PROGRESS"] = "0"
    try:
        NotebookClient(content, kernel_name="python3", timeout=600, record_timing=False,
                       kernel_manager_class=ThisPython).execute()
    except CellExecutionError as error:
        raise AdcoreError(f"{notebook_name(path)} failed: {error.ename}: {error.evalue}") from error
    except RuntimeError as error:
        raise AdcoreError(f"{notebook_name(path)} has lost its kernel, the process that runs its cells ({error})") from error
    content.metadata = nbformat.from_dict({
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}})
    for cell in content.cells:
        cell.metadata.pop("execution", None)
    with atomic(path) as temporary:
        nbformat.write(content, temporary)
    return path
