"""Figures that the notebooks and the report share: one look, one colour scale for what is compared, readable in grey."""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adcore.data import Dataset, Sample, View, map_name
from adcore.files import atomic, write_json
from adcore.paths import runs_folder

if TYPE_CHECKING:
    from adcore.experiments import ResultTable
    from adcore.receptive_field import ReceptiveField

# Okabe and Ito's colours, told apart by colour-blind readers; each has a line style and a marker of its own as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (5, 2)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HEAT = "inferno"


def use_style() -> None:
    """Fonts, sizes and colours of every figure. Called by each notebook once."""
    plt.rcParams.update({
        "figure.dpi": 100, "savefig.dpi": 100, "savefig.bbox": "tight", "figure.constrained_layout.use": True,
        "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
        "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "grid.linewidth": 0.6, "image.interpolation": "nearest", "axes.prop_cycle": plt.cycler(color=COLOURS)})


def show(figure: Figure) -> None:
    """Show a figure in its notebook and let go of it.

    Photographs are several times smaller as JPEG and charts as PNG: the smaller one is kept in the notebook.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        plt.show()
    else:
        from IPython.display import Image, display
        pictures = {"png": io.BytesIO(), "jpeg": io.BytesIO()}
        figure.savefig(pictures["png"], format="png")
        figure.savefig(pictures["jpeg"], format="jpeg", pil_kwargs={"quality": 76})
        kind, smallest = min(pictures.items(), key=lambda pair: pair[1].tell())
        display(Image(smallest.getvalue(), format=kind))
    plt.close(figure)


def record(figure: Figure, exhibit: str, context: str, profile: str, out: str | Path | None = None) -> None:
    """Keep a figure in the store under its exhibit, where the report finds it.

    context  how it was made, in words
    profile  'quick' when it is a demonstration of the exhibit, 'paper' when it has the paper's settings
    """
    folder = runs_folder(out) / "exhibits"
    with atomic(folder / f"{exhibit}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    write_json(folder / f"{exhibit}.json", {"exhibit": exhibit, "context": context, "profile": profile, "rows": []})


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def outline(axes: Axes, mask: np.ndarray, colour: str = "#FF2D2D") -> None:
    """Draw the border of a mask (H, W); an empty one draws nothing."""
    if mask.any():
        axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.1)


def contact_sheet(dataset: Dataset, columns: int = 7, size: int = 128) -> Figure:
    """A row a category: two normal test images, then one of each kind of defect in turn, with its mask outlined."""
    view = View((size, size))
    rows = dataset.categories
    figure, grid = plt.subplots(len(rows), columns, figsize=(1.25 * columns, 1.4 * len(rows)), squeeze=False)
    for line, category in zip(grid, rows, strict=True):
        samples = _mixed([sample for sample in dataset.test if sample.category == category], columns)
        for axes in line:
            _bare(axes)
        for axes, sample in zip(line, samples, strict=False):
            axes.imshow(view.image(sample.image).permute(1, 2, 0).numpy())
            if sample.label and sample.mask is not None:
                outline(axes, view.mask(sample.mask).numpy())
            axes.set_title(sample.defect.replace("_", " "), fontsize=7.5, pad=2)
        line[0].set_ylabel(category.replace("_", " "), fontsize=9, fontweight="bold")
    return figure


def _mixed(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Two normal samples and then defects of different kinds, as many as asked for."""
    kinds: dict[str, list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(sample.defect, []).append(sample)
    chosen = kinds.pop("good", [])[:2]
    while len(chosen) < count and any(kinds.values()):
        for queue in kinds.values():
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


def heat_maps(samples: Sequence[Sample], maps: Mapping[str, Sequence[np.ndarray]], view: View) -> Figure:
    """A column a sample: the image, its mask, and the anomaly map of each method.

    maps  method -> one (h, w) map a sample, of any size

    A method's maps of one category share a colour scale, from their 1st percentile to their maximum: scaling each image
    by itself would make every normal image look defective.
    """
    rows = 2 + len(maps)
    figure, grid = plt.subplots(rows, len(samples), figsize=(1.2 * len(samples), 1.24 * rows), squeeze=False)
    for axes in grid.flat:
        _bare(axes)
    for column, sample in enumerate(samples):
        image = view.image(sample.image).permute(1, 2, 0).numpy()
        mask = view.mask(sample.mask).numpy() if sample.mask is not None else np.zeros(view.shape, bool)
        grid[0, column].imshow(image)
        title = f"{sample.category}\n{sample.defect}".replace("_", " ")
        grid[0, column].set_title(title, fontsize=7.5, pad=2)
        grid[1, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
        for axes, stack in zip(grid[2:, column], maps.values(), strict=True):
            kin = np.stack([m for m, other in zip(stack, samples, strict=True) if other.category == sample.category])
            axes.imshow(stack[column], cmap=HEAT, vmin=np.percentile(kin, 1), vmax=kin.max(),
                        extent=(-0.5, mask.shape[1] - 0.5, mask.shape[0] - 0.5, -0.5))
            outline(axes, mask, "#66E0FF")
    for axes, label in zip(grid[:, 0], ["image", "mask", *maps], strict=True):
        axes.set_ylabel(label, fontsize=9, fontweight="bold")
    return figure


def stored_maps(dataset: Dataset, tables: Mapping[str, ResultTable], columns: int = 9) -> Figure:
    """Heat maps of test images whose maps are in the store, of several methods on the same images: first a normal and then
    the defective ones of each category in turn.

    tables  method's title -> its results; a map of the first seed is shown
    """
    maps = {title: table.maps() for title, table in tables.items()}
    kept = [sample for sample in dataset.test if all(map_name(sample) in found for found in maps.values())]
    share = max(1, columns // len(dataset.categories))
    chosen: list[Sample] = []
    for category in dataset.categories:
        mine = [sample for sample in kept if sample.category == category]
        chosen += [s for s in mine if not s.label][:1] + [s for s in mine if s.label][::2][: share - 1]
    size = next(iter(maps.values()))[map_name(chosen[0])].shape
    shown = {title: [found[map_name(sample)] for sample in chosen] for title, found in maps.items()}
    return heat_maps(chosen, shown, View(size))


def side_by_side(pictures: Mapping[str, Any]) -> Figure:
    """Titled pictures in a row: (3, H, W) images in [0, 1] as they are, (H, W) maps in the heat colours with a bar."""
    figure, axes_row = plt.subplots(1, len(pictures), figsize=(3.1 * len(pictures), 2.9), squeeze=False)
    for axes, (title, picture) in zip(axes_row[0], pictures.items(), strict=True):
        picture = np.asarray(picture)
        drawn = axes.imshow(picture.transpose(1, 2, 0) if picture.ndim == 3 else picture, cmap=HEAT)
        if picture.ndim == 2:
            figure.colorbar(drawn, ax=axes, shrink=0.85)
        axes.set_title(title)
        _bare(axes)
    return figure


def score_histograms(scores: Any, title: str = "image score") -> Figure:
    """A panel a category: scores of normal and of anomalous test images (columns category, label, score)."""
    categories = list(dict.fromkeys(scores["category"]))
    figure, grid = plt.subplots(1, len(categories), figsize=(2.4 * len(categories), 1.9), squeeze=False)
    for axes, category in zip(grid[0], categories, strict=True):
        part = scores[scores.category == category]
        bins = np.linspace(part.score.min(), part.score.max(), 16)
        for label, name, colour, hatch in ((0, "normal", COLOURS[0], ""), (1, "anomalous", COLOURS[1], "////")):
            axes.hist(part.score[part.label == label], bins=bins, color=colour, alpha=0.6, label=name, hatch=hatch,
                      edgecolor="white", linewidth=0.5)
        axes.set(title=category.replace("_", " "), xlabel=title, yticks=[])
    grid[0, 0].set_ylabel("images")
    grid[0, -1].legend()
    return figure


def visible_keys(visible: np.ndarray, grid: tuple[int, int], queries: Sequence[tuple[int, int]]) -> Figure:
    """What some queries (y, x) may attend to under a (N, N) mask: white visible, dark blocked, a cross at the query."""
    h, w = grid
    figure, axes_row = plt.subplots(1, len(queries), figsize=(1.9 * len(queries), 2.1), squeeze=False)
    for axes, (y, x) in zip(axes_row[0], queries, strict=True):
        keys = visible[y * w + x].reshape(h, w)
        axes.imshow(keys, cmap="gray", vmin=-0.35, vmax=1)
        axes.plot(x, y, "x", color=COLOURS[1], markersize=8, markeredgewidth=2)
        axes.set_title(f"query ({y}, {x}): {int(keys.sum())} keys", fontsize=8.5)
        axes.set(xticks=np.arange(-0.5, w), yticks=np.arange(-0.5, h), xticklabels=[], yticklabels=[])
        axes.tick_params(length=0)
    return figure


def receptive_fields(fields: Mapping[str, ReceptiveField], analytic: Mapping[str, int] | None = None) -> Figure:
    """A panel a tap, as Fig. 1 of heckler2023: the gradient's norm in shades of black and its bounding box."""
    figure, axes_row = plt.subplots(1, len(fields), figsize=(2.4 * len(fields), 2.75), squeeze=False)
    for axes, (tap, field) in zip(axes_row[0], fields.items(), strict=True):
        shade = np.abs(field.gradient) / max(float(np.abs(field.gradient).max()), 1e-30)
        axes.imshow(1 - np.sqrt(shade), cmap="gray", vmin=0, vmax=1)  # the root shows the faint rim, as in print
        top, left, bottom, right = field.box
        axes.add_patch(plt.Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False,
                                     edgecolor=COLOURS[1], linewidth=1.4))
        beside = f", analytic {analytic[tap]}" if analytic and tap in analytic else ""
        axes.set_title(f"{tap}\nmeasured {field.size}{beside}", fontsize=8)
        axes.set(xticks=[], yticks=[])
        axes.grid(False)
        for spine in axes.spines.values():  # the image's edge, which a deep field may touch
            spine.set(visible=True, linewidth=0.6, color="#888")
    return figure


def line_chart(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, ylabel: str,
               title: str = "") -> Figure:
    """Named (x, y) series, each with a colour, a line style and a marker of its own."""
    figure, axes = plt.subplots(figsize=(5.2, 3.0))
    for i, (name, (x, y)) in enumerate(series.items()):
        axes.plot(x, y, color=COLOURS[i % 7], linestyle=LINES[i % 7], marker=MARKERS[i % 7], markersize=4, label=name)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.legend(fontsize=7.5)
    return figure
