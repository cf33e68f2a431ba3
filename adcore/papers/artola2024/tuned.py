"""A backbone of which some stages are fine-tuned, and the mixture that follows its features.

    images (B, 3, H, W) -> backbone -> maps on the first tap's grid (B, h, w, C) -> projection -> u (B, h, w, d)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from adcore.errors import ParameterError
from adcore.features import FeatureExtractor, concatenate, train_only
from adcore.papers.artola2024.mixture import Mixture


class Settings(Protocol):
    """What a tuned backbone needs to know of its method's settings, which say what they mean (`ContrastiveConfig`)."""

    @property
    def backbone(self) -> str: ...
    @property
    def taps(self) -> tuple[int | str, ...]: ...
    @property
    def weights(self) -> str: ...
    @property
    def tuned(self) -> tuple[int, ...]: ...
    @property
    def dim(self) -> int: ...
    @property
    def components(self) -> int: ...
    @property
    def log_volume(self) -> float: ...


class Tuned(nn.Module):
    """A backbone whose stages are fine-tuned, and the mixture of its features: everything that training changes.

    history  a row a step of fine-tuning, saved with the weights

    Raises:
        ParameterError: see `features.stages` and `FeatureExtractor`; more dimensions than channels.
        WeightsError: the checkpoint is not here or does not fit.
    """

    projection: Tensor
    center: Tensor
    log_volume: Tensor

    def __init__(self, config: Settings, seed: int = 0) -> None:
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

    def train(self, mode: bool = True) -> Tuned:
        """The backbone stays in eval mode, and its batch norms with the statistics they came with: normal images and
        negatives pass in batches of their own, so that batch statistics would tell them apart, in training only."""
        super().train(mode)
        self.extractor.train(False)
        return self

    def get_extra_state(self) -> list[list[float]]:
        return self.history

    def set_extra_state(self, state: list[list[float]]) -> None:
        self.history = [list(row) for row in state]

    def joined(self, images: Tensor) -> Tensor:
        """The taps' maps on the first one's grid, channels last: (B, 3, H, W) -> (B, h, w, C)."""
        maps = self.extractor(images)
        return concatenate(maps, (maps[0].shape[-2], maps[0].shape[-1]), align_corners=False).permute(0, 2, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """u of each cell: (B, 3, H, W) in [0, 1] -> (B, h, w, d)."""
        return (self.joined(images) - self.center) @ self.projection

    @torch.no_grad()
    def fit_projection(self, batches: Iterator[Tensor]) -> None:
        """Projection on the d directions in which the features of these images vary most."""
        count, s1, s2 = 0, self.center.new_zeros((), dtype=torch.float64), self.center.new_zeros((), dtype=torch.float64)
        for images in batches:
            x = self.joined(images).flatten(0, 2).double()                                     # (n, C)
            count, s1, s2 = count + len(x), s1 + x.sum(0), s2 + x.T @ x
        mean = s1 / count
        vectors = torch.linalg.eigh(s2 / count - mean[:, None] * mean)[1]                      # in ascending order
        self.projection.copy_(vectors.flip(1)[:, :self.projection.shape[1]])
        self.center.copy_(mean)
