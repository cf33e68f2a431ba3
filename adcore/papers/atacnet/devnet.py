"""DevNet: few-shot anomaly detection with the deviation loss; the paper's Table 2 compares ATAC-Net with it ("Dev-Net").

Pang et al., "Explainable Deep Few-shot Anomaly Detection with Deviation Networks", 2021.

    image at full and half size -> backbone -> anomaly mapping (B, h, w) -> mean of the top 10 % of cells -> mean of both sizes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.detector import Prediction
from adcore.papers.atacnet.cropping import upsample
from adcore.papers.atacnet.deviation import AnomalyMapping, deviation_loss, top_mean
from adcore.papers.atacnet.few_shot import QUICK, FewShot, FewShotConfig, rotated
from adcore.settings import Range


@dataclass(frozen=True, kw_only=True)
class DevNetConfig(FewShotConfig):
    """Settings of DevNet; the defaults are those of the published code.

    scales  number of image sizes; each size is half of the one before
    """

    scales: int = 2

    ranges: ClassVar[dict[str, Range]] = {"scales": Range(least=1, most=8)}


def pyramid_sizes(size: tuple[int, int], scales: int) -> list[tuple[int, int]]:
    """(H, W), half of it, a quarter, ..."""
    return [(size[0] >> s, size[1] >> s) for s in range(scales)]


def pyramid(images: Tensor, scales: int) -> list[Tensor]:
    """The images at all scales: (B, C, H, W) -> [(B, C, H // 2^s, W // 2^s)].

    Each pixel of a smaller image is the nearest one of the image, as in the published code of DevNet and DRA, whose
    `F.interpolate` names no mode. At half the size these are the pixels of even rows and columns; nothing is averaged.
    """
    own = (images.shape[-2], images.shape[-1])
    return [images if size == own else F.interpolate(images, size, mode="nearest") for size in pyramid_sizes(own, scales)]


def mean_map(maps: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Mean of maps of different sizes, each upsampled first: [(B, h_s, w_s)] -> (B, H, W)."""
    return torch.stack([upsample(m, size) for m in maps]).mean(0)


class DevNet(FewShot):
    """DevNet as a detector; one network per category."""

    name: ClassVar[str] = "devnet"
    version: ClassVar[int] = 2  # 2: the smaller images and the rotations take the nearest pixel, 1: bilinear
    Config: ClassVar[type[Any]] = DevNetConfig
    quick: ClassVar[dict[str, Any]] = {**QUICK, "batch_size": 16}

    def build(self) -> nn.Module:
        self.extractor.shapes(pyramid_sizes(self.view.shape, self.config.scales)[-1])  # raises if the images are too small
        return nn.ModuleDict({"extractor": self.extractor, "mapping": AnomalyMapping(self.extractor.channels[0])})

    def batch(self) -> tuple[Tensor, Tensor]:
        """Half normal images, half anomalies."""
        half = self.config.batch_size // 2
        images = torch.cat([self.pick(self.normal, half), self.pick(self.anomalous, half)])
        return rotated(images, self.config.rotation), torch.arange(2, device=self.device).repeat_interleave(half)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Anomaly maps, one per scale: (B, 3, H, W) -> [(B, h_s, w_s)]."""
        return [self.network["mapping"](self.extractor(x)[0]) for x in pyramid(images, self.config.scales)]   # type: ignore[index]

    def image_score(self, maps: list[Tensor]) -> Tensor:
        """Mean over the scales of the top-k score: [(B, h_s, w_s)] -> (B,)."""
        return torch.stack([top_mean(m, self.config.top_share) for m in maps]).mean(0)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return deviation_loss(self.image_score(self.maps(images)), labels, self.config.margin)

    def score(self, images: Tensor) -> Prediction:
        maps = self.maps(images)
        return Prediction(self.image_score(maps), mean_map(maps, (images.shape[-2], images.shape[-1])))
