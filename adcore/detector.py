"""The interface of every method: a detector learns from training images and scores new ones.

    fit(samples)     train on the images that the method may see
    predict(images)  (B, 3, H, W) in [0, 1] -> score (B,) and map (B, H, W); larger is more anomalous
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.data import Dataset, Sample, View
from adcore.errors import ParameterError
from adcore.settings import Config
from adcore.training import checked_seed, resolve_device

__all__ = ["Config", "Detector", "Prediction"]

OVERSHOOT = 1e-3  # by which pixels may leave [0, 1], as resampling makes them
@dataclass(frozen=True)
class Prediction:
    """Scores and maps of a batch.

    score  (B,) float, one number per image
    map    (B, H, W) float, as large as the images; None for a method without maps
    """

    score: Tensor
    map: Tensor | None = None


class Detector(ABC):
    """Base class of all methods. A subclass holds its method only; `adcore.training` and `adcore.experiments` hold the rest.

    name       name in experiments and published tables, such as 'uniad'
    paper      name of the paper whose exhibits use the method
    pooled     True if one model is trained on all categories of a data set together
    pretrains  True if `pretrain` must run before `fit`; the config then has a setting `pretraining`
    version    increased when a change of the code changes the numbers of the same settings
    quick      settings of the quick profile that differ from the paper's
    open       settings of the open profile that differ from the paper's: those that need a download, and no others
    extractor  the pretrained backbone, a `FeatureExtractor`; None for a method without one
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    pooled: ClassVar[bool] = False
    pretrains: ClassVar[bool] = False
    version: ClassVar[int] = 1
    Config: ClassVar[type[Any]]
    quick: ClassVar[Mapping[str, Any]] = {}
    open: ClassVar[Mapping[str, Any]] = {}
    extractor: Any = None

    def __init__(self, config: Any = None, *, device: str | torch.device = "cpu", seed: int = 0) -> None:
        self.config = config if config is not None else self.Config()
        self.device = resolve_device(device)
        self.seed = checked_seed(seed)

    @classmethod
    def protocol(cls, dataset: Dataset, config: Any, seed: int) -> Dataset:
        """The part of a data set that the method trains and is tested on; all of it by default."""
        return dataset

    @classmethod
    def other_files(cls, config: Any) -> Sequence[Path]:
        """Files that a fit reads beside the data set and the weights; none by default. Raises DataError if they are missing."""
        return ()

    @property
    @abstractmethod
    def view(self) -> View:
        """The size to which images and masks are resized for this method."""

    @property
    def weights_digest(self) -> str:
        """Digest of the pretrained weights in use; '' for a method without pretrained weights."""
        return self.extractor.digest if self.extractor is not None else ""

    def pretrain(self, samples: Sequence[Sample], *, progress: bool | None = None) -> None:  # noqa: B027, to be left out
        """Train on normal images of many categories before `fit`. Does nothing by default."""

    @abstractmethod
    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Detector:
        """Train on the samples and return the detector.

        checkpoint  file to which the training saves its state, and from which an interrupted one resumes; None saves nothing
        """

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Scores and maps of images of any size: (B, 3, H, W) in [0, 1] -> score (B,) and map (B, H, W).

        Images of another size than the view's are resized to it, and their maps are resized back.

        Raises:
            AdcoreError: called before `fit`.
            ParameterError: see `checked_images`.
        """
        size = images.shape[-2:] if isinstance(images, Tensor) else ()
        found = self._predict(self.own_size(images))
        if found.map is None or found.map.shape[-2:] == size:
            return found
        maps = F.interpolate(found.map[:, None], size, mode="bilinear", antialias=True)[:, 0]
        return Prediction(found.score, maps)

    @abstractmethod
    def _predict(self, images: Tensor) -> Prediction:
        """The method's own scores and maps, of checked images at the view's size: (B, 3, *view) -> (B,) and (B, *view)."""

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Measures of a method's own on the test images of one category, beside the metrics; none by default."""
        return {}

    def own_size(self, images: Tensor) -> Tensor:
        """Check images and resize them to the size of the view: (B, 3, H, W) in [0, 1] -> (B, 3, *view).

        Raises:
            ParameterError: see `checked_images`.
        """
        images, own = self.checked_images(images), self.view.shape
        return images if images.shape[-2:] == own else F.interpolate(images, own, mode="bilinear", antialias=True)

    def checked_images(self, images: Tensor, *, in_range: bool = True) -> Tensor:
        """Check images and move them to the detector's device in float32: (B, 3, H, W) in [0, 1], same shape.

        in_range  False for images whose pixels may leave [0, 1], such as photographs in other colors

        Raises:
            ParameterError: no images, another shape or dtype, or a pixel that is not finite or not in [0, 1].
        """
        if not isinstance(images, Tensor):
            raise ParameterError(f"images must be a tensor (B, 3, H, W) of floats in [0, 1], not {type(images).__name__}")
        if images.ndim != 4 or images.shape[1] != 3 or not images.numel() or not images.is_floating_point():
            found = f"{images.dtype} {tuple(images.shape)}"
            advice = ": divide pixels of 0..255 by 255" if images.dtype == torch.uint8 else ""
            raise ParameterError(f"images must be (B, 3, H, W) floats in [0, 1], not {found}{advice}")
        images = images.float().to(self.device)  # float32 first, because some devices have no float64
        low, high = (float(value) for value in images.aminmax())
        if not math.isfinite(low) or not math.isfinite(high):
            raise ParameterError("images hold NaN or infinite pixels")
        if in_range and (low < -OVERSHOOT or high > 1 + OVERSHOOT):
            advice = ("divide pixels of 0..255 by 255" if low >= -OVERSHOOT else
                      "give them before they are normalized, which the method does itself")
            raise ParameterError(f"images must be in [0, 1], not from {low:.4g} to {high:.4g}: {advice}")
        return images
