"""Figures of color transport: the images, and their colors as points in the cube of red, green and blue."""

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


def color_clouds(pictures: Mapping[str, Any], points: int = 1500) -> Figure:
    """One cube of red, green and blue per image (3, H, W), with `points` of its pixels as points in their own colors.

    Each cube shows the dashed line from black to white, on which the points of a gray image lie. All cubes have equal limits.
    """
    clouds = {title: _some(np.asarray(picture), points) for title, picture in pictures.items()}
    everything = np.concatenate(list(clouds.values()))
    low, high = min(0.0, float(everything.min())), max(1.0, float(everything.max()))
    figure = plt.figure(figsize=(2.35 * len(clouds), 2.45))
    for column, (title, cloud) in enumerate(clouds.items(), start=1):
        axes: Any = figure.add_subplot(1, len(clouds), column, projection="3d")
        axes.scatter(*cloud.T, c=cloud.clip(0, 1), s=5, edgecolors="#333333", linewidths=0.15, depthshade=False)
        axes.plot([0, 1], [0, 1], [0, 1], color="black", linewidth=0.9, linestyle="--")
        axes.set(xlim=(low, high), ylim=(low, high), zlim=(low, high), xticks=[0, 1], yticks=[1], zticks=[1])
        axes.set_title(title, y=0.99, pad=0)
        for name, label in (("x", "R"), ("y", "G"), ("z", "B")):
            getattr(axes, f"set_{name}label")(label, labelpad=-12)
            axes.tick_params(axis=name, pad=-4, labelsize=7)
        axes.view_init(elev=18, azim=-62)
        axes.set_box_aspect((1, 1, 1), zoom=1.0)
    return figure


def _displayed(picture: Any) -> np.ndarray:
    return np.asarray(picture).clip(0, 1).transpose(1, 2, 0)


def _some(picture: np.ndarray, points: int) -> np.ndarray:
    """Colors of pixels drawn at random, (points, 3); the same pixels for images of the same size."""
    pixels = picture.reshape(3, -1).T
    return pixels[np.random.default_rng(0).permutation(len(pixels))[:points]]
