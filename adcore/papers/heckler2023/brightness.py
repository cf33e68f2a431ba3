"""Brightness alone: distance of an image's mean from the training images' mean. A check of the data, not a method.

    image -> mean over colors and pixels b -> |b - mean of b over the training images|

If its AUROC is far from 50 %, normal and defective test images differ in lighting. A detector whose features depend on
lighting then gains or loses by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from adcore.data import Sample, View, read_images
from adcore.data.transforms import Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import AdcoreError


@dataclass(frozen=True, kw_only=True)
class BrightnessConfig(Config):
    """Settings of the check."""

    image_size: Size = 128


class Brightness(Detector):
    """Deviation of an image's mean brightness, as a detector without maps; one number per category."""

    name: ClassVar[str] = "brightness"
    paper: ClassVar[str] = "heckler2023"
    Config: ClassVar[type[Any]] = BrightnessConfig

    def __init__(self, config: BrightnessConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self.mean: float | None = None

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size))

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Brightness:
        """Compute the mean over the training images; `checkpoint` is not used."""
        self.mean = float(torch.cat([images.mean(dim=(1, 2, 3)) for images in read_images(samples, self.view)]).mean())
        return self

    def _predict(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) -> score (B,), no map.

        Raises:
            AdcoreError: called before `fit`.
        """
        if self.mean is None:
            raise AdcoreError("Brightness has no mean yet: call fit before predict")
        return Prediction((images.mean(dim=(1, 2, 3)) - self.mean).abs())
