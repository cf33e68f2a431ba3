"""UniAD: one reconstruction model for all categories.

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022, and its supplement (S).

    image -> frozen features -> tokens -> neighbor masked encoder -> layer-wise query decoder -> tokens -> anomaly map -> score

    paper     code           shape          meaning
    f_org     features       (B, C, h, w)   frozen backbone features on one grid
    f_tok     tokens         (B, N, C)      one token per cell of the grid, N = h * w
    f_rec     rebuilt        (B, N, C)      reconstructed tokens
    C_org     channels       scalar         channels of features and tokens, C in the shapes; 272 (S C.3)
    C         hidden         scalar         channels inside the network, D in the shapes; 256 (S C.3)
    n x n     neighbors      scalar         side of the neighbor mask's window, 7 (S C.4)
    alpha     jitter_scale   scalar         feature jittering scale, 20 (S C.4)
    Q         query          (N, D)         learned query embedding of a decoder layer
    E         encoded        (B, N, D)      encoder embedding, the encoder's output
    P         previous       (B, N, D)      output of the previous decoder layer

A network that may copy its input reconstructs anomalies as well (the "identical shortcut"). Three devices stand against it:

    neighbor masked attention   a token sees neither itself nor its neighbors          `neighbor_mask`
    layer-wise query decoder    every decoder layer starts from a learned query        `DecoderLayer`
    feature jittering           the input is disturbed and the target is not           `jitter_features`

Extraction and training, which the baselines share, are in `reconstruction.py`; attention and feed-forward network in
`transformer.py`; the losses (S1) to (S3) in `losses.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample
from adcore.errors import ParameterError
from adcore.kernels import Dropout
from adcore.papers.uniad2022.losses import LOSSES
from adcore.papers.uniad2022.reconstruction import Reconstruction, ReconstructionConfig
from adcore.papers.uniad2022.shortcut import diagnose
from adcore.papers.uniad2022.transformer import (
    Attention,
    EncoderLayer,
    FeedForward,
    PositionEmbedding,
    VanillaDecoderLayer,
    initialize,
)
from adcore.settings import DEPTH, WIDTH, Range

# Fig. S1: the two attentions of a decoder layer, each as (source of its query, source of its key and value). Sources are the
# learned query Q, the encoder's output E and the previous layer's output P; the second attention also takes R, the result of
# the first. Q must be a query and all sources must be used, which leaves these six. The text identifies (a), (b), (e) and (f);
# only the drawing tells (c) from (d).
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
    """Settings of UniAD. Defaults are the paper's or, where it is silent, those of the published code."""

    heads: int = 8
    ffn: int = 1024
    encoder_layers: int = 4
    decoder_layers: int = 4
    dropout: float = 0.1
    query: str = "layerwise"        # 'none', 'one' (both with the vanilla decoder) or one in every layer
    wiring: str = "a"               # of the layer-wise query decoder, a key of WIRINGS
    nma: bool = True                # neighbor masked attention
    neighbors: int = 7
    jitter: bool = True

    choices: ClassVar[dict[str, tuple[str, ...]]] = {
        "query": ("none", "one", "layerwise"), "wiring": tuple(WIRINGS)}
    ranges: ClassVar[dict[str, Range]] = {
        "heads": Range(least=1), "ffn": WIDTH, "encoder_layers": DEPTH, "decoder_layers": DEPTH,
        "neighbors": Range(least=1)}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads or self.hidden % 2:
            raise self.refused(f"hidden={self.hidden} must be even (half of it embeds rows, half columns) and a multiple of "
                               f"heads={self.heads}")
        if self.wiring != "a" and self.query != "layerwise":
            raise self.refused(f"wiring='{self.wiring}' needs the layer-wise query decoder: leave it out with "
                               f"query='{self.query}'")


def neighbor_mask(h: int, w: int, size: int) -> Tensor:
    """Keys that each query may not see (neighbor masked attention, Sec. 3.2).

    A token must be reconstructed from elsewhere, or it would simply be copied: the `size` x `size` window around the query,
    the query itself included, is blocked and clipped at the border.

    Returns (N, N) bool, True where blocked.

    Raises:
        ParameterError: the window is even, or hides the whole grid from some query.
    """
    if size < 1 or size % 2 == 0:
        raise ParameterError(f"neighbors={size} must be odd: the window has the query in its middle")
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.flatten(), x.flatten()                                                     # (N,)
    reach = size // 2
    blocked = ((y[:, None] - y).abs() <= reach) & ((x[:, None] - x).abs() <= reach)     # (N, N)
    if bool(blocked.all(1).any()):
        raise ParameterError(f"neighbors={size} hides the whole {h}x{w} grid from the token in its middle: use a larger image "
                             f"or a smaller window")
    return blocked


