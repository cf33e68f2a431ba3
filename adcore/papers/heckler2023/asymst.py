"""AsymST: a normalizing flow is the teacher, a convolutional network the student; their disagreement is the anomaly map.

Rudolph et al., "Asymmetric Student-Teacher Networks for Industrial Anomaly Detection", WACV 2023; one of the three
methods of heckler2023. Settings that the paper leaves open are taken from its published code.

    image -> frozen features x --+-> teacher: 4 affine couplings conditioned on the position, invertible -> z_t ~ N(0, 1)
                                 +-> student: residual convolutions, not invertible                      -> z_s
                                     map = mean over channels of (z_t - z_s)^2

    paper     code        shape          meaning
    x         features    (B, C, h, w)   features of the tap, or of several taps on the first one's grid
    c         positions   (P, h, w)      sinusoidal encoding of the cell's position, P = 32
    f_t       teacher     module         x, c -> z_t
    f_s       student     module         x, c -> z_s
    z_t       z           (B, C, h, w)   output of the teacher, N(0, 1) for normal features

Two networks of the same kind extrapolate similarly and may agree on an anomaly. An invertible teacher extrapolates
differently from a convolutional student, so that they disagree there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from FrEIA.framework import SequenceINN
from FrEIA.modules import GLOWCouplingBlock, PermuteRandom
from torch import Tensor, nn

from adcore.data import Sample
from adcore.data.transforms import Size
from adcore.detector import Config, Prediction
from adcore.features import Tap, cached_features, concatenate, images_digest
from adcore.papers.heckler2023.flows import Shape, channel_moments, check_shape, check_spread, nll, seeded_permutations
from adcore.papers.heckler2023.frozen import FrozenTaps
from adcore.settings import WIDTH, Range
from adcore.training import Run, seeded, train

LIMIT = 1e6  # of a coupling's output, in the published code


@dataclass(frozen=True, kw_only=True)
class AsymSTConfig(Config):
    """Settings of AsymST; defaults are those of the published code.

    standardize     scale each channel to mean 0 and variance 1 over the training images. Not in the published code; without
                    it, a short training is spent on finding the scale
    kernels         kernel sizes of the teacher's subnets, one per coupling
    teacher_hidden  width of the teacher's subnets
    clamp           bound of a coupling's log-scale
    student_hidden  width of the student
    student_blocks  residual blocks of the student
    positions       channels of the position encoding, a multiple of 4
    epochs          epochs of the teacher, and again of the student
    score           image score: 'max' of the map of a quarter of the image's side, or 'mean' of the cells before they are
                    upsampled, as in the paper's experiments with depth
    """

    backbone: str = "efficientnet_b5"
    taps: tuple[Tap, ...] = ("features.6.8.add",)
    weights: str = "default"
    image_size: Size = 768
    standardize: bool = False
    kernels: tuple[int, ...] = (3, 3, 3, 5)
    teacher_hidden: int = 64
    clamp: float = 1.9
    student_hidden: int = 1024
    student_blocks: int = 4
    positions: int = 32
    epochs: int = 72
    batch_size: int = 8
    lr: float = 2e-4
    weight_decay: float = 1e-5
    score: str = "max"
    amp: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"score": ("max", "mean")}
    ranges: ClassVar[dict[str, Range]] = {
        "kernels": Range(least=1, most=255, items=(1, math.inf)), "teacher_hidden": WIDTH, "clamp": Range(above=0),
        "student_hidden": WIDTH, "student_blocks": Range(least=0, most=2**10), "positions": Range(least=4, most=2**16)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions % 4:
            raise self.refused(f"positions={self.positions} is not a multiple of 4 (sine and cosine, for x and for y)")
        if not all(kernel % 2 for kernel in self.kernels):
            raise self.refused(f"kernels={self.kernels} must be odd, so that a kernel has a cell in its middle")


def position_encoding(channels: int, h: int, w: int) -> Tensor:
    """Sines and cosines of a cell's column, then of its row, with wavelengths from 2 pi to 10,000 * 2 pi: (channels, h, w)."""
    half = channels // 2
    frequency = torch.exp(torch.arange(0, half, 2) * (-math.log(10_000) / half))                # (half / 2,)
    encoded = torch.empty(channels, h, w)
    for start, index in ((0, torch.arange(w)[None].expand(h, w)), (half, torch.arange(h)[:, None].expand(h, w))):
        angle = index * frequency[:, None, None]                                                # (half / 2, h, w)
        encoded[start:start + half:2], encoded[start + 1:start + half:2] = angle.sin(), angle.cos()
    return encoded


