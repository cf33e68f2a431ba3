"""DevNet: a few anomalies teach a network to let them deviate.

Pang et al., "Explainable Deep Few-shot Anomaly Detection with Deviation Networks", 2021; what atacnet compares with.

    image, and at half its size -> backbone -> |1x1 convolution| (B, h, w) -> mean of the top tenth -> mean of both sizes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.detector import Prediction
from adcore.errors import ParameterError
from adcore.papers.atacnet.deviation import AnomalyMapping, deviation_loss, top_mean
from adcore.papers.atacnet.few_shot import QUICK, FewShot, FewShotConfig, rotated


@dataclass(frozen=True, kw_only=True)
class DevNetConfig(FewShotConfig):
    """Settings of DevNet; defaults are those of the published code.

    scales  sizes at which an image is seen, each half of the one before
    """

    scales: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scales < 1:
            raise ParameterError(f"{type(self).__qualname__}: scales={self.scales} must be at least 1")


def pyramid(images: Tensor, scales: int) -> list[Tensor]:
    """An image at its size, half of it, a quarter, ...: (B, C, H, W) -> [(B, C, H / 2^s, W / 2^s)]."""
    h, w = images.shape[-2:]
    sizes = [(h >> s, w >> s) for s in range(scales)]
    return [images if size == (h, w) else F.interpolate(images, size, mode="bilinear", align_corners=False) for size in sizes]


def smallest(size: tuple[int, int], scales: int) -> tuple[int, int]:
    """(H, W) at the last of the scales."""
    return size[0] >> (scales - 1), size[1] >> (scales - 1)


def upsampled(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean of maps of several sizes: [(B, h_s, w_s)] -> (B, H, W)."""
    return torch.stack([F.interpolate(m[:, None], size, mode="bilinear", align_corners=False)[:, 0] for m in maps]).mean(0)


class DevNet(FewShot):
    """DevNet as a detector; one network a category."""

    name: ClassVar[str] = "devnet"
    Config: ClassVar[type[Any]] = DevNetConfig
    quick: ClassVar[dict[str, Any]] = {**QUICK, "batch_size": 16}

    def build(self) -> nn.Module:
        self.extractor.shapes(smallest(self.view.shape, self.config.scales))  # which refuses images that are too small
        return nn.ModuleDict({"extractor": self.extractor, "mapping": AnomalyMapping(self.extractor.channels[0])})

    def batch(self) -> tuple[Tensor, Tensor]:
        """Half normal images, half anomalies."""
        half = self.config.batch_size // 2
        images = torch.cat([self.pick(self.normal, half), self.pick(self.anomalous, half)])
        return rotated(images, self.config.rotation), torch.arange(2, device=self.device).repeat_interleave(half)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Anomaly of each cell, size by size: (B, 3, H, W) -> [(B, h_s, w_s)]."""
        return [self.network["mapping"](self.extractor(x)[0]) for x in pyramid(images, self.config.scales)]   # type: ignore[index]

    def total(self, maps: list[Tensor]) -> Tensor:
        """Score of an image: [(B, h_s, w_s)] -> (B,)."""
        return torch.stack([top_mean(m, self.config.top_share) for m in maps]).mean(0)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return deviation_loss(self.total(self.maps(images)), labels, self.config.margin)

    def score(self, images: Tensor) -> Prediction:
        maps = self.maps(images)
        return Prediction(self.total(maps), upsampled(maps, (images.shape[-2], images.shape[-1])))