class DecoderLayer(nn.Module):
    """Layer of the layer-wise query decoder (Sec. 3.3, S D.2).

    Two attentions fuse the layer's learned query, the encoder's output and the previous layer's output in one of the ways of
    Fig. S1. A feed-forward network follows.
    """

    def __init__(self, dim: int, heads: int, inner: int, dropout: float, tokens: int, wiring: str = "a") -> None:
        super().__init__()
        self.wiring = WIRINGS[wiring]
        self.query = nn.Parameter(torch.randn(tokens, dim))
        self.first_attention = Attention(dim, heads, dropout)
        self.second_attention = Attention(dim, heads, dropout)
        self.ffn = FeedForward(dim, inner, dropout)
        self.first_norm = nn.LayerNorm(dim)
        self.second_norm = nn.LayerNorm(dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, encoded: Tensor, previous: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """Encoder's output E and previous layer's output P: (B, N, D), (B, N, D) -> (B, N, D)."""
        # UniAD's design is (a), with Q the learned query of this layer. The residual runs along the query of each attention.
        #     R   = first_norm(Q + first_attention(query=Q + position, key=E + position, value=E))
        #     R'  = second_norm(R + second_attention(query=R + position, key=P + position, value=P))
        #     out = ffn_norm(R' + ffn(R'))
        # The other designs take Q, E, P and R in the places that WIRINGS lists.
        sources = {"Q": self.query[None], "E": encoded, "P": previous}                          # (1, N, D), (B, N, D) x 2

        def fused(wires: tuple[str, str], attention: Attention, norm: nn.LayerNorm) -> Tensor:
            query, value = (sources[name] for name in wires)
            return norm(query + self.dropout(attention(query + position, value + position, value, visible)))

        first, second = self.wiring
        sources["R"] = fused(first, self.first_attention, self.first_norm)                      # (B, N, D)
        x = fused(second, self.second_attention, self.second_norm)                              # (B, N, D)
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class UniADNetwork(nn.Module):
    """Neighbor masked encoder and decoder: reconstructs feature tokens, (B, N, C) -> (B, N, C).

    query='layerwise' is UniAD's decoder; 'one' is the vanilla transformer's, which starts from one learned query; with 'none'
    its first self-attention receives the encoder's output (the supplement does not say what enters there).
    """

    def __init__(self, channels: int, grid: tuple[int, int], c: UniADConfig) -> None:
        super().__init__()
        (h, w), sizes = grid, (c.hidden, c.heads, c.ffn, c.dropout)
        self.reduce = nn.Linear(channels, c.hidden)
        self.position = PositionEmbedding(h, w, c.hidden)
        self.encoder = nn.ModuleList(EncoderLayer(*sizes) for _ in range(c.encoder_layers))
        self.query = nn.Parameter(torch.randn(h * w, c.hidden)) if c.query == "one" else None
        self.decoder = nn.ModuleList(
            DecoderLayer(*sizes, h * w, c.wiring) if c.query == "layerwise" else VanillaDecoderLayer(*sizes)
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
        # The first decoder layer has no previous one: it gets the one learned query if there is one, else the encoder's output.
        previous = encoded if self.query is None else self.query.expand_as(encoded)
        for decoder_layer in self.decoder:
            previous = decoder_layer(encoded, previous, position, visible)
        return self.expand(self.norm(previous))                                                 # (B, N, C)


def jitter_features(tokens: Tensor, scale: float, probability: float = 1.0) -> Tensor:
    """Feature jittering (Sec. 3.4): f + eps * alpha * |f| / C with eps ~ N(0, 1) and alpha = `scale`.

    (B, N, C) -> (B, N, C). The whole batch is jittered with `probability`, else none of it.
    """
    if probability < 1 and float(torch.rand(())) >= probability:
        return tokens
    spread = scale * tokens.norm(dim=-1, keepdim=True) / tokens.shape[-1]               # (B, N, 1)
    return tokens + torch.randn_like(tokens) * spread


class UniAD(Reconstruction):
    """UniAD as a detector: the network, its loss, its anomaly map and its score."""

    name: ClassVar[str] = "uniad"
    Config: ClassVar[type[Any]] = UniADConfig
    quick: ClassVar[dict[str, Any]] = {
        "backbone": "efficientnet_lite0", "taps": (3, 4), "image_size": 128, "hidden": 96, "heads": 4, "ffn": 192,
        "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "neighbors": 5, "jitter_scale": 5.0, "epochs": 28,
        "batch_size": 8, "lr": 2e-3, "lr_drop": 23}

    def build(self, channels: int) -> nn.Module:
        return UniADNetwork(channels, self.grid, self.config)

    def loss(self, features: Tensor) -> Tensor:
        """Distance of the clean tokens and those reconstructed from jittered ones (Sec. 3.4, Eq. (S1)).

        (B, C, h, w) -> scalar.
        """
        c = self.config
        tokens = features.flatten(2).transpose(1, 2)                                            # (B, N, C)
        jittered = jitter_features(tokens, c.jitter_scale, c.jitter_probability) if c.jitter else tokens
        loss, _ = LOSSES[c.loss]
        return loss(tokens, self.network(jittered))

    def anomaly_map(self, tokens: Tensor, rebuilt: Tensor) -> Tensor:
        """Reconstruction error of each token (Sec. 3.4), resized to the view: (B, N, C), (B, N, C) -> (B, 1, H, W)."""
        _, error = LOSSES[self.config.loss]
        errors = error(tokens, rebuilt).unflatten(1, self.grid)[:, None]                        # (B, 1, h, w)
        return F.interpolate(errors, self.view.shape, mode="bilinear", align_corners=True)

    def score(self, maps: Tensor) -> Tensor:
        """Maximum of the map averaged over windows; for CIFAR-10 its mean (published code): (B, 1, H, W) -> (B,)."""
        if self.config.score == "mean":
            return maps.mean(dim=(1, 2, 3))
        window = min(self.config.score_window, *maps.shape[-2:])
        return F.avg_pool2d(maps, window, stride=1).amax(dim=(1, 2, 3))

    def diagnose(self, samples: Sequence[Sample]) -> dict[str, float]:
        """How far the network takes the identical shortcut on one category, see `shortcut.diagnose`."""
        return diagnose(self, samples)
