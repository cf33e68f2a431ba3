"""Shared part of the detectors that train on a few labeled anomalies: settings, balanced batches and training loop.

    normal images (n, 3, H, W) ----+
                                   +--> drawn with replacement, rotated --> batch (B, 3, H, W), labels (B,) --> loss
    anomalies (m, 3, H, W), m << n +

The training settings are those of DevNet's published code. ATAC-Net's are in its main paper, not in the supplement.
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

from adcore.data import Dataset, Sample, View, load_uint8
from adcore.data.transforms import CONTRAST, RESAMPLE, Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features import FeatureExtractor, Tap, images_digest, train_only
from adcore.files import digest_text
from adcore.papers.atacnet.few_shot_split import DRAW_SEED, with_anomalies
from adcore.settings import Range
from adcore.training import Run, Scheduler, train

# Mean and standard deviation of the colors. The supplement (Sec. 2) calls them ImageNet's, but they are CLIP's.
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# The quick profile of all these methods trains one stage of a small network for seconds. This is too short to learn new batch
# norm statistics and invariance to rotations, so it keeps the former fixed and leaves out the latter.
QUICK: dict[str, Any] = {"backbone": "efficientnet_lite0", "image_size": 80, "anomalies": 6, "tuned": (4,),
                         "normalize": "weights", "rotation": 0.0, "epochs": 2, "steps": 10}


@dataclass(frozen=True, kw_only=True)
class FewShotConfig(Config):
    """Settings that all few-shot methods have. The image size is 224, which ATAC-Net's supplement uses for all methods; the
    published code of DevNet and DRA uses 448.

    taps        one tap; the backbone ends there
    tuned       stages of the backbone that are trained; () trains all of it
    anomalies   number of labeled anomalies per category to train on
    known       their defect type; all other types are unseen in training. '' draws anomalies of all types
    draw        'fixed': every experiment trains on the same anomalies, as in the published code; 'by_seed': each seed draws its
                own, so that the standard deviation over seeds includes the choice of anomalies
    statistics  mean and standard deviation that colors are standardized with: 'weights', those that come with the backbone's
                weights, or 'clip', those that the supplement prints
    contrast    contrast equalization: 'none', 'global' or 'clahe', see `View`
    normalize   statistics that the backbone's batch norms use in training: those of the 'batch', as in the published code, or
                those that come with the 'weights', which suits small batches and short trainings
    rotation    training images are rotated by a random angle of at most so many degrees, in either direction
    steps       batches per epoch
    lr_every    the learning rate is divided by ten after so many epochs; DRA does it one epoch earlier
    top_share   fraction of the cells with the largest values; their mean is the score
    margin      k of the deviation loss
    """

    backbone: str = "resnet18"
    taps: tuple[Tap, ...] = (4,)
    weights: str = "default"
    image_size: Size = 224
    resize: str = "bilinear"
    contrast: str = "none"
    statistics: str = "weights"
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
        "resize": tuple(RESAMPLE), "contrast": tuple(CONTRAST), "statistics": ("weights", "clip"),
        "draw": ("fixed", "by_seed"), "normalize": ("batch", "weights")}

    ranges: ClassVar[dict[str, Range]] = {
        "taps": Range(least=1, items=(1, 1)), "anomalies": Range(least=0), "rotation": Range(least=0, most=180),
        "steps": Range(least=1), "batch_size": Range(least=4, most=2**16), "lr_every": Range(least=1),
        "top_share": Range(above=0, most=1), "margin": Range(above=0)}


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Each image rotated around its center by its own angle, uniform in [-degrees, degrees]; the corners become black.

    A pixel takes the color of the nearest one, as in the published code of DevNet and DRA (torchvision's `RandomRotation`
    without a mode). ATAC-Net, which has no code, is trained with the same rotation. With `degrees` 0 the images are returned.

    (B, 3, H, W) -> (B, 3, H, W)
    """
    if not degrees:
        return images
    b, _, h, w = images.shape
    angle = torch.empty(b).uniform_(-degrees, degrees).deg2rad().to(images)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # grid_sample scales both axes to [-1, 1], so a rotation of a non-square image needs the factors h / w and w / h.
    matrix = torch.stack([torch.stack([cos, -sin * h / w, zero], 1), torch.stack([sin * w / h, cos, zero], 1)], 1)  # (B, 2, 3)
    return F.grid_sample(images, F.affine_grid(matrix, list(images.shape), align_corners=False), mode="nearest",
                         align_corners=False)


