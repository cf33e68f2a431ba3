"""Receptive field of a feature: by arithmetic (analytic), and by the gradient at the input (measured).

Heckler, König, Bergmann, "Exploring the Importance of Pretrained Feature Extractors for Unsupervised Anomaly Detection
and Localization", CVPR Workshops 2023, supplement Sec. 1 (receptive field estimation), Sec. 5 and Table 2 (taps).

    analytic    kernels, strides and dilations along the traced graph     -> Field, the area that can influence the feature
    measure     gradient of one feature cell with respect to the image    -> ReceptiveField, the area that does influence it
    linearized  a copy of the network reduced to its geometry             -> its measured field equals the analytic one

A tap is the name of a node in torchvision's feature extraction, 'layer1.2.relu_2'; a module's name means its last node.
"""

from adcore.papers.heckler2023.receptive_field.arithmetic import Field, analytic
from adcore.papers.heckler2023.receptive_field.gradient import ReceptiveField, linearized, measure, ungated

_RESNET_50 = ("layer1.2.relu_2", "layer2.3.relu_2", "layer3.5.relu_2", "layer4.2.relu_2")
TABLE_2: dict[str, tuple[str, ...]] = {
    "resnet50": _RESNET_50,
    "wide_resnet50_2": _RESNET_50,
    "densenet201": tuple(f"features.denseblock{i}.cat" for i in (1, 2, 3, 4)),
    "efficientnet_b5": ("features.2.4.add", "features.3.4.add", "features.5.6.add", "features.6.8.add"),
}
"""The four taps of each architecture that the paper examines (Table 2), under torchvision's names, shallow to deep."""

__all__ = ["TABLE_2", "Field", "ReceptiveField", "analytic", "linearized", "measure", "ungated"]
