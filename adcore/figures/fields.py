"""Vector fields over a plane: direction and strength of the gradients of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adcore.errors import ParameterError
from adcore.figures.style import COLORS, LINES, MARKERS

PALE = 2.1       # the gray scale ends at this multiple of the largest value, so that lines on it remain visible
LONGEST = 0.12   # length of the longest arrow as a fraction of the plane's width
WIDEST = 3.0     # width in points of a stream line where the field is strongest
FAINTEST = 0.01  # no line is drawn where the field is below this fraction of the strongest


def vector_fields(x: Any, y: Any, panels: Mapping[str, tuple[Any, Any, str]], boundary: Any = None,
                  marks: Mapping[str, Any] | None = None) -> Figure:
    """One panel per field: stream lines over a quantity in shades of gray, their width proportional to the field's strength.

    x, y      (w,) and (h,) coordinates, evenly spaced and ascending
    panels    title -> vectors (h, w, 2) in the order x, y; shade (h, w); label of the shade
    boundary  (h, w), its zero contour is drawn as a dashed line in every panel
    marks     name -> points (n, 2), drawn in every panel and listed in the legend

    Widths have the same scale in all panels. The bar of a shade within [0, 1] runs from 0 to 1.

    Raises:
        ParameterError: a field that does not have the plane's shape.
    """
    x, y = np.asarray(x), np.asarray(y)
    figure, row = plt.subplots(1, len(panels), figsize=(2.5 * len(panels), 3.3), squeeze=False, sharey=True)
    strongest = max((float(np.linalg.norm(np.asarray(v), axis=-1).max()) for v, _, _ in panels.values()), default=0.0)
    for axes, (title, (vectors, shade, meaning)) in zip(row[0], panels.items(), strict=True):
        vectors, shade = np.asarray(vectors, float), np.asarray(shade)
        if vectors.shape != (len(y), len(x), 2) or shade.shape != (len(y), len(x)):
            raise ParameterError(f"field '{title}' has vectors {vectors.shape} and shade {shade.shape}: expected "
                                 f"({len(y)}, {len(x)}, 2) and ({len(y)}, {len(x)})")
        _shaded(axes, x, y, shade, meaning)
        strength = np.linalg.norm(vectors, axis=2)
        flow = np.where((strength > FAINTEST * strongest)[..., None], vectors, np.nan)
        axes.streamplot(x, y, flow[..., 0], flow[..., 1], color=COLORS[0], density=0.8, arrowsize=0.8,
                        linewidth=WIDEST * strength / max(strongest, 1e-30))
        _landmarks(axes, x, y, boundary, marks)
        axes.set(title=title, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal", xlabel="$u_1$")
        axes.grid(False)
    row[0, 0].set_ylabel("$u_2$")
    _legend(figure, row[0, 0])
    return figure


def arrows(x: Any, y: Any, shade: Any, panels: Mapping[str, tuple[Any, Any, Any]], boundary: Any = None,
           meaning: str = "") -> Figure:
    """One panel per batch: each point with its arrow, or a cross if the filter removes it.

    x, y      (w,) and (h,) coordinates, evenly spaced and ascending
    shade     (h, w) in shades of gray below the points
    panels    title -> points (n, 2), arrows (n, 2), and which points are used, (n,) bool
    boundary  (h, w), its zero contour is drawn as a dashed line
    meaning   label of the shade's bar

    The arrows of all panels have the same scale, which the arrow above the last panel shows.
    """
    x, y, shade = np.asarray(x), np.asarray(y), np.asarray(shade)
    longest = max((float(np.linalg.norm(np.asarray(a), axis=1).max(initial=0)) for _, a, _ in panels.values()), default=0.0)
    figure, row = plt.subplots(1, len(panels), figsize=(3.6 * len(panels), 4.2), squeeze=False, sharey=True)
    for axes, (title, (points, pushes, used)) in zip(row[0], panels.items(), strict=True):
        points, pushes, used = np.asarray(points), np.asarray(pushes), np.asarray(used, bool)
        _shaded(axes, x, y, shade, meaning)
        quiver = axes.quiver(*points[used].T, *pushes[used].T, angles="xy", scale_units="xy", color=COLORS[1], width=0.006,
                             scale=max(longest, 1e-30) / (LONGEST * (x[-1] - x[0])), zorder=3)
        axes.plot(*points[used].T, MARKERS[0], color=COLORS[0], markersize=3.5, linestyle="none", label="used")
        axes.plot(*points[~used].T, "x", color="black", markersize=4.5, linestyle="none", label="removed by the filter")
        _landmarks(axes, x, y, boundary, None)
        axes.set(title=title, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), aspect="equal", xlabel="$u_1$")
        axes.grid(False)
    axes.quiverkey(quiver, 0.8, 1.04, 1.0, "length 1", labelpos="E", coordinates="axes")
    row[0, 0].set_ylabel("$u_2$")
    _legend(figure, row[0, 0])
    return figure


def _shaded(axes: Axes, x: np.ndarray, y: np.ndarray, shade: np.ndarray, meaning: str) -> None:
    """The plane in shades of gray with its bar."""
    low, high = float(shade.min()), float(shade.max())
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    high = max(high, low + 1e-12)
    drawn = axes.pcolormesh(x, y, shade, cmap="Greys", vmin=low, vmax=low + PALE * (high - low), rasterized=True)
    bar = axes.figure.colorbar(drawn, ax=axes, orientation="horizontal", shrink=0.85, aspect=28, label=meaning)
    bar.ax.set_xlim(low, high)


def _landmarks(axes: Axes, x: np.ndarray, y: np.ndarray, boundary: Any, marks: Mapping[str, Any] | None) -> None:
    boundary = np.zeros(1) if boundary is None else np.asarray(boundary)
    if boundary.min() < 0 < boundary.max():
        axes.contour(x, y, boundary, levels=[0], colors=["black"], linestyles=["--"], linewidths=1.2)
        axes.plot([], [], color="black", linestyle=LINES[1], linewidth=1.2, label="as likely normal as outlier")
    for i, (name, points) in enumerate((marks or {}).items(), start=1):
        axes.plot(*np.asarray(points).T, MARKERS[i % 7], color="black", markersize=8, markeredgecolor="white",
                  linestyle="none", label=name, zorder=4)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
