"""What detectors that train on a few labeled anomalies share: their protocol, their balanced batches, their training.

    normal images (n, 3, H, W) ----+
                                   +--> drawn with replacement, rotated --> batch (B, 3, H, W), labels (B,) --> loss
    anomalies (m, 3, H, W), m << n +

Settings of training are those of the published code of DevNet; atacnet leaves its own to the main paper.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Dataset, Sample, View, read_images, with_anomalies
from adcore.data.few_shot import DRAW_SEED
from adcore.data.transforms import CONTRAST, RESAMPLE, Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features import FeatureExtractor, Tap, train_only
from adcore.training import Run, train

# What atacnet prints as ImageNet's are CLIP's.
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# The quick profile of all of them: one stage of a small network, seconds long. So short a training keeps the batch norms'
# statistics and leaves out the rotations, which ask for more epochs.
QUICK: dict[str, Any] = {"backbone": "efficientnet_lite0", "image_size": 80, "anomalies": 6, "tuned": (4,),
                         "normalize": "pretraining", "rotation": 0.0, "epochs": 2, "steps": 10}


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(Config):
    """Settings that the few-shot methods share. Images are 224 pixels wide, as atacnet has it for all of them; the published
    code of DevNet and DRA takes 448.

    taps        one tap, behind which the network is cut
    tuned       stages of the backbone that are trained along; () are all
    anomalies   labeled ones of a category that are trained on
    known       the kind of defect that these are, all others being unseen; '' draws from all kinds
    draw        'fixed' takes the same anomalies in every experiment, as the published code does; 'by_seed' others for each
                seed, so that the spread over seeds counts which anomalies were at hand
    statistics  by which colors are standardized: of the 'pretraining', or 'clip', which atacnet prints
    contrast    'none', 'global' or 'clahe': see `View`
    normalize   by the statistics of the 'batch' while training, as the published code does, or by those of the 'pretraining'
                throughout, which small batches and short trainings want
    rotation    degrees; training images are turned by up to so many, to either side
    steps       an epoch
    lr_every    epochs after which the learning rate is divided by ten
    top_share   of the cells, whose mean is the score of a map
    margin      k, deviations by which anomalies should stand out
    """

    backbone: str = "resnet18"
    taps: tuple[Tap, ...] = (4,)
    weights: str = "default"
    image_size: Size = 224
    resize: str = "bilinear"
    contrast: str = "none"
    statistics: str = "pretraining"
    tuned: tuple[int, ...] = ()
    anomalies: int = 10
    known: str = ""
    draw: str = "fixed"
    normalize: str = "batch"
    rotation: float = 180.0
    epochs: int = 50
    steps: int = 20
    batch_size: int = 48
    lr: float = 2e-4
    weight_decay: float = 1e-5
    lr_every: int = 10
    clip_norm: float = 1.0
    top_share: float = 0.1
    margin: float = 5.0
    amp: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "resize": tuple(RESAMPLE), "contrast": tuple(CONTRAST), "statistics": ("pretraining", "clip"),
        "draw": ("fixed", "by_seed"), "normalize": ("batch", "pretraining")}

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.taps) != 1:
            raise ParameterError(f"{type(self).__qualname__}: taps={self.taps} must be one tap, behind which the network is "
                                 f"cut")
        if self.batch_size < 4 or min(self.epochs, self.steps, self.anomalies) < 0:
            raise ParameterError(f"{type(self).__qualname__}: batch_size={self.batch_size} must be at least 4, epochs, steps "
                                 f"and anomalies at least 0")


def build_extractor(config: Any, seed: int) -> FeatureExtractor:
    """The backbone up to its tap, trained along."""
    c = config
    extractor = FeatureExtractor(c.backbone, c.taps, c.weights, seed, frozen=False,
                                 statistics=CLIP if c.statistics == "clip" else None)
    if c.tuned:
        train_only(extractor, c.tuned)
    return extractor


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Each image turned by its own angle, drawn evenly from [-degrees, degrees]; black comes in at the corners.

    (B, 3, H, W) -> (B, 3, H, W)
    """
    if not degrees:
        return images
    b, _, h, w = images.shape
    angle = torch.empty(b).uniform_(-degrees, degrees).deg2rad().to(images)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Sides count in units of their own half, so that a turn of an image that is no square mixes them.
    turn = torch.stack([torch.stack([cos, -sin * h / w, zero], 1), torch.stack([sin * w / h, cos, zero], 1)], 1)  # (B, 2, 3)
    return F.grid_sample(images, F.affine_grid(turn, list(images.shape), align_corners=False), align_corners=False)


