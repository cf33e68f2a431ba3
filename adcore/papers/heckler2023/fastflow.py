"""FastFlow: a normalizing flow learns the density of normal features; unlikely features are anomalous.

Yu et al., "FastFlow: Unsupervised Anomaly Detection and Localization via 2D Normalizing Flows", 2021; one of the three
methods of heckler2023. There is no official code: settings that the paper leaves open follow its common reimplementations.

    image -> frozen features -> layer norm -> 8 steps of a flow -> z -> exp(-|z|^2 / 2C) -> map

    paper     code        shape          meaning
    y_i       features    (B, C, h, w)   features of one tap; the layer norm is over C, h and w together
    z_i       z           (B, C, h, w)   output of the flow, N(0, 1) for normal features

Each tap has its own flow; the map is the mean over the taps.
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
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from adcore.data import Sample
from adcore.data.transforms import Size
from adcore.detector import Config, Prediction
from adcore.features import Tap, images_digest
from adcore.papers.heckler2023.flows import Shape, check_shape, check_spread, nll, seeded_permutations
from adcore.papers.heckler2023.frozen import FrozenTaps
from adcore.settings import DEPTH, Range
from adcore.training import Run, seeded, train


@dataclass(frozen=True, kw_only=True)
class FastFlowConfig(Config):
    """Settings of FastFlow; defaults are those of the paper and, where it gives none, of its reimplementations.

    steps         coupling steps of the flow
    kernels       kernels of the subnets: 'alternating' 3x3 and 1x1 from step to step, or '3x3' (the paper's ResNet-18)
    hidden_ratio  width of a subnet divided by its input channels
    clamp         largest log-scale of a coupling, by tanh
    """

    backbone: str = "wide_resnet50_2"
    taps: tuple[Tap, ...] = (1, 2, 3)
    weights: str = "default"
    image_size: Size = 256
    steps: int = 8
    kernels: str = "alternating"
    hidden_ratio: float = 1.0
    clamp: float = 2.0
    epochs: int = 500
    batch_size: int = 32
    lr: float = 1e-3
    weight_decay: float = 1e-5
    amp: bool = False

    choices: ClassVar[dict[str, tuple[str, ...]]] = {"kernels": ("alternating", "3x3")}
    ranges: ClassVar[dict[str, Range]] = {"steps": DEPTH, "hidden_ratio": Range(above=0, most=64), "clamp": Range(above=0)}


def subnet(kernel: int, hidden_ratio: float, channels: int, out: int) -> nn.Sequential:
    """Predicts scale and shift of one half of the channels from the other: convolution, ReLU, convolution."""
    hidden = max(1, int(hidden_ratio * channels))
    return nn.Sequential(nn.Conv2d(channels, hidden, kernel, padding="same"), nn.ReLU(),
                         nn.Conv2d(hidden, out, kernel, padding="same"))


class Step(AllInOneBlock):
    """FrEIA's coupling, scale, shift and permutation. Here the permutation takes the channels in their new order. FrEIA's
    product with a matrix of zeros and ones is a fifth of all products of a training step."""

    def _permute(self, x: Tensor, rev: bool = False) -> tuple[Tensor, Tensor]:
        if rev:
            permuted: tuple[Tensor, Tensor] = super()._permute(x, rev)
            return permuted
        scale, order = self.global_scale_activation(self.global_scale), self.w_perm[:, :, 0, 0].argmax(1)
        x, by, offset = (values.index_select(1, order) for values in (x, scale, self.global_offset))
        return x * by + offset, scale.log().sum()


class TapFlow(nn.Module):
    """The flow of one tap: layer norm, then `steps` affine couplings, each followed by a fixed permutation of channels."""

    def __init__(self, shape: Shape, config: FastFlowConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(shape)
        self.flow = SequenceINN(*shape)
        with seeded_permutations():
            for step in range(config.steps):
                kernel = 1 if config.kernels == "alternating" and step % 2 else 3
                self.flow.append(Step, subnet_constructor=functools.partial(subnet, kernel, config.hidden_ratio),
                                 affine_clamping=config.clamp, permute_soft=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> z (B, C, h, w) and log |det dz/dx| of the flow (B,), without the layer norm."""
        z, log_det = self.flow(self.norm(features))
        return z, log_det


class FastFlow(FrozenTaps):
    """FastFlow as a detector; one model per category.

    Raises:
        ParameterError: see `FrozenTaps`, and a tap with a single channel.
    """

    name: ClassVar[str] = "fastflow"
    version: ClassVar[int] = 2  # 2: no incomplete batch
    Config: ClassVar[type[Any]] = FastFlowConfig
    open: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (2, 3, 4)}  # strides 4, 8 and 16
    quick: ClassVar[dict[str, Any]] = {"backbone": "efficientnet_lite0", "taps": (4,), "image_size": 128, "epochs": 30,
                                       "batch_size": 8}

    def __init__(self, config: FastFlowConfig | None = None, *, device: Any = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        for tap, shape in zip(self.config.taps, self.shapes, strict=True):
            check_shape(shape, f"tap {tap} of {self.config.backbone}")
        with seeded(seed):
            self.flows = nn.ModuleList([TapFlow(shape, self.config) for shape in self.shapes]).to(self.device).eval()
        self.losses: list[float] = []

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> FastFlow:
        """Maximize the likelihood of normal features. The model of the last epoch is kept.

        Raises:
            DataError: features that are constant: see `flows.check_spread`.
        """
        c = self.config
        inputs, losses = f"{images_digest(samples)} {self.weights_digest}", []
        # The flows share nothing, so each is trained by itself: the activations of one are in memory, not those of all.
        for i, (flow, features) in enumerate(zip(self.flows, self.cached_maps(samples, progress), strict=True)):
            check_spread(features, f"tap {c.taps[i]}")
            optimizer = torch.optim.Adam([p for p in flow.parameters() if p.requires_grad], c.lr,
                                         weight_decay=c.weight_decay, fused=True)
            own = checkpoint.with_name(f"{checkpoint.name}-{i}") if checkpoint is not None else None
            losses.append(train(flow, functools.partial(self.loss, flow), features, optimizer, epochs=c.epochs,
                                batch_size=c.batch_size, seed=self.seed, amp=c.amp, drop_last=True,
                                run=Run(own, progress, f"{self.name}, tap {c.taps[i]}", inputs)))
        self.losses = [math.fsum(epoch) for epoch in zip(*losses, strict=True)]
        return self

    @staticmethod
    def loss(flow: nn.Module, features: Tensor) -> Tensor:
        """Negative log-likelihood under the flow of a tap, mean over the batch: (B, C, h, w) -> scalar."""
        return nll(*flow(features)).mean()

    def _predict(self, images: Tensor) -> Prediction:
        """-exp(-|z|^2 / 2C) of each cell, upsampled bilinearly; the score is the map's maximum."""
        size = images.shape[-2:]
        maps = []
        for flow, features in zip(self.flows, self.extractor(images), strict=True):
            z, _ = flow(features)
            probability = torch.exp(-0.5 * z.square().mean(1, keepdim=True))                    # (B, 1, h, w)
            maps.append(F.interpolate(-probability, size, mode="bilinear", align_corners=False))
        mean = torch.stack(maps).mean(0)[:, 0]                                                  # (B, H, W)
        return Prediction(mean.amax(dim=(1, 2)), mean)
