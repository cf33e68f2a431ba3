"""Detection by reconstructing frozen features: extraction and training, which UniAD and its three baselines share (S C.3, C.4).

    image -> frozen features -> tokens -> (jitter, in training) -> network -> tokens -> anomaly map -> score

    paper     code        shape          meaning
    f_org     features    (B, C, h, w)   tapped backbone maps, resized to one grid and concatenated
    f_tok     tokens      (B, N, C)      one token per cell of the grid, N = h * w
    f_rec     rebuilt     (B, N, C)      reconstructed tokens
    C_org     channels    scalar         channels of features and tokens, C in the shapes; 272 (S C.3)
    C         hidden      scalar         channels inside the network, D in the shapes; 256 (S C.3)

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022, and its supplement (S). Feature jittering, loss,
anomaly map and score are in `uniad.py`. The four methods differ in the network alone, and so do their numbers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adcore.data import Sample, View, load_uint8, read_images
from adcore.data.transforms import Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import ParameterError
from adcore.features import FeatureExtractor, Tap, cached_features, concatenate, images_digest
from adcore.papers.uniad2022.losses import LOSSES
from adcore.settings import Range
from adcore.training import Run, seeded, train

STRIDE = 16  # pixels per token: every tap is resized to the grid of stride 16, 14x14 at 224


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(Config):
    """Settings of a reconstruction. Defaults are the paper's or, where it is silent, those of the published code.

    The published code sets a fall of the learning rate after 800 epochs. Its trainer passes the number of the finished epoch,
    counted from 0, to the scheduler, so that the fall comes after 801 epochs. `lr_drop` counts epochs as they are trained.
    """

    backbone: str = "efficientnet_b4"
    taps: tuple[Tap, ...] = (1, 2, 3, 4)
    weights: str = "default"
    train_backbone: bool = False    # Table S5: train the backbone too
    image_size: Size = 224
    resize: str = "bilinear"
    hidden: int = 256               # C, reduced channels
    jitter: bool = False            # feature jittering on or off
    jitter_scale: float = 20.0      # alpha
    jitter_probability: float = 1.0
    loss: str = "mse"               # a name of adcore.papers.uniad2022.losses.LOSSES
    epochs: int = 1000
    batch_size: int = 64
    lr: float = 1e-4
    lr_drop: int = 801              # epochs at the full learning rate, before a tenth of it; the published 800, see below
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    score: str = "max"              # 'max' of the map averaged over windows, or 'mean' of the map (CIFAR-10)
    score_window: int = 16
    amp: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "loss": tuple(LOSSES), "score": ("max", "mean"), "resize": ("bilinear", "lanczos")}
    ranges: ClassVar[dict[str, Range]] = {
        "jitter_scale": Range(least=0), "jitter_probability": Range(least=0, most=1), "score_window": Range(least=1)}


class Reconstruction(Detector):
    """A detector whose anomaly map is the reconstruction error of its network."""

    paper: ClassVar[str] = "uniad2022"
    pooled: ClassVar[bool] = True
    open: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0"}  # its taps 1 to 4 have b4's strides

    def __init__(self, config: Any = None, *, device: str | torch.device = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        c = self.config
        h, w = as_size(c.image_size)
        if h < STRIDE or w < STRIDE:
            raise ParameterError(f"image_size {h}x{w} is smaller than one token of {STRIDE} pixels")
        self.grid = (h // STRIDE, w // STRIDE)
        self.extractor = FeatureExtractor(c.backbone, c.taps, c.weights, seed, frozen=not c.train_backbone).to(self.device)
        with seeded(seed):
            self.network = self.build(sum(self.extractor.channels)).to(self.device).eval()
        self.losses: list[float] = []   # of each epoch of the training

    @abstractmethod
    def build(self, channels: int) -> nn.Module:
        """The network that reconstructs tokens, (B, N, C) -> (B, N, C), on `self.grid`."""

    @abstractmethod
    def loss(self, features: Tensor) -> Tensor:
        """Training loss of a batch of features: (B, C, h, w) -> scalar."""

    @abstractmethod
    def anomaly_map(self, tokens: Tensor, rebuilt: Tensor) -> Tensor:
        """Reconstruction error at the view's size: (B, N, C), (B, N, C) -> (B, 1, H, W)."""

    @abstractmethod
    def score(self, maps: Tensor) -> Tensor:
        """Image scores of anomaly maps: (B, 1, H, W) -> (B,)."""

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size), resample=self.config.resize)

    def features(self, maps: list[Tensor]) -> Tensor:
        """f_org: the taps' maps, resized to one grid and concatenated, (B, C, h, w)."""
        return concatenate(maps, self.grid, align_corners=True)

    def tokens(self, images: Tensor) -> Tensor:
        """f_tok of images at the view's size: (B, 3, H, W) in [0, 1] -> (B, N, C)."""
        return self.features(self.extractor(images)).flatten(2).transpose(1, 2)

    @torch.no_grad()
    def extract(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        """f_org of samples, and the images it comes from: (n, C, h, w) and (n, 3, H, W) in [0, 1], both on the CPU."""
        pairs = [(self.features(self.extractor(images.to(self.device))).cpu(), images)
                 for images in read_images(samples, self.view)]
        features, images = zip(*pairs, strict=True)
        return torch.cat(features), torch.cat(images)

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Reconstruction:
        """Train the network to reconstruct features of normal images (Sec. 3.4, S C.4). The last epoch counts.

        Several processes (`adcore.distributed`) split each batch into slices. Without dropout and jitter they end with the
        weights of one process, to float tolerance; with them, each process draws its own random numbers.
        """
        c = self.config
        module: nn.Module = self.network
        loss_of: Callable[[Tensor], Tensor] = self.loss
        if c.train_backbone:
            module, loss_of = nn.ModuleDict({"extractor": self.extractor, "network": self.network}), self.loss_of_images
            data = load_uint8(samples, self.view)
        else:
            # Training reads float16, prediction computes float32. On screws, three seeds, float16 changed image and pixel AUROC
            # by 0.8 and 0.03 points on average, less than their standard deviations over the seeds, 1.1 and 0.25.
            data = cached_features(samples, self.view, self.extractor, self.features, f"uniad grid {self.grid}",
                                   half=True, device=self.device, progress=progress)           # (n, C, h, w)
        optimizer = torch.optim.AdamW(module.parameters(), c.lr, weight_decay=c.weight_decay, fused=True)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, c.lr_drop)
        self.losses = train(module, loss_of, data, optimizer, scheduler, epochs=c.epochs, batch_size=c.batch_size,
                            seed=self.seed, clip_norm=c.clip_norm, amp=c.amp, data_parallel=True,
                            run=Run(checkpoint, progress, self.name, f"{images_digest(samples)} {self.weights_digest}"))
        return self

    def loss_of_images(self, images: Tensor) -> Tensor:
        """Loss of a batch with the backbone in the loop: (B, 3, H, W) in 0..255 -> scalar.

        Gradients reach the backbone through the network's input and through the target.
        """
        return self.loss(self.features(self.extractor(images / 255)))

    def _predict(self, images: Tensor) -> Prediction:
        """Anomaly maps and their scores."""
        tokens = self.tokens(images)                                                            # (B, N, C)
        rebuilt = self.network(tokens)                                                          # (B, N, C)
        maps = self.anomaly_map(tokens, rebuilt)                                                # (B, 1, H, W)
        return Prediction(self.score(maps), maps[:, 0])

    @torch.no_grad()
    def rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features before and after reconstruction: (B, 3, H, W) in [0, 1] -> f_org, f_rec, both (B, C, h, w)."""
        tokens = self.tokens(self.own_size(images))
        before, after = (t.transpose(1, 2).unflatten(2, self.grid) for t in (tokens, self.network(tokens)))
        return before, after
