"""DS2: an encoder from dense self-supervised pretraining, then a Gaussian density of its patch features.

He et al., "Learning Transferable Representations for Image Anomaly Localization Using Dense Pretraining" (DS2), WACV 2024,
supplement Sec. 2 and Table 1. Settings that the supplement leaves out are those of the published code.

Stage 1, dense pretraining: normal images of all categories -> `pretrain` -> ResNet-18 encoder.

    image --> view 1, box 1 --> encoder --> maps c_s --> projectors --> pixel propagation --> y1 --+
      |                            | EMA                     | EMA                                 +--> L_s: y1, z2 and y2, z1
      +-----> view 2, box 2 --> key encoder --> maps --> key projectors ------------------> z2 ----+
    (and with the views exchanged: both views pass through both networks)

Stage 2, localization: normal images of one category -> `localization.PatchDensity` -> Mahalanobis map and image score.

The loss, in the order in which `DS2Pretraining.loss_of_views` computes it:

    two views and their boxes               `views.cropped`, `views.change_colors`
    positive pairs M_ij by delta and top-k  `positive_pairs.positive_pairs`
    similarity A_ij, prediction y           `pixel_propagation.Propagation`
    L_s = (l(1 -> 2) + l(2 -> 1)) / 2       `pixel_propagation.scale_loss`
    L = sum of L_s over c4 and c5           `DS2Pretraining.loss_of_views`
    instance branch of Table 1 (b)          `instance_ssl`

The schedule: LARS, linear warm-up over five epochs, decay by 0.1 at epochs 120, 160 and 200 (`lars.py`).

    paper       code           shape           meaning
    delta       delta          scalar          largest distance of a geometric positive pair, 0.1 diagonals of a bin
    c4, c5      scales         names           feature maps that have a loss each; the losses are added
    y           y1, y2         (B, d, h, w)    predictions of both views, unit vectors at every position
    z           z1, z2         (B, d, h, w)    targets from the key networks, unit vectors at every position
    m           m              scalar          momentum of the key networks: 0.99 at the first step, 1 at the last
    lr          lr             scalar          learning rate of a batch of 256; it grows linearly with the batch
    bs          batch_size     scalar          images per step, 256
    Ins. Model  branch         module          instance branch, attached to c5
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.detector import Config
from adcore.errors import AdcoreError, ParameterError
from adcore.papers.ds2.instance_ssl import BRANCHES, Batch, branch, rotate_quarters
from adcore.papers.ds2.lars import LARS, step_schedule
from adcore.papers.ds2.localization import PretrainedConfig, PretrainedDetector
from adcore.papers.ds2.momentum import cosine_momentum, follow, target_of
from adcore.papers.ds2.pixel_propagation import Projector, Propagation, scale_loss
from adcore.papers.ds2.positive_pairs import PAIRS, positive_pairs
from adcore.papers.ds2.resnet_encoder import CHANNELS, ResNetEncoder, check_scales
from adcore.papers.ds2.views import AUGMENTATIONS, Recipe, change_colors, cropped, standardized
from adcore.settings import IMAGE_SIDE, WIDTH, Range
from adcore.training import Run, resolve_device, seeded, train

Pair = tuple[Tensor, Tensor]
DIRECTIONS = ((0, 1), (1, 0))  # (view of the query, view of the key)


@dataclass(frozen=True, kw_only=True)
class DS2PretrainingConfig(Config):
    """Settings of the dense pretraining. Those that the supplement does not give are the published code's.

    scales           feature maps that have a loss each, Table 1 (e)
    augmentation     set of Table 1 (c): color jitter (cj), Gaussian blur (gb), grayscale (gs), solarize (so). The instance
                     branches other than rotnet bring their own
    instance         instance branch, Table 1 (b)
    instance_weight  weight of its loss beside the dense loss; not published
    class_aware      mocov2: an image is not compared with keys of its own category, as in the published code. Without effect
                     where all images have one category or their categories are not known
    pairs            rule for positive pairs: 'geometric', 'feature' or 'both'
    delta            largest distance of a geometric pair, in diagonals of a bin
    top_k            pairs per image that the feature rule adds
    view_size        side of a view in pixels
    hidden, dim      widths of a projector
    ema              momentum of the key networks at the first step
    stop_after       number of epochs after which training stops early; learning rates and momentum stay those of `epochs`.
                     0 trains all epochs. The published scripts evaluate MVTec AD after 300
    batch_size       Table 1 (d); the images of an epoch that do not fill a batch are dropped
    lr               learning rate for batches of 256; it is multiplied by batch_size / 256
    released_warmup  take the learning rates of the released scheduler, whose warm-up counts every step twice; see
                     `lars.step_schedule`
    amp              run the networks in bfloat16; the paper does not. Views, similarities and losses stay in float32
    """

    scales: tuple[str, ...] = ("c4", "c5")
    augmentation: str = "cj+gb"
    instance: str = "none"
    instance_weight: float = 1.0
    class_aware: bool = True
    pairs: str = "both"
    delta: float = 0.1
    top_k: int = 1
    view_size: int = 224
    hidden: int = 4096
    dim: int = 256
    ema: float = 0.99
    epochs: int = 400
    stop_after: int = 0
    batch_size: int = 256
    lr: float = 2.0
    momentum: float = 0.9
    weight_decay: float = 1e-5
    trust: float = 0.001
    warmup_epochs: int = 5
    decay_epochs: tuple[int, ...] = (120, 160, 200)
    released_warmup: bool = False
    amp: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"augmentation": tuple(AUGMENTATIONS), "instance": BRANCHES,
                                                  "pairs": PAIRS}
    ranges: ClassVar[dict[str, Range]] = {
        "instance_weight": Range(least=0), "delta": Range(least=0), "top_k": Range(least=1), "view_size": IMAGE_SIDE,
        "dim": WIDTH, "ema": Range(least=0, most=1), "stop_after": Range(least=0), "batch_size": Range(least=2, most=2**16),
        "trust": Range(above=0), "warmup_epochs": Range(least=0), "decay_epochs": Range(least=0)}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scales(self.scales)
        if self.instance != "none" and "c5" not in self.scales:
            raise self.refused(f"instance={self.instance} works on c5, which is missing from scales={self.scales}")
        if self.stop_after > self.epochs:
            raise self.refused(f"stop_after={self.stop_after} is more than epochs={self.epochs}")


class DS2Pretraining(nn.Module):
    """The trained networks and their key networks (exponential moving averages). Initialized from torch's random state.

    steps   number of steps of the whole training, over which the momentum rises
    step    number of steps taken; saved with the weights
    losses  mean loss of each epoch, filled by `pretrain`
    """

    def __init__(self, config: DS2PretrainingConfig, steps: int = 0) -> None:
        super().__init__()
        self.config, self.steps, self.step = config, steps, 0
        self.encoder = ResNetEncoder(config.scales)
        self.projectors = nn.ModuleDict({s: Projector(CHANNELS[s], config.hidden, config.dim) for s in config.scales})
        self.propagation = Propagation(config.dim)
        self.branch = branch(config.instance, hidden=config.hidden, dim=config.dim, view_size=config.view_size)
        self.key_encoder, self.key_projectors = target_of(self.encoder), target_of(self.projectors)
        self.losses: list[float] = []

    def get_extra_state(self) -> int:
        return self.step

    def set_extra_state(self, state: int) -> None:
        self.step = state

    @property
    def recipes(self) -> tuple[Recipe, Recipe]:
        """Augmentations of view 1 and view 2."""
        own = None if self.branch is None else self.branch.recipes
        return own or AUGMENTATIONS[self.config.augmentation]

    def loss(self, images: Tensor, categories: Tensor | None = None, quarters: Tensor | None = None) -> Tensor:
        """Draw two views of each image and compare them: (B, 3, H, W), uint8 or floats in [0, 1] -> scalar.

        In training mode the key networks are updated before they compute the targets.

        categories, quarters  see `instance_ssl.Batch`; quarter turns that are not given are drawn
        """
        if quarters is None:
            quarters = torch.randint(4, (len(images), 2))
        crops, boxes, views = [], [], []
        with torch.no_grad():
            for recipe in self.recipes:
                crop, box = cropped(images, recipe, self.config.view_size)
                crops.append(crop)
                boxes.append(box)
                views.append(standardized(change_colors(crop, recipe)))
        return self.loss_of_views((views[0], views[1]), (boxes[0], boxes[1]), Batch((crops[0], crops[1]), categories, quarters))

    def loss_of_views(self, views: Pair, boxes: Pair, batch: Batch | None = None) -> Tensor:
        """L = sum over scales of L_s, each between -2 and 2, plus the loss of the instance branch if there is one.

        Two views (B, 3, S, S) each, standardized, and their boxes (B, 4) each -> scalar. Only the branch uses `batch`.
        """
        # Each view passes the networks as a batch of its own, so batch norm uses the statistics of one view at a time.
        query = [self.encoder(view) for view in views]
        if self.training:
            self.ema_step()
        with torch.no_grad():
            key = [self.key_encoder(view) for view in views]
        loss = torch.stack([self._scale_loss(scale, query, key, boxes) for scale in self.config.scales]).sum()
        if self.branch is None:
            return loss
        assert batch is not None, "an instance branch needs the batch"
        (q1, q2), (k1, k2) = ([maps["c5"] for maps in both] for both in (query, key))
        return loss + self.config.instance_weight * self.branch(batch, (q1, q2), (k1, k2), lambda x: self.encoder(x)["c5"])

    def _scale_loss(self, scale: str, query: list[dict[str, Tensor]], key: list[dict[str, Tensor]],
                    boxes: Pair) -> Tensor:
        """L_s of one scale, from the maps of both views."""
        c = self.config
        y1, y2 = (self.propagation(self.projectors[scale](maps[scale])) for maps in query)
        with torch.no_grad():
            z1, z2 = (F.normalize(self.key_projectors[scale](maps[scale]).float(), dim=1) for maps in key)
            pairs12, pairs21 = (positive_pairs(boxes[q], boxes[k], query[q][scale], key[k][scale], pairs=c.pairs,
                                               delta=c.delta, top_k=c.top_k) for q, k in DIRECTIONS)
        return scale_loss((y1, y2), (z1, z2), (pairs12, pairs21))

    def ema_step(self) -> None:
        """Move the key networks one step towards the trained ones."""
        m = cosine_momentum(self.step, self.steps, self.config.ema)
        follow(self.key_encoder, self.encoder, m)
        follow(self.key_projectors, self.projectors, m)
        if self.branch is not None:
            self.branch.follow(m)
        self.step += 1


def pretrain(config: DS2PretrainingConfig, images: Tensor, categories: Tensor | None = None, *,
             checkpoint: Path | None = None, progress: bool | None = None, seed: int = 0,
             device: str | torch.device = "cpu") -> DS2Pretraining:
    """Pretrain on normal images of all categories: (n, 3, H, W) uint8 -> the networks, in eval mode.

    Views are cut from the images at the given resolution. Images should be larger than a view, because small crops are
    enlarged and look blurred. Several processes (`adcore.distributed`) split each batch between them.

    categories  (n,) int64, numbers of the images' categories, if they are known; for `class_aware`
    checkpoint  file from which an interrupted training resumes to the same weights; also one of a smaller `stop_after`

    Raises:
        ParameterError: images of another shape or dtype, or fewer than a batch.
        AdcoreError: the checkpoint holds more epochs than asked for; see `training.train`.
    """
    c, device = config, resolve_device(device)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ParameterError(f"images must be (n, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
    with seeded(seed):
        networks = DS2Pretraining(c)
        quarters = torch.randint(4, (len(images), 2))
    if not c.class_aware or categories is None or len(categories.unique()) < 2:
        categories = None  # with one category, no negative would be left
    # A branch may count each rotation as an image of its own: number i is then image i % n, rotated by i // n quarters.
    turns = 1 if networks.branch is None else networks.branch.turns
    if turns > 1 and images.shape[2] != images.shape[3]:
        raise ParameterError(f"instance={c.instance} rotates images, which must be square, not {tuple(images.shape[2:])}")
    per_epoch = turns * len(images) // c.batch_size
    if per_epoch == 0:
        raise ParameterError(f"batch_size={c.batch_size} is more than the {len(images)} images: an epoch would have no batch")
    networks.steps = per_epoch * c.epochs

    def batches() -> Iterator[tuple[Tensor]]:
        for numbers in torch.randperm(turns * len(images))[:per_epoch * c.batch_size].split(c.batch_size):
            yield (numbers,)

    def loss_of(numbers: Tensor) -> Tensor:
        image, turn = numbers % len(images), numbers // len(images)
        batch = images[image.to(images.device)].to(device, non_blocking=True)
        return networks.loss(rotate_quarters(batch, turn) if turns > 1 else batch,
                             None if categories is None else categories[image], quarters[image])

    networks.to(device)
    learned = [p for p in networks.parameters() if p.requires_grad]
    optimizer = LARS(learned, c.lr * c.batch_size / 256, momentum=c.momentum, weight_decay=c.weight_decay, trust=c.trust)
    scheduler = step_schedule(optimizer, per_epoch, warmup=c.warmup_epochs, decay_epochs=c.decay_epochs,
                              released=c.released_warmup)
    epochs = c.stop_after or c.epochs
    networks.losses = train(networks, loss_of, batches, optimizer, scheduler, epochs=epochs, each_step=True, seed=seed,
                            amp=c.amp, data_parallel=True, run=Run(checkpoint=checkpoint, progress=progress, desc="ds2"))
    if len(networks.losses) > epochs:
        raise AdcoreError(f"checkpoint {checkpoint} holds {len(networks.losses)} epochs, more than the {epochs} asked for: "
                          f"use another file")
    return networks


@dataclass(frozen=True, kw_only=True)
class DS2Config(PretrainedConfig, DS2PretrainingConfig):
    """Settings of both stages: `DS2PretrainingConfig`, and `PretrainedConfig` with `PatchDensityConfig`."""


class DS2(PretrainedDetector):
    """Both stages as one detector. The localization uses the trained (query) encoder, not the key encoder.

    Raises:
        ParameterError: settings that do not fit together, see the configs.
    """

    name: ClassVar[str] = "ds2"
    version: ClassVar[int] = 2  # 2: warm-up by the step, MoCo's and RotNet's branch as in the code, 1: warm-up by the epoch
    Config: ClassVar[type[Any]] = DS2Config
    Pretraining = DS2PretrainingConfig
    quick: ClassVar[dict[str, Any]] = {
        "pretraining_size": 128, "view_size": 64, "hidden": 256, "dim": 128, "epochs": 4, "batch_size": 16, "lr": 16.0,
        "warmup_epochs": 1, "decay_epochs": (3,), "image_size": 128, "stride": 16, "density_images": 24}

    def _train(self, images: Tensor, categories: Tensor, checkpoint: Path,
               progress: bool | None) -> tuple[ResNetEncoder, list[float]]:
        networks = pretrain(self.config, images, categories, checkpoint=checkpoint, progress=progress, seed=self.seed,
                            device=self.device)
        return networks.encoder, networks.losses
