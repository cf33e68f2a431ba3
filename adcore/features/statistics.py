"""Mean and standard deviation with which images must be normalized for a backbone and its weights.

A checkpoint does not store how its training images were normalized. Checkpoints that differ from their backbone's usual
normalization are listed here by their name in data_manifest.csv.
"""

from __future__ import annotations

from pathlib import Path

from adcore.features.backbones import Backbone

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each color

STATISTICS: dict[str, Statistics] = {
    "simclr_v1_resnet50_1x": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # trained on pixels in [0, 1] as they are
}


def statistics_of(backbone: Backbone, weights: str | Path | None) -> Statistics:
    """Mean and standard deviation for a backbone with these weights; a file given by its path has the backbone's own."""
    return STATISTICS.get(str(weights), (backbone.mean, backbone.std))
