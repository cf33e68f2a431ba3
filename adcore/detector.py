"""The interface of every method: a detector learns from training images and scores new ones.

    fit(samples)     train on the images that the method may see
    predict(images)  (B, 3, H, W) in [0, 1] -> score (B,) and map (B, H, W); larger is more anomalous
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.data import Dataset, Sample, View
from adcore.errors import ParameterError

SIZES = ("image_size", "crop")  # settings that take a side in pixels, a pair (H, W), or None for no crop


@dataclass(frozen=True)
class Prediction:
    """Scores and maps of a batch.

    score  (B,) float, one number per image
    map    (B, H, W) float, as large as the images; None for a method without maps
    """

    score: Tensor
    map: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a method. Defaults are the paper's own.

    choices  setting -> its allowed values, for each setting that takes one of a few words
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        for name, words in self.choices.items():
            if (value := getattr(self, name)) not in words:
                raise ParameterError(f"{type(self).__qualname__}: {name} is one of {', '.join(words)}, not {value!r}")

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Any:
        """A config made from plain values, such as those of a JSON file, whose names and types are checked.

        Raises:
            ParameterError: a name that the method does not have, or a value of another type than the default.
        """
        known = {f.name: f.default for f in fields(cls)}
        plain = {}
        for name, value in values.items():
            if name not in known:
                raise ParameterError(f"{cls.__qualname__} has no setting '{name}'; it has {', '.join(sorted(known))}")
            # Experiments are named by their settings, so that each value has one spelling: 20 becomes 20.0 for a float.
            if isinstance(known[name], float) and type(value) is int:
                value = float(value)
            value = tuple(value) if isinstance(value, list) else value
            alike = (int, tuple, type(None)) if name in SIZES else (type(known[name]),)
            if type(value) not in alike:
                raise ParameterError(f"{cls.__qualname__}: {name} takes {known[name]!r} or the like, not {value!r}")
            plain[name] = value
        return cls(**plain)

    def values(self) -> dict[str, Any]:
        """All settings, as a result stores them."""
        return asdict(self)


class Detector(ABC):
    """Base class of all methods. A subclass holds its method only; `adcore.training` and `adcore.experiments` hold the rest.

    name       name in experiments and published tables, such as 'uniad'
    paper      name of the paper whose exhibits use the method
    pooled     True if one model is trained on all categories of a data set together
    pretrains  True if `pretrain` must run before `fit`; the config then has a setting `pretraining`
    version    increased when a change of the code changes the numbers of the same settings
    quick      settings of the quick profile that differ from the paper's
    extractor  the pretrained backbone, a `FeatureExtractor`; None for a method without one
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    pooled: ClassVar[bool] = False
    pretrains: ClassVar[bool] = False
    version: ClassVar[int] = 1
    Config: ClassVar[type[Any]]
    quick: ClassVar[Mapping[str, Any]] = {}
    extractor: Any = None

    def __init__(self, config: Any = None, *, device: str | torch.device = "cpu", seed: int = 0) -> None:
        self.config = config if config is not None else self.Config()
        self.device = torch.device(device)
        self.seed = seed

    @classmethod
    def protocol(cls, dataset: Dataset, config: Any, seed: int) -> Dataset:
        """The part of a data set that the method trains and is tested on; all of it by default."""
        return dataset

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

    @abstractmethod
    def predict(self, images: Tensor) -> Prediction:
        """Scores and maps of images of any size: (B, 3, H, W) in [0, 1]; maps are (B, H, W)."""

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

    def checked_images(self, images: Tensor) -> Tensor:
        """Check images and move them to the detector's device: (B, 3, H, W) in [0, 1], same shape.

        Raises:
            ParameterError: another shape or dtype, or a pixel that is not finite.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ParameterError(f"images must be (B, 3, H, W) floats in [0, 1], not {images.dtype} {tuple(images.shape)}")
        if not bool(torch.isfinite(images).all()):
            raise ParameterError("images hold NaN or infinite pixels")
        return images.to(self.device)
