"""An image with what is cut out of it or laid over it: two views and their positive pairs (DS2), grids of feature cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch, Rectangle

from adcore.errors import ParameterError
from adcore.figures.style import COLORS, bare


def paired_views(image: Any, views: tuple[Any, Any], boxes: tuple[Any, Any], grid: tuple[int, int],
                 pairs: Mapping[str, Any]) -> Figure:
    """Draw the image with both crops outlined, then both views with a line for each positive pair of positions.

    image  (3, H, W) in [0, 1]
    views  (3, S, S) in [0, 1] each
    boxes  (4,) each, (x0, y0, x1, y1) with 0 and 1 the image's first and last pixel; x0 > x1 if the view is flipped
    grid   (h, w), number of positions of a view
    pairs  name of a rule -> (h * w, h * w) bool, True where position i of view 1 is paired with position j of view 2

    Raises:
        ParameterError: pairs of another shape.
    """
    h, w = grid
    for name, mask in pairs.items():
        if tuple(np.shape(mask)) != (h * w, h * w):
            raise ParameterError(f"pairs '{name}' are {tuple(np.shape(mask))} for views of {h}x{w} positions: expected "
                                 f"{(h * w, h * w)}")
    figure, (whole, left, right) = plt.subplots(1, 3, figsize=(8.4, 3), gridspec_kw={"wspace": 0.12}, layout="none")
    shown = _picture(image)
    whole.imshow(shown)
    for number, (axes, view, box) in enumerate(zip((left, right), views, boxes, strict=True)):
        x0, y0, x1, y1 = (float(v) for v in box)
        height, width = shown.shape[:2]
        corner = (min(x0, x1) * (width - 1) - 0.5, y0 * (height - 1) - 0.5)
        whole.add_patch(Rectangle(corner, abs(x1 - x0) * (width - 1) + 1, (y1 - y0) * (height - 1) + 1, fill=False,
                                  linewidth=2, edgecolor=COLORS[number]))
        picture = _picture(view)
        axes.imshow(picture, extent=(0, w, h, 0))
        axes.set(xticks=range(w + 1), yticks=range(h + 1))
        axes.grid(color="white", linewidth=0.4, alpha=0.6)
        axes.set_title(f"view {number + 1}{', flipped' if x0 > x1 else ''}", fontsize=9, color=COLORS[number])
        for spine in axes.spines.values():
            spine.set(visible=True, color=COLORS[number], linewidth=2)
        axes.tick_params(length=0, labelbottom=False, labelleft=False)
    bare(whole)
    whole.set_title("image", fontsize=9)
    lines = []
    for number, (name, mask) in enumerate(pairs.items()):
        color = COLORS[2 + number]
        for i, j in np.argwhere(np.asarray(mask)):
            line = ConnectionPatch((i % w + 0.5, i // w + 0.5), (j % w + 0.5, j // w + 0.5), "data", "data", axesA=left,
                                   axesB=right, color=color, linewidth=1.6, arrowstyle="-", shrinkA=0, shrinkB=0, zorder=5)
            figure.add_artist(line)
        lines.append(plt.Line2D([], [], color=color, label=f"{name} ({int(np.sum(np.asarray(mask)))})"))
    figure.legend(handles=lines, loc="lower center", ncols=len(lines), bbox_to_anchor=(0.63, -0.07), fontsize=9)
    return figure


def cell_centers(image: Any, panels: Mapping[str, Mapping[str, tuple[float, int]]]) -> Figure:
    """Draw where the cells of feature maps lie on an image: one panel per map, one marker per grid.

    image   (3, H, W) in [0, 1]
    panels  title -> {label of a grid: (center of the first cell, distance of two cells)}, both in pixels
    """
    shown = _picture(image)
    figure, axes = plt.subplots(1, len(panels), figsize=(3.3 * len(panels), 3.7), squeeze=False)
    for part, (title, grids) in zip(axes[0], panels.items(), strict=True):
        part.imshow(shown.mean(2), cmap="gray", alpha=0.45)
        for number, (label, (first, step)) in enumerate(grids.items()):
            x, y = (np.arange(first, side, step) for side in (shown.shape[1], shown.shape[0]))
            part.plot(*map(np.ravel, np.meshgrid(x, y)), linestyle="", marker="o+"[number % 2], markersize=4 + number % 2,
                      color=COLORS[number], markerfacecolor="none", label=label, clip_on=False)
        bare(part)
        part.set_title(title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


def _picture(image: Any) -> np.ndarray:
    return np.clip(np.moveaxis(np.asarray(image), 0, 2), 0, 1)
