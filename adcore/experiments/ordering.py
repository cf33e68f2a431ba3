"""Ordinal claims: does one setting beat another, as the paper says?

A smaller run reproduces no number, but it can agree or disagree with an order. Each claim names two cells of an exhibit. Its
gain is the first minus the second, published and measured; measured gains are paired seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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
    """One row per claim and metric: published gain, measured gain (mean and std over seeds, in points) and a word.

    word  'agrees' or 'disagrees' with the sign of the published gain; 'within noise' when the measured gain is smaller than
          its standard deviation over seeds or, with one seed, than half a point; 'printed equal' when the published cells
          are equal, so that there is no sign to compare; 'not run'

    Raises:
        ParameterError: a cell that the exhibit does not have.
    """
    rows = []
    for claim in claims:
        for metric in metrics:
            (value, good), (other, bad) = (_cell(exhibit, cell, metric) for cell in (claim.better, claim.worse))
            gain = (_by_seed(table, good, metric) - _by_seed(table, bad, metric)).dropna()
            row: dict[str, Any] = {"claim": claim.text, "metric": metric, "published": round(value - other, 1),
                                   "measured": None, "std": None, "seeds": len(gain), "word": "not run"}
            if len(gain):
                spread = float(gain.std()) if len(gain) > 1 else 0.5
                row |= {"measured": round(float(gain.mean()), 1), "std": round(spread, 1) if len(gain) > 1 else None,
                        "word": "printed equal" if value == other else "within noise" if abs(gain.mean()) < spread else
                        "agrees" if (gain.mean() > 0) == (value > other) else "disagrees"}
            rows.append(row)
    return pd.DataFrame(rows)


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
