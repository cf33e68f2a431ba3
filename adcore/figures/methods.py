"""Figures that compare methods: image AUROC with intervals by category, and accuracy against cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import Bbox

from adcore.figures.style import COLORS, MARKERS

WIDTH = 10.4  # inches; 100 pixels each

# Where a name may stand: points to the right of its point and above it, and its alignment. The nearest are tried first.
NEAR = 9
PLACES = [(side * right, up, "left" if side > 0 else "right")
          for right, heights in ((7, (0,)), (4, (NEAR, -NEAR)), (14, (16, -16, 26, -26, 36, -36, 46, -46)))
          for up in heights for side in (1, -1)]


def method_intervals(table: pd.DataFrame, xlabel: str, marked: Collection[str] = (), mark: str = "") -> Figure:
    """One panel per category, one row per method: a point with its interval, and a tick per seed where there are several.

    table   columns category, method, auroc, low, high and seeds (a tuple of numbers); methods in the order of their means over
            categories, the best first
    marked  methods with another color and marker, whose meaning is `mark`
    """
    best = table.groupby("method")["auroc"].mean().sort_values(ascending=False)
    categories = list(dict.fromkeys(table["category"]))
    figure, rows = plt.subplots(1, len(categories), sharey=True, squeeze=False, layout="constrained",
                                figsize=(min(WIDTH, 2.2 + 1.9 * len(categories)), 0.9 + 0.24 * len(best)))
    for axes, category in zip(rows[0], categories, strict=True):
        part = table[table["category"] == category]
        for one in part.to_dict("records"):
            y, special = list(best.index).index(one["method"]), one["method"] in marked
            axes.plot([one["low"], one["high"]], [y, y], color=COLORS[special], linewidth=2, alpha=0.55, solid_capstyle="butt")
            if len(one["seeds"]) > 1:
                axes.plot(one["seeds"], [y] * len(one["seeds"]), linestyle="none", marker="|", color="black", markersize=6)
            axes.plot(one["auroc"], y, marker=MARKERS[special], color=COLORS[special], markersize=6)
        axes.set(title=str(category).replace("_", " "), xlabel=xlabel)
    rows[0, 0].set_yticks(range(len(best)), list(best.index))
    rows[0, 0].set_ylim(len(best) - 0.5, -0.5)
    keys = [*_keys(best.index, marked, mark), plt.Line2D([], [], color="gray", linewidth=2, label="95 % of the draws")]
    if table["seeds"].map(len).max() > 1:
        keys.append(plt.Line2D([], [], linestyle="none", marker="|", color="black", label="one seed"))
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _keys(methods: Iterable[str], marked: Collection[str], mark: str) -> list[Any]:
    kinds = {method in marked for method in methods}
    return [plt.Line2D([], [], linestyle="none", marker=MARKERS[kind], color=COLORS[kind], label=name)
            for kind, name in ((False, "normal images only"), (True, mark)) if kind in kinds]


def accuracy_and_cost(panels: Mapping[str, Mapping[str, tuple[float, float]]], ylabel: str, marked: Collection[str] = (),
                      mark: str = "") -> Figure:
    """Points with their names beside them, one panel per cost, which is on a logarithmic axis.

    panels  name of the cost -> method -> (cost, accuracy)
    marked  methods with another color and marker, whose meaning is `mark`
    """
    figure, rows = plt.subplots(1, len(panels), sharey=True, squeeze=False, layout="constrained", figsize=(WIDTH, 3.8))
    for axes, (xlabel, points) in zip(rows[0], panels.items(), strict=True):
        for name, (x, y) in points.items():
            special = name in marked
            axes.plot(x, y, marker=MARKERS[special], color=COLORS[special], markersize=6, linestyle="none")
        axes.set(xlabel=xlabel, xscale="log")
        axes.xaxis.set_major_formatter(LogFormatter())      # 20, not 2 x 10^1
        axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
        axes.margins(0.12)
    rows[0, 0].set_ylabel(ylabel)
    methods = [name for points in panels.values() for name in points]
    figure.legend(handles=_keys(methods, marked, mark), loc="outside lower center", ncols=2, frameon=False)
    figure.draw_without_rendering()                         # the layout is fixed first: labels are placed in pixels
    figure.set_layout_engine("none")
    for axes, points in zip(rows[0], panels.values(), strict=True):
        place_labels(axes, points)
    return figure


def place_labels(axes: Axes, points: Mapping[str, tuple[float, float]]) -> list[Annotation]:
    """Write each name near its point, at the first of several places where it covers no point and no other name.

    A name that is far from its point is joined to it by a thin line. Where all places are taken, it stands where it covers the
    least.
    """
    renderer = axes.figure.canvas.get_renderer()            # type: ignore[attr-defined]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in axes.transData.transform(list(points.values()))]
    frame, labels = axes.get_window_extent(renderer), []
    for name, point in points.items():
        label = axes.annotate(name, point, xytext=(0, 0), textcoords="offset points", va="center", fontsize=8)
        covered = []
        for right, up, align in PLACES:
            label.set(position=(right, up), ha=align)
            box = label.get_window_extent(renderer)
            outside = box.width * box.height - _overlap(box, frame)
            covered.append(outside + sum(_overlap(box, other) for other in taken))
        right, up, align = PLACES[int(np.argmin(np.round(covered)))]        # the first of equal ones
        label.set(position=(right, up), ha=align)
        if abs(up) > NEAR:
            axes.annotate("", point, xytext=(right, up), textcoords="offset points",
                          arrowprops={"arrowstyle": "-", "color": "gray", "linewidth": 0.6})
        taken.append(label.get_window_extent(renderer))
        labels.append(label)
    return labels


def _overlap(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else float(both.width * both.height)
