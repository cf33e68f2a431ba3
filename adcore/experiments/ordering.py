"""Ordinal claims: does one setting beat another, as the paper says?

A smaller run reproduces no number, but it can agree or disagree with an order. Each claim names two cells of an exhibit. Its
gain is the first minus the second, published and measured; measured gains are paired seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from adcore.errors import ParameterError
from adcore.experiments.comparison import matching
from adcore.papers import published

if TYPE_CHECKING:
    from adcore.experiments.table import ResultTable

Cell = tuple[str, str] | str  # (row, column), or the row alone where rows are compared


@dataclass(frozen=True)
class Claim:
    """`better` beats `worse`: two rows of an exhibit, or two (row, column) where each cell is a configuration."""

    text: str
    better: Cell
    worse: Cell


def check_claims(exhibit: str, claims: Sequence[Claim], table: ResultTable,
                 metrics: Sequence[str] = ("image_auroc", "pixel_auroc")) -> pd.DataFrame:
    """One row per claim and metric: published gain, measured gain (mean over seeds) and its span over seeds, and a word.

    word  'agrees' or 'disagrees' with the sign of the published gain; 'undecided' when the measured gain is not larger than
          its span; 'printed equal' when the published cells are equal, so that there is no sign to compare; 'not run'

    Gains are in points. The span is the largest gain of a seed minus the smallest. A gain with one seed has the widest span
    that another claim of the call has in this metric, and is undecided when there is none.

    Raises:
        ParameterError: a cell that the exhibit does not have.
    """
    rows: list[dict[str, Any]] = []
    for claim in claims:
        for metric in metrics:
            (value, good), (other, bad) = (_cell(exhibit, cell, metric) for cell in (claim.better, claim.worse))
            gain = (_by_seed(table, good, metric) - _by_seed(table, bad, metric)).dropna()
            rows.append({"claim": claim.text, "metric": metric, "published": value - other, "measured": gain.mean(),
                         "span": gain.max() - gain.min() if len(gain) > 1 else np.nan, "seeds": len(gain)})
    frame = pd.DataFrame(rows)
    span = frame["span"].fillna(frame.groupby("metric")["span"].transform("max")).fillna(np.inf)
    same = (frame["measured"] > 0) == (frame["published"] > 0)
    frame["word"] = np.select([frame["seeds"] == 0, frame["published"] == 0, frame["measured"].abs() <= span, same],
                              ["not run", "printed equal", "undecided", "agrees"], "disagrees")
    return frame.round(1)


def rank_correlation(exhibit: str, table: ResultTable, metric: str) -> tuple[float, int]:
    """Spearman's correlation between published and measured cells of one metric, and the number of cells; NaN below three."""
    pairs = []
    for cell in published(exhibit).to_dict("records"):
        if cell["metric"] == metric and cell["match"]:
            values = _by_seed(table, cell["match"], metric)
            if len(values):
                pairs.append((cell["value"], float(values.mean())))
    if len(pairs) < 3:
        return float("nan"), len(pairs)
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic), len(pairs)


def _cell(exhibit: str, cell: Cell, metric: str) -> tuple[float, dict[str, Any]]:
    cells = published(exhibit)
    row, column = cell if isinstance(cell, tuple) else (cell, None)
    found = cells[(cells["row"] == row) & (cells["metric"] == metric)]
    if column is not None:
        found = found[found["column"] == column]
    if found.empty:
        there = ", ".join(dict.fromkeys(cells["row"]))
        raise ParameterError(f"{exhibit} has no cell {cell} with {metric}; its rows are {there}")
    return float(found["value"].iloc[0]), found["match"].iloc[0]


def _by_seed(table: ResultTable, match: dict[str, Any], metric: str) -> pd.Series:
    return matching(table.frame, match, metric).groupby("seed")["value"].mean() * 100
