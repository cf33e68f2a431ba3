"""DS2's first stage: an encoder learns, without labels, to know a position again in another view of the image.

He et al., "Learning Transferable Representations for Image Anomaly Localization Using Dense Pretraining" (DS2), supplement;
what that leaves out is the published code's.

    image --> view 1, box 1 --> encoder --> maps c_s --> projectors --> propagation --> y1 --+
      |                            | EMA                     | EMA                           +--> L_s: y1 to z2, y2 to z1
      +-----> view 2, box 2 --> key encoder --> maps --> key projectors ------------> z2 ----+
    (and the other way round: both views pass both networks)

    paper     code            meaning
    delta     delta           reach of geometric pairs, 0.1 of a bin's diagonal
    c4, c5    scales          maps with a loss each; the losses are added
    m         momentum        of the key networks: 0.99 at the first step, 1 at the last
    Ins.      branch          instance branch, on c5

An instance branch may add a loss of its own, Table 1 (b). One model serves all categories. Only `encoder` is used afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.detector import Config
from adcore.errors import AdcoreError, ParameterError
from adcore.papers.ds2.instance_ssl import BRANCHES, branch, turned
from adcore.papers.ds2.lars import LARS, step_schedule
from adcore.papers.ds2.momentum import cosine_momentum, follow, target_of
from adcore.papers.ds2.pixel_propagation import Projector, Propagation, scale_loss
from adcore.papers.ds2.positive_pairs import PAIRS, positive_pairs
from adcore.papers.ds2.resnet_encoder import CHANNELS, ResNetEncoder, check_scales
from adcore.papers.ds2.views import AUGMENTATIONS, Recipe, augmented
from adcore.training import Run, resolve_device, seeded, train

DIRECTIONS = ((0, 1), (1, 0))  # query's view and key's


@dataclass(frozen=True, kw_only=True)
class DS2PretrainingConfig(Config):
    """Settings of the pretraining; those that the supplement does not give are the published code's.

    scales        maps with a loss each, Table 1 (e)
    augmentation  of Table 1 (c): color jitter, Gaussian blur, grayscale, solarize; instance branches but rotnet have their own
    instance      branch of Table 1 (b); of its weight beside the dense loss nothing is published
    pairs         by which rule positions are paired: 'geometric', 'feature' or 'both'
    delta         reach of geometric pairs, in diagonals of a bin
    top_k         pairs of an image by features
    view_size     side of a view in pixels
    hidden, dim   widths of a projector
    ema           momentum of the key networks at the first step
    stop_after    epochs after which training ends while rates and momentum are those of `epochs`; 0 is all. The published
                  scripts evaluate MVTec AD after 300
    batch_size    Table 1 (d); what is left over of an epoch is dropped
    lr            for batches of 256; it grows with the batch
    amp           networks in bfloat16, the paper's are not; views, similarities and losses stay as they are
    """

    scales: tuple[str, ...] = ("c4", "c5")
    augmentation: str = "cj+gb"
    instance: str = "none"
    instance_weight: float = 1.0
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
    amp: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"augmentation": tuple(AUGMENTATIONS), "instance": BRANCHES,
                                                  "pairs": PAIRS}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_scales(self.scales)
        if self.instance != "none" and "c5" not in self.scales:
            raise ParameterError(f"{type(self).__qualname__}: instance={self.instance} works on c5, which scales={self.scales} "
                                 f"leave out")
        if min(self.view_size, self.hidden, self.dim, self.top_k) < 1 or self.batch_size < 2:
            raise ParameterError(f"{type(self).__qualname__}: view_size, hidden, dim and top_k must be at least 1, batch_size "
                                 f"at least 2")
        if not 0 <= self.stop_after <= self.epochs or not 0 <= self.ema <= 1:
            raise ParameterError(f"{type(self).__qualname__}: stop_after={self.stop_after} must be between 0 and "
                                 f"epochs={self.epochs}, ema={self.ema} between 0 and 1")


class DS2Pretraining(nn.Module):
    """The networks that are trained, drawn from torch's random state, and their slow copies.

    steps   of the whole training, over which the momentum rises
    step    taken so far; saved with the weights
    losses  mean of each epoch, after `pretrain`
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
        """Of the two views."""
        own = None if self.branch is None else self.branch.recipes
        return own or AUGMENTATIONS[self.config.augmentation]

    def loss(self, images: Tensor) -> Tensor:
        """Two views drawn of each image, and what they say of each other: (B, 3, H, W), uint8 or in [0, 1] -> scalar.

        In training mode the key networks follow first.
        """
        with torch.no_grad():
            drawn = [augmented(images, recipe, self.config.view_size) for recipe in self.recipes]
        return self.loss_of_views(*zip(*drawn, strict=True))

    def loss_of_views(self, views: tuple[Tensor, Tensor], boxes: tuple[Tensor, Tensor]) -> Tensor:
        """Sum of L_s over scales, each between -2 and 2, and what a branch adds: two views (B, 3, S, S) each, their boxes
        (B, 4) -> scalar."""
        # Each view is a batch of its own, by whose statistics it is normalized.
        query = [self.encoder(view) for view in views]
        if self.training:
            self.ema_step()
        with torch.no_grad():
            key = [self.key_encoder(view) for view in views]
        loss = torch.stack([self._scale_loss(scale, query, key, boxes) for scale in self.config.scales]).sum()
        if self.branch is None:
            return loss
        (q1, q2), (k1, k2) = ([maps["c5"] for maps in both] for both in (query, key))
        return loss + self.config.instance_weight * self.branch(views, (q1, q2), (k1, k2), lambda x: self.encoder(x)["c5"])

    def _scale_loss(self, scale: str, query: list[dict[str, Tensor]], key: list[dict[str, Tensor]],
                    boxes: tuple[Tensor, Tensor]) -> Tensor:
        c = self.config
        y1, y2 = (self.propagation(self.projectors[scale](maps[scale])) for maps in query)
        with torch.no_grad():
            z1, z2 = (F.normalize(self.key_projectors[scale](maps[scale]).float(), dim=1) for maps in key)
            there, back = (positive_pairs(boxes[q], boxes[k], query[q][scale], key[k][scale], pairs=c.pairs, delta=c.delta,
                                          top_k=c.top_k) for q, k in DIRECTIONS)
        return scale_loss((y1, y2), (z1, z2), (there, back))

    def ema_step(self) -> None:
        """Key networks follow by one step."""
        momentum = cosine_momentum(self.step, self.steps, self.config.ema)
        follow(self.key_encoder, self.encoder, momentum)
        follow(self.key_projectors, self.projectors, momentum)
        if self.branch is not None:
            self.branch.follow(momentum)
        self.step += 1


