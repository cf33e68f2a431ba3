"""Detectors whose encoder is pretrained, without labels, on normal images of many categories before it sees one category.

    pretrain(images of all categories) -> encoder, kept on disk     once
    fit(images of one category)        -> density                   for each category

An encoder is named by what decides its weights: the pretraining's settings, the seed, the images, and the code. So the
categories of a data set share it, and so do settings of the localization.
"""

from __future__ import annotations

import contextlib
import json
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adcore.data import Sample, View, read_images
from adcore.detector import Config
from adcore.distributed import barrier, is_rank_zero, run_on_rank_zero
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features import images_digest
from adcore.features.checkpoints import translate
from adcore.features.weights import read_checkpoint, weights_digest
from adcore.files import atomic, digest_text, one_at_a_time, write_json
from adcore.papers.ds2.patch_density import PatchDensity, PatchDensityConfig
from adcore.papers.ds2.resnet_encoder import OneMap, ResNetEncoder
from adcore.papers.ds2.views import standardized
from adcore.paths import cache_folder
from adcore.source import paper_digest


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(PatchDensityConfig):
    """What pretrained detectors have beside the settings of their pretraining.

    pretraining              training images from which the encoder learns: 'dataset', those of all categories; 'category', its
                             own alone; or another data set, 'NAME' or 'NAME:CATEGORY+CATEGORY'
    pretraining_size         side in pixels at which they are kept in memory
    official_preprocessing   evaluate as the published code does: BGR, not standardized, though pretraining was on RGB that is
    """

    pretraining: str = "dataset"
    pretraining_size: int = 512
    official_preprocessing: bool = False


class Pretrained(PatchDensity):
    """A pretrained encoder under the density of patches.

    losses   mean of each epoch of the pretraining
    """

    pretrains: ClassVar[bool] = True
    Pretraining: ClassVar[type[Config]]  # settings that decide the encoder's weights

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self._encoder: nn.Module | None = None
        self._path: Path | None = None
        self.losses: list[float] = []

    @abstractmethod
    def _train(self, images: Tensor, checkpoint: Path, progress: bool | None) -> tuple[ResNetEncoder, list[float]]:
        """(n, 3, H, W) uint8 -> encoder and the mean loss of each epoch."""

    @property
    def encoder(self) -> nn.Module:
        if self._encoder is None:
            raise AdcoreError(f"{type(self).__name__} has no encoder yet: call pretrain before fit")
        return self._encoder

    @property
    def weights_digest(self) -> str:
        return weights_digest(self._path) if self._path else ""

    def prepared(self, images: Tensor) -> Tensor:
        return images.flip(1) if self.config.official_preprocessing else standardized(images)

    def pretrain(self, samples: Sequence[Sample], *, progress: bool | None = None) -> None:
        """Train the encoder on normal images, or read it where it was trained before. A killed training goes on.

        Its file holds a torchvision ResNet-18's state without classifier, which `FeatureExtractor("resnet18", weights=FILE)`
        reads. Several runs that want the same encoder train it once, the others wait; processes of one run train it together.

        Raises:
            DataError: no image, an anomalous one, or one that cannot be read.
            ParameterError: fewer images than a batch.
            StoreError: the cache cannot be written.
        """
        anomalous = next((sample for sample in samples if sample.label), None)
        if not samples or anomalous is not None:
            raise DataError(f"{type(self).__name__} is pretrained on normal images" + (
                f", and {anomalous.name} is anomalous" if anomalous else ", and there is none"))
        path = cache_folder() / "encoders" / f"{self._key(samples)}.pth"
        with one_at_a_time(path.with_suffix(".lock")) if is_rank_zero() else contextlib.nullcontext():
            if run_on_rank_zero(lambda: not path.is_file()):
                self._make(path, samples, progress)
            barrier()
        encoder = ResNetEncoder(("c5",))
        encoder.load_state_dict(translate(read_checkpoint(path))[0])
        self._encoder = OneMap(encoder).to(self.device, memory_format=torch.channels_last).eval()   # type: ignore[call-overload]
        self._path, self.losses = path, json.loads(path.with_suffix(".json").read_text())["losses"]

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Pretrained:
        """Fit the density to normal images of one category, on which the encoder is pretrained where it was not before."""
        if self._encoder is None:
            self.pretrain(samples, progress=progress)
        super().fit(samples, progress=progress)
        return self

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Beside `sameness`: the last epoch's pretraining_loss."""
        return super().diagnose(samples) | {"pretraining_loss": self.losses[-1]}

    def _key(self, samples: Sequence[Sample], *left_out: str) -> str:
        parts = [self.name, self._settings(*left_out), self.config.pretraining_size, self.seed, images_digest(samples),
                 paper_digest(self.paper)]
        return digest_text("|".join(map(str, parts)), 24)

    def _settings(self, *left_out: str) -> dict[str, Any]:
        known = {field.name for field in fields(self.Pretraining)} - set(left_out)
        return {name: value for name, value in asdict(self.config).items() if name in known}

    def _make(self, path: Path, samples: Sequence[Sample], progress: bool | None) -> None:
        side = self.config.pretraining_size
        if side < 1:
            raise ParameterError(f"pretraining_size={side} is not a side of at least one pixel")
        images = torch.cat([(batch * 255).round().byte() for batch in read_images(samples, View(side))])
        # A training that stops early leaves its state to a longer one with equal settings.
        training = path.with_name(f"{self._key(samples, 'stop_after')}.training")
        early = self._settings().get("stop_after", 0)
        if early and _epochs_in(training) > early:
            training = path.with_suffix(".training")
        encoder, losses = self._train(images, training, progress)
        if not is_rank_zero():
            return
        write_json(path.with_suffix(".json"), {"method": self.name, "settings": self._settings(), "seed": self.seed,
                                               "images": len(samples), "losses": losses})
        with atomic(path) as temporary:
            torch.save({f"encoder.{name}": value.cpu() for name, value in encoder.state_dict().items()}, temporary)
        if not early:
            training.unlink(missing_ok=True)


def _epochs_in(checkpoint: Path) -> int:
    """Epochs after which a training was saved; 0 where it was not."""
    return len(torch.load(checkpoint, map_location="cpu", weights_only=True)["losses"]) if checkpoint.is_file() else 0
