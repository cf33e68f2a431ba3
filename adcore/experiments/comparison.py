"""Published beside measured, cell by cell, with a verdict.

A verdict is one of
    reproduced      the measured number is within the tolerance of the published one
    higher, lower   it is outside
    other           the cell holds words, and they differ from the published ones
    departs         measured on images of the paper's data set, but not all as in the paper; `why` lists what differs
    not run         no measured number may be compared; the column `why` says why

The tolerance is the larger of two printed standard deviations and 0.5 points for a percentage, and half a unit of the last
printed digit for anything else. A result on other data, in another profile or with smaller settings is shown, but it reproduces
nothing: its verdict is 'departs' where its images are the paper's (`adcore.experiments.departures`), and 'not run' elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from adcore.errors import ParameterError
from adcore.experiments.profiles import method_named
from adcore.experiments.provenance import commit
from adcore.figures.tables import comparison_html
from adcore.files import write_json
from adcore.papers import exhibits, published
from adcore.papers.ds2.localization import OBJECTS, TEXTURES

if TYPE_CHECKING:
    from adcore.experiments.table import ResultTable

VERDICTS = ("reproduced", "higher", "lower", "other", "departs", "not run")
GROUPS = {"object": OBJECTS, "texture": TEXTURES}  # categories of MVTec AD over which DS2 prints means
SHOWN = ["row", "column", "metric", "unit", "published", "measured", "std", "seeds", "verdict", "why"]


def tolerance(std: float, unit: str, printed: str) -> float:
    """The largest difference between a measured and a published number that counts as reproduced; `printed` is its text.

        >>> tolerance(0.4, "%", "96.5"), tolerance(float("nan"), "G", "6.46")
        (0.8, 0.005)
    """
    if unit in ("%", "fraction"):
        floor = 0.5 if unit == "%" else 0.005
        return max(floor, 2 * std) if std == std else floor  # std is NaN where none was printed
    return float(0.5 * 10 ** -len(printed.partition(".")[2]))


def verdict(measured: float, value: float, allowed: float) -> str:
    """'reproduced', 'higher' or 'lower'."""
    if abs(measured - value) <= allowed + 1e-9:
        return "reproduced"
    return "higher" if measured > value else "lower"


@dataclass(frozen=True)
class Comparison:
    """An exhibit's published numbers beside measured ones.

    frame    the cells, with the columns `SHOWN`
    context  data, seeds and commit of the measured numbers
    profile  'quick' when the measured numbers are a demonstration, 'open' when they depart; otherwise 'paper', also for cells
             that need no training
    """

    exhibit: str
    frame: pd.DataFrame
    context: str
    profile: str

    def counts(self) -> dict[str, int]:
        """The number of cells with each verdict."""
        found = self.frame.verdict.value_counts()
        return {name: int(found.get(name, 0)) for name in VERDICTS}

    def record(self, root: Path) -> None:
        """Store the comparison for the report."""
        rows = self.frame.astype(object).where(self.frame.notna(), None).to_dict("records")
        write_json(root / "exhibits" / f"{self.exhibit}.json",
                   {"exhibit": self.exhibit, "context": self.context, "profile": self.profile, "rows": rows})

    def _repr_html_(self) -> str:
        return f"{comparison_html(self.frame)}<p><small>{escape(self.context, quote=False)}</small></p>"

    def __repr__(self) -> str:
        return f"{self.exhibit} ({self.context})\n{self.frame[SHOWN].to_string(index=False)}"


def compare_values(exhibit: str, values: Mapping[tuple[str, str], float | int | str], *, reasons: Mapping[
        tuple[str, str], str] | None = None, context: str = "computed, no data needed", root: Path | None = None) -> Comparison:
    """Compare an exhibit that needs no training: (row, column) -> computed value.

    reasons  (row, column) -> why a cell has no value, or why it differs
    root     the store in which the comparison is kept for the report; None keeps nothing

    Raises:
        ParameterError: unknown exhibit, or a cell that the exhibit does not have.
    """
    cells = published(exhibit)
    known = set(zip(cells["row"], cells["column"], strict=True))
    for cell in {**values, **(reasons or {})}:
        if cell not in known:
            raise ParameterError(f"{exhibit} has no cell {cell}; it has {sorted(known)[:6]} ...")
    rows = []
    for cell in cells.to_dict("records"):
        at = (cell["row"], cell["column"])
        textual = cell["metric"] == "text"
        target = cell["text"] if textual else cell["value"]
        row: dict[str, Any] = {
            "row": at[0], "column": at[1], "metric": cell["metric"], "unit": cell["unit"], "published": target,
            "measured": None, "std": None, "seeds": None, "verdict": "not run",
            "why": (reasons or {}).get(at, "" if at in values else "not computed here")}
        if at in values:
            row["measured"] = values[at]
            if textual:
                row["verdict"] = "reproduced" if values[at] == target else "other"
            else:
                allowed = tolerance(cell["std"], cell["unit"], cell["text"])
                row["verdict"] = verdict(float(values[at]), target, allowed)
        rows.append(row)
    comparison = Comparison(exhibit, pd.DataFrame(rows, columns=SHOWN), f"{context} · commit {commit() or 'unknown'}",
                            "paper")
    if root is not None:
        comparison.record(root)
    return comparison


def compare_results(exhibit: str, table: ResultTable, computed: Mapping[tuple[str, str], float] | None = None) -> Comparison:
    """Compare measured results with an exhibit's cells, joined by the fields in each cell's `match`.

    computed  (row, column) -> value that needs no training, such as a parameter count, compared with its cell directly
    """
    described = exhibits().loc[exhibit]
    why_not = _not_comparable(described, table)
    rows = []
    for cell in published(exhibit).to_dict("records"):
        row: dict[str, Any] = {
            "row": cell["row"], "column": cell["column"], "metric": cell["metric"], "unit": cell["unit"],
            "published": cell["value"], "measured": None, "std": None, "seeds": None, "verdict": "not run", "why": ""}
        found = matching(table.frame, cell["match"], cell["metric"])
        frame = found[found["value"].notna()]
        if (cell["row"], cell["column"]) in (computed or {}):
            row["measured"] = (computed or {})[cell["row"], cell["column"]]
            row["verdict"] = verdict(row["measured"], cell["value"], tolerance(cell["std"], cell["unit"], cell["text"]))
        elif frame.empty:
            row["why"] = "no result with these settings"
        else:
            scale = 100.0 if cell["unit"] == "%" else 1.0
            per_seed = frame.groupby("seed")["value"].mean() * scale
            row |= {"measured": round(float(per_seed.mean()), 4), "seeds": len(per_seed),
                    "std": round(float(per_seed.std()), 4) if len(per_seed) > 1 else None}
            lacking = set(found.category) - set(frame.category)
            if cell["match"].get("category") == "all":
                lacking |= _categories(exhibit) - set(frame.category)
            if why_not or lacking:
                row["why"] = why_not or f"the printed mean is also over {', '.join(sorted(lacking))}"
            else:
                allowed = tolerance(cell["std"], cell["unit"], cell["text"])
                row["verdict"] = verdict(row["measured"], cell["value"], allowed)
        rows.append(row)
    return Comparison(exhibit, pd.DataFrame(rows, columns=SHOWN), f"measured: {table.settings_line()}",
                      next(iter(profiles)) if len(profiles := set(table.frame.profile)) == 1 else "quick")


def matching(frame: pd.DataFrame, match: Mapping[str, Any], metric: str) -> pd.DataFrame:
    """The rows of a tidy frame that a printed cell's `match` selects."""
    frame = frame[frame.metric == metric]
    for name, wanted in match.items():
        if wanted == "all":
            continue  # the caller averages over this field
        if name == "group":
            frame = frame[frame.category.isin(GROUPS[str(wanted)])]
            continue
        if name not in frame:
            return frame.iloc[:0]
        frame = frame[frame[name].map(lambda value, wanted=wanted: wanted in (value, _joined(value))).astype(bool)]
    return frame


