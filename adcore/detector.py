"""What every method is to the rest of the collection: it fits on normal images and scores new ones.

    fit(samples)             learn from what the method is allowed to see
    predict(images)          (B, 3, H, W) in [0, 1] -> score (B,) and map (B, H, W), larger is more anomalous
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

SIZES = ("image_size", "crop")  # a side in pixels, a pair (H, W), or None for no crop


@dataclass(frozen=True)
class Prediction:
    """Scores and maps of a batch.

    score  (B,) float, one number an image
    map    (B, H, W) float at the size of the images given, or None for a method that scores images only
    """

    score: Tensor
    map: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a method. Defaults are the paper's own.

    choices  setting -> the words it takes, for those that take words
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __post_init__(self) -> None:
        for name, words in self.choices.items():
            if getattr(self, name) not in words:
                raise ParameterError(f"{type(self).__qualname__}: {name} is one of {', '.join(words)}, not "
                                     f"{getattr(self, name)!r}")

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Any:
        """A config from plain values, checked by name and type.

        Raises:
            ParameterError: a name that the method does not have (the message lists those it has), or a value of another
                type than the default's.
        """
        known = {f.name: f.default for f in fields(cls)}
        plain = {}
        for name, value in values.items():
            if name not in known:
                raise ParameterError(f"{cls.__qualname__} has no setting '{name}'; it has {', '.join(sorted(known))}")
            # One way to write each value, because experiments are named by it: 20 is 20.0 where numbers are floats.
            if isinstance(known[name], float) and type(value) is int:
                value = float(value)
            value = tuple(value) if isinstance(value, list) else value
            alike = (int, tuple, type(None)) if name in SIZES else (type(known[name]),)
            if type(value) not in alike:
                raise ParameterError(f"{cls.__qualname__}: {name} takes {known[name]!r} or the like, not {value!r}")
            plain[name] = value
        return cls(**plain)

    def values(self) -> dict[str, Any]:
        """Plain values, as stored with a result."""
        return asdict(self)


class Detector(ABC):
    """A method. Subclasses hold the method and nothing else: loops, seeds and stores live in `training`, `experiments`.

    name       as in experiments and published tables ('uniad')
    paper      whose exhibits it serves
    pooled     True when one model serves all categories of a data set
    pretrains  True when it learns from images of many categories first, see `pretrain`; its config then has `pretraining`
    version    raised when a change makes the same settings give other numbers
    quick      settings of the quick profile, where they differ from the paper's
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    pooled: ClassVar[bool] = False
    pretrains: ClassVar[bool] = False
    version: ClassVar[int] = 1
    Config: ClassVar[type[Any]]
    quick: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Any = None, *, device: str | torch.device = "cpu", seed: int = 0) -> None:
        self.config = config if config is not None else self.Config()
        self.device = torch.device(device)
        self.seed = seed

    @classmethod
    def protocol(cls, dataset: Dataset, config: Any, seed: int) -> Dataset:
        """What of a data set the method trains and is tested on: all of it as it is, by default."""
        return dataset

    @property
    @abstractmethod
    def view(self) -> View:
        """How images and masks are resized for this method."""

    @property
    def weights_digest(self) -> str:
        """Which pretrained weights the numbers came from; '' for a method that uses none."""
        return ""

    def pretrain(self, samples: Sequence[Sample], *, progress: bool | None = None) -> None:  # noqa: B027, to be left out
        """Learn from normal images of many categories, before `fit` looks at those of one; most methods do not."""

    @abstractmethod
    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Detector:
        """Learn from training samples.

        checkpoint  file from which an interrupted fit goes on, and to which it saves; None keeps nothing
        """

    @abstractmethod
    def predict(self, images: Tensor) -> Prediction:
        """Score images of any height and width: (B, 3, H, W) in [0, 1], maps come back at H, W."""

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """What a method measures of itself on the test images of one category, beside the metrics; nothing by default."""
        return {}

    def own_size(self, images: Tensor) -> Tensor:
        """Images checked and brought to the size of the view: (B, 3, H, W) in [0, 1] -> (B, 3, *view).

        Raises:
            ParameterError: another shape or dtype, or a pixel that is not finite.
        """
        images, own = self._checked(images), self.view.shape
        return images if images.shape[-2:] == own else F.interpolate(images, own, mode="bilinear", antialias=True)

    def _checked(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ParameterError(f"images must be (B, 3, H, W) floats in [0, 1], not {images.dtype} {tuple(images.shape)}")
        if not bool(torch.isfinite(images).all()):
            raise ParameterError("images hold NaN or infinite pixels")
        return images.to(self.device)
