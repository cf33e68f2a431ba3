"""Pretrained encoders on disk: one pretraining serves all categories of a data set and all settings of the localization.

    <cache>/encoders/KEY.pth        weights of the encoder
                     KEY.json       how it was trained: method, settings, seed, number of images, loss of each epoch
                     KEY.training   checkpoint of an unfinished training, or of one that ended early at `stop_after`
                     KEY.lock       held by the process that trains

KEY is a digest of everything that decides the weights: the method, the settings of its pretraining, the seed, the images with
their categories, and the code. Processes that want the same encoder train it once; the others wait for the lock.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adcore.cache import describe, entry
from adcore.data import Sample, View, load_uint8
from adcore.distributed import barrier, is_rank_zero, run_on_rank_zero
from adcore.errors import ParameterError, StoreError
from adcore.features import images_digest
from adcore.features.checkpoints import translate
from adcore.features.weights import read_checkpoint
from adcore.files import atomic, digest_text, one_at_a_time
from adcore.papers.ds2.resnet_encoder import ResNetEncoder
from adcore.paths import cache_room, check_owner
from adcore.source import paper_digest

# Images (n, 3, H, W) uint8 and a checkpoint file -> trained encoder and the mean loss of each epoch.
Train = Callable[[Tensor, Path], tuple[ResNetEncoder, list[float]]]


@dataclass(frozen=True)
class EncoderTraining:
    """What decides the weights of an encoder, apart from the images and the code.

    method      name of the detector
    settings    settings of its pretraining, by name
    image_size  side in pixels at which the images are held in memory
    seed        of initialization, shuffling and augmentation
    resample    how the images are resized, see `View`
    """

    method: str
    settings: Mapping[str, Any]
    image_size: int
    seed: int
    resample: str = "bilinear"

    def key(self, samples: Sequence[Sample], *ignored: str) -> str:
        """24 hexadecimal digits that name the encoder trained on these images; without the settings in `ignored`."""
        settings = {name: value for name, value in self.settings.items() if name not in ignored}
        categories = [sample.category for sample in samples]
        parts = [self.method, settings, self.image_size, self.seed, self.resample, images_digest(samples), categories,
                 paper_digest("ds2")]
        return digest_text("|".join(map(str, parts)), 24)


def cached_encoder(training: EncoderTraining, samples: Sequence[Sample], train: Train) -> Path:
    """The encoder's file, after training it on these images if it is not in the cache. A killed training resumes.

    The file holds a torchvision ResNet-18 without its classifier; `FeatureExtractor("resnet18", weights=FILE)` reads it too.
    Several processes of one run train it together; other runs wait for the lock.

    Raises:
        DataError: an image cannot be read.
        ParameterError: an image size below 1, or whatever `train` raises.
        StoreError: the cache cannot be written, or the encoder belongs to another user.
    """
    path = cache_room("encoders") / f"{training.key(samples)}.pth"
    with one_at_a_time(path.with_suffix(".lock")) if is_rank_zero() else contextlib.nullcontext():
        if run_on_rank_zero(lambda: entry(path) is None):
            _train_and_save(path, training, samples, train)
        barrier()
    return path


def read_encoder(path: Path) -> tuple[ResNetEncoder, list[float]]:
    """An encoder that gives c5, and the mean loss of each epoch of its training."""
    about = entry(path)
    if about is None:
        raise StoreError(f"{path} is no encoder of this cache any more: run the pretraining again")
    encoder = ResNetEncoder(("c5",))
    encoder.load_state_dict(translate(read_checkpoint(path))[0])
    return encoder, about["losses"]


def _train_and_save(path: Path, training: EncoderTraining, samples: Sequence[Sample], train: Train) -> None:
    if training.image_size < 1:
        raise ParameterError(f"pretraining_size={training.image_size} is not a side of at least one pixel")
    images = load_uint8(samples, View(training.image_size, resample=training.resample))
    # A training that stops early leaves its checkpoint to a longer one with otherwise equal settings, which resumes from it.
    stop_after = training.settings.get("stop_after", 0)
    checkpoint = path.with_name(f"{training.key(samples, 'stop_after')}.training")
    if stop_after and _epochs_in(checkpoint) > stop_after:
        checkpoint = path.with_suffix(".training")
    check_owner(checkpoint)
    encoder, losses = train(images, checkpoint)
    if not is_rank_zero():
        return
    with atomic(path) as temporary:
        torch.save({f"encoder.{name}": value.cpu() for name, value in encoder.state_dict().items()}, temporary)
    describe(path, {"method": training.method, "settings": training.settings, "seed": training.seed, "images": len(samples),
                    "losses": losses})
    if not stop_after:
        checkpoint.unlink(missing_ok=True)


def _epochs_in(checkpoint: Path) -> int:
    """Number of epochs in a checkpoint; 0 if the file does not exist."""
    return len(torch.load(checkpoint, map_location="cpu", weights_only=True)["losses"]) if checkpoint.is_file() else 0