def _joined(value: Any) -> Any:
    """A tuple of words as papers print it: ('c4', 'c5') is c4c5."""
    words = isinstance(value, tuple) and all(isinstance(word, str) for word in value)
    return "".join(value) if words else value


def _categories(exhibit: str) -> set[str]:
    """The categories with a printed cell of their own."""
    return {match["category"] for match in published(exhibit)["match"] if "category" in match} - {"all"}


def _not_comparable(exhibit: Any, table: ResultTable) -> str:
    """Why these results are not a reproduction; '' when they may be one."""
    profiles = set(table.frame.profile)
    if profiles != {"paper"}:
        return f"{'/'.join(sorted(profiles))} profile"
    needed = str(exhibit.needs_data)
    if set(table.frame.dataset) != {needed}:
        return f"the paper's data is {needed or 'none'}, these results are on {', '.join(sorted(set(table.frame.dataset)))}"
    experiments = [result.experiment for result in table.results]
    parts = {e.category for e in experiments if method_named(e.method).pooled} - {"all"} - _categories(exhibit.name)
    if parts:
        return f"one model for {', '.join(sorted(parts))} only, the paper's is for all categories"
    changed = {name for e in experiments for name, value in e.config().values().items()
               if value != getattr(method_named(e.method).Config(), name)}
    matched = {name for match in published(exhibit.name)["match"] for name in match}
    if changed - matched:
        return f"settings other than the paper's: {', '.join(sorted(changed - matched))}"
    return table.doubts()
