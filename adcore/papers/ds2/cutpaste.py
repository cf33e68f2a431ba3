"""CutPaste (3-way): an encoder that learned to see pasted patches, and a Gaussian density of its patches.

Li et al., "CutPaste: Self-supervised learning for anomaly detection and localization", CVPR 2021, as the DS2 supplement
(Sec. 3) rebuilds it to compare with.

    stage 1   normal images of all categories -> `cutpaste_pretraining` -> ResNet-18
    stage 2   normal images of one category   -> `patch_density`        -> map, score
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from adcore.papers.ds2.alignment import ALIGNED_FOR_CUTPASTE
from adcore.papers.ds2.cutpaste_pretraining import CutPastePretrainingConfig, pretrain_cutpaste
from adcore.papers.ds2.pretrained import Pretrained, PretrainedConfig
from adcore.papers.ds2.resnet_encoder import ResNetEncoder


@dataclass(frozen=True, kw_only=True)
class CutPasteConfig(PretrainedConfig, CutPastePretrainingConfig):
    """Settings of both stages: those of `CutPastePretrainingConfig`, `PretrainedConfig` and `PatchDensityConfig`."""

    pretraining_size: int = 256


class CutPaste(Pretrained):
    """The proxy task of three ways and a density of patches. Hazelnuts and screws get one density for all positions, too.

    Raises:
        ParameterError: settings that do not go together, see the configs.
    """

    name: ClassVar[str] = "cutpaste"
    aligned = ALIGNED_FOR_CUTPASTE
    Config: ClassVar[type[Any]] = CutPasteConfig
    Pretraining = CutPastePretrainingConfig
    quick: ClassVar[dict[str, Any]] = {
        "pretraining_size": 128, "epochs": 4, "steps": 10, "batch_size": 8, "image_size": 128, "stride": 16,
        "density_images": 24}

    def _train(self, images: Tensor, checkpoint: Path, progress: bool | None) -> tuple[ResNetEncoder, list[float]]:
        network = pretrain_cutpaste(self.config, images, checkpoint=checkpoint, progress=progress, seed=self.seed,
                                    device=self.device)
        return network.encoder, network.losses
