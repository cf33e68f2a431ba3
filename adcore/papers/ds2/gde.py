"""The Gaussian density of patches on a network that was not pretrained by DS2 or CutPaste: ImageNet's features, or none.

What DS2 and CutPaste are to be compared with: the localization is the same (see `patch_density`), only the encoder differs.

    patch 32 x 32 -> backbone up to a tap -> averaged, unit length
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from adcore.features import FeatureExtractor
from adcore.papers.ds2.patch_density import PatchDensity, PatchDensityConfig


@dataclass(frozen=True, kw_only=True)
class GDEConfig(PatchDensityConfig):
    """Settings; the supplement has no such row, so the network is ours: the kind that DS2 trains, with ImageNet's weights.

    backbone, weights   see `features`
    tap                 stage whose map is averaged; 4 is a ResNet's last
    """

    backbone: str = "resnet18"
    tap: int = 4
    weights: str = "default"


class GDE(PatchDensity):
    """A frozen backbone under the density of patches.

    Raises:
        ParameterError: an unknown backbone or tap, or patches smaller than the tap's stride.
        WeightsError: the checkpoint is not here or does not fit.
    """

    name: ClassVar[str] = "gde"
    Config: ClassVar[type[Any]] = GDEConfig
    quick: ClassVar[dict[str, Any]] = {
        "backbone": "efficientnet_lite0", "tap": 5, "image_size": 128, "stride": 16, "density_images": 24}

    def __init__(self, config: GDEConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        c = self.config
        self._encoder = _OnlyMap(FeatureExtractor(c.backbone, (c.tap,), c.weights, seed)).to(self.device).eval()
        self._encoder.extractor.shapes((c.patch, c.patch))                          # refuses patches without a whole cell

    @property
    def encoder(self) -> nn.Module:
        return self._encoder

    @property
    def weights_digest(self) -> str:
        return self._encoder.extractor.digest


class _OnlyMap(nn.Module):
    def __init__(self, extractor: FeatureExtractor) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, images: Tensor) -> Tensor:
        return self.extractor(images)[0]
