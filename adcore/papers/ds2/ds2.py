"""DS2: an encoder from dense pretraining, and a Gaussian density of its patches.

He et al., "Learning Transferable Representations for Image Anomaly Localization Using Dense Pretraining", WACV 2024.

    stage 1   normal images of all categories -> `dense_pretraining` -> ResNet-18
    stage 2   normal images of one category   -> `patch_density`     -> map, score
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from adcore.papers.ds2.dense_pretraining import DS2PretrainingConfig, pretrain
from adcore.papers.ds2.pretrained import Pretrained, PretrainedConfig
from adcore.papers.ds2.resnet_encoder import ResNetEncoder


@dataclass(frozen=True, kw_only=True)
class DS2Config(PretrainedConfig, DS2PretrainingConfig):
    """Settings of both stages: those of `DS2PretrainingConfig`, `PretrainedConfig` and `PatchDensityConfig`."""

    choices: ClassVar[dict[str, tuple[str, ...]]] = {**PretrainedConfig.choices, **DS2PretrainingConfig.choices}


class DS2(Pretrained):
    """Dense pretraining and a density of patches; the query encoder is the one that is used.

    Raises:
        ParameterError: settings that do not go together, see the configs.
    """

    name: ClassVar[str] = "ds2"
    Config: ClassVar[type[Any]] = DS2Config
    Pretraining = DS2PretrainingConfig
    quick: ClassVar[dict[str, Any]] = {
        "pretraining_size": 128, "view_size": 64, "hidden": 256, "dim": 128, "epochs": 4, "batch_size": 16, "lr": 16.0,
        "warmup_epochs": 1, "decay_epochs": (3,), "image_size": 128, "stride": 16, "density_images": 24}

    def _train(self, images: Tensor, checkpoint: Path, progress: bool | None) -> tuple[ResNetEncoder, list[float]]:
        networks = pretrain(self.config, images, checkpoint=checkpoint, progress=progress, seed=self.seed, device=self.device)
        return networks.encoder, networks.losses
