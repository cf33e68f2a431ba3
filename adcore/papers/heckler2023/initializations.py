"""The six initializations of ResNet-50 that the paper compares.

Heckler, König, Bergmann, "Exploring the Importance of Pretrained Feature Extractors for Unsupervised Anomaly Detection and
Localization", CVPR Workshops 2023, supplement Sec. 4, Table 1, Figs. 4 and 5.
"""

from __future__ import annotations

from dataclasses import dataclass

from adcore.errors import ParameterError, did_you_mean
from adcore.features import find_backbone
from adcore.features.statistics import Statistics, statistics_of


@dataclass(frozen=True)
class Initialization:
    """One row of Table 1.

    name     as printed
    weights  value of the setting `weights`: a name of data_manifest.csv, or 'random'
    labels   whether it was trained with ImageNet's labels
    """

    name: str
    weights: str
    labels: bool = False

    @property
    def statistics(self) -> Statistics:
        """Mean and standard deviation with which its training images were normalized."""
        return statistics_of(find_backbone("resnet50"), self.weights)


INITIALIZATIONS = {row.name: row for row in (
    Initialization("MoCo", "moco_v2_800ep"),
    Initialization("SwAV", "swav_800ep"),
    Initialization("SeLa", "selav2_400ep"),
    Initialization("SimCLR", "simclr_v1_resnet50_1x"),
    Initialization("supervised", "resnet50_v2", labels=True),
    # The paper prints weights='DEFAULT' here, which loads trained weights in torchvision. It must mean weights=None.
    Initialization("random", "random"),
)}


def find_initialization(name: str) -> Initialization:
    """A row of Table 1 by its printed name.

    Raises:
        ParameterError: there is no such row.
    """
    if name not in INITIALIZATIONS:
        raise ParameterError(f"unknown initialization '{name}'{did_you_mean(name, INITIALIZATIONS)}; Table 1 has "
                             f"{', '.join(INITIALIZATIONS)}")
    return INITIALIZATIONS[name]


def weights_of(name: str, backbone: str = "resnet50") -> str:
    """Value of the setting `weights` for an initialization of Table 1.

    The checkpoints of Table 1 fit ResNet-50. For any other backbone 'random' stays, and every other row becomes 'default',
    the backbone's own checkpoint.

    Raises:
        ParameterError: there is no such row.
    """
    weights = find_initialization(name).weights
    return weights if backbone == "resnet50" or weights == "random" else "default"
