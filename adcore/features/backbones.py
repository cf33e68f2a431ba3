"""Backbones by name: the library that builds them, the ends of their stages, the normalization of their input, their
checkpoint.

A tap is a stage number or the name of a node of the network's graph. The stages of EfficientNets are those of the published
UniAD code; in timm's numbering, stage s ends with `blocks.{0, 1, 2, 4, 6}[s - 1]`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import timm
import torch
import torchvision
from torch import nn

from adcore.errors import ParameterError, did_you_mean
from adcore.features.static_padding import pad_statically

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

_EFFICIENTNET = {1: "blocks.0", 2: "blocks.1", 3: "blocks.2", 4: "blocks.4", 5: "blocks.6"}
_RESNET = {1: "layer1", 2: "layer2", 3: "layer3", 4: "layer4"}
_DENSENET = {stage: f"features.denseblock{stage}" for stage in (1, 2, 3, 4)}
_EFFICIENTNET_TV = {1: "features.1", 2: "features.2", 3: "features.3", 4: "features.5", 5: "features.7"}


@dataclass(frozen=True)
class Backbone:
    """A network and how to use it.

    library    'torchvision' or 'timm'
    model      its name there
    weights    name in data_manifest.csv of the checkpoint that the papers use; '' if the manifest has none
    stages     stage number -> node where the stage ends
    mean, std  of each color, for the normalization of images
    native     side of the images from which all padding is computed, see `static_padding`; 0 for the library's own padding
    """

    name: str
    library: str
    model: str
    weights: str = ""
    stages: dict[int, str] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    native: int = 0

    def build(self, seed: int = 0) -> nn.Module:
        """The network with random weights drawn from `seed`; torch's global random state does not change."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.library == "timm":
                network = timm.create_model(self.model, pretrained=False)
                return pad_statically(network, self.native) if self.native else network
            return torchvision.models.get_model(self.model, weights=None)


def _known() -> dict[str, Backbone]:
    known = [Backbone(f"efficientnet_lite{n}", "timm", f"tf_efficientnet_lite{n}", f"efficientnet_lite{n}",
                      _EFFICIENTNET, *HALF) for n in (0, 1, 2)]
    # UniAD uses the package EfficientNet-PyTorch, which has its own checkpoints and pads for the native size.
    known += [Backbone(f"efficientnet_b{n}", "timm", f"tf_efficientnet_b{n}", f"efficientnet_b{n}_lukemelas",
                       _EFFICIENTNET, native=side) for n, side in ((0, 224), (2, 260), (4, 380), (6, 528))]
    known += [Backbone("efficientnet_b5", "torchvision", "efficientnet_b5", "efficientnet_b5", _EFFICIENTNET_TV)]
    known += [Backbone(name, "torchvision", name, weights, _RESNET) for name, weights in (
        ("resnet18", "resnet18"), ("resnet34", "resnet34"), ("resnet50", "resnet50_v1"), ("resnet101", "resnet101_v1"),
        ("wide_resnet50_2", "wide_resnet50_2_v1"))]
    known += [Backbone("densenet201", "torchvision", "densenet201", "densenet201", _DENSENET)]
    return {backbone.name: backbone for backbone in known}


BACKBONES: dict[str, Backbone] = _known()


def find_backbone(name: str) -> Backbone:
    """A backbone by name: one of `BACKBONES`, or any network as `timm:NAME` or `torchvision:NAME`.

    >>> find_backbone("resnet18").stages[2], find_backbone("torchvision:vgg11").library
    ('layer2', 'torchvision')

    Raises:
        ParameterError: unknown name; the message suggests the most similar one.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    library, _, model = name.partition(":")
    if library == "timm" and timm.is_model(model):
        config = timm.get_pretrained_cfg(model)
        return Backbone(name, library, model, mean=tuple(config.mean), std=tuple(config.std)) if config else Backbone(
            name, library, model)
    if library == "torchvision" and model in torchvision.models.list_models():
        return Backbone(name, library, model)
    raise ParameterError(f"unknown backbone '{name}'{did_you_mean(name, BACKBONES)}; there are {', '.join(BACKBONES)}, "
                         f"and any network as timm:NAME or torchvision:NAME")
