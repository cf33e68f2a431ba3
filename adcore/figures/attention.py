"""Attention maps: heat maps over images, boxes, and two kinds of maps side by side (Fig. 1 of atacnet)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from adcore.figures.pictures import overlay
from adcore.figures.style import bare, outline


def heated(image: Any, where: Any) -> np.ndarray:
    """A map as heat colors over its image, upsampled bilinearly: (3, H, W), (h, w) -> (3, H, W)."""
    image, where = np.asarray(image), torch.as_tensor(np.asarray(where), dtype=torch.float32)
    large = F.interpolate(where[None, None], image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    return overlay(image, large.numpy())


def boxed(image: Any, box: Sequence[int], width: int = 2, color: str = "#66E0FF") -> np.ndarray:
    """A picture with a frame along the inner edge of a box: (3, H, W), (top, left, bottom, right) -> (3, H, W)."""
    picture = np.asarray(image).astype(np.float32)  # a copy
    top, left, bottom, right = (int(side) for side in box)
    frame = np.zeros(picture.shape[-2:], bool)
    frame[top:bottom, left:right] = True
    frame[top + width:bottom - width, left + width:right - width] = False
    picture[:, frame] = np.asarray(to_rgb(color), dtype=np.float32)[:, None]
    return picture


def activation_pairs(rows: Mapping[str, Sequence[tuple[str, Any, Any, Any]]], names: tuple[str, str]) -> Figure:
    """Pairs of pictures, as in Fig. 1 of atacnet: in each row several examples, each with a left and a right picture.

    rows   label of the row -> (title, left picture (3, H, W), right picture (3, H, W), mask) of each example; the defect that
           the mask (H, W) marks is outlined in both pictures; None without a mask
    names  of the left and the right pictures
    """
    most = max(len(row) for row in rows.values())
    height, width = np.asarray(next(iter(rows.values()))[0][1]).shape[-2:]
    figure, grid = plt.subplots(len(rows), 2 * most, squeeze=False,
                                figsize=(2.9 * most, 1.45 * height / width * len(rows) + 0.5))
    for line, (label, examples) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(label, fontweight="bold", rotation=0, labelpad=10, va="center")
        for i, (title, *pair, mask) in enumerate(examples):
            for axes, picture in zip(line[2 * i:2 * i + 2], pair, strict=True):
                axes.imshow(np.clip(np.asarray(picture).transpose(1, 2, 0), 0, 1))
                if mask is not None:
                    outline(axes, np.asarray(mask))
            line[2 * i].set_title(title, fontsize=8, loc="left")
        for axes in line[2 * len(examples):]:
            axes.set_visible(False)
    for axes in grid.flat:
        bare(axes)
    for column in range(2 * most):
        lowest = [axes for axes in grid[:, column] if axes.get_visible()][-1]
        lowest.set_xlabel(names[column % 2], fontsize=8)
    return figure
