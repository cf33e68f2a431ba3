"""Detectors on the frozen features of a pretrained network: what PatchCore, FastFlow and AsymST share.

    image -> resized to the view -> backbone -> maps at the taps [(B, C_j, h_j, w_j)]

The paper compares them one tap at a time; each takes any tap, several of them, and any image size.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from adcore.data import View
from adcore.data.transforms import as_size
from adcore.features import FeatureExtractor
from adcore.models.detector import Detector


class FrozenTaps(Detector):
    """A detector whose config has backbone, taps, weights and image_size.

    Raises:
        ParameterError: an unknown backbone or tap, or images smaller than a tap's stride.
        WeightsError: the checkpoint is not here or does not fit.
    """

    paper: ClassVar[str] = "heckler2023"

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        c = self.config
        self.extractor = FeatureExtractor(c.backbone, c.taps, c.weights, seed).to(self.device)
        self.shapes = self.extractor.shapes(self.view.shape)        # [(C_j, h_j, w_j)]

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size))

    @property
    def weights_digest(self) -> str:
        return self.extractor.digest

    def own_size(self, images: Tensor) -> Tensor:
        """Images brought to the size that the method was built for: (B, 3, H, W) -> (B, 3, *view)."""
        images = self._checked(images)
        own = self.view.shape
        return images if images.shape[-2:] == own else F.interpolate(images, own, mode="bilinear", antialias=True)
