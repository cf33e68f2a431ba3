"""Contrastive fine-tuning: features learn to keep natural images out of the density of normal ones.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, and its
supplement. Of the paper only the supplement is followed: what it leaves open is a setting.

    normal images -----------------> backbone -> taps on one grid -> d numbers a cell -> u+ --+-> mixture (online EM)
    photographs -> their colors --> backbone -> taps on one grid -> d numbers a cell -> u- --+-> L_pos + L_neg -> backbone

    paper       code           shape          meaning
    u           features       (B, h, w, d)   reduced features of a cell
    GMM         mixture                       of normal features; follows them, gets no gradient
    alpha, L    outliers                      the uniform component: prior and volume
    P(z=-|u+)   misclassified                 a normal cell taken for an outlier, by which its gradient is weighted

The map is -log GMM(u). With epochs=0 it is that of the untouched features: the same method before fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, View, read_images
from adcore.data.transforms import Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features import Tap
from adcore.papers.artola2024 import color
from adcore.papers.artola2024.color import ColorMoments, color_moments, pool
from adcore.papers.artola2024.losses import Outliers, misclassified, negative_loss, passing, positive_loss
from adcore.papers.artola2024.negatives import UNCHANGED, Negatives, find_negatives, random_crops, recolored
from adcore.papers.artola2024.tuned import Tuned
from adcore.training import Run, train

RECORDS = ("positive", "negative", "gradient", "passing", "outside")
DIAGNOSED = 32


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(Config):
    """Settings of contrastive fine-tuning. The supplement names losses, filter, online EM and transport, and no number but
    the filter's tenth; backbone and layers are those of the authors' GLAD, the rest is chosen here.

    tuned          stages that are fine-tuned, from the end of the stage before to their own; () are the tapped ones
    dim            d, numbers a cell
    reduction      of the joined channels to d: 'random' (Gaussian, drawn from the seed) or 'pca' of the untouched features
    components     K
    volume         'box' takes log L from the box around the untouched normal features, 'given' takes `log_volume`
    gamma          step of online EM; 0 is (t + 2)^-0.6 at step t
    start_cells    cells at most, drawn at random, on which the mixture is started by K-means and EM
    cells          cells of a batch that are contrasted, of normal images and of negatives each, drawn at random; 0 is all
    clip_norm      of the gradient; 0 is not clipped
    filter         outlier filter; without it all negatives send a gradient
    filter_share   the share of negatives, farthest outside, that always pass it
    negatives      'photographs' (packaged), or a folder: see `papers.artola2024.negatives.find_negatives`
    held_out       share of the photographs that is kept for measuring
    smallest_crop  a negative's side, at least, as a share of the longest that fits in the photograph
    transport      of the negatives' colors: 'monge_kantorovich', 'diagonal' or 'none'
    target         whose colors: of the 'image' beside it in the batch, or of the whole 'category'
    rho            how far along
    """

    backbone: str = "wide_resnet50_2"
    taps: tuple[Tap, ...] = (2, 3)
    weights: str = "default"
    image_size: Size = 256
    tuned: tuple[int, ...] = ()
    dim: int = 64
    reduction: str = "random"
    components: int = 20
    alpha: float = 0.5
    volume: str = "box"
    log_volume: float = 0.0
    gamma: float = 0.05
    start_cells: int = 100_000
    epochs: int = 20
    batch_size: int = 8
    cells: int = 2048
    lr: float = 1e-5
    clip_norm: float = 0.0
    filter: bool = True
    filter_share: float = 0.1
    negatives: str = "imagenet"
    held_out: float = 0.2
    smallest_crop: float = 0.5
    transport: str = "monge_kantorovich"
    target: str = "image"
    rho: float = 1.0

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "reduction": ("random", "pca"), "volume": ("box", "given"), "transport": (*color.METHODS, UNCHANGED),
        "target": ("image", "category")}

    def __post_init__(self) -> None:
        super().__post_init__()
        Outliers(self.log_volume, self.alpha)  # which checks them
        for name, low, high in (("gamma", 0, 1), ("rho", 0, 1), ("filter_share", 1e-6, 1), ("smallest_crop", 1e-6, 1),
                                ("held_out", 1e-6, 1 - 1e-6)):
            if not low <= getattr(self, name) <= high:
                raise ParameterError(f"ContrastiveConfig: {name}={getattr(self, name)} is not between 0 and 1")
        if self.dim < 1 or self.components < 1 or min(self.epochs, self.cells) < 0:
            raise ParameterError(f"ContrastiveConfig: dim={self.dim} and components={self.components} must be at least 1, "
                                 f"epochs={self.epochs} and cells={self.cells} at least 0")
        if self.volume == "box" and self.log_volume:
            raise ParameterError(f"ContrastiveConfig: log_volume={self.log_volume} counts with volume='given' only")


class Contrastive(Detector):
    """Contrastive fine-tuning as a detector; one model a category.

    Raises:
        ParameterError, WeightsError: see `Tuned`; images smaller than a tap's stride.
    """

    name: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "artola2024"
    Config: ClassVar[type[Any]] = ContrastiveConfig
    quick: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (3,), "image_size": 96, "dim": 16,
                                       "components": 4, "epochs": 12, "cells": 512, "lr": 1e-3, "negatives": "photographs",
                                       "held_out": 0.3, "smallest_crop": 0.25}

    def __init__(self, config: ContrastiveConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self.network = Tuned(self.config, seed).to(self.device)
        self.network.extractor.shapes(self.view.shape)  # which refuses images that are too small
        self.photographs: Negatives | None = None
        self.colors: ColorMoments | None = None
        self.losses: list[float] = []
        self._step: list[float] = []
        self._positives = torch.empty(0)

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size))

    @property
    def weights_digest(self) -> str:
        return self.network.extractor.digest

    @property
    def outliers(self) -> Outliers:
        """The uniform component."""
        return Outliers(float(self.network.log_volume), self.config.alpha)

    @property
    def history(self) -> pd.DataFrame:
        """A row a step of fine-tuning.

        positive, negative  mean L_pos, and mean L_neg of the negatives that pass the filter
        gradient            norm of the gradient, before it is clipped
        passing, outside    share of the negatives that pass the filter, and that lie outside the mixture
        """
        return pd.DataFrame(self.network.history, columns=list(RECORDS))

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Contrastive:
        """Start the mixture on the untouched features, then fine-tune. The last epoch is the one that counts.

        Raises:
            DataError: no training image, or no negatives.
            ParameterError: fewer cells than components, or a dimension in which all features are equal.
        """
        c = self.config
        if not samples:
            raise DataError("no image to fine-tune on")
        self.photographs = find_negatives(c.negatives, c.held_out)
        images = torch.cat([(batch * 255).round().to(torch.uint8) for batch in read_images(samples, self.view)])
        self.colors = pool(color_moments(batch.float() / 255) for batch in images.split(16))
        if checkpoint is None or not checkpoint.is_file():
            self._start(images)
        optimizer = torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], c.lr)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)
        self.losses = train(self.network, self.loss, images, optimizer, epochs=c.epochs, batch_size=c.batch_size,
                            seed=self.seed, run=Run(checkpoint=checkpoint, progress=progress, desc=self.name))
        return self

    @torch.no_grad()
    def _start(self, images: Tensor) -> None:
        """Reduction, box and mixture of the untouched features of normal images, (n, 3, H, W) uint8."""
        def batches() -> Iterator[Tensor]:
            return (batch.to(self.device).float() / 255 for batch in images.split(16))

        c, network = self.config, self.network
        network.history = []
        if c.reduction == "pca":
            network.fit_projection(batches())
        features = torch.cat([network(batch).flatten(0, 2) for batch in batches()])            # (n, d)
        if c.volume == "box":
            network.log_volume.fill_(Outliers.around(features).log_volume)
        some = torch.randperm(len(features), generator=torch.Generator().manual_seed(self.seed))[:c.start_cells]
        network.mixture.fit(features[some.sort().values.to(self.device)], seed=self.seed)

    def loss(self, images: Tensor) -> Tensor:
        """mean L_pos + mean L_neg of a batch of normal images and as many negatives drawn for it: (B, 3, H, W) in 0..255 ->
        scalar."""
        images = images / 255
        return self.contrast(images, self.negatives(images))

    def contrast(self, images: Tensor, negatives: Tensor) -> Tensor:
        """mean L_pos + mean L_neg of normal images and negatives, both (B, 3, H, W) in [0, 1]: -> scalar."""
        c = self.config
        positive, negative = (self._some(self.network(batch).flatten(0, 2)) for batch in (images, negatives))  # (n, d)
        logit = self.outliers.logit(self.network.mixture(negative))                            # (n,)
        outside = logit.detach() < 0
        passes = passing(logit, c.filter_share) if c.filter else torch.ones_like(outside)
        l_pos = positive_loss(self.outliers.logit(self.network.mixture(positive))).mean()
        l_neg = negative_loss(logit[passes]).mean()
        self._positives = positive.detach()
        self._step = [float(x) for x in (l_pos.detach(), l_neg.detach(), math.nan, passes.float().mean(),
                                         outside.float().mean())]
        return l_pos + l_neg

    def _some(self, cells: Tensor) -> Tensor:
        """The cells of a batch that are contrasted: (n, d) -> (at most `cells`, d)."""
        wanted = self.config.cells
        return cells if not 0 < wanted < len(cells) else cells[torch.randperm(len(cells))[:wanted].to(cells.device)]

    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or float("inf"))
        self._step[RECORDS.index("gradient")] = float(norm)

    def _after_step(self, *_: Any) -> None:
        """The mixture follows the normal features (online EM)."""
        self.network.mixture.update(self._positives, self.config.gamma or None)
        self.network.history.append(self._step)

    def negatives(self, images: Tensor, *, held_out: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """A random crop of a photograph for each normal image, in its colors or the category's: (B, 3, H, W) -> (B, 3, H, W).

        held_out  of the photographs that fine-tuning does not see

        Raises:
            AdcoreError: called before `fit`.
        """
        if self.photographs is None or self.colors is None:
            raise AdcoreError("there are no negatives yet: call fit first")
        c = self.config
        names = self.photographs.held_out if held_out else self.photographs.train
        crops = random_crops(names, len(images), self.view.shape, c.smallest_crop, generator).to(images.device)
        target = images if c.target == "image" else self.colors.to(images.device, images.dtype)
        return recolored(crops, target, c.transport, c.rho)

    def log_density(self, images: Tensor) -> Tensor:
        """log GMM(u) of each cell: (B, 3, H, W) in [0, 1] -> (B, h, w).

        Raises:
            AdcoreError: called before `fit`.
        """
        if not self.network.mixture.started:
            raise AdcoreError("the features of contrastive have no mixture yet: call fit before predict or misclassification")
        return self.network.mixture(self.network(images))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """-log GMM(u) of each cell, upsampled bilinearly; the score is the largest of the cells.

        Raises:
            AdcoreError: called before `fit`.
        """
        surprise = -self.log_density(self.own_size(images))                                    # (B, h, w)
        maps = F.interpolate(surprise[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return Prediction(surprise.amax(dim=(1, 2)), maps)

    @torch.no_grad()
    def misclassification(self, samples: Sequence[Sample], negatives: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """P(-|u+) of every cell of normal images, P(+|u-) of every cell of negatives (Fig. 2): two arrays (cells,).

        negatives  (m, 3, H, W) at the view's size; by default a crop of a held-out photograph for each normal image, the same
                   ones for the same images before and after fine-tuning

        Raises:
            AdcoreError: called before `fit`.
        """
        generator = torch.Generator().manual_seed(0)  # whatever the detector's seed: all are measured on the same crops
        drawn: list[Tensor] = []
        positive: list[Tensor] = []
        for batch in read_images(samples, self.view):
            images = batch.to(self.device)
            positive.append(self._misclassified(images, True))
            if negatives is None:
                drawn.append(self._misclassified(self.negatives(images, held_out=True, generator=generator), False))
        if negatives is not None:
            drawn = [self._misclassified(images, False) for images in self.checked_images(negatives).split(16)]
        return torch.cat(positive).cpu().numpy(), torch.cat(drawn).cpu().numpy()

    def _misclassified(self, images: Tensor, positive: bool) -> Tensor:
        return misclassified(self.outliers.logit(self.log_density(images)), positive).flatten()

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """Means of `misclassification` over at most `DIAGNOSED` normal test images and as many held-out negatives."""
        normal = [sample for sample in samples if not sample.label][:DIAGNOSED]
        if not normal:
            return {}
        positive, negative = self.misclassification(normal)
        return {"misclassified_positive": float(positive.mean()), "misclassified_negative": float(negative.mean())}
