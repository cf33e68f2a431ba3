"""The three reconstruction networks that UniAD is compared with (You et al., NeurIPS 2022, supplement S C.1).

    MLP          the transformer with its attentions replaced by linear maps
    CNN          a ResNet-34 without stem and strides
    Transformer  vanilla encoder and decoder with one learned query: UniAD with query='one', without mask and jitter

All three learn the "identical shortcut": they reconstruct an anomaly as well as anything else. Everything but the network is
inherited from UniAD: extraction, training, loss, anomaly map and score (S C.3, C.4). Jitter, and the mask of the transformer,
are off by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.kernels import Dropout
from adcore.papers.uniad2022.reconstruction import ReconstructionConfig
from adcore.papers.uniad2022.transformer import FeedForward, initialize
from adcore.papers.uniad2022.uniad import UniAD, UniADConfig
from adcore.settings import DEPTH, WIDTH, Range

_QUICK = {name: UniAD.quick[name] for name in ("backbone", "taps", "image_size", "hidden", "jitter_scale", "epochs",
                                               "batch_size", "lr", "lr_drop")}


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(UniADConfig):
    """Settings of the vanilla transformer, row '1 query' of Table S2."""

    query: str = "one"
    nma: bool = False
    jitter: bool = False


class Transformer(UniAD):
    """Vanilla transformer as a detector: UniAD's network with other settings."""

    name: ClassVar[str] = "transformer"
    Config: ClassVar[type[Any]] = TransformerConfig


@dataclass(frozen=True, kw_only=True)
class MLPConfig(ReconstructionConfig):
    """Settings of the MLP; widths and depths are the transformer's."""

    ffn: int = 1024
    encoder_layers: int = 4
    decoder_layers: int = 4
    dropout: float = 0.1

    ranges: ClassVar[dict[str, Range]] = {"ffn": WIDTH, "encoder_layers": DEPTH, "decoder_layers": DEPTH}


class Projection(nn.Sequential):
    """Replacement of an attention: linear map, layer norm, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Linear(inputs, outputs), nn.LayerNorm(outputs), nn.ReLU())


class MLPLayer(nn.Module):
    """Encoder or decoder layer without attention: each token sees itself alone.

    Self-attention becomes a projection; cross-attention becomes a projection of both inputs, concatenated. Residuals and
    feed-forward network stay as in the transformer: the supplement replaces attentions and positions only.
    """

    def __init__(self, c: MLPConfig, *, decoder: bool) -> None:
        super().__init__()
        self.self_projection = Projection(c.hidden, c.hidden)
        self.cross_projection = Projection(2 * c.hidden, c.hidden) if decoder else None
        self.ffn = FeedForward(c.hidden, c.ffn, c.dropout)
        self.self_norm = nn.LayerNorm(c.hidden)
        self.cross_norm = nn.LayerNorm(c.hidden) if decoder else None
        self.ffn_norm = nn.LayerNorm(c.hidden)
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor, encoded: Tensor | None = None) -> Tensor:
        """(B, N, D) -> (B, N, D); a decoder layer also takes the encoder's output (B, N, D)."""
        x = self.self_norm(x + self.dropout(self.self_projection(x)))
        if self.cross_projection is not None and self.cross_norm is not None and encoded is not None:
            x = self.cross_norm(x + self.dropout(self.cross_projection(torch.cat([x, encoded], dim=-1))))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class MLPNetwork(nn.Module):
    """Reconstructs each feature token by itself: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, grid: tuple[int, int], c: MLPConfig) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, c.hidden)
        self.encoder = nn.ModuleList(MLPLayer(c, decoder=False) for _ in range(c.encoder_layers))
        self.query = nn.Parameter(torch.randn(grid[0] * grid[1], c.hidden))
        self.decoder = nn.ModuleList(MLPLayer(c, decoder=True) for _ in range(c.decoder_layers))
        self.norm = nn.LayerNorm(c.hidden)
        self.expand = nn.Linear(c.hidden, channels)
        initialize(self)

    def forward(self, tokens: Tensor) -> Tensor:
        encoded = self.reduce(tokens)                                                           # (B, N, D)
        for layer in self.encoder:
            encoded = layer(encoded)
        x = self.query.expand_as(encoded)
        for layer in self.decoder:
            x = layer(x, encoded)
        return self.expand(self.norm(x))                                                        # (B, N, C)


class MLP(UniAD):
    """MLP as a detector."""

    name: ClassVar[str] = "mlp"
    Config: ClassVar[type[Any]] = MLPConfig
    quick: ClassVar[dict[str, Any]] = {**_QUICK, **{name: UniAD.quick[name] for name in (
        "ffn", "encoder_layers", "decoder_layers", "dropout")}}

    def build(self, channels: int) -> nn.Module:
        return MLPNetwork(channels, self.grid, self.config)


@dataclass(frozen=True, kw_only=True)
class CNNConfig(ReconstructionConfig):
    """Settings of the CNN: stages of C, C/2, C/2 and C channels with the numbers of blocks of ResNet-34."""

    blocks: tuple[int, ...] = (3, 4, 6, 3)

    ranges: ClassVar[dict[str, Range]] = {
        "hidden": Range(least=2, most=2**16), "blocks": Range(least=1, most=2**10, items=(4, 4))}


class BasicBlock(nn.Module):
    """ResNet's basic block (He et al., CVPR 2016) at stride 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(n, outputs, 3, padding=1, bias=False) for n in (inputs, outputs))
        self.norms = nn.ModuleList(nn.BatchNorm2d(outputs) for _ in range(2))
        self.shortcut = nn.Identity() if inputs == outputs else nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) -> (B, C_out, h, w)."""
        y = F.relu(self.norms[0](self.convolutions[0](x)))
        return F.relu(self.norms[1](self.convolutions[1](y)) + self.shortcut(x))


class CNNNetwork(nn.Module):
    """Reconstructs a feature map (B, C, h, w) with convolutions; input and output are tokens (B, N, C), as of the others."""

    def __init__(self, channels: int, grid: tuple[int, int], c: CNNConfig) -> None:
        super().__init__()
        self.grid = grid
        widths = (c.hidden, c.hidden // 2, c.hidden // 2, c.hidden)
        self.reduce = nn.Conv2d(channels, c.hidden, 1)
        stages: list[nn.Module] = []
        inputs = c.hidden
        for width, count in zip(widths, c.blocks, strict=True):
            for _ in range(count):
                stages.append(BasicBlock(inputs, width))
                inputs = width
        self.blocks = nn.Sequential(*stages)
        self.expand = nn.Conv2d(c.hidden, channels, 1)
        initialize(self)

    def forward(self, tokens: Tensor) -> Tensor:
        features = tokens.transpose(1, 2).unflatten(2, self.grid)                               # (B, C, h, w)
        rebuilt = self.expand(self.blocks(self.reduce(features)))                               # (B, C, h, w)
        return rebuilt.flatten(2).transpose(1, 2)                                               # (B, N, C)


class CNN(UniAD):
    """CNN as a detector."""

    name: ClassVar[str] = "cnn"
    Config: ClassVar[type[Any]] = CNNConfig
    quick: ClassVar[dict[str, Any]] = {**_QUICK, "blocks": (1, 1, 1, 1)}

    def build(self, channels: int) -> nn.Module:
        return CNNNetwork(channels, self.grid, self.config)
