"""Figures of color transport: the images, and their colors as points by red and blue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from adcore.figures.style import bare
from adcore.papers.artola2024.color import chroma


def color_transport(source: Any, target: Any, moved: Mapping[str, Sequence[Any]], titles: Sequence[str]) -> Figure:
    """One row per method, as in Fig. 1 of artola2024: source, target, then the transported images, each with its chroma.

    source, target  (3, H, W) in [0, 1]; their sizes may differ
    moved           label of the row -> images (3, H, W), clipped for display only
    titles          column titles of the transported images
    """
    columns = ["source", "target", *titles]
    heights = np.asarray(source).shape[1] / np.asarray(source).shape[2]
    figure, grid = plt.subplots(len(moved), len(columns), squeeze=False,
                                figsize=(1.75 * len(columns), (1.75 * heights + 0.3) * len(moved)))
    for row, (line, (label, images)) in enumerate(zip(grid, moved.items(), strict=True)):
        for axes, title, picture in zip(line, columns, [source, target, *images], strict=True):
            axes.imshow(_displayed(picture))
            axes.set_anchor("N")  # align the top edges of images of different heights
            bare(axes)
            axes.set_xlabel(f"chroma {float(chroma(torch.as_tensor(np.asarray(picture))[None])):.3f}", fontsize=8, labelpad=2)
            if row == 0:
                axes.set_title(title)
        line[0].set_ylabel(label, fontsize=9, fontweight="bold")
    return figure


def color_clouds(pictures: Mapping[str, Any], points: int = 800) -> Figure:
    """One panel per image (3, H, W): `points` of its pixels, in their own colors, by their red and blue.

    On the dashed line both are equal, as in every gray image. The title gives the root mean square (RMS) of R - B over all
    pixels. All panels have equal limits.
    """
    clouds = {title: _some(np.asarray(picture), points) for title, picture in pictures.items()}
    shown = np.concatenate(list(clouds.values()))[:, ::2]
    low, high = min(0.0, float(shown.min())), max(1.0, float(shown.max()))
    figure, row = plt.subplots(1, len(clouds), figsize=(2.3 * len(clouds), 2.7), squeeze=False, sharey=True)
    for axes, (title, cloud) in zip(row[0], clouds.items(), strict=True):
        red, _, blue = np.asarray(pictures[title])
        axes.scatter(*cloud[:, ::2].T, c=cloud.clip(0, 1), s=7, edgecolors="#666666", linewidths=0.2)
        axes.plot([0, 1], [0, 1], color="black", linewidth=1.1, linestyle="--", zorder=0.5)
        axes.set(title=f"{title}\nRMS of R \u2212 B: {np.sqrt(np.mean((red - blue) ** 2)):.3f}", xlabel="R",
                 xlim=(low - 0.03, high + 0.03), ylim=(low - 0.03, high + 0.03), aspect="equal")
    row[0, 0].set_ylabel("B")
    return figure


def _displayed(picture: Any) -> np.ndarray:
    return np.asarray(picture).clip(0, 1).transpose(1, 2, 0)


def _some(picture: np.ndarray, points: int) -> np.ndarray:
    """Colors of pixels drawn at random, (points, 3); the same pixels for images of the same size."""
    pixels = picture.reshape(3, -1).T
    return pixels[np.random.default_rng(0).permutation(len(pixels))[:points]]
