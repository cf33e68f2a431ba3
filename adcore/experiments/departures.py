"""Numbers measured on the paper's own images, but not quite as the paper did: which printed cells they stand beside, and in
what they depart.

Most printed numbers are a mean over data sets that not everybody has, with weights that must be downloaded. A run on three of
fifteen categories with another backbone reproduces no such number, but it is no demonstration either. Its cells get the verdict
'departs', and each lists all that differs: "3 of 15 categories; backbone efficientnet_lite0; 40 of 1000 epochs; 128 px".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from scipy import stats

from adcore.data.verify import PUBLISHED
from adcore.errors import ParameterError
from adcore.experiments.comparison import GROUPS, SHOWN, Comparison, matching
from adcore.experiments.profiles import method_named
from adcore.experiments.store import Result
from adcore.papers import exhibits, published

# Settings that decide how long and how a network is trained.
SCHEDULE = frozenset({"epochs", "steps", "batch_size", "lr", "lr_drop", "lr_every", "lr_end", "decay_epochs", "warmup_epochs",
                      "stop_after", "pretraining_size", "view_size", "start_cells", "cells"})
# Settings that a run without downloads or with less time may change; any other that a paper's tables vary is another method.
SCALE = frozenset({"backbone", "batch_size", "taps", "tap", "weights", "image_size"})
FIELDS = frozenset({"method", "dataset", "category", "group", "seed", "profile"})


@dataclass(frozen=True)
class _Made:
    """What a departure is read from: the settings that are not the paper's, the categories trained on, and the method."""

    changed: Mapping[str, Any]
    trained: frozenset[str]
    dataset: str
    result: Result


def recorded_results() -> list[Result]:
    """All results of results/*.csv."""
    from adcore.experiments.record import records, results_in  # here, because it imports ResultTable, which imports this module
    return [result for record in records() for result in results_in(record.frame)]


def departures(exhibit: str, results: Iterable[Result] | None = None) -> pd.DataFrame:
    """The printed cells of an exhibit that have a measured number on images of the paper's data set.

    The columns are `SHOWN`, `schedule` (True where epochs, steps, batch and rates are the paper's), `source` (commits and
    machines) and `like`, equal for cells measured in the same way.

    results  those of results/ by default

    A data set is a copy of MVTec AD, whole or in part and at any size, when its name begins with mvtec_. Where results of
    several kinds fit a cell, the first counts of: the paper's schedule, more categories, more cells measured in this way, more
    of the schedule, more seeds.

    Raises:
        ParameterError: unknown exhibit, or one without printed numbers.
    """
    cells, needed = published(exhibit).to_dict("records"), str(exhibits().loc[exhibit, "needs_data"])
    own = frozenset(PUBLISHED.get(needed, {}))
    made = {result.experiment.key: _made(result) for result in (recorded_results() if results is None else results)
            if _is_copy(result.experiment.dataset, needed)}
    rows = [row for one in made.values() for row in one.result.rows() if row["category"] in own and row["value"] is not None]
    if not rows or not own:
        return pd.DataFrame(columns=[*SHOWN, "schedule", "source", "like"])
    frame = pd.DataFrame(rows)
    fixed = _compared(exhibit) - SCALE - FIELDS
    ways: list[dict[str, pd.DataFrame]] = []
    for cell in cells:
        found = matching(frame, cell["match"], cell["metric"]) if cell["match"] else frame.iloc[:0]
        keep = [key for key in found["key"].unique() if not (set(made[key].changed) & fixed) - set(cell["match"])]
        found = found[found["key"].isin(keep)]
        like = found["key"].map({key: _like(made[key], cell["match"]) for key in keep})
        ways.append(dict(list(found.groupby(like))) if keep else {})
    preferred = sorted({way for found in ways for way in found}, key=lambda way: _worth(way, ways, made), reverse=True)
    shown = []
    for cell, found in zip(cells, ways, strict=True):
        if chosen := next((way for way in preferred if way in found), None):
            shown.append({**_row(cell, found[chosen], made, own), "like": chosen})
    return pd.DataFrame(shown, columns=[*SHOWN, "schedule", "source", "like"])


