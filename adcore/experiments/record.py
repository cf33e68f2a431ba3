"""Numbers on record: parts of the store exported to results/ as csv with provenance. Never typed by hand."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from adcore.errors import StoreError
from adcore.experiments.experiment import Experiment
from adcore.experiments.profiles import method_named
from adcore.experiments.spreadsheet import guarded, unguarded
from adcore.experiments.store import ORIGIN, Result, Store
from adcore.experiments.table import ResultTable
from adcore.experiments.tidy import load_results
from adcore.files import write_text
from adcore.paths import repository

COLUMNS = ["method", "dataset", "category", "profile", "settings", "seed", "metric", "value", "seconds", "peak_bytes", "device",
           "machine", "commit", "data", "weights_digest", "finished", "version", "key"]
LATER = ["fit_seconds", "test_seconds", "test_images"]  # older files do not have these columns: they are read as empty

KNOWN = ["method", "dataset", "category", "profile", "seed", "metric", "key"]  # in every row
NAMES = ["category", "dataset", "commit", "data", "weights_digest", "key"]
NUMBERS = ["seed", "value", "seconds", "peak_bytes", "version", *LATER]

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


def export_results(dataset: str | None = None, profile: str | None = None, to: Path | None = None,
                   out: str | Path | None = None, only: Iterable[Experiment] | None = None) -> str:
    """Write the store's numbers, some or all, to a csv file; without `to`, return the csv text. Empty metrics are left out.

    only  the experiments to write; None for all. Those that are not stored keep the rows that the file `to` has of them

    Raises:
        StoreError: nothing to export, or the file cannot be written.
    """
    frame = load_results(out)
    frame = frame if frame.empty else frame[frame["value"].notna()]
    if only is not None:
        keys = {experiment.key for experiment in only}
        frame = frame if frame.empty else frame[frame["key"].isin(keys)]
        if to is not None and to.is_file():
            old = _read(to)
            frame = pd.concat([old[old["key"].isin(keys - set(frame.get("key", ())))], frame], ignore_index=True)
    for column, wanted in (("dataset", dataset), ("profile", profile)):
        if wanted is not None and not frame.empty:
            frame = frame[frame[column] == wanted]
    if frame.empty:
        raise StoreError(f"the store has no result with dataset={dataset or 'any'} and profile={profile or 'any'}")
    text = exported(frame)
    if to is None:
        return text
    write_text(to, text)
    return f"{to}: {len(frame)} numbers of {frame['key'].nunique()} experiments"


def exported(frame: pd.DataFrame) -> str:
    """Rows of results as csv text. Those without a version come from the store, which holds none of an older version."""
    today = frame["method"].map(lambda name: method_named(name).version)
    frame = frame.assign(version=frame.get("version", today).fillna(today).astype(int))
    frame = frame.reindex(columns=[*COLUMNS, *LATER])
    order = ["method", "dataset", "category", "settings", "seed", "metric"]
    return str(guarded(frame.sort_values(order, kind="stable")).to_csv(index=False, float_format="%.6f"))


@dataclass(frozen=True)
class Record:
    """One csv of results/. `about` describes it in a sentence, `frame` has one row per number."""

    name: str
    about: str
    frame: pd.DataFrame

    @property
    def html(self) -> str:
        """Mean and standard deviation over seeds, with the provenance of each row. Settings shared by all rows are written once
        below the table."""
        table = summarize(self.frame)
        parts = [re.split(r" (?=\w+=)", text) for text in table["settings"]]
        shared = [part for part in parts[0] if part and all(part in other for other in parts)] if len(parts) > 1 else []
        table["settings"] = [" ".join(part for part in own if part not in shared) for own in parts]
        table.insert(3, "settings", table.pop("settings"))  # beside what they tell apart
        note = f"<p><small>all with {escape(' '.join(shared))}</small></p>" if shared else ""
        return str(table.to_html(index=False, border=0, na_rep="")) + note


def records(folder: Path | None = None) -> list[Record]:
    """Every csv of results/, sorted by name.

    Raises:
        StoreError: a file is not such a csv.
    """
    folder = folder or (repository() or Path.cwd()) / "results"
    found = []
    for path in sorted(folder.glob("*.csv")):
        frame = _read(path)
        data = ", ".join(dict.fromkeys(frame["dataset"]))
        found.append(Record(path.stem, f"{path.name}: {frame['key'].nunique()} experiments on {data}", frame))
    return found


def _read(path: Path) -> pd.DataFrame:
    try:
        # '01234' and 'NA' are names, not a number and not a missing value; a commit may be 12345e6789.
        frame = pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=[""])
    except ValueError as error:  # of pandas or of the decoder
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise StoreError(f"{path} is no csv in UTF-8 ({reason}): export it again") from error
    missing = [column for column in COLUMNS if column not in frame]
    if missing:
        raise StoreError(f"{path} has no column '{missing[0]}': export it again")
    frame = frame.assign(**{column: float("nan") for column in LATER if column not in frame})
    empty = [column for column in KNOWN if frame[column].isna().any()]
    words = [column for column in NUMBERS if not (frame.empty or pd.api.types.is_numeric_dtype(frame[column]))]
    if frame.empty or empty or words:
        what = f"has an empty cell in '{empty[0]}'" if empty else f"has words in '{words[0]}'" if words else "has no row"
        raise StoreError(f"{path} {what}: export it again")
    return unguarded(frame.astype({column: str for column in KNOWN if column != "seed"}))


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per method, data set, category and settings: metrics in percent over seeds, seconds, memory, commit.

    The commit is followed by '(older code)' where the method's `version` has risen since: its numbers would be others today.
    """
    rows = []
    frame = frame.assign(settings=frame["settings"].astype(object).fillna(""))
    for (method, dataset, category, settings), part in frame.groupby(["method", "dataset", "category", "settings"], sort=False):
        row = {"method": method, "data set": dataset, "category": category}
        for metric, title in METRICS.items():
            values = part.loc[part.metric == metric, "value"] * 100
            row[title] = "" if values.empty else (f"{values.mean():.1f}" if len(values) == 1 else
                                                  f"{values.mean():.1f} ± {values.std():.1f}")
        once = part.drop_duplicates("key")
        older = " (older code)" if (once["version"] < method_named(method).version).any() else ""
        row |= {"seeds": ", ".join(str(seed) for seed in sorted(once["seed"])), "seconds": f"{once['seconds'].mean():.0f}",
                "peak GB": f"{once['peak_bytes'].mean() / 1e9:.1f}", "machine": once["machine"].iloc[0],
                "commit": ", ".join(dict.fromkeys(once["commit"].astype(str))) + older, "settings": settings}
        rows.append(row)
    return pd.DataFrame(rows)