class FewShot(Detector):
    """A detector trained end to end on normal images and a few labeled anomalies. Subclasses build `network`."""

    paper: ClassVar[str] = "atacnet"
    open: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (5,)}  # stride 32
    network: nn.Module

    def __init__(self, config: Any = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        c = self.config
        self.extractor = FeatureExtractor(c.backbone, c.taps, c.weights, seed, frozen=False,
                                          statistics=CLIP if c.statistics == "clip" else None)
        if c.tuned:
            train_only(self.extractor, c.tuned)
        self.extractor.shapes(self.view.shape)  # raises if the images are too small
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self.build().to(self.device).eval()
        self.losses: list[float] = []
        self.normal = self.anomalous = torch.empty(0, dtype=torch.uint8)

    @classmethod
    def protocol(cls, dataset: Dataset, config: Any, seed: int) -> Dataset:
        """The few-shot split, see `few_shot_split.with_anomalies`."""
        return with_anomalies(dataset, config.anomalies, config.known, DRAW_SEED if config.draw == "fixed" else seed)

    @property
    def view(self) -> View:
        c = self.config
        return View(as_size(c.image_size), resample=c.resize, contrast=c.contrast)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, which contains `self.extractor`. Random weights come from torch's global generator."""

    @abstractmethod
    def batch(self) -> tuple[Tensor, Tensor]:
        """A balanced random batch: images (B, 3, H, W) in [0, 1], labels (B,). Uses torch's global generator."""

    @abstractmethod
    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch: (B, 3, H, W), (B,) -> scalar."""

    @abstractmethod
    def score(self, images: Tensor) -> Prediction:
        """Scores and maps of images that have the size of the view."""

    def anomalies_needed(self) -> int:
        """Least number of labeled anomalies to train with."""
        return 1

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Detector:
        """Train on balanced batches and keep the weights of the last epoch.

        Raises:
            DataError: there is no normal image.
            ParameterError: there are fewer labeled anomalies than the method needs.
        """
        c = self.config
        labels = torch.tensor([sample.label for sample in samples], dtype=torch.bool)
        if labels.all():
            raise DataError(f"{self.name} has no normal image to train on")
        if int(labels.sum()) < self.anomalies_needed():
            raise ParameterError(f"{self.name} learns from labeled anomalies and has {int(labels.sum())}: set anomalies to "
                                 f"{self.anomalies_needed()} or more")
        images = load_uint8(samples, self.view)
        self.normal, self.anomalous = images[~labels], images[labels]
        if c.normalize == "weights":
            self.extractor.keep_statistics()
        inputs = digest_text(f"{images_digest(samples)} {labels.tolist()} {self.weights_digest}")
        learned = [p for p in self.network.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(learned, c.lr, weight_decay=c.weight_decay)
        self.losses = train(self.network, self.loss, self.batches, optimizer, self.schedule(optimizer), epochs=c.epochs,
                            seed=self.seed, clip_norm=c.clip_norm, amp=c.amp,
                            run=Run(checkpoint, progress, self.name, inputs))
        return self

    def schedule(self, optimizer: torch.optim.Optimizer) -> Scheduler:
        """The learning rate, stepped after every epoch: a tenth after each `lr_every` epochs."""
        return torch.optim.lr_scheduler.StepLR(optimizer, self.config.lr_every, 0.1)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch."""
        return (self.batch() for _ in range(self.config.steps))

    def pick(self, images: Tensor, count: int) -> Tensor:
        """Random images, with replacement: (n, 3, H, W) uint8 -> (count, 3, H, W) in [0, 1] on the method's device."""
        return images[torch.randint(len(images), (count,))].to(self.device).float() / 255

    def _predict(self, images: Tensor) -> Prediction:
        """As `score`.

        Raises:
            AdcoreError: called before `fit`.
        """
        if not len(self.normal):
            raise AdcoreError(f"{type(self).__name__} is not trained yet: call fit before predict")
        return self.score(images)
