"""The score card: how much of each paper stands, counted from what is in the store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from adcore.errors import ParameterError
from adcore.experiments.comparison import VERDICTS
from adcore.experiments.provenance import commit
from adcore.notebook import all_notebooks, notebook_name
from adcore.papers import exhibits, papers, published
from adcore.paths import runs_folder

OF_NUMBERS = tuple(verdict for verdict in VERDICTS if verdict != "other")  # words are never 'higher', numbers never 'other'


@dataclass(frozen=True)
class NotebookRun:
    """How the last batch run of a notebook, or of one of its parameter sets, went.

    name      of the notebook, with '@' and eight digits for a set
    state     'ran', 'failed' or 'not run'
    executed  the executed copy, or None
    error     the first line of what a failed one raised, '' when that cannot be said
    """

    name: str
    state: str
    executed: Path | None
    seconds: float | None = None
    error: str = ""


def stored_comparison(exhibit: str, root: Path) -> dict[str, Any] | None:
    """What a notebook recorded of an exhibit: context, profile, rows. None when nothing or when it cannot be read."""
    path = root / "exhibits" / f"{exhibit}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {name: found[name] for name in ("context", "profile", "rows")}
    except (OSError, ValueError, TypeError, KeyError):
        return None


def cells(exhibit: str) -> pd.DataFrame | None:
    """An exhibit's published cells, or None when the paper prints no numbers."""
    try:
        return published(exhibit)
    except ParameterError:
        return None


def _seconds(record: Path) -> float | None:
    """What a run that went well took; the record is missing after one that did not."""
    try:
        return float(json.loads(record.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _raised(executed: Path) -> str | None:
    """What an executed notebook's cell raised: 'DataError: data set ... is not here'; '' when none did, None when it is no
    notebook: Snakemake leaves an empty one of a run that was killed."""
    try:
        cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
        outputs = [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]
        raised = [f"{one['ename']}: {one['evalue']}" for one in outputs if one["output_type"] == "error"]
        return raised[0].splitlines()[0] if raised else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _run_of(name: str, root: Path) -> NotebookRun:
    executed, record = root / "notebooks" / f"{name}.ipynb", root / "notebooks" / f"{name}.json"
    if not executed.is_file():
        return NotebookRun(name, "not run", None)
    raised, seconds = _raised(executed), _seconds(record)
    if raised is None:
        return NotebookRun(name, "failed", None, error="is running, or ended before its notebook was written")
    if seconds is None:
        return NotebookRun(name, "failed", executed, error=raised)
    return NotebookRun(name, "ran", executed, seconds)


def notebook_runs(root: Path) -> list[NotebookRun]:
    """The last batch run of every notebook of the collection, each followed by its parameter sets that failed."""
    runs = []
    for path in all_notebooks():
        name = notebook_name(path)
        runs.append(_run_of(name, root))
        sets = sorted((root / "notebooks" / name).parent.glob(f"{path.stem}@*.ipynb"))
        some = [_run_of(f"{name}@{found.stem.partition('@')[2]}", root) for found in sets]
        runs += [run for run in some if run.state == "failed"]
    return runs


def count_exhibits(root: Path) -> pd.DataFrame:
    """A row a paper: exhibits, how many were regenerated (or only demonstrated by the quick profile), printed numbers, and
    how many of those got each verdict."""
    rows = []
    table = exhibits()
    for paper in papers().index:
        mine = table[table.paper == paper]
        row = {"paper": paper, "exhibits": len(mine), "regenerated": 0, "quick only": 0, "numbers": 0,
               **dict.fromkeys(OF_NUMBERS, 0)}
        for exhibit in mine.index:
            found, printed = stored_comparison(exhibit, root), cells(exhibit)
            row["regenerated"] += found is not None and found["profile"] == "paper"
            row["quick only"] += found is not None and found["profile"] == "quick"
            numbers = 0 if printed is None else int((printed["metric"] != "text").sum())
            row["numbers"] += numbers
            judged = [cell["verdict"] for cell in found["rows"] if cell["metric"] != "text"] if found else []
            verdicts = judged or ["not run"] * numbers
            for verdict in OF_NUMBERS:
                row[verdict] += verdicts.count(verdict)
        rows.append(row)
    frame = pd.DataFrame(rows).set_index("paper")
    frame.loc["all"] = frame.sum()
    return frame


def score_card(out: str | Path | None = None) -> str:
    """The score card as text."""
    root = runs_folder(out)
    runs = notebook_runs(root)
    states = [run.state for run in runs]
    failed = ", ".join(run.name for run in runs if run.state == "failed")
    return "\n".join([
        f"score card, commit {commit() or 'unknown'}", count_exhibits(root).to_string(),
        f"notebooks: {states.count('ran')} ran, {states.count('failed')} failed{f' ({failed})' if failed else ''}, "
        f"{states.count('not run')} not run"])
