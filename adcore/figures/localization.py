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
from adcore.figures.style import bare, outline
from adcore.metrics import pixel_scores


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
    """Two rows per category: the images, and their maps in shades of red over the paled images. The defect is outlined.

    The best examples are on the left, the failures on the right.

    categories  name -> samples, and the (H, W) map of each sample at the view's size. The maps of a category share one color
                scale, from the median of all its maps, which is transparent, to their 99.5th percentile

    Raises:
        ParameterError: see `best_and_worst`.
    """
    widths = [*[1.0] * best, *([0.12] if best and worst else []), *[1.0] * worst]  # a gap between successes and failures
    height, width = view.shape
    figure, grid = plt.subplots(2 * len(categories), len(widths), squeeze=False, gridspec_kw={"width_ratios": widths},
                                figsize=(1.13 * sum(widths), 1.14 * height / width * 2 * len(categories) + 0.2))
    if isinstance(layout := figure.get_layout_engine(), ConstrainedLayoutEngine):
        layout.set(w_pad=0.015, h_pad=0.015, wspace=0, hspace=0)
    for axes in grid.flat:
        bare(axes)
        axes.set_visible(False)
    for pair, (name, (samples, maps)) in zip(grid.reshape(len(categories), 2, -1), categories.items(), strict=True):
        masks = [np.zeros(view.shape, bool) if s.mask is None else view.mask(s.mask).numpy() for s in samples]
        order = best_and_worst(masks, maps, best, worst)
        low, high = np.percentile(np.stack([np.asarray(one) for one in maps]), (50, 99.5))
        places = [*range(min(best, len(order))), *range(len(widths) - max(0, len(order) - best), len(widths))]
        for place, i in zip(places, order, strict=True):
            image = view.image(samples[i].image).permute(1, 2, 0).numpy()
            for axes, picture, color in zip(pair[:, place], (image, paled(image)), ("#FF2D2D", "black"), strict=True):
                axes.set_visible(True)
                axes.imshow(picture)
                outline(axes, masks[i], color)
            scores = np.asarray(maps[i])
            opacity = ((scores - low) / max(high - low, 1e-12)).clip(0, 0.9)
            pair[1, place].imshow(scores, cmap="YlOrRd", vmin=low, vmax=max(high, low + 1e-12), alpha=opacity)
        pair[0, places[0]].set_ylabel(name.replace("_", " "), fontsize=9.5, fontweight="bold")
        pair[1, places[0]].set_ylabel("map", fontsize=9)
    for title, place in (("best", 0), ("worst", len(widths) - worst)):
        if place < len(widths):
            grid[0, place].set_title(title, fontsize=9.5, loc="left")
    return figure


def paled(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) in [0, 1] in gray, mixed half with white."""
    return np.repeat(0.5 + 0.5 * image.mean(2, keepdims=True), 3, 2)