class Subnet(nn.Module):
    """Predicts scale and shift of a coupling: two convolutions times a learned gain.

    The gain is a single number for all channels and starts at 0, so that the untrained flow only permutes.
    """

    def __init__(self, channels: int, out: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, hidden, kernel, padding=kernel // 2, padding_mode="replicate")
        self.second = nn.Conv2d(hidden, out, kernel, padding=kernel // 2, padding_mode="replicate")
        self.gain = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * self.second(F.relu(self.first(x)))


class Coupling(GLOWCouplingBlock):
    """An affine coupling whose output is kept within +-LIMIT, so that features far from the training's stay finite."""

    def forward(self, x: Any, c: Any = (), rev: bool = False, jac: bool = True) -> Any:
        """[x (B, C, h, w)], [c (B, P, h, w)] -> (z (B, C, h, w),), log |det dz/dx| (B,) as without the limit."""
        (z,), log_det = super().forward(x, c, rev, jac)
        return (z.clamp(-LIMIT, LIMIT),), log_det


class Teacher(nn.Module):
    """f_t, a conditional Real-NVP: each step permutes the channels, then transforms each half given the other."""

    def __init__(self, shape: Shape, config: AsymSTConfig) -> None:
        super().__init__()
        clamp, hidden = config.clamp, config.teacher_hidden
        self.flow = SequenceINN(*shape)
        with seeded_permutations():
            for kernel in config.kernels:
                self.flow.append(PermuteRandom)
                self.flow.append(Coupling, cond=0, cond_shape=(config.positions, *shape[1:]), clamp=clamp,
                                 subnet_constructor=functools.partial(Subnet, hidden=hidden, kernel=kernel),
                                 clamp_activation=lambda s: 0.636 * torch.atan(s / clamp))

    def forward(self, features: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w), (B, P, h, w) -> z (B, C, h, w) and log |det dz/dx| (B,)."""
        z, log_det = self.flow(features, [positions])
        return z, log_det


class Block(nn.Module):
    """Residual block: two convolutions with batch norm and leaky ReLU, and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(layer for _ in range(2) for layer in (
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU())))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Student(nn.Sequential):
    """f_s, a convolutional network: (B, C + P, h, w) -> (B, C, h, w)."""

    def __init__(self, channels: int, config: AsymSTConfig) -> None:
        width = config.student_hidden
        super().__init__(nn.Conv2d(channels + config.positions, width, 3, padding=1), nn.LeakyReLU(),
                         *(Block(width) for _ in range(config.student_blocks)),
                         nn.Conv2d(width, channels, 3, padding=1))


class AsymST(FrozenTaps):
    """AsymST as a detector; one model per category.

    Raises:
        ParameterError: see `FrozenTaps`, and a tap with a single channel.
    """

    name: ClassVar[str] = "asymst"
    version: ClassVar[int] = 2  # 2: one gain per subnet, scores before the last resizing, no incomplete batch
    Config: ClassVar[type[Any]] = AsymSTConfig
    open: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (5,)}  # stride 32
    quick: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (4,), "image_size": 128,
                                       "teacher_hidden": 16, "student_hidden": 64, "student_blocks": 2, "standardize": True,
                                       "epochs": 24, "lr": 1e-3}

    def __init__(self, config: AsymSTConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        self.shape = (sum(channels for channels, _, _ in self.shapes), *self.shapes[0][1:])
        check_shape(self.shape, f"tap {self.config.taps[0]} of {self.config.backbone}")
        with seeded(seed):
            self.teacher = Teacher(self.shape, self.config).to(self.device).eval()
            self.student = Student(self.shape[0], self.config).to(self.device).eval()
        self.positions = position_encoding(self.config.positions, *self.shape[1:]).to(self.device)
        self.mean = torch.zeros(self.shape[0], 1, 1, device=self.device)
        self.std = torch.ones(self.shape[0], 1, 1, device=self.device)
        self.teacher_losses: list[float] = []
        self.losses: list[float] = []

    def features(self, maps: list[Tensor]) -> Tensor:
        """x: the taps' maps on the first one's grid, (B, C, h, w)."""
        return concatenate(maps, self.shape[1:], align_corners=False)

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> AsymST:
        """Train the teacher, then the student to predict its output. The models of the last epochs are kept.

        Raises:
            DataError: features that are constant: see `flows.check_spread`.
        """
        if len(self.shapes) == 1:
            (data,) = self.cached_maps(samples, progress)                                       # (n, C, h, w)
        else:
            data = cached_features(samples, self.view, self.extractor, self.features, f"maps on grid {self.shape[1:]}",
                                   half=True, device=self.device, progress=progress)
        check_spread(data, f"taps {self.config.taps}")
        if self.config.standardize:
            self.mean, self.std = (m.view(-1, 1, 1).to(self.device) for m in channel_moments(data))
        first = checkpoint.with_name(f"{checkpoint.name}-teacher") if checkpoint is not None else None
        inputs = f"{images_digest(samples)} {self.weights_digest}"
        run = Run(first, progress, f"{self.name} teacher", inputs)
        self.teacher_losses = self._train(self.teacher, self.teacher_loss, data, run)
        run = Run(checkpoint, progress, f"{self.name} student", inputs)
        self.losses = self._train(self.student, self.student_loss, data, run)
        return self

    def _train(self, module: nn.Module, loss_of: Any, data: Tensor, run: Run) -> list[float]:
        c = self.config
        optimizer = torch.optim.Adam([p for p in module.parameters() if p.requires_grad], c.lr,
                                     weight_decay=c.weight_decay, fused=True)
        return train(module, loss_of, data, optimizer, epochs=c.epochs, batch_size=c.batch_size, seed=self.seed, amp=c.amp,
                     drop_last=True, run=run)

    def teacher_loss(self, features: Tensor) -> Tensor:
        """Negative log-likelihood per cell: (B, C, h, w) -> scalar."""
        z, log_det = self.teacher(self._scaled(features), self._positions(features))
        return nll(z, log_det).mean() / (self.shape[1] * self.shape[2])

    def student_loss(self, features: Tensor) -> Tensor:
        """Mean squared difference to the teacher's output: (B, C, h, w) -> scalar."""
        return self.distances(features).mean()

    def distances(self, features: Tensor) -> Tensor:
        """(z_t - z_s)^2, averaged over the channels: (B, C, h, w) -> (B, h, w)."""
        positions, features = self._positions(features), self._scaled(features)
        with torch.no_grad():
            z, _ = self.teacher(features, positions)
        return (z - self.student(torch.cat([features, positions], 1))).square().mean(1)

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    def _positions(self, features: Tensor) -> Tensor:
        return self.positions.expand(len(features), -1, -1, -1)

    def _predict(self, images: Tensor) -> Prediction:
        """Distances of student and teacher, upsampled; the score is their maximum or mean.

        The published code upsamples bicubically to a quarter of the image's side. It takes the maximum there, the mean
        before. The second, bilinear step to the image's size is ours.
        """
        distances = self.distances(self.features(self.extractor(images)))                       # (B, h, w)
        size = images.shape[-2:]
        quarter = [max(cells, side // 4) for cells, side in zip(distances.shape[1:], size, strict=True)]
        maps = F.interpolate(distances[:, None], quarter, mode="bicubic", align_corners=False)  # (B, 1, H / 4, W / 4)
        score = maps.amax(dim=(1, 2, 3)) if self.config.score == "max" else distances.mean(dim=(1, 2))
        return Prediction(score, F.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0])