def departing(exhibit: str) -> Comparison:
    """The cells of `departures` from results/, as a table beside the printed numbers, for the notebooks and the report.

    Raises:
        ParameterError: see `departures`.
    """
    found = departures(exhibit)
    where = "; ".join(sorted(set("; ".join(found["source"]).split("; "))))
    return Comparison(exhibit, found[[*SHOWN, "schedule"]], f"from results/, not a reproduction: {where}", "open")


def with_departures(comparison: Comparison, results: Iterable[Result] | None = None) -> Comparison:
    """The comparison whose cells 'not run' are replaced by those of `departures`, where there are such."""
    found = departures(comparison.exhibit, results).set_index(["row", "column", "metric"])
    rows = []
    for row in comparison.frame.to_dict("records"):
        at = row["row"], row["column"], row["metric"]
        departs = row["verdict"] == "not run" and at in found.index
        rows.append({**row, "schedule": None, **({name: found.at[at, name] for name in ("measured", "std", "seeds", "verdict",
                                                                                      "why", "schedule")} if departs else {})})
    return replace(comparison, frame=pd.DataFrame(rows, columns=[*SHOWN, "schedule"]))


def agreement(departing: pd.DataFrame) -> pd.DataFrame:
    """How the departing cells of one exhibit go with the printed ones: one row per metric.

    cells      number of cells, of those measured in the way that most cells have
    rank       Spearman's correlation of measured and printed numbers; NaN below three cells
    mean       mean of measured minus printed, in the printed unit
    pairs      pairs of cells in one row or one column that are apart: measured numbers differ by more than twice the larger
               standard deviation over seeds of the two, and printed numbers differ. A cell of one seed has the largest standard
               deviation of all cells; None where no cell has several seeds
    same       of those, the pairs in which measured and printed numbers have the same order
    """
    found = []
    for metric, part in departing.groupby("metric", sort=False):
        part = part[part["like"] == part["like"].mode().iloc[0]]
        measured, printed = part["measured"].to_numpy(float), part["published"].to_numpy(float)
        std = part["std"].astype(float)
        known, std = bool(std.notna().any()), std.fillna(std.max()).to_numpy()
        rows, columns = part["row"].to_numpy(), part["column"].to_numpy()
        pairs = [(i, j) for i in range(len(part)) for j in range(i) if rows[i] == rows[j] or columns[i] == columns[j]]
        apart = [(measured[i] > measured[j]) == (printed[i] > printed[j]) for i, j in pairs
                 if abs(measured[i] - measured[j]) > 2 * max(std[i], std[j]) and printed[i] != printed[j]]
        varied = len(part) > 2 and len(set(measured)) > 1 and len(set(printed)) > 1
        found.append({"metric": metric, "unit": part["unit"].iloc[0], "cells": len(part),
                      "rank": float(stats.spearmanr(measured, printed).statistic) if varied else float("nan"),
                      "mean": float((measured - printed).mean()), "pairs": len(apart) if known else None,
                      "same": sum(apart) if known else None})
    return pd.DataFrame(found, dtype=object)


def _is_copy(dataset: str, needed: str) -> bool:
    parts = dataset.split("+")
    return needed in parts or (needed == "mvtec_ad" and any(part.startswith("mvtec_") and part != "mvtec_loco"
                                                            for part in parts))


def _made(result: Result) -> _Made:
    method = method_named(result.experiment.method)
    usual = method.Config().values()
    changed = {name: value for name, value in result.experiment.config().values().items() if value != usual[name]}
    return _Made(changed, frozenset(one["category"] for one in result.measures), result.experiment.dataset, result)


