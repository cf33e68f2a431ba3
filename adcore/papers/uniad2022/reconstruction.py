"""Detection by reconstructing frozen features: what UniAD and its three baselines share (You et al., S C.3 and C.4).

    image -> frozen features -> tokens -> (jitter, in training) -> network -> tokens -> error map -> score

    paper     code        shape          meaning
    f_org     features    (B, C, h, w)   tapped backbone maps, resized to one grid and concatenated
    f_tok     tokens      (B, N, C)      one token a cell, N = h * w
    f_rec     rebuilt     (B, N, C)      reconstructed tokens
    alpha     jitter      scalar         feature jittering scale, 20 (S C.4)

A method gives the network; extraction, training, map and score are the same for all, so that a difference in the numbers is
one of architecture.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, View, read_images
from adcore.data.transforms import Size, as_size
from adcore.detector import Config, Detector, Prediction
from adcore.errors import ParameterError
from adcore.features import FeatureExtractor, Tap, cached_features, concatenate
from adcore.papers.uniad2022.losses import LOSSES
from adcore.papers.uniad2022.shortcut import relative_error, shortcut_measures
from adcore.training import Run, seeded, train

STRIDE = 16  # every tap is brought to the grid of stride 16, 14x14 at 224
DIAGNOSED = 32


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig(Config):
    """Settings of a reconstruction; defaults are those of the paper and, where it is silent, of the published code."""

    backbone: str = "efficientnet_b4"
    taps: tuple[Tap, ...] = (1, 2, 3, 4)
    weights: str = "default"
    train_backbone: bool = False    # Table S5: train the backbone along, which ruins it
    image_size: Size = 224
    resize: str = "bilinear"
    hidden: int = 256               # C, reduced channels
    jitter: bool = False            # feature jittering
    jitter_scale: float = 20.0
    jitter_probability: float = 1.0
    loss: str = "mse"               # a name of adcore.papers.uniad2022.losses.LOSSES
    epochs: int = 1000
    batch_size: int = 64
    lr: float = 1e-4
    lr_drop: int = 800              # epoch from which the learning rate is a tenth
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    score: str = "max"              # of the map: 'max' of averaged windows, or 'mean' (CIFAR-10)
    score_window: int = 16
    amp: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "loss": tuple(LOSSES), "score": ("max", "mean"), "resize": ("bilinear", "lanczos")}


def jitter_features(tokens: Tensor, scale: float, probability: float = 1.0) -> Tensor:
    """Add noise to tokens (feature jittering, Sec. 3.4): f + eps * alpha * |f| / C, eps ~ N(0, 1).

    (B, N, C) -> (B, N, C); one draw of `probability` a batch.
    """
    if probability < 1 and float(torch.rand(())) >= probability:
        return tokens
    spread = scale * tokens.norm(dim=-1, keepdim=True) / tokens.shape[-1]               # (B, N, 1)
    return tokens + torch.randn_like(tokens) * spread


class Reconstruction(Detector):
    """A detector whose map is what its network fails to rebuild."""

    paper: ClassVar[str] = "uniad2022"
    pooled: ClassVar[bool] = True

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
        self.losses: list[float] = []

    @abstractmethod
    def build(self, channels: int) -> nn.Module:
        """The network that rebuilds tokens, (B, N, C) -> (B, N, C), on `self.grid`."""

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size), resample=self.config.resize)

    @property
    def weights_digest(self) -> str:
        return self.extractor.digest

    def features(self, maps: list[Tensor]) -> Tensor:
        """f_org: the taps' maps on one grid, (B, C, h, w)."""
        return concatenate(maps, self.grid, align_corners=True)

    def tokens(self, images: Tensor) -> Tensor:
        """f_tok of images at the view's size: (B, 3, H, W) in [0, 1] -> (B, N, C)."""
        return self.features(self.extractor(images)).flatten(2).transpose(1, 2)

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> Reconstruction:
        """Train the network on clean or jittered features (Sec. 3.4, S C.4). The last epoch is the one that counts.

        Several processes (`adcore.distributed`) share each batch. Without dropout and jitter they end with the weights of
        one, to float tolerance; with them, each draws for its share from a stream of its own.
        """
        c = self.config
        module: nn.Module = self.network
        loss_of: Callable[[Tensor], Tensor] = self.loss
        if c.train_backbone:
            module, loss_of = nn.ModuleDict({"extractor": self.extractor, "network": self.network}), self.loss_of_images
            data = torch.cat([(images * 255).round().to(torch.uint8) for images in read_images(samples, self.view)])
        else:
            data = cached_features(samples, self.view, self.extractor, self.features, f"uniad grid {self.grid}",
                                   half=True, device=self.device, progress=progress)           # (n, C, h, w)
        optimizer = torch.optim.AdamW(module.parameters(), c.lr, weight_decay=c.weight_decay, fused=True)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, c.lr_drop)
        self.losses = train(module, loss_of, data, optimizer, scheduler, epochs=c.epochs, batch_size=c.batch_size,
                            seed=self.seed, clip_norm=c.clip_norm, amp=c.amp, data_parallel=True,
                            run=Run(checkpoint=checkpoint, progress=progress, desc=self.name))
        return self

    def loss(self, features: Tensor) -> Tensor:
        """Rebuild the clean tokens from what the network is shown: (B, C, h, w) -> scalar."""
        c = self.config
        tokens = features.flatten(2).transpose(1, 2)                                            # (B, N, C)
        shown = jitter_features(tokens, c.jitter_scale, c.jitter_probability) if c.jitter else tokens
        return LOSSES[c.loss][0](tokens, self.network(shown))

    def loss_of_images(self, images: Tensor) -> Tensor:
        """The same with the backbone in the loop, gradients reaching it through input and target alike:
        (B, 3, H, W) in 0..255 -> scalar."""
        return self.loss(self.features(self.extractor(images / 255)))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Reconstruction error (Sec. 3.4), upsampled bilinearly; the score is its maximum over averaged windows."""
        size, own = images.shape[-2:], self.view.shape
        tokens = self.tokens(self.own_size(images))                                             # (B, N, C)
        errors = LOSSES[self.config.loss][1](tokens, self.network(tokens))                      # (B, N)
        errors = errors.unflatten(1, self.grid)[:, None]                                        # (B, 1, h, w)
        maps = F.interpolate(errors, own, mode="bilinear", align_corners=True)                  # (B, 1, H, W)
        score = self.score(maps)
        if size != own:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
        return Prediction(score, maps[:, 0])

    def score(self, maps: Tensor) -> Tensor:
        """The image's score: (B, 1, H, W) -> (B,)."""
        if self.config.score == "mean":
            return maps.mean(dim=(1, 2, 3))
        window = min(self.config.score_window, *maps.shape[-2:])
        return F.avg_pool2d(maps, window, stride=1).amax(dim=(1, 2, 3))

    @torch.no_grad()
    def rebuild(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features before and after, for looking at: (B, 3, H, W) at the view's size -> f_org, f_rec, both (B, C, h, w)."""
        tokens = self.tokens(self.checked_images(images))
        before, after = (t.transpose(1, 2).unflatten(2, self.grid) for t in (tokens, self.network(tokens)))
        return before, after

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the identical shortcut is taken, over at most `DIAGNOSED` defective images of a category: `error_inside`
        their masks, `error_normal` on normal images, and for `mini` the share `copied` (see papers.uniad2022.shortcut)."""
        normal = [sample for sample in samples if not sample.label][:DIAGNOSED]
        kinds: dict[str, list[Sample]] = {}
        for sample in samples:
            if sample.label and sample.mask_path is not None:
                kinds.setdefault(sample.defect, []).append(sample)
        turns = [sample for turn in itertools.zip_longest(*kinds.values()) for sample in turn if sample is not None]
        defective = [sample for sample in turns
                     if (mask := sample.mask) is not None and bool(self.view.mask(mask).any())][:DIAGNOSED]
        if not defective or not normal:
            return {}
        table = shortcut_measures(self, defective)
        errors = torch.cat([relative_error(*self.rebuild(images)) for images in read_images(normal, self.view)])
        measures = {"error_inside": float(table["error"].mean()), "error_normal": float(errors.mean())}
        return measures | ({"copied": float(table["copied"].mean())} if "copied" in table else {})
