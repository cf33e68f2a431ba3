"""Numbers on record: the csv files in results/ and benchmarks/results.csv, as tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from adcore.paths import repository

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


@dataclass(frozen=True)
class Record:
    """One csv of results/: `about` says in a sentence what it is, `frame` has a row a number."""

    name: str
    about: str
    frame: pd.DataFrame

    @property
    def html(self) -> str:
        """Mean and standard deviation over seeds, with the provenance of each row."""
        return summarise(self.frame).to_html(index=False, border=0, na_rep="")


def records(folder: Path | None = None) -> list[Record]:
    """Every csv of results/, in the order of their names."""
    folder = folder or (repository() or Path.cwd()) / "results"
    found = []
    for path in sorted(folder.glob("*.csv")):
        frame = pd.read_csv(path)
        data = ", ".join(dict.fromkeys(frame["dataset"]))
        found.append(Record(path.stem, f"{path.name}: {frame['key'].nunique()} experiments on {data}", frame))
    return found


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """One row for each method, data set, category and settings: metrics in per cent over seeds, seconds, memory, commit."""
    rows = []
    for (method, dataset, category, settings), part in frame.fillna({"settings": ""}).groupby(
            ["method", "dataset", "category", "settings"], sort=False):
        row = {"method": method, "data set": dataset, "category": category}
        for metric, title in METRICS.items():
            values = part.loc[part.metric == metric, "value"] * 100
            row[title] = "" if values.empty else (f"{values.mean():.1f}" if len(values) == 1 else
                                                  f"{values.mean():.1f} ± {values.std():.1f}")
        once = part.drop_duplicates("key")
        row |= {"seeds": ", ".join(str(seed) for seed in sorted(once["seed"])), "seconds": f"{once['seconds'].mean():.0f}",
                "peak GB": f"{once['peak_bytes'].mean() / 1e9:.1f}", "machine": once["machine"].iloc[0],
                "commit": ", ".join(dict.fromkeys(once["commit"].astype(str))), "settings": settings}
        rows.append(row)
    return pd.DataFrame(rows)


def headline() -> str | None:
    """The real images' table for the front page, or None when nothing is on record."""
    found = [record for record in records() if record.name == "real_images"]
    if not found:
        return None
    columns = ["method", "data set", "category", *METRICS.values(), "seeds", "commit"]
    return summarise(found[0].frame)[columns].to_html(index=False, border=0)


def benchmark_results() -> pd.DataFrame | None:
    """benchmarks/results.csv, or None."""
    path = (repository() or Path.cwd()) / "benchmarks" / "results.csv"
    return pd.read_csv(path) if path.is_file() else None
