"""The six initializations of ResNet-50 that heckler2023 compares (supplement, Table 1): where each comes from, what it expects.

A checkpoint by itself does not say how its images were normalized. What is known stands here, by the checkpoint's name in
data_manifest.csv; any other takes its backbone's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adcore.errors import ParameterError, did_you_mean
from adcore.features.backbones import IMAGENET, Backbone

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Pretraining:
    """One row of Table 1.

    name        as the paper prints it
    weights     what to pass as `weights`: a name of data_manifest.csv, or 'random'
    labels      whether it was trained with ImageNet's labels
    statistics  mean and standard deviation by which its images were normalized
    """

    name: str
    weights: str
    labels: bool = False
    statistics: Statistics = IMAGENET


PRETRAININGS = {row.name: row for row in (
    Pretraining("MoCo", "moco_v2_800ep"),
    Pretraining("SwAV", "swav_800ep"),
    Pretraining("SeLa", "selav2_400ep"),
    # SimCLR was trained on pixels in [0, 1], with no mean or deviation taken off.
    Pretraining("SimCLR", "simclr_v1_resnet50_1x", statistics=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))),
    Pretraining("supervised", "resnet50_v2", labels=True),
    # The paper prints weights='DEFAULT' here, which loads trained weights in torchvision. It must mean none.
    Pretraining("random", "random"),
)}


def find_pretraining(name: str) -> Pretraining:
    """A row of Table 1 by its printed name.

    Raises:
        ParameterError: there is no such row.
    """
    if name not in PRETRAININGS:
        raise ParameterError(f"unknown pretraining '{name}'{did_you_mean(name, PRETRAININGS)}; Table 1 has "
                             f"{', '.join(PRETRAININGS)}")
    return PRETRAININGS[name]


def statistics_of(backbone: Backbone, weights: str | Path | None) -> Statistics:
    """Mean and standard deviation for a backbone with these weights; a file given by its path takes the backbone's own."""
    known = {row.weights: row.statistics for row in PRETRAININGS.values() if row.weights != "random"}
    return known.get(str(weights), (backbone.mean, backbone.std))