def _compared(exhibit: str) -> set[str]:
    """Settings that the tables of this exhibit's paper vary on the same data."""
    table = exhibits()
    alike = table[(table["paper"] == table.loc[exhibit, "paper"]) & (table["needs_data"] == table.loc[exhibit, "needs_data"])]
    names: set[str] = set()
    for name in alike.index:
        try:
            names |= {field for match in published(name)["match"] for field in match}
        except ParameterError:      # an exhibit without printed numbers
            continue
    return names


def _like(made: _Made, match: Mapping[str, Any]) -> str:
    """Equal for results that were made in the same way, apart from what the cell asks for, category and seed."""
    rest = {name: value for name, value in made.changed.items() if name not in match}
    pooled = method_named(made.result.experiment.method).pooled
    return f"{sorted(rest.items())} {made.dataset if pooled else ''}"


def _worth(way: str, ways: Sequence[Mapping[str, pd.DataFrame]], made: Mapping[str, _Made]) -> tuple[float, ...]:
    frames = [found[way] for found in ways if way in found]
    keys = {key for frame in frames for key in frame["key"]}
    one = made[next(iter(sorted(keys)))]
    categories = {category for frame in frames for category in frame["category"]}
    return (_at_schedule(one.changed), len(categories), len(frames), _share(one), len({made[k].result.experiment.seed
                                                                                      for k in keys}))


def _at_schedule(changed: Iterable[str]) -> bool:
    return not SCHEDULE & set(changed)


def _share(made: _Made) -> float:
    usual = method_named(made.result.experiment.method).Config().values()
    return float(made.changed.get("epochs", usual.get("epochs", 1))) / float(usual.get("epochs", 1))


def _row(cell: Mapping[str, Any], found: pd.DataFrame, made: Mapping[str, _Made], own: frozenset[str]) -> dict[str, Any]:
    scale = 100.0 if cell["unit"] == "%" else 1.0
    per_seed = found.groupby("seed")["value"].mean() * scale
    results = [made[key] for key in found["key"].unique()]
    changed = {name: value for name, value in results[0].changed.items() if name not in cell["match"]}
    return {"row": cell["row"], "column": cell["column"], "metric": cell["metric"], "unit": cell["unit"],
            "published": cell["value"], "measured": round(float(per_seed.mean()), 4), "seeds": len(per_seed),
            "std": round(float(per_seed.std()), 4) if len(per_seed) > 1 else None, "verdict": "departs",
            "why": "; ".join(_words(cell, set(found["category"]), results, changed, own)), "schedule": _at_schedule(changed),
            "source": "; ".join(sorted({_source(one.result.provenance) for one in results}))}


def _source(provenance: Mapping[str, Any]) -> str:
    return f"commit {provenance.get('commit') or 'unknown'} on {provenance.get('machine') or provenance.get('device')}"


def _words(cell: Mapping[str, Any], categories: set[str], results: Sequence[_Made], changed: Mapping[str, Any],
           own: frozenset[str]) -> list[str]:
    """All that differs, in words."""
    words = []
    match, first = cell["match"], results[0]
    printed = own if match.get("category", "all") == "all" else {str(match["category"])}
    if "group" in match and match["group"] != "all":
        printed = frozenset(GROUPS[str(match["group"])])
    if len(categories) < len(printed):
        words.append(f"{len(categories)} of {len(printed)} categories")
    method = method_named(first.result.experiment.method)
    others = sorted(set().union(*(one.trained for one in results)) - own)
    if method.pooled and others:
        words.append(f"trained with {', '.join(others)} too")
    usual = method.Config().values()
    for name, value in sorted(changed.items(), key=lambda item: (item[0] != "backbone", item[0] not in SCHEDULE, item[0])):
        if name in ("taps", "tap") and "backbone" in changed:
            continue    # stages are counted otherwise in another network
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words.append(f"{value} of {usual[name]} epochs" if name == "epochs" and value < usual[name] else
                     f"{text} px" if name == "image_size" else f"{name} {text}")
    if any(one.result.made_by_older_code for one in results):
        words.append("measured with an older version of the method")
    return words or ["from the record, whose code is known by its commit only"]
