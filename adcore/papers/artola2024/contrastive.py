"""Contrastive fine-tuning: a backbone learns to keep natural images outside the mixture of normal features.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, supplement
Sec. 2. Only the supplement is followed; what it leaves open is a setting.

    normal images ----------------------------> network -> u+ --+-> L_pos, Eq. (2) --+-> gradient to the backbone
                                                                +-> mixture: one step of online EM
    photographs in the colors of the object --> network -> u- ----> L_neg, Eq. (4) --+

    network: image (B, 3, H, W) -> backbone -> maps on the first tap's grid (B, h, w, C) -> projection -> u (B, h, w, d)

    paper          code             shape           meaning
    u+             positive         (n, d)          features of cells of normal images
    u-             negative         (n, d)          features of cells of photographs
    GMM            mixture          module          density of normal features; takes no gradient
    alpha, L       outliers         scalars         prior and volume of the uniform outlier component
    P(z = - | u+)  misclassified    (n,)            weight of a positive's gradient, Eq. (9); P(z = + | u-) in Eq. (13)

One training step is `Contrastive.contrastive_loss`, backward, `Contrastive._before_step`, Adam. The anomaly map is
-log GMM(u). With epochs=0 it is the map of the untouched features, that is, the method before fine-tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, View, load_uint8, read_images
from adcore.data.transforms import Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features import FeatureExtractor, Tap, concatenate, images_digest, train_only
from adcore.papers.artola2024.color import TRANSPORTS, ColorMoments, color_moments, pool, transport
from adcore.papers.artola2024.losses import Outliers, misclassified, negative_loss, outlier_filter, positive_loss
from adcore.papers.artola2024.mixture import Mixture
from adcore.papers.artola2024.negatives import Negatives, find_negatives, negative_files, photograph_crops
from adcore.settings import WIDTH, Range
from adcore.training import Run, float64_device, train

HISTORY = ("positive", "negative", "gradient", "passing", "outside")  # columns of `Contrastive.history`
DIAGNOSED = 32  # normal test images that `diagnose` looks at, at most


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig(Config):
    """Settings of contrastive fine-tuning.

    The supplement names the losses, the filter, online EM and the color transport, but no number except the filter's tenth.
    Backbone and taps are those of the authors' GLAD; the other defaults are our choice.

    tuned          stages that are fine-tuned, each from the end of the stage before to its own; () are the tapped ones
    dim            d, numbers per cell
    reduction      of the concatenated channels to d: 'random' (Gaussian, drawn from the seed) or 'pca' of untouched features
    components     K
    volume         'box' takes log L from the box around the untouched normal features, 'given' takes `log_volume`
    gamma          step size of online EM; 0 is (t + 2)^-0.6 at step t
    start_cells    maximum number of cells, drawn at random, on which the mixture is initialized by K-means and EM
    cells          number of cells per batch in the loss, for normal images and for negatives, drawn at random; 0 is all
    clip_norm      maximum norm of the gradient; 0 does not clip
    filter         use the outlier filter; without it all negatives send a gradient
    filter_share   fraction of the negatives, farthest outside, that always passes the filter
    negatives      'photographs' (packaged), or a folder: see `papers.artola2024.negatives.find_negatives`
    held_out       fraction of the photographs that is kept for measuring
    smallest_crop  smallest side of a crop, as a fraction of the longest side that fits in the photograph
    transport      color transport of the negatives: 'monge_kantorovich', 'diagonal' or 'none'
    target         target colors: of the 'image' at the same place in the batch, or of the whole 'category'
    rho            interpolation of the color transport, 0 to 1
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
        "reduction": ("random", "pca"), "volume": ("box", "given"), "transport": (*TRANSPORTS, "none"),
        "target": ("image", "category")}
    ranges: ClassVar[dict[str, Range]] = {
        "dim": WIDTH, "components": WIDTH, "alpha": Range(above=0, below=1), "log_volume": Range(),
        "gamma": Range(least=0, most=1), "start_cells": Range(least=1), "cells": Range(least=0), "clip_norm": Range(least=0),
        "filter_share": Range(above=0, most=1), "held_out": Range(above=0, below=1), "smallest_crop": Range(above=0, most=1),
        "rho": Range(least=0, most=1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.volume == "box" and self.log_volume:
            raise self.refused(f"log_volume={self.log_volume} is used only with volume='given'")


class TunedNetwork(nn.Module):
    """Everything that training changes: a backbone with some stages fine-tuned, and the mixture of its reduced features.

    history  one row per step of fine-tuning (see `Contrastive.history`), saved with the weights

    Raises:
        ParameterError: see `features.stages` and `FeatureExtractor`; more dimensions than channels.
        WeightsError: the checkpoint is not here or does not fit.
    """

    projection: Tensor
    center: Tensor
    log_volume: Tensor

    def __init__(self, config: ContrastiveConfig, seed: int = 0) -> None:
        super().__init__()
        c = config
        self.extractor = FeatureExtractor(c.backbone, c.taps, c.weights, seed, frozen=False)
        channels = sum(self.extractor.channels)
        if c.dim > channels:
            raise ParameterError(f"dim={c.dim} is more than the {channels} channels of taps {c.taps} of {c.backbone}: "
                                 f"features can only be reduced")
        train_only(self.extractor, c.tuned or c.taps)                                          # type: ignore[arg-type]
        random = torch.randn(channels, c.dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("projection", random / c.dim**0.5)                                # (C, d)
        self.register_buffer("center", torch.zeros(channels))
        self.register_buffer("log_volume", torch.tensor(c.log_volume, dtype=torch.float64))
        self.mixture = Mixture(c.components, c.dim)
        self.history: list[list[float]] = []
        self.eval()

    def train(self, mode: bool = True) -> TunedNetwork:
        """The backbone stays in eval mode, so that batch norms keep their pretrained statistics.

        Normal images and negatives pass in separate batches. Batch statistics would tell the two apart, in training only.
        """
        super().train(mode)
        self.extractor.train(False)
        return self

    def get_extra_state(self) -> list[list[float]]:
        return self.history

    def set_extra_state(self, state: list[list[float]]) -> None:
        self.history = [list(row) for row in state]

    def concatenated(self, images: Tensor) -> Tensor:
        """The taps' maps on the grid of the first, channels last: (B, 3, H, W) -> (B, h, w, C)."""
        maps = self.extractor(images)
        return concatenate(maps, (maps[0].shape[-2], maps[0].shape[-1]), align_corners=False).permute(0, 2, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """u of each cell: (B, 3, H, W) in [0, 1] -> (B, h, w, d)."""
        return (self.concatenated(images) - self.center) @ self.projection

    @torch.no_grad()
    def fit_projection(self, batches: Iterator[Tensor]) -> None:
        """PCA: project on the d directions in which the features of these images vary most."""
        count, s1, s2 = 0, self.center.new_zeros((), dtype=torch.float64), self.center.new_zeros((), dtype=torch.float64)
        for images in batches:
            x = self.concatenated(images).flatten(0, 2).double()                               # (n, C)
            count, s1, s2 = count + len(x), s1 + x.sum(0), s2 + x.T @ x
        mean = s1 / count
        vectors = torch.linalg.eigh(s2 / count - mean[:, None] * mean)[1]                      # in ascending order
        self.projection.copy_(vectors.flip(1)[:, :self.projection.shape[1]])
        self.center.copy_(mean)


class Contrastive(Detector):
    """Contrastive fine-tuning as a detector; one model per category.

    Raises:
        ParameterError, WeightsError: see `TunedNetwork`; images smaller than a tap's stride.
    """

    name: ClassVar[str] = "contrastive"
    paper: ClassVar[str] = "artola2024"
    Config: ClassVar[type[Any]] = ContrastiveConfig
    open: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (3, 4), "negatives": "photographs"}
    quick: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (3,), "image_size": 96, "dim": 16,
                                       "components": 4, "epochs": 12, "cells": 512, "lr": 1e-3, "negatives": "photographs",
                                       "held_out": 0.3, "smallest_crop": 0.25}

    def __init__(self, config: ContrastiveConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        if float64_device(self.device) != self.device:
            raise ParameterError(f"contrastive keeps its mixture in float64, which device {self.device} does not have: use "
                                 f"device=cpu")
        self.network = TunedNetwork(self.config, seed).to(self.device)
        self.network.extractor.shapes(self.view.shape)  # refuses images that are too small
        self.photographs: Negatives | None = None
        self.colors: ColorMoments | None = None
        self.losses: list[float] = []
        self._positive = torch.empty(0)                 # u+ of the step in progress
        self._measured: dict[str, float] = {}           # row of `history` of the step in progress

    @classmethod
    def other_files(cls, config: ContrastiveConfig) -> list[Path]:
        """The photographs that negatives are cut from."""
        return negative_files(config.negatives)

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
        """One row per step of fine-tuning.

        positive, negative  mean L_pos, and mean L_neg of the negatives that pass the filter
        gradient            norm of the gradient before clipping
        passing, outside    fraction of the negatives that pass the filter, and that are outside the mixture
        """
        return pd.DataFrame(self.network.history, columns=list(HISTORY))

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Contrastive:
        """Initialize the mixture on the untouched features, then fine-tune. The model of the last epoch is kept.

        Raises:
            DataError: no training image, or no negatives.
            ParameterError: fewer cells than components, or a dimension in which all features are equal.
        """
        c = self.config
        if not samples:
            raise DataError("no image to fine-tune on")
        self.photographs = find_negatives(c.negatives, c.held_out)
        images = load_uint8(samples, self.view)
        self.colors = pool(color_moments(batch.float() / 255) for batch in images.split(16))
        if checkpoint is None or not checkpoint.is_file():
            self._start(images)
        optimizer = torch.optim.Adam([p for p in self.network.parameters() if p.requires_grad], c.lr)
        optimizer.register_step_pre_hook(self._before_step)
        self.losses = train(self.network, self.loss, images, optimizer, epochs=c.epochs, batch_size=c.batch_size,
                            seed=self.seed,
                            run=Run(checkpoint, progress, self.name, f"{images_digest(samples)} {self.weights_digest}"))
        return self

    @torch.no_grad()
    def _start(self, images: Tensor) -> None:
        """Projection, box and mixture of the untouched features of normal images, (n, 3, H, W) uint8."""
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
        """Loss of a batch of normal images (B, 3, H, W) in 0..255 and of B negatives drawn for it -> scalar."""
        images = images / 255
        return self.contrastive_loss(images, self.negatives(images))

    def contrastive_loss(self, images: Tensor, negatives: Tensor) -> Tensor:
        """mean L_pos + mean L_neg of normal images and negatives, both (B, 3, H, W) in [0, 1] -> scalar.

        The mean of L_neg is over the negatives that pass the outlier filter.
        """
        c, log_gmm = self.config, self.network.mixture
        positive, negative = (self._drawn_cells(self.network(batch).flatten(0, 2)) for batch in (images, negatives))  # (n, d)
        logit_pos, logit_neg = self.outliers.logit(log_gmm(positive)), self.outliers.logit(log_gmm(negative))         # (n,)
        passing = outlier_filter(logit_neg, c.filter_share) if c.filter else torch.ones_like(logit_neg, dtype=torch.bool)
        l_pos = positive_loss(logit_pos).mean()                 # Eq. (2); its gradient by u+ is Eq. (9)
        l_neg = negative_loss(logit_neg[passing]).mean()        # Eq. (4); its gradient by u- is Eq. (13)
        self._positive = positive.detach()
        self._measured = {"positive": float(l_pos.detach()), "negative": float(l_neg.detach()),
                          "passing": float(passing.float().mean()), "outside": float((logit_neg < 0).float().mean())}
        return l_pos + l_neg

    def _drawn_cells(self, cells: Tensor) -> Tensor:
        """At most `config.cells` of a batch's cells, drawn at random: (n, d) -> (m, d)."""
        wanted = self.config.cells
        return cells if not 0 < wanted < len(cells) else cells[torch.randperm(len(cells))[:wanted].to(cells.device)]

    @torch.no_grad()
    def _before_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Between backward pass and optimizer step: online EM on the positives of the batch; record and clip the gradient."""
        self.network.mixture.update(self._positive, self.config.gamma or None)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.config.clip_norm or float("inf"))
        row = {**self._measured, "gradient": float(norm)}
        self.network.history.append([row[name] for name in HISTORY])

    def negatives(self, images: Tensor, *, held_out: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """One random crop of a photograph per normal image, in its colors or the category's: (B, 3, H, W) -> (B, 3, H, W).

        Colors are not clipped, so that mean and covariance of the target are reached.

        held_out  draw from the photographs that are not used for fine-tuning

        Raises:
            AdcoreError: called before `fit`.
        """
        if self.photographs is None or self.colors is None:
            raise AdcoreError("there are no negatives yet: call fit first")
        c = self.config
        names = self.photographs.held_out if held_out else self.photographs.train
        crops = photograph_crops(names, len(images), self.view.shape, c.smallest_crop, generator).to(images.device)
        if c.transport == "none":
            return crops
        target = images if c.target == "image" else self.colors.to(images.device, images.dtype)
        return transport(crops, target, c.transport, c.rho)

    def log_density(self, images: Tensor) -> Tensor:
        """log GMM(u) of each cell: (B, 3, H, W) in [0, 1] -> (B, h, w).

        Raises:
            AdcoreError: called before `fit`.
        """
        if not self.network.mixture.started:
            raise AdcoreError("contrastive has no mixture of features yet: call fit before predict or misclassification")
        return self.network.mixture(self.network(images))

    def _predict(self, images: Tensor) -> Prediction:
        """-log GMM(u) of each cell, upsampled bilinearly; the score is the largest value over the cells.

        Raises:
            AdcoreError: called before `fit`.
        """
        surprise = -self.log_density(images)                                                   # (B, h, w)
        maps = F.interpolate(surprise[:, None], images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return Prediction(surprise.amax(dim=(1, 2)), maps)

    @torch.no_grad()
    def misclassification(self, samples: Sequence[Sample], negatives: Tensor | None = None) -> tuple[np.ndarray, np.ndarray]:
        """P(z = - | u+) of every cell of normal images, P(z = + | u-) of every cell of negatives (Fig. 2): two arrays (cells,).

        negatives  (m, 3, H, W) at the view's size; by default one crop of a held-out photograph per normal image, the same
                   crops for the same images before and after fine-tuning

        Raises:
            AdcoreError: called before `fit`.
        """
        generator = torch.Generator().manual_seed(0)  # not the detector's seed: all detectors are measured on the same crops
        drawn: list[Tensor] = []
        positive: list[Tensor] = []
        for batch in read_images(samples, self.view):
            images = batch.to(self.device)
            positive.append(self._misclassified(images, True))
            if negatives is None:
                drawn.append(self._misclassified(self.negatives(images, held_out=True, generator=generator), False))
        if negatives is not None:
            drawn = [self._misclassified(images, False) for images in self.checked_images(negatives, in_range=False).split(16)]
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
