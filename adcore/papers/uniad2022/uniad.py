"""UniAD: one reconstruction model for all categories.

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022, and its supplement (S).

    image -> frozen features -> tokens -> encoder -> layer-wise query decoder -> tokens -> error map

    paper     code        shape          meaning
    f_tok     tokens      (B, N, C)      one token a cell, N = h * w
    f_rec     rebuilt     (B, N, C)      reconstructed tokens
    C         hidden      scalar         reduced channels, 256 (S C.3)
    n x n     neighbors   scalar         window of the neighbor mask, 7 (S C.4)
    Q, E, P, R            (B, N, D)      what a decoder layer's attentions take: learned query, encoder's output, previous
                                         layer's output, result of the layer's first attention (Fig. S1)

A token that could see itself would be copied to the output, anomaly and all (the "identical shortcut"). Three things
prevent it: the mask hides each token and its neighbors, the decoder starts from a learned query in every layer, and
jittered input makes the network repair.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from adcore.errors import ParameterError
from adcore.kernels import Dropout
from adcore.papers.uniad2022.reconstruction import STRIDE, Reconstruction, ReconstructionConfig, jitter_features
from adcore.papers.uniad2022.transformer import (
    Attention,
    EncoderLayer,
    FeedForward,
    PositionEmbedding,
    VanillaDecoderLayer,
    initialize,
    neighbor_mask,
)

__all__ = ["STRIDE", "WIRINGS", "DecoderLayer", "UniAD", "UniADConfig", "UniADNetwork", "jitter_features", "neighbor_mask"]

# Fig. S1: for each of a layer's two attentions, where its query and its key and value come from. The learned query must be
# a query, and all three sources must be used, which leaves these six. The text identifies (a), (b), (e) and (f); which of
# the two remaining is (c) and which (d) the figure alone tells.
WIRINGS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "a": (("Q", "E"), ("R", "P")),
    "b": (("Q", "P"), ("R", "E")),
    "c": (("Q", "E"), ("P", "R")),
    "d": (("Q", "P"), ("E", "R")),
    "e": (("P", "E"), ("Q", "R")),
    "f": (("E", "P"), ("Q", "R")),
}


@dataclass(frozen=True, kw_only=True)
class UniADConfig(ReconstructionConfig):
    """Settings of UniAD; defaults are those of the paper and, where it is silent, of the published code."""

    heads: int = 8
    ffn: int = 1024
    encoder_layers: int = 4
    decoder_layers: int = 4
    dropout: float = 0.1
    query: str = "layerwise"        # 'none', 'one' (both with the vanilla decoder) or one in every layer
    wiring: str = "a"               # of the layer-wise query decoder
    nma: bool = True                # neighbor masked attention
    neighbors: int = 7
    jitter: bool = True

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        **ReconstructionConfig.choices, "query": ("none", "one", "layerwise"), "wiring": tuple(WIRINGS)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.wiring != "a" and self.query != "layerwise":
            raise ParameterError(f"wiring='{self.wiring}' is one of the layer-wise query decoder: leave it out with "
                                 f"query='{self.query}'")


class DecoderLayer(nn.Module):
    """Layer-wise query decoder layer: two attentions that fuse three sources as `wiring` says, then feed-forward.

    Residuals run along the query of each attention. In design (a) the learned query meets the encoder's output, then the
    previous layer's, and is a query in both.
    """

    def __init__(self, c: UniADConfig, tokens: int) -> None:
        super().__init__()
        self.wiring = WIRINGS[c.wiring]
        self.query = nn.Parameter(torch.randn(tokens, c.hidden))
        self.attentions = nn.ModuleList(Attention(c.hidden, c.heads, c.dropout) for _ in self.wiring)
        self.ffn = FeedForward(c.hidden, c.ffn, c.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(c.hidden) for _ in range(3))
        self.dropout = Dropout(c.dropout)

    def forward(self, encoded: Tensor, previous: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D), (B, N, D) -> (B, N, D)."""
        sources = {"Q": self.query[None], "E": encoded, "P": previous}                          # (1, N, D), (B, N, D) x 2
        for (asks, answers), attention, norm in zip(self.wiring, self.attentions, self.norms, strict=False):
            query, value = sources[asks], sources[answers]
            mixed = attention(query + position, value + position, value, visible)
            sources["R"] = norm(query + self.dropout(mixed))
        return self.norms[2](sources["R"] + self.dropout(self.ffn(sources["R"])))


class UniADNetwork(nn.Module):
    """Reconstruct feature tokens: (B, N, C) -> (B, N, C).

    query='layerwise' is UniAD's decoder; 'one' is the vanilla transformer's, which starts from a learned query; with 'none'
    its first self-attention receives the encoder's output (the supplement does not say what enters there).
    """

    def __init__(self, channels: int, grid: tuple[int, int], c: UniADConfig) -> None:
        super().__init__()
        h, w = grid
        self.reduce = nn.Linear(channels, c.hidden)
        self.position = PositionEmbedding(h, w, c.hidden)
        self.encoder = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.query = nn.Parameter(torch.randn(h * w, c.hidden)) if c.query == "one" else None
        self.decoder = nn.ModuleList(DecoderLayer(c, h * w) if c.query == "layerwise" else VanillaDecoderLayer(c)
                                     for _ in range(c.decoder_layers))
        self.norm = nn.LayerNorm(c.hidden)
        self.expand = nn.Linear(c.hidden, channels)
        visible = ~neighbor_mask(h, w, c.neighbors) if c.nma else None
        self.register_buffer("visible", visible, persistent=False)
        initialize(self)

    def forward(self, tokens: Tensor) -> Tensor:
        position, visible = self.position(), self.visible
        encoded = self.reduce(tokens)                                                           # (B, N, D)
        for encoder_layer in self.encoder:
            encoded = encoder_layer(encoded, position, visible)
        # The first decoder layer has no previous one: a learned query stands in, or else the encoder's output.
        previous = encoded if self.query is None else self.query.expand_as(encoded)
        for decoder_layer in self.decoder:
            previous = decoder_layer(encoded, previous, position, visible)
        return self.expand(self.norm(previous))                                                 # (B, N, C)


class UniAD(Reconstruction):
    """UniAD as a detector."""

    name: ClassVar[str] = "uniad"
    Config: ClassVar[type[Any]] = UniADConfig
    quick: ClassVar[dict[str, Any]] = {
        "backbone": "efficientnet_lite0", "taps": (3, 4), "image_size": 128, "hidden": 96, "heads": 4, "ffn": 192,
        "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "neighbors": 5, "jitter_scale": 5.0, "epochs": 28,
        "batch_size": 8, "lr": 2e-3, "lr_drop": 23}

    def build(self, channels: int) -> nn.Module:
        return UniADNetwork(channels, self.grid, self.config)