def costs(frame: pd.DataFrame) -> pd.DataFrame:
    """What each method costs: one row per method, means over seeds. A seed without some of the categories is left out.

    frame  rows of a record or of a table of results

    fit_seconds   of the trainings for all categories together
    milliseconds  for each test image, reading and measuring included
    peak_gb       the largest of the categories
    """
    found = frame.groupby(["method", "seed"], sort=False)["category"].nunique()
    complete = found[found == frame["category"].nunique()].index
    once = frame.drop_duplicates("key").groupby(["method", "seed"], sort=False)
    sums = once[["fit_seconds", "test_seconds", "test_images"]].sum(min_count=1).loc[complete]
    table = pd.DataFrame({"fit_seconds": sums["fit_seconds"], "milliseconds": 1000 * sums["test_seconds"] / sums["test_images"],
                          "peak_gb": once["peak_bytes"].max().loc[complete] / 1e9})
    return table.groupby("method", sort=False).mean()


def on_record(name: str, **only: str) -> pd.DataFrame:
    """One csv of results/ as a table, for the notebooks: `on_record("real_images", method="uniad")`.

    Raises:
        StoreError: there is no such record.
    """
    return summarize(record_rows(name, only))


def recorded(name: str, **only: str) -> ResultTable:
    """One csv of results/ as a table of results, to compare with published numbers: `recorded("uniad_ablations")`.

    These results have no scores and no maps. Their commit is known, but not the fingerprint of its code, so they are marked as
    from the record and get no verdict.

    Raises:
        StoreError: there is no such record.
    """
    return ResultTable(results_in(record_rows(name, only)), Store())


def results_in(frame: pd.DataFrame) -> list[Result]:
    """The results that rows of a record hold, in the order of their settings."""
    frame = frame.astype({"settings": object}).fillna({"settings": ""})
    results = []
    for _, part in frame.groupby(["method", "dataset", "settings", "seed", "profile", "key"], sort=False):
        first = part.iloc[0]
        pooled = method_named(first["method"]).pooled
        category = "all" if pooled else first["category"]
        experiment = Experiment(first["method"], first["dataset"], category, int(first["seed"]), first["profile"],
                                parse_settings(first["settings"]))
        measures = tuple({"category": row["category"], "metric": row["metric"], "value": row["value"]}
                         for row in part.to_dict("records"))
        origin = {"weights" if column == "weights_digest" else column: first[column] for column in ORIGIN}
        origin["version"] = int(first["version"])
        results.append(Result(experiment, measures, origin))
    return results


def parse_settings(text: str) -> tuple[tuple[str, Any], ...]:
    """The settings written as `name=value name=value`, as in the column `settings`.

        >>> parse_settings("epochs=3 taps=(2, 3) query=none")
        (('epochs', 3), ('taps', (2, 3)), ('query', 'none'))
    """
    settings = []
    for part in re.split(r" (?=\w+=)", text) if text else ():
        name, _, value = part.partition("=")
        try:
            settings.append((name, ast.literal_eval(value)))
        except (ValueError, SyntaxError):
            settings.append((name, value))
    return tuple(settings)


def record_rows(name: str, only: Mapping[str, str]) -> pd.DataFrame:
    """The rows of one csv of results/ with these values. Raises StoreError: there is no such record, column or row."""
    found = {record.name: record for record in records()}
    if name not in found:
        raise StoreError(f"results/ has no record '{name}'; it has {', '.join(found) or 'none'}")
    frame = found[name].frame
    for column, wanted in only.items():
        if column not in COLUMNS:
            raise StoreError(f"a record has no column '{column}'; it has {', '.join(COLUMNS)}")
        frame = frame[frame[column].astype(str) == wanted]
    if frame.empty:
        raise StoreError(f"results/{name}.csv has no row with {', '.join(f'{key}={value}' for key, value in only.items())}")
    return frame
