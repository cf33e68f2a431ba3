"""Figures that show images, masks and anomaly maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adcore.data import Dataset, Sample, View, map_name
from adcore.figures.style import COLORS, HEAT, bare, outline

if TYPE_CHECKING:
    from adcore.experiments import ResultTable


def contact_sheet(dataset: Dataset, columns: int = 7, size: int = 128) -> Figure:
    """Test images, one row per category: two normal ones, then defective ones with their masks outlined, kind by kind."""
    view = View((size, size))
    rows = dataset.categories
    figure, grid = plt.subplots(len(rows), columns, figsize=(1.25 * columns, 1.4 * len(rows)), squeeze=False)
    for line, category in zip(grid, rows, strict=True):
        samples = _mixed([sample for sample in dataset.test if sample.category == category], columns)
        for axes in line:
            bare(axes)
        for axes, sample in zip(line, samples, strict=False):
            axes.imshow(view.image(sample.image).permute(1, 2, 0).numpy())
            if sample.label and sample.mask is not None:
                outline(axes, view.mask(sample.mask).numpy())
            axes.set_title(sample.defect.replace("_", " "), fontsize=7.5, pad=2)
        line[0].set_ylabel(category.replace("_", " "), fontsize=9, fontweight="bold")
    return figure


def _mixed(samples: Sequence[Sample], count: int) -> list[Sample]:
    """Up to `count` samples: two normal ones, then defective ones, the kinds of defects in turn."""
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
    """The image, its mask if there is one, and the anomaly map of each method, one column per sample.

    maps  method -> one (h, w) map per sample, of any size

    All maps of one method and category have the same color scale, from their 1st percentile to their maximum: with a scale
    for each image, every normal image would look defective.
    """
    rows = 2 + len(maps)
    figure, grid = plt.subplots(rows, len(samples), figsize=(1.2 * len(samples), 1.24 * rows), squeeze=False)
    for axes in grid.flat:
        bare(axes)
    for column, sample in enumerate(samples):
        image = view.image(sample.image).permute(1, 2, 0).numpy()
        mask = None if sample.mask is None else view.mask(sample.mask).numpy()
        grid[0, column].imshow(image)
        title = f"{sample.category}\n{sample.defect}".replace("_", " ")
        grid[0, column].set_title(title, fontsize=7.5, pad=2)
        if mask is None:
            grid[1, column].annotate("no mask", (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", fontsize=7.5)
        else:
            grid[1, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
        for axes, stack in zip(grid[2:, column], maps.values(), strict=True):
            _draw_map(axes, stack[column], _category_limits(stack, samples, sample.category), view.shape)
            if mask is not None:
                outline(axes, mask, "#66E0FF")
    for axes, label in zip(grid[:, 0], ["image", "mask", *maps], strict=True):
        axes.set_ylabel(label, fontsize=9, fontweight="bold")
    return figure


def _category_limits(maps: Sequence[Any], samples: Sequence[Sample], category: str) -> tuple[float, float]:
    """The color scale of all maps of a category: from their 1st percentile to their maximum."""
    stack = np.stack([np.asarray(one) for one, sample in zip(maps, samples, strict=True) if sample.category == category])
    return float(np.percentile(stack, 1)), float(stack.max())


def _draw_map(axes: Axes, scores: Any, limits: tuple[float, float], shape: tuple[int, int]) -> None:
    """Draw an anomaly map (h, w), enlarged to the size (H, W) of the images."""
    low, high = limits
    axes.imshow(np.asarray(scores), cmap=HEAT, vmin=low, vmax=high, extent=(-0.5, shape[1] - 0.5, shape[0] - 0.5, -0.5))


def reconstructions(samples: Sequence[Sample], pictures: Mapping[str, Sequence[Any]], view: View,
                    masks: bool = True, size: float = 1.3) -> Figure:
    """The input and further pictures of each sample, one row per sample, as Figs. S2 and S3 of uniad2022.

    pictures  title of the column -> one picture per sample, of any size: an image (3, H, W) in [0, 1], an anomaly map (h, w),
              drawn in heat colors, or a bool mask (h, w), drawn in black and white
    masks     outline each sample's defect on the input and on the anomaly maps
    size      width of each picture in inches

    All maps of one column and category have the same color scale, as in `heat_maps`.
    """
    height, width = view.shape
    columns = 1 + len(pictures)
    figure, grid = plt.subplots(len(samples), columns, figsize=(size * columns, 1.03 * size * height / width * len(samples)),
                                squeeze=False)
    for row, (line, sample) in enumerate(zip(grid, samples, strict=True)):
        defect = view.mask(sample.mask).numpy() if masks and sample.mask is not None else np.zeros(view.shape, bool)
        line[0].imshow(view.image(sample.image).permute(1, 2, 0).numpy())
        outline(line[0], defect)
        line[0].set_ylabel(f"{sample.category}\n{sample.defect}".replace("_", " "), fontsize=7.5)
        for axes, column in zip(line[1:], pictures.values(), strict=True):
            picture = np.asarray(column[row])
            if picture.ndim == 3:
                axes.imshow(picture.transpose(1, 2, 0))
            elif picture.dtype == bool:
                axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
            else:
                _draw_map(axes, picture, _category_limits(column, samples, sample.category), view.shape)
                outline(axes, defect, "#66E0FF")
    for axes, title in zip(grid[0], ["input", *pictures], strict=True):
        axes.set_title(title, fontweight="bold")
    for axes in grid.flat:
        bare(axes)
    return figure


def largest_defects(dataset: Dataset, view: View, kinds: int) -> list[Sample]:
    """Test images with large defects: for each category, the image with the largest mask of each kind of defect.

    kinds  how many kinds per category, those with the largest masks; the images are in descending order of mask pixels

    Images without a mask are skipped.
    """
    chosen: list[Sample] = []
    for category in dataset.categories:
        largest: dict[str, tuple[int, Sample]] = {}
        for sample in dataset.test:
            if sample.category == category and sample.label and (mask := sample.mask) is not None:
                area = int(view.mask(mask).sum())
                if area >= largest.get(sample.defect, (0, sample))[0]:
                    largest[sample.defect] = area, sample
        ranked = sorted(largest.values(), key=lambda pair: -pair[0])
        chosen += [sample for _, sample in ranked[:kinds]]
    return chosen


def overlay(image: Any, errors: Any) -> np.ndarray:
    """The mean of an image and its anomaly map in heat colors, as in the maps of uniad2022.

    The color scale runs from the map's minimum to its maximum. (3, H, W) in [0, 1] and (H, W) -> (3, H, W).
    """
    errors = np.asarray(errors)
    low, high = errors.min(), errors.max()
    fractions = (errors - low) / (high - low) if high > low else np.zeros_like(errors)
    heat = colormaps[HEAT](fractions)[..., :3]                                          # (H, W, 3), without transparency
    return 0.5 * np.asarray(image) + 0.5 * heat.transpose(2, 0, 1)


def stored_maps(dataset: Dataset, methods: Mapping[str, ResultTable | Mapping[str, np.ndarray]], columns: int = 9) -> Figure:
    """Heat maps of several methods on the same test images.

    methods  title of the method -> its results, of which the stored maps of the first seed are shown, or its maps by name

    Each category has a normal image, then defective ones; `columns` is the approximate number of images in total.
    """
    maps = {title: one if isinstance(one, Mapping) else one.maps() for title, one in methods.items()}
    available = [sample for sample in dataset.test if all(map_name(sample) in found for found in maps.values())]
    count = max(1, columns // len(dataset.categories))
    chosen: list[Sample] = []
    for category in dataset.categories:
        samples = [sample for sample in available if sample.category == category]
        chosen += [s for s in samples if not s.label][:1] + [s for s in samples if s.label][::2][: count - 1]
    size = next(iter(maps.values()))[map_name(chosen[0])].shape
    shown = {title: [found[map_name(sample)] for sample in chosen] for title, found in maps.items()}
    return heat_maps(chosen, shown, View(size))


def side_by_side(pictures: Mapping[str, Any], *, one_scale: bool = False) -> Figure:
    """Pictures in one row with their titles: images (3, H, W) in [0, 1], or maps (H, W) in heat colors with a color bar.

    one_scale  all maps share the colors, from the lowest value to the highest
    """
    maps = [np.asarray(picture) for picture in pictures.values() if np.asarray(picture).ndim == 2]
    limits = {"vmin": min(map(np.min, maps)), "vmax": max(map(np.max, maps))} if one_scale and maps else {}
    figure, axes_row = plt.subplots(1, len(pictures), figsize=(3.1 * len(pictures), 2.9), squeeze=False)
    for axes, (title, picture) in zip(axes_row[0], pictures.items(), strict=True):
        picture = np.asarray(picture)
        drawn = axes.imshow(picture.transpose(1, 2, 0) if picture.ndim == 3 else picture, cmap=HEAT, **limits)
        if picture.ndim == 2:
            figure.colorbar(drawn, ax=axes, shrink=0.85)
        axes.set_title(title)
        bare(axes)
    return figure


def framed(rows: Mapping[str, Sequence[tuple[Any, str, int] | None]]) -> Figure:
    """Rows of framed pictures: a solid blue frame for normal ones, a dashed orange frame for anomalous ones.

    rows  label of the row -> its pictures: (picture, title, 0 for normal or 1 for anomalous), or None for a half-width gap
    """
    width, step = max(sum(1.0 if item else 0.5 for item in items) for items in rows.values()), 1.28
    figure, axes = plt.subplots(figsize=(0.8 * width + 1, 0.8 * step * len(rows) + 0.35))
    for y, items in zip(np.arange(len(rows)) * step, rows.values(), strict=True):
        x = 0.0
        for item in items:
            if item:
                picture, title, label = item
                axes.imshow(np.asarray(picture), extent=(x + 0.07, x + 0.93, y + 1.18, y + 0.32), cmap="gray")
                axes.add_patch(plt.Rectangle((x + 0.07, y + 0.32), 0.86, 0.86, fill=False, edgecolor=COLORS[label],
                                             linewidth=2, linestyle="--" if label else "-"))
                axes.text(x + 0.5, y + 0.26, title, ha="center", va="bottom", fontsize=7.5)
            x += 1.0 if item else 0.5
    bare(axes)
    axes.set(xlim=(0, width), ylim=(len(rows) * step, 0), aspect="equal")
    axes.set_yticks(np.arange(len(rows)) * step + 0.75, list(rows), fontsize=9, fontweight="bold")
    axes.tick_params(length=0)
    keys = [plt.Rectangle((0, 0), 1, 1, fill=False, edgecolor=COLORS[label], linewidth=2, linestyle="--" if label else "-",
                          label=name) for label, name in enumerate(("normal", "anomalous"))]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False)
    return figure
