"""Successful and failed localizations, as in Figures 1 to 5 of DS2's supplement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from adcore.data import Sample, View
from adcore.errors import ParameterError
from adcore.figures.style import HEAT, bare
from adcore.metrics import pixel_scores

RED = np.array([1.0, 0.1, 0.1])


def best_and_worst(masks: Sequence[Any], maps: Sequence[Any], best: int = 6, worst: int = 2) -> list[int]:
    """Indices of the images with the best localization, best first, then of the worst ones, worst last.

    Images are ranked by their own pixel AUROC; images with an empty mask are left out, and no image appears twice. The paper
    does not say how its examples were chosen.

    Raises:
        ParameterError: another number of masks than maps, or no mask that marks a pixel.
    """
    if len(masks) != len(maps):
        raise ParameterError(f"{len(masks)} masks for {len(maps)} maps: give one for each")
    aurocs = {}
    for number, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        mask, scores = np.asarray(mask, dtype=bool), np.asarray(scores)
        if mask.any() and not mask.all():
            aurocs[number] = pixel_scores([mask], [scores]).auroc or 0.0
    if not aurocs:
        raise ParameterError("no mask marks a pixel: localization can only be ranked on images with a defect")
    order = sorted(aurocs, key=lambda number: -aurocs[number])
    failed = order[best:][-worst:] if worst else []
    return order[:best] + failed


def localizations(categories: Mapping[str, tuple[Sequence[Sample], Sequence[Any]]], view: View, best: int = 6,
                  worst: int = 2) -> Figure:
    """One row per example and three columns per category: image, ground truth in red, map overlaid on the image.

    The best examples come first; a line separates the failures below.

    categories  name -> samples, and the (H, W) map of each sample at the view's size. The maps of a category share one color
                scale, from the median of all its maps to their 99.5th percentile

    Raises:
        ParameterError: see `best_and_worst`.
    """
    chosen = {}
    for name, (samples, maps) in categories.items():
        masks = [np.zeros(view.shape, bool) if s.mask is None else view.mask(s.mask).numpy() for s in samples]
        chosen[name] = [(samples[i], masks[i], maps[i]) for i in best_and_worst(masks, maps, best, worst)]
    rows = max(map(len, chosen.values()))
    # A narrow empty column between categories.
    widths = ([1, 1, 1, 0.12] * len(chosen))[:-1]
    figure, grid = plt.subplots(rows, len(widths), figsize=(sum(widths) * 0.84, 0.86 * rows + 0.3), squeeze=False,
                                gridspec_kw={"width_ratios": widths, "wspace": 0.02, "hspace": 0.02})
    if isinstance(layout := figure.get_layout_engine(), ConstrainedLayoutEngine):
        layout.set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for axes in grid.flat:
        bare(axes)
        axes.set_visible(False)
    for number, (name, examples) in enumerate(chosen.items()):
        low, high = np.percentile(np.stack([np.asarray(one) for one in categories[name][1]]), (50, 99.5))
        for row, (sample, mask, scores) in enumerate(examples):
            image = view.image(sample.image).permute(1, 2, 0).numpy()
            for axes, picture in zip(grid[row, 4 * number:], (image, marked(image, mask), image), strict=False):
                axes.set_visible(True)
                axes.imshow(picture)
            height, width = view.shape
            grid[row, 4 * number + 2].imshow(np.asarray(scores), cmap=HEAT, vmin=low, vmax=max(high, low + 1e-12), alpha=0.65,
                                             extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        for axes, title in zip(grid[0, 4 * number:], ("image", "gt", "map"), strict=False):
            axes.set_title(title, fontsize=8, pad=2)
        grid[0, 4 * number + 1].annotate(name.replace("_", " "), (0.5, 1), (0, 15), "axes fraction", "offset points",
                                         ha="center", fontsize=9.5, fontweight="bold")
        for axes in grid[best, 4 * number:4 * number + 3] if len(examples) > best else ():
            axes.plot([-0.04, 1.04], [1.06, 1.06], color="black", linewidth=1.4, transform=axes.transAxes, clip_on=False)
    return figure


def marked(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) in [0, 1] with the masked pixels mixed half with red."""
    shown = image.copy()
    shown[mask] = (shown[mask] + RED) / 2
    return shown
