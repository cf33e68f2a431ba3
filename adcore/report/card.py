"""The score card: how many exhibits and printed numbers of each paper are reproduced, counted from the results store."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from adcore.errors import ParameterError
from adcore.experiments.comparison import VERDICTS
from adcore.experiments.provenance import commit
from adcore.figures.tables import comparison_html
from adcore.notebook import all_notebooks, notebook_name
from adcore.papers import exhibits, papers, published
from adcore.paths import runs_folder

OF_NUMBERS = tuple(verdict for verdict in VERDICTS if verdict != "other")  # 'other' is a verdict on text


@dataclass(frozen=True)
class NotebookRun:
    """The outcome of the last batch run of a notebook, or of one of its parameter sets.

    name      name of the notebook, followed by '@' and eight digits for a parameter set
    state     'ran', 'failed' or 'not run'
    executed  path of the executed copy, or None
    error     first line of the error of a failed run, '' when it is unknown
    """

    name: str
    state: str
    executed: Path | None
    seconds: float | None = None
    error: str = ""


def stored_comparison(exhibit: str, root: Path) -> dict[str, Any] | None:
    """The comparison that a notebook stored for an exhibit: context, profile, rows. None if it is missing or unreadable."""
    path = root / "exhibits" / f"{exhibit}.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["profile"] not in ("quick", "paper") or not isinstance(found["rows"], list):
            return None
        comparison_html(pd.DataFrame(found["rows"]))  # raises unless all columns are there and each verdict is a known one
        return {"context": str(found["context"]), "profile": found["profile"], "rows": found["rows"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def cells(exhibit: str) -> pd.DataFrame | None:
    """The published cells of an exhibit, or None when the paper prints no numbers for it."""
    try:
        return published(exhibit)
    except ParameterError:
        return None


def _seconds(record: Path) -> float | None:
    """Seconds of a successful run, None when there is no valid record."""
    try:
        return float(json.loads(record.read_text(encoding="utf-8"))["seconds"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _raised(executed: Path) -> str | None:
    """First line of the error in an executed notebook, such as 'DataError: data set ... is not here'; '' without an error.

    None when the file is not a notebook: Snakemake leaves an empty file when a run is killed.
    """
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
        return NotebookRun(name, "failed", None, error="still running, or ended before its notebook was written")
    if seconds is None:
        return NotebookRun(name, "failed", executed, error=raised)
    return NotebookRun(name, "ran", executed, seconds)


def notebook_runs(root: Path) -> list[NotebookRun]:
    """The last batch run of every notebook, followed by those of its parameter sets that failed."""
    runs = []
    for path in all_notebooks():
        name = notebook_name(path)
        runs.append(_run_of(name, root))
        sets = sorted((root / "notebooks" / name).parent.glob(f"{Path(name).name}@*.ipynb"))
        set_runs = [_run_of(f"{name}@{found.stem.partition('@')[2]}", root) for found in sets]
        runs += [run for run in set_runs if run.state == "failed"]
    return runs


def count_exhibits(root: Path) -> pd.DataFrame:
    """One row per paper: number of exhibits, of regenerated ones, of those shown by the quick profile only, of printed
    numbers, and of printed numbers with each verdict; the last row, 'all', is their sum."""
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
