"""Frozen features: the maps of a pretrained network at its taps.

    images (B, 3, H, W) in [0, 1] -> normalize -> network -> one map (B, C, h, w) per tap
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path

import timm.models
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.feature_extraction import get_graph_node_names

from adcore.errors import DataError, ParameterError
from adcore.features.backbones import find_backbone
from adcore.features.statistics import Statistics, statistics_of
from adcore.features.weights import load_weights, resolve_weights, weights_digest

Tap = int | str


class FeatureExtractor(nn.Module):
    """A backbone that returns the maps at its taps. By default it is frozen and in eval mode.

    backbone    a name in `adcore.features.BACKBONES`, `timm:NAME` or `torchvision:NAME`
    taps        stage numbers (1, 2, 3, 4) or node names ('layer2.3.relu_2')
    weights     'default', 'random', a file, or a name in data_manifest.csv
    seed        of random weights
    frozen      False for a backbone that is trained together with the method (Table S5 of uniad2022)
    statistics  mean and standard deviation of each color, for normalization; by default those that the weights need

    >>> extractor = FeatureExtractor("resnet18", (1, 2), "random")
    >>> [features.shape for features in extractor(torch.zeros(1, 3, 64, 96))]
    [torch.Size([1, 64, 16, 24]), torch.Size([1, 128, 8, 12])]

    Raises:
        ParameterError: unknown backbone, or a tap that it does not have.
        WeightsError: the checkpoint is missing or does not fit.
    """

    def __init__(self, backbone: str = "efficientnet_lite0", taps: Sequence[Tap] = (1, 2, 3, 4),
                 weights: str | Path | None = "default", seed: int = 0, *, frozen: bool = True,
                 statistics: Statistics | None = None) -> None:
        super().__init__()
        self.frozen, self.keeps_statistics = frozen, False
        self.backbone = find_backbone(backbone)
        self.taps = tuple(taps)
        path = resolve_weights(self.backbone, weights)
        self.digest = weights_digest(path, seed)
        network = self.backbone.build(seed).eval()
        graph = _graph(network) if any(isinstance(tap, str) for tap in self.taps) else []
        nodes = [_node(graph, self.backbone.name, self.backbone.stages, tap) for tap in self.taps]
        self.nodes = tuple(nodes)
        self.network = timm.models.create_feature_extractor(network, return_nodes=list(dict.fromkeys(nodes)))
        if path is not None:
            load_weights(network, self.backbone, path, used=self.network.state_dict())  # both share their tensors
        self.mean: Tensor
        self.std: Tensor
        mean, std = self.statistics = statistics or statistics_of(self.backbone, weights)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.requires_grad_(not frozen).eval()
        self.to(memory_format=torch.channels_last)
        self.channels, self.strides = self._measure()

    @property
    def key(self) -> str:
        """Text that identifies everything on which the features depend, except the images."""
        own = (self.backbone.mean, self.backbone.std)
        normalized = "" if self.statistics == own else f"-{self.statistics}"  # one file may be used with two normalizations
        padded = f"-padded {self.backbone.native}" if self.backbone.native else ""
        return f"{self.backbone.name}-{self.digest}-{','.join(self.nodes)}{normalized}{padded}"

    def train(self, mode: bool = True) -> FeatureExtractor:
        """As in any module, but a frozen extractor stays in eval mode: its features must not depend on the rest of a batch."""
        return super().train(mode and not self.frozen and not self.keeps_statistics)

    def keep_statistics(self) -> None:
        """Stay in eval mode while the weights are trained: batch norms keep their statistics from pretraining."""
        self.keeps_statistics = True
        self.eval()

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [0, 1] -> one map (B, C, h, w) per tap.

        Raises:
            DataError: a feature is NaN or infinite.
        """
        x = (images - self.mean) / self.std
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = self.network(x.contiguous(memory_format=torch.channels_last))
        maps = [found[node] for node in self.nodes]
        for tap, features in zip(self.taps, maps, strict=True):
            if features.numel() and not all(map(math.isfinite, _extremes(features.detach()))):
                bad = [i for i in range(len(features)) if not bool(torch.isfinite(features[i]).all())]
                raise DataError(f"features of {self.backbone.name} at tap {tap} are NaN or infinite for image "
                                f"{', '.join(map(str, bad))} of the batch: check those images and the weights")
        return maps

    @torch.no_grad()
    def shapes(self, size: tuple[int, int]) -> list[tuple[int, int, int]]:
        """(C, h, w) of each tap's map for images of (H, W).

        Raises:
            ParameterError: the image is smaller than a tap's stride, so the map would not have one whole cell.
        """
        for tap, stride in zip(self.taps, self.strides, strict=True):
            if min(size) < stride:
                raise ParameterError(f"image_size {size[0]}x{size[1]} is smaller than the stride {stride} of tap {tap} of "
                                     f"{self.backbone.name}: use larger images or a shallower tap")
        images = torch.zeros(1, 3, *size, device=self.mean.device)
        return [(m.shape[1], m.shape[2], m.shape[3]) for m in self(images)]

    def _measure(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        side = 64
        try:
            with torch.no_grad():
                found = self.network(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError) as error:  # a vision transformer takes one size only
            raise ParameterError(f"backbone '{self.backbone.name}' does not take images of {side}x{side} pixels: use a "
                                 f"convolutional network, which takes any size") from error
        maps = [found[node] for node in self.nodes]
        return tuple(m.shape[1] for m in maps), tuple(round(side / m.shape[-1]) for m in maps)


def _extremes(features: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest and largest value, or NaN if there is one, in one pass: torch.isfinite needs five. aminmax would copy a
    channels-last tensor, so its dimensions are permuted first."""
    channels_last = features.is_contiguous(memory_format=torch.channels_last)
    return (features.permute(0, 2, 3, 1) if channels_last else features).aminmax()


def _graph(network: nn.Module) -> list[str]:
    """Names of the nodes of a network's graph, and of the modules that contain them."""
    leaves = {"leaf_modules": timm.models.get_notrace_modules()}
    nodes = get_graph_node_names(network, tracer_kwargs=leaves)[1]
    modules = {node.rsplit(".", cut)[0] for node in nodes for cut in range(1, node.count(".") + 1)}
    return [*nodes, *sorted(modules - set(nodes))]


def _node(graph: list[str], name: str, stages: dict[int, str], tap: Tap) -> str:
    if isinstance(tap, int):
        if tap in stages:
            return stages[tap]
        raise ParameterError(f"backbone '{name}' has no stage {tap}; it has "
                             f"{', '.join(map(str, stages)) or 'no numbered stages: use names of nodes'}")
    if tap in graph:
        return tap
    close = difflib.get_close_matches(tap, graph, n=4, cutoff=0.3)
    raise ParameterError(f"backbone '{name}' has no tap '{tap}'; similar are {', '.join(close)}; stages are "
                         f"{', '.join(map(str, stages)) or 'not numbered'}")


def concatenate(maps: Sequence[Tensor], size: tuple[int, int], *, align_corners: bool) -> Tensor:
    """Resize each map (B, C_i, h_i, w_i) bilinearly to `size` and concatenate: (B, sum C_i, h, w).

    >>> concatenate([torch.zeros(1, 2, 8, 8), torch.zeros(1, 3, 4, 4)], (4, 4), align_corners=False).shape
    torch.Size([1, 5, 4, 4])
    """
    resized = [m if m.shape[-2:] == size else F.interpolate(m, size, mode="bilinear", align_corners=align_corners)
               for m in maps]
    return torch.cat(resized, dim=1)
