"""Charts of measured values: bars, lines, points, histograms and masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from adcore.figures.style import COLORS, HATCHES, LINES, MARKERS

if TYPE_CHECKING:
    from adcore.papers.heckler2023.receptive_field import ReceptiveField


def score_histograms(scores: Any, title: str = "image score", fractions: bool = False, columns: int = 5) -> Figure:
    """Histograms of the scores of normal and anomalous test images, one panel per category, `columns` panels in a row.

    scores     DataFrame with one row per image: category, label (0 or 1), score
    fractions  fraction of the normal and of the anomalous images in each bin instead of their number
    """
    categories = list(dict.fromkeys(scores["category"]))
    columns = min(columns, len(categories))
    rows = -(-len(categories) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.2 * columns, 1.7 * rows + 0.5), squeeze=False)
    for axes in grid.flat[len(categories):]:
        axes.set_visible(False)
    for axes, category in zip(grid.flat, categories, strict=False):
        part = scores[scores.category == category]
        bins = np.linspace(part.score.min(), part.score.max(), 16)
        for label, name, color, hatch in ((0, "normal", COLORS[0], ""), (1, "anomalous", COLORS[1], "////")):
            found = part.score[part.label == label]
            axes.hist(found, bins=bins, weights=np.full(len(found), 1 / max(1, len(found))) if fractions else None, color=color,
                      alpha=0.6, label=name, hatch=hatch, edgecolor="white", linewidth=0.5)
        axes.set_title(category.replace("_", " "))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=not fractions))
    for axes in grid.flat[:len(categories)][-columns:]:
        axes.set_xlabel(title)
    for axes in grid[:, 0]:
        axes.set_ylabel("fraction of images" if fractions else "images")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def probability_histograms(panels: Mapping[str, np.ndarray], xlabel: str, ylabel: str, columns: int = 2) -> Figure:
    """Histograms of probabilities, as Fig. 2 of artola2024: one panel per entry, all with the same logarithmic count axis.

    panels  title -> values in [0, 1], any shape
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.0 * columns, 1.7 * rows), sharex=True, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    for i, (axes, (title, values)) in enumerate(zip(grid.flat, panels.items(), strict=False)):
        axes.hist(np.asarray(values).ravel(), bins=np.linspace(0, 1, 41), color=COLORS[i % columns],
                  hatch=HATCHES[i % columns], edgecolor="white", linewidth=0.3)
        axes.set(title=title, yscale="log", xlim=(0, 1))
    for axes in grid[-1]:
        axes.set_xlabel(xlabel)
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    return figure


def visible_keys(visible: np.ndarray, grid: tuple[int, int], queries: Sequence[tuple[int, int]]) -> Figure:
    """The keys that each query may attend to: white visible, dark blocked, a cross at the query; one panel per query.

    visible  (N, N) bool, True where the query of the row may attend to the key of the column, N = h * w
    grid     (h, w)
    queries  (y, x) of each query to show
    """
    h, w = grid
    figure, axes_row = plt.subplots(1, len(queries), figsize=(1.9 * len(queries), 2.1), squeeze=False)
    for axes, (y, x) in zip(axes_row[0], queries, strict=True):
        keys = visible[y * w + x].reshape(h, w)
        axes.imshow(keys, cmap="gray", vmin=-0.35, vmax=1)
        axes.plot(x, y, "x", color=COLORS[1], markersize=8, markeredgewidth=2)
        axes.set_title(f"query ({y}, {x}): {int(keys.sum())} keys", fontsize=8.5)
        axes.set(xticks=np.arange(-0.5, w), yticks=np.arange(-0.5, h), xticklabels=[], yticklabels=[])
        axes.tick_params(length=0)
    return figure