def pretrain(config: DS2PretrainingConfig, images: Tensor, *, checkpoint: Path | None = None, progress: bool | None = None,
             seed: int = 0, device: str | torch.device = "cpu") -> DS2Pretraining:
    """Pretrain on normal images of all categories: (n, 3, H, W) uint8 -> the networks, in eval mode.

    Views are cut from the images as they are given: give them larger than a view, or small crops come out blurred. Several
    processes (`adcore.distributed`) split each batch between them.

    checkpoint  from which an interrupted training goes on to the same weights; also one with a smaller `stop_after`

    Raises:
        ParameterError: images of another shape or dtype, or fewer than a batch.
        AdcoreError: a checkpoint that is further already; see `training.train`.
    """
    c, device = config, resolve_device(device)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ParameterError(f"images must be (n, 3, H, W) uint8, not {tuple(images.shape)} {images.dtype}")
    with seeded(seed):
        networks = DS2Pretraining(c)
    # A branch may count an image's rotations as images of their own: number i is image i % n, turned i // n times.
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
        batch = images[(numbers % len(images)).to(images.device)].to(device, non_blocking=True)
        return networks.loss(turned(batch, numbers // len(images)) if turns > 1 else batch)

    networks.to(device)
    learned = [p for p in networks.parameters() if p.requires_grad]
    optimizer = LARS(learned, c.lr * c.batch_size / 256, momentum=c.momentum, weight_decay=c.weight_decay, trust=c.trust)
    scheduler = step_schedule(optimizer, warmup=c.warmup_epochs, decay_epochs=c.decay_epochs)
    epochs = c.stop_after or c.epochs
    networks.losses = train(networks, loss_of, batches, optimizer, scheduler, epochs=epochs, seed=seed, amp=c.amp,
                            data_parallel=True, run=Run(checkpoint=checkpoint, progress=progress, desc="ds2"))
    if len(networks.losses) > epochs:
        raise AdcoreError(f"checkpoint {checkpoint} holds {len(networks.losses)} epochs, more than the {epochs} asked for: "
                          f"take another file")
    return networks
