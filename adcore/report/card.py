"""The score card: how many exhibits and printed numbers of each paper are reproduced, counted from the results store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from adcore.errors import ParameterError
from adcore.experiments.comparison import SHOWN, VERDICTS, Comparison
from adcore.experiments.departures import recorded_results, with_departures
from adcore.experiments.profiles import PROFILES
from adcore.experiments.provenance import commit
from adcore.experiments.store import Result
from adcore.figures.tables import comparison_html
from adcore.notebook import all_notebooks, notebook_name
from adcore.papers import exhibits, papers, published
from adcore.paths import runs_folder

SCHEDULE = "at the paper's schedule"  # column: cells that depart, though not in how long and how a network is trained
OF_NUMBERS = tuple(verdict for verdict in VERDICTS if verdict != "other")  # 'other' is a verdict on text
COLUMNS = [column for verdict in OF_NUMBERS for column in ((verdict, SCHEDULE) if verdict == "departs" else (verdict,))]


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
        if found["profile"] not in PROFILES or not isinstance(found["rows"], list):
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


def judged(exhibit: str, root: Path, recorded: Sequence[Result]) -> Comparison | None:
    """Every printed cell of an exhibit: as its notebook last compared it, and where that gave no verdict, as the record in
    results/ departs from it. None when the paper prints no numbers for the exhibit."""
    printed, found = cells(exhibit), stored_comparison(exhibit, root)
    if printed is None:
        return None
    blank = printed.assign(published=printed["value"].astype(object).where(printed["metric"] != "text", printed["text"]),
                           measured=None, std=None, seeds=None, verdict="not run", why="")[SHOWN]
    frame = pd.DataFrame(found["rows"]) if found and found["rows"] else blank
    return with_departures(Comparison(exhibit, frame, found["context"] if found else "", ""), recorded)


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
    """One row per paper: number of exhibits, of regenerated ones, of those shown by the quick or the open profile only, of
    printed numbers, of printed numbers with each verdict, and of those that depart the ones with the paper's schedule; the
    last row, 'all', is their sum."""
    rows = []
    table, recorded = exhibits(), recorded_results()
    for paper in papers().index:
        mine = table[table.paper == paper]
        row = {"paper": paper, "exhibits": len(mine), "regenerated": 0, "quick or open": 0, "numbers": 0,
               **dict.fromkeys(COLUMNS, 0)}
        for exhibit in mine.index:
            found, comparison = stored_comparison(exhibit, root), judged(exhibit, root, recorded)
            row["regenerated"] += found is not None and found["profile"] == "paper"
            row["quick or open"] += found is not None and found["profile"] != "paper"
            if comparison is None:
                continue
            frame = comparison.frame[comparison.frame["metric"] != "text"]
            row["numbers"] += len(frame)
            for verdict in OF_NUMBERS:
                row[verdict] += int((frame["verdict"] == verdict).sum())
            row[SCHEDULE] += int((frame["schedule"] == True).sum())     # noqa: E712, None where nothing departs
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
