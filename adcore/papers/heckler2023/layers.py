"""Comparison of layers with one tap at a time: tables by tap and counts of the best (Figs. 2 to 5).

Every table has one column per tap, from shallow to deep, which is also the order of the relative receptive field (RRF).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from adcore.errors import ParameterError
from adcore.features import find_backbone
from adcore.papers.heckler2023.receptive_field import TABLE_2

if TYPE_CHECKING:
    from adcore.experiments.table import ResultTable

STRIDES = (4, 8, 16, 32)


def taps_of(backbone: str) -> list[tuple[int | str, ...]]:
    """The four taps to compare, each alone, as values of the setting `taps`.

    The taps of Table 2 for its four networks; for any other EfficientNet or ResNet the ends of the stages of strides 4, 8, 16
    and 32.

    Raises:
        ParameterError: a network without numbered stages.
    """
    if backbone in TABLE_2:
        return [(node,) for node in TABLE_2[backbone]]
    stages = sorted(find_backbone(backbone).stages)
    if len(stages) < len(STRIDES):
        raise ParameterError(f"backbone '{backbone}' has no numbered stages to compare: name its taps yourself")
    return [(stage,) for stage in stages[-len(STRIDES):]]


def by_tap(table: ResultTable, metric: str, rows: Sequence[str] = ("method", "backbone", "category")) -> pd.DataFrame:
    """A metric in percent: one row per combination of the fields `rows`, one column per tap, from shallow to deep.

    Each cell is the mean over seeds and over all fields that `rows` does not name.

    Raises:
        ParameterError: a result of several taps at once, a metric that was not measured, or a tap that is not compared.
    """
    frame = table.frame[table.frame.metric == metric]
    if frame.empty:
        raise ParameterError(f"these results have no metric '{metric}'; they have {', '.join(sorted(set(table.frame.metric)))}")
    several = [taps for taps in set(frame.taps) if len(taps) != 1]
    if several:
        raise ParameterError(f"a comparison of layers takes one tap at a time, not {several[0]}")
    order = {tap: place for backbone in dict.fromkeys(frame.backbone) for place, (tap,) in enumerate(taps_of(backbone))}
    places = frame.taps.map(lambda taps: order.get(taps[0], -1))
    if (places < 0).any():
        odd = frame.taps[places < 0].iloc[0][0]
        raise ParameterError(f"tap {odd!r} is none of the four that are compared: {', '.join(map(str, order))}")
    wide = frame.assign(place=places).pivot_table(index=list(rows), columns="place", values="value", aggfunc="mean", sort=False)
    wide = wide[sorted(wide.columns)] * 100
    return wide.rename(columns={place: f"stride {STRIDES[place]}" for place in wide}).rename_axis(columns=None)


def best_counts(wide: pd.DataFrame, within: Sequence[str] = ("method", "backbone")) -> pd.DataFrame:
    """Number of rows in which each tap is the best, within each group of rows (Fig. 2). Of k tied taps each counts 1 / k."""
    best = wide.eq(wide.max(axis=1), axis=0)
    return best.div(best.sum(axis=1), axis=0).groupby(level=list(within), sort=False).sum()


def best_place(wide: pd.DataFrame) -> pd.Series:
    """Index of each row's best column, 0 for the shallowest. Among tied taps the shallowest wins; missing values never win."""
    return pd.Series(wide.fillna(float("-inf")).to_numpy().argmax(axis=1), wide.index)
