"""Brightness alone: how far an image's mean is from that of the training images. A check of the data, not a method.

    image -> mean over colors and pixels b -> |b - mean of b over the training images|

Where this scores far from 50 %, the test images of a set differ from its training images by their lighting, and a detector
whose features keep lighting is measured by it, for better or for worse.
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
    """The deviation of an image's mean brightness, as a detector without maps; one number a category."""

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
        """Take the mean over the training images; nothing to interrupt, so `checkpoint` is not used."""
        self.mean = float(torch.cat([images.mean(dim=(1, 2, 3)) for images in read_images(samples, self.view)]).mean())
        return self

    def predict(self, images: Tensor) -> Prediction:
        """(B, 3, H, W) -> score (B,), no map.

        Raises:
            AdcoreError: called before `fit`.
        """
        if self.mean is None:
            raise AdcoreError("Brightness has no mean yet: call fit before predict")
        return Prediction((self.checked_images(images).mean(dim=(1, 2, 3)) - self.mean).abs())