class FewShot(Detector):
    """A detector trained end to end on normal images and a few labeled anomalies. Subclasses build `network`."""

    paper: ClassVar[str] = "atacnet"
    network: nn.Module

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self.extractor = build_extractor(self.config, seed)
        self.extractor.shapes(self.view.shape)  # which refuses images that are too small
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self.build().to(self.device).eval()
        self.losses: list[float] = []
        self.normal = self.anomalous = torch.empty(0, dtype=torch.uint8)

    @classmethod
    def protocol(cls, dataset: Dataset, config: Any, seed: int) -> Dataset:
        """Some anomalies move from test to training: see `adcore.data.few_shot`."""
        return with_anomalies(dataset, config.anomalies, config.known, DRAW_SEED if config.draw == "fixed" else seed)

    @property
    def view(self) -> View:
        c = self.config
        return View(as_size(c.image_size), resample=c.resize, contrast=c.contrast)

    @property
    def weights_digest(self) -> str:
        return self.extractor.digest

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, which holds `self.extractor`; random weights come from torch's random state."""

    @abstractmethod
    def batch(self) -> tuple[Tensor, Tensor]:
        """A balanced batch, drawn from torch's random state: images (B, 3, H, W) in [0, 1], labels (B,)."""

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Scalar."""

    @abstractmethod
    def score(self, images: Tensor) -> Prediction:
        """Scores and maps of images of the view's size."""

    def needs(self) -> int:
        """Labeled anomalies without which there is nothing to learn."""
        return 1

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Detector:
        """Train on balanced batches. The last epoch is the one that counts.

        Raises:
            DataError: no normal image.
            ParameterError: fewer labeled anomalies than the method needs.
        """
        c = self.config
        labels = torch.tensor([sample.label for sample in samples], dtype=torch.bool)
        if labels.all():
            raise DataError(f"{self.name} has no normal image to train on")
        if int(labels.sum()) < self.needs():
            raise ParameterError(f"{self.name} learns from labeled anomalies and has {int(labels.sum())}: set anomalies to "
                                 f"{self.needs()} or more")
        images = torch.cat([(batch * 255).round().to(torch.uint8) for batch in read_images(samples, self.view)])
        self.normal, self.anomalous = images[~labels], images[labels]
        if c.normalize == "pretraining":
            self.extractor.keep_statistics()
        learned = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, c.lr, weight_decay=c.weight_decay)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, c.lr_every, 0.1)
        self.losses = train(self.network, self.loss, self.batches, optimizer, scheduler, epochs=c.epochs, seed=self.seed,
                            clip_norm=c.clip_norm, amp=c.amp,
                            run=Run(checkpoint=checkpoint, progress=progress, desc=self.name))
        return self

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch."""
        return (self.batch() for _ in range(self.config.steps))

    def pick(self, images: Tensor, count: int) -> Tensor:
        """Some images, drawn with replacement: (n, 3, H, W) uint8 -> (count, 3, H, W) in [0, 1] on the method's device."""
        return images[torch.randint(len(images), (count,))].to(self.device).float() / 255

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Scores, and maps at the size of the images given.

        Raises:
            AdcoreError: called before `fit`.
        """
        if not len(self.normal):
            raise AdcoreError(f"{type(self).__name__} is not trained yet: call fit before predict")
        found, size = self.score(self.own_size(images)), images.shape[-2:]
        maps = found.map
        if maps is not None and maps.shape[-2:] != size:
            maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        return Prediction(found.score, maps)