def receptive_fields(fields: Mapping[str, ReceptiveField], analytic: Mapping[str, int] | None = None) -> Figure:
    """Gradient norms in shades of black with their bounding boxes, as Fig. 1 of heckler2023; one panel per tap.

    fields    tap -> its receptive field, measured by the gradient
    analytic  tap -> its size in pixels by the analytic formula, written beside the measured size

    The shade is the square root of the gradient's norm, relative to its largest. A box below a quarter of the image's width
    is enlarged in a corner.
    """
    side = 2.4 if len(fields) > 1 else 3.8
    figure, axes_row = plt.subplots(1, len(fields), figsize=(side * len(fields), side + 0.8), squeeze=False)
    for axes, (tap, field) in zip(axes_row[0], fields.items(), strict=True):
        height, width = field.gradient.shape
        top, left, bottom, right = field.box
        beside = f", analytic {analytic[tap]}" if analytic and tap in analytic else ""
        axes.set(xticks=[0, width // 2, width], yticks=[0, height // 2, height], xlabel="pixels")
        axes.set_title(f"{tap}\nmeasured {field.size}{beside}", fontsize=8)
        views = {axes: (0, width, height, 0)}
        if right - left < width / 4:
            margin = (right - left) // 3
            inset = axes.inset_axes((0.62, 0.62, 0.38, 0.38), xticks=[], yticks=[])
            views[inset] = (left - margin, right + margin, bottom + margin, top - margin)
        shade = np.sqrt(np.abs(field.gradient) / max(float(np.abs(field.gradient).max()), 1e-30))
        for view, limits in views.items():
            view.imshow(1 - shade, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
            view.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=COLORS[1],
                                         linewidth=1.4, label="box around the gradients at or above the threshold"))
            view.set(xlim=limits[:2], ylim=limits[2:])
            view.grid(False)
            for spine in view.spines.values():  # the border of the image, which a deep field may reach
                spine.set(visible=True, linewidth=0.6, color="#888")
            if view is not axes:
                axes.indicate_inset_zoom(view, edgecolor="#888", linewidth=0.6)
    figure.legend(*axes_row[0, 0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure


def line_chart(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str,
               title: str = "", levels: Mapping[str, float] | None = None) -> Figure:
    """One line per series with its own color, line style and, up to 60 points, marker.

    series  name -> (x, y)
    levels  name -> y of a thin black line across the chart, such as a threshold
    """
    figure, axes = plt.subplots(figsize=(5.2, 3.0))
    for i, (name, (x, y)) in enumerate(series.items()):
        marker = MARKERS[i % 7] if len(x) <= 60 else ""
        axes.plot(x, y, color=COLORS[i % 7], linestyle=LINES[i % 7], marker=marker, markersize=4, label=name)
    for i, (name, level) in enumerate((levels or {}).items(), start=1):
        axes.axhline(level, color="black", linestyle=LINES[i % 7], linewidth=1, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(fontsize=7.5)
    return figure


def line_panels(panels: Mapping[str, Any], xlabel: str, ylabel: str, columns: int = 4) -> Figure:
    """One panel per table and one line per column, over the table's index; all panels share the y axis and the legend.

    panels  title -> DataFrame; a numeric index gives the x positions, any other index is spaced evenly; NaN leaves a gap
    """
    names = list(dict.fromkeys(name for table in panels.values() for name in table.columns))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.5 * columns + 0.4, 2.2 * rows + 0.5), sharey=True, squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    for axes, (title, table) in zip(grid.flat, panels.items(), strict=False):
        numeric = all(isinstance(value, int | float) for value in table.index)
        x = np.array(table.index, float) if numeric else np.arange(len(table))
        for name in table.columns:
            i = names.index(name)
            axes.plot(x, table[name].to_numpy(float), color=COLORS[i % 7], linestyle=LINES[i % 7], marker=MARKERS[i % 7],
                      markersize=4.5, label=name)
        axes.set(title=title, xlabel=xlabel, xticks=x, xticklabels=[str(value) for value in table.index])
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    found = {label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([found[name] for name in names], names, loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    return figure


def bar_panels(panels: Mapping[str, Any], ylabel: str, columns: int = 2) -> Figure:
    """Bars of counts, as Fig. 2 of heckler2023: one panel per table, one group per row, one bar per column.

    panels  title -> DataFrame; all panels share the integer y axis and the legend
    """
    names = list(dict.fromkeys(name for table in panels.values() for name in table.columns))
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    groups, step = max(len(table) for table in panels.values()), 0.84 / max(1, len(names))
    figure, grid = plt.subplots(rows, columns, figsize=(columns * (1.2 + 1.1 * groups), 1.9 * rows + 0.5), sharey=True,
                                squeeze=False)
    for axes in grid.flat[len(panels):]:
        axes.set_visible(False)
    for axes, (title, table) in zip(grid.flat, panels.items(), strict=False):
        middles = np.arange(len(table))
        for i, name in enumerate(names):
            if name in table:
                axes.bar(middles + step * (i - (len(names) - 1) / 2), table[name].to_numpy(float), 0.9 * step,
                         color=COLORS[i % 7], hatch=HATCHES[i % 7], edgecolor="white", linewidth=0.5, label=name)
        axes.set(title=title, xticks=middles, xticklabels=[str(group).replace("_", " ") for group in table.index])
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.set_axisbelow(True)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in grid[:, 0]:
        axes.set_ylabel(ylabel)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(names)), frameon=False)
    return figure


def grouped_bars(table: Mapping[str, Mapping[str, float]], ylabel: str,
                 errors: Mapping[str, Mapping[str, float]] | None = None,
                 published: Mapping[str, Mapping[str, float]] | None = None, title: str = "",
                 levels: Mapping[str, float] | None = None, numbers: str = "") -> Figure:
    """Groups of bars with one bar per series; each series has its own color and hatch.

    table      group -> series -> value; a missing series leaves a gap in its group
    errors     group -> series -> half the length of the error bar
    published  group -> series -> printed value, drawn as a black line across the bar
    levels     name -> height of a thin dotted line across the chart, such as chance
    numbers    format of the values above the bars, such as '{:.0f}'; empty for none
    """
    series = list(dict.fromkeys(name for group in table.values() for name in group))

    def values(given: Mapping[str, Mapping[str, float]] | None, name: str) -> np.ndarray:
        return np.array([(given or {}).get(group, {}).get(name, np.nan) for group in table], float)

    figure, axes = plt.subplots(figsize=(min(9.0, 1.6 + 0.32 * len(table) * (len(series) + 1)), 3.0), layout="constrained")
    middles, step = np.arange(len(table)), 0.8 / max(1, len(series))
    places = {name: middles + step * (i - (len(series) - 1) / 2) for i, name in enumerate(series)}
    for i, (name, x) in enumerate(places.items()):
        drawn = axes.bar(x, values(table, name), 0.92 * step, color=COLORS[i % 7], hatch=HATCHES[i % 7], edgecolor="white",
                 linewidth=0.5, label=name)
        if numbers:
            axes.bar_label(drawn, fmt=numbers, fontsize=7, padding=2)
        if errors:
            axes.errorbar(x, values(table, name), values(errors, name), fmt="none", ecolor="black", elinewidth=1, capsize=2)
    if published:
        x, printed = np.concatenate(list(places.values())), np.concatenate([values(published, name) for name in places])
        ticks = axes.hlines(printed, x - 0.46 * step, x + 0.46 * step, colors="black", linewidth=2, zorder=3, label="published")
        ticks.set_path_effects([patheffects.withStroke(linewidth=3.4, foreground="white")])
    if numbers:
        axes.margins(y=0.1)
    for name, level in (levels or {}).items():
        axes.axhline(level, color="black", linestyle=":", linewidth=1, label=name)
    axes.set(ylabel=ylabel, title=title, xticks=middles, xticklabels=[group.replace("_", " ") for group in table])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def labeled_points(points: Mapping[str, tuple[float, float]], xlabel: str, ylabel: str, marked: Sequence[str] = ()) -> Figure:
    """Points on logarithmic axes with their names beside them; the `marked` ones have another color and marker.

    points  name -> (x, y)
    """
    figure, axes = plt.subplots(figsize=(5.6, 3.4))
    for name, (x, y) in points.items():
        special = name in marked
        axes.plot(x, y, marker=MARKERS[special], color=COLORS[special], markersize=7 if special else 5, linestyle="none")
        axes.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=8,
                      fontweight="bold" if special else "normal")
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log", yscale="log")
    axes.margins(0.15)
    return figure


def intervals(values: Mapping[str, tuple[float, float]], xlabel: str, title: str = "") -> Figure:
    """Means as points with an error bar of one standard deviation, one row per name.

    values  name -> (mean, standard deviation); no error bar where the deviation is NaN
    """
    figure, axes = plt.subplots(figsize=(5.2, 0.32 * len(values) + 0.9))
    for y, (mean, std) in enumerate(values.values()):
        axes.errorbar(mean, y, xerr=None if std != std else std, fmt=MARKERS[0], color=COLORS[0], capsize=3, markersize=4)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, title=title)
    return figure


def strips(table: Mapping[str, Mapping[str, Sequence[float]]], ylabel: str, title: str = "",
           names: Sequence[Any] = ()) -> Figure:
    """Single values as points in groups, one column of points per series; a black line at the mean of several.

    table  group -> series -> values, such as one per seed or one per image; a missing series leaves a gap in its group
    names  what the i-th value of each series is, such as its seed: values of the same name have the same marker, and a gray
           line joins them within a group
    """
    series = list(dict.fromkeys(name for group in table.values() for name in group))
    step = 0.8 / max(1, len(series))
    figure, axes = plt.subplots(figsize=(min(9.0, 1.6 + 0.5 * len(table) * (len(series) + 0.6)), 3.0), layout="constrained")
    for middle, group in enumerate(table.values()):
        paths: dict[int, list[tuple[float, float]]] = {}
        for i, name in enumerate(series):
            values = np.asarray(group.get(name, ()), float)
            x = middle + step * (i - (len(series) - 1) / 2)
            for j, value in enumerate(values):
                axes.plot(x, value, MARKERS[(j if names else i) % 7], color=COLORS[i % 7], markersize=5, alpha=0.6)
                paths.setdefault(j, []).append((x, value))
            if len(values) > 1:
                axes.hlines(values.mean(), x - 0.3 * step, x + 0.3 * step, colors="black", linewidth=1.6, zorder=3)
        for path in (path for path in paths.values() if names and len(path) > 1):
            axes.plot(*zip(*path, strict=True), color="#888", linewidth=0.8, zorder=1)
    keys = [plt.Line2D([], [], linestyle="", marker="s" if names else MARKERS[i % 7], color=COLORS[i % 7], label=name)
            for i, name in enumerate(series) if name]
    keys += [plt.Line2D([], [], linestyle="", marker=MARKERS[j % 7], color="#888", label=str(name))
             for j, name in enumerate(names)]
    if axes.collections:
        keys.append(plt.Line2D([], [], color="black", label="mean"))
    figure.legend(handles=keys, loc="outside lower center", ncols=5 if names else 4, frameon=False)
    axes.set(ylabel=ylabel, title=title, xticks=range(len(table)), xticklabels=[group.replace("_", " ") for group in table],
             xlim=(-0.6, len(table) - 0.4))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="x", visible=False)
    return figure
