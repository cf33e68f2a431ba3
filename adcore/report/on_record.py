"""What the report shows of numbers on record: the front page's table and the benchmarks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from adcore.experiments.record import METRICS, records, summarize
from adcore.paths import repository


def headline() -> str | None:
    """The real images' table for the front page, or None when nothing is on record."""
    found = [record for record in records() if record.name == "real_images"]
    if not found:
        return None
    columns = ["method", "data set", "category", *METRICS.values(), "seeds", "commit"]
    return summarize(found[0].frame)[columns].to_html(index=False, border=0)


def measured(name: str) -> pd.DataFrame | None:
    """A csv of benchmarks/, such as 'results', or None when nothing was measured."""
    path = (repository() or Path.cwd()) / "benchmarks" / f"{name}.csv"
    return pd.read_csv(path) if path.is_file() else None
