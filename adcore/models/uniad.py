"""UniAD: one reconstruction model for all categories.

You et al., "A Unified Model for Multi-class Anomaly Detection", NeurIPS 2022, and its supplement (S).

    image -> frozen features -> tokens -> encoder -> layer-wise query decoder -> tokens -> error map

    paper     code        shape          meaning
    f_org     features    (B, C, h, w)   tapped backbone maps, resized to one grid and concatenated
    f_tok     tokens      (B, N, C)      one token a cell, N = h * w
    f_rec     rebuilt     (B, N, C)      reconstructed tokens
    C         hidden      scalar         reduced channels, 256 (S C.3)
    n x n     neighbors   scalar         window of the neighbour mask, 7 (S C.4)
    alpha     jitter      scalar         feature jittering scale, 20 (S C.4)

A token that could see itself would be copied to the output, anomaly and all (the "identical shortcut"). Three things
prevent it: the mask hides each token and its neighbours, the decoder starts from a learned query in every layer, and
jittered input makes the network repair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.data import Sample, View
from adcore.data.transforms import Size, as_size
from adcore.errors import ParameterError
from adcore.features import FeatureExtractor, Tap, cached_features, concatenate
from adcore.losses import mse, mse_map
from adcore.models.detector import Config, Detector, Prediction
from adcore.training import seeded, train

STRIDE = 16  # every tap is brought to the grid of stride 16, 14x14 at 224


@dataclass(frozen=True, kw_only=True)
class UniADConfig(Config):
    """Settings of UniAD; defaults are those of the paper and, where it is silent, of the published code."""

    backbone: str = "efficientnet_b4"
    taps: tuple[Tap, ...] = (1, 2, 3, 4)
    weights: str = "default"
    image_size: Size = 224
    hidden: int = 256
    heads: int = 8
    ffn: int = 1024
    encoder_layers: int = 4
    decoder_layers: int = 4
    dropout: float = 0.1
    nma: bool = True                # neighbour masked attention
    neighbors: int = 7
    jitter: bool = True             # feature jittering
    jitter_scale: float = 20.0
    jitter_probability: float = 1.0
    epochs: int = 1000
    batch_size: int = 64
    lr: float = 1e-4
    lr_drop: int = 800              # epoch from which the learning rate is a tenth
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    score_window: int = 16          # the image score is the maximum of the map averaged over such windows
    amp: bool = False


def neighbor_mask(h: int, w: int, size: int) -> Tensor:
    """Keys that each query may not see (neighbour masked attention, Sec. 3.2).

    A token must be rebuilt from elsewhere, or it would simply be copied: the `size` x `size` window around the query,
    the query itself included, is blocked and clipped at the border.

    Returns (N, N) bool, True where blocked.

    Raises:
        ParameterError: the window is even, or leaves a query nothing to see.
    """
    if size < 1 or size % 2 == 0:
        raise ParameterError(f"neighbors={size} must be odd: the window has the query in its middle")
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.flatten(), x.flatten()                                                     # (N,)
    reach = size // 2
    blocked = ((y[:, None] - y).abs() <= reach) & ((x[:, None] - x).abs() <= reach)     # (N, N)
    if bool(blocked.all(1).any()):
        raise ParameterError(f"neighbors={size} hides the whole {h}x{w} grid from its middle: use a larger image or a "
                             f"smaller window")
    return blocked


def jitter_features(tokens: Tensor, scale: float, probability: float = 1.0) -> Tensor:
    """Add noise to tokens (feature jittering, Sec. 3.4): f + eps * alpha * |f| / C, eps ~ N(0, 1).

    (B, N, C) -> (B, N, C); one draw of `probability` a batch.
    """
    if probability < 1 and float(torch.rand(())) >= probability:
        return tokens
    spread = scale * tokens.norm(dim=-1, keepdim=True) / tokens.shape[-1]               # (B, N, 1)
    return tokens + torch.randn_like(tokens) * spread


class PositionEmbedding(nn.Module):
    """Learned embedding of rows and columns (Sec. 3.1), one for the whole network: (N, D)."""

    def __init__(self, h: int, w: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(h, dim // 2))
        self.columns = nn.Parameter(torch.rand(w, dim // 2))

    def forward(self) -> Tensor:
        h, w = len(self.rows), len(self.columns)
        grid = torch.cat([self.columns.expand(h, w, -1), self.rows[:, None].expand(h, w, -1)], dim=-1)   # (h, w, D)
        return grid.flatten(0, 1)                                                                        # (N, D)


class Attention(nn.Module):
    """Multi-head attention in which positions join queries and keys but never values."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_weight = nn.Parameter(torch.empty(3 * dim, dim))   # queries, keys, values
        self.in_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D) x 3 -> (B, N, D); `visible` (N, N) is True where a query may look, None where it may everywhere."""
        weights, biases = self.in_weight.chunk(3), self.in_bias.chunk(3)
        q, k, v = (F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)     # (B, heads, N, D/heads)
                   for x, weight, bias in zip((query, key, value), weights, biases, strict=True))
        mixed = F.scaled_dot_product_attention(q, k, v, visible, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))                                        # (B, N, D)


class FeedForward(nn.Sequential):
    """Table S1: 256 -> 1024 -> 256 with ReLU between."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__(nn.Linear(dim, inner), nn.ReLU(), nn.Dropout(dropout), nn.Linear(inner, dim))


class EncoderLayer(nn.Module):
    """Neighbour masked encoder layer: self-attention and feed-forward, each with residual and layer norm after."""

    def __init__(self, c: UniADConfig) -> None:
        super().__init__()
        self.attention = Attention(c.hidden, c.heads, c.dropout)
        self.ffn = FeedForward(c.hidden, c.ffn, c.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(c.hidden) for _ in range(2))
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, x: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = self.norms[0](x + self.dropout(self.attention(x + position, x + position, x, visible)))
        return self.norms[1](x + self.dropout(self.ffn(x)))


class DecoderLayer(nn.Module):
    """Layer-wise query decoder layer, design (a) of Fig. S1: the query meets the encoder's output, then the previous
    layer's; it is a query in both."""

    def __init__(self, c: UniADConfig, tokens: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(tokens, c.hidden))
        self.to_encoder = Attention(c.hidden, c.heads, c.dropout)
        self.to_previous = Attention(c.hidden, c.heads, c.dropout)
        self.ffn = FeedForward(c.hidden, c.ffn, c.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(c.hidden) for _ in range(3))
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, encoded: Tensor, previous: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D), (B, N, D) -> (B, N, D)."""
        q = self.query.expand_as(encoded)                                                       # (B, N, D)
        q = self.norms[0](q + self.dropout(self.to_encoder(q + position, encoded + position, encoded, visible)))
        q = self.norms[1](q + self.dropout(self.to_previous(q + position, previous + position, previous, visible)))
        return self.norms[2](q + self.dropout(self.ffn(q)))


class UniADNetwork(nn.Module):
    """Reconstruct feature tokens: (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, grid: tuple[int, int], c: UniADConfig) -> None:
        super().__init__()
        h, w = grid
        self.reduce = nn.Linear(channels, c.hidden)
        self.position = PositionEmbedding(h, w, c.hidden)
        self.encoder = nn.ModuleList(EncoderLayer(c) for _ in range(c.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(c, h * w) for _ in range(c.decoder_layers))
        self.norm = nn.LayerNorm(c.hidden)
        self.expand = nn.Linear(c.hidden, channels)
        visible = ~neighbor_mask(h, w, c.neighbors) if c.nma else None
        self.register_buffer("visible", visible, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        position, visible = self.position(), self.visible
        encoded = self.reduce(tokens)                                                           # (B, N, D)
        for encoder_layer in self.encoder:
            encoded = encoder_layer(encoded, position, visible)
        previous = encoded  # the first decoder layer has no previous one: the encoder's output stands in
        for decoder_layer in self.decoder:
            previous = decoder_layer(encoded, previous, position, visible)
        return self.expand(self.norm(previous))                                                 # (B, N, C)


class UniAD(Detector):
    """UniAD as a detector."""

    name: ClassVar[str] = "uniad"
    paper: ClassVar[str] = "uniad2022"
    pooled: ClassVar[bool] = True
    Config: ClassVar[type[Any]] = UniADConfig
    quick: ClassVar[dict[str, Any]] = {
        "backbone": "efficientnet_lite0", "taps": (3, 4), "image_size": 128, "hidden": 96, "heads": 4, "ffn": 192,
        "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.0, "neighbors": 5, "jitter_scale": 5.0, "epochs": 28,
        "batch_size": 8, "lr": 2e-3, "lr_drop": 23}

    def __init__(self, config: UniADConfig | None = None, *, device: str | torch.device = "cpu", seed: int = 0) -> None:
        super().__init__(config, device=device, seed=seed)
        c = self.config
        h, w = as_size(c.image_size)
        if h < STRIDE or w < STRIDE:
            raise ParameterError(f"image_size {h}x{w} is smaller than one token of {STRIDE} pixels")
        self.grid = (h // STRIDE, w // STRIDE)
        self.extractor = FeatureExtractor(c.backbone, c.taps, c.weights, seed).to(self.device)
        with seeded(seed):
            self.network = UniADNetwork(sum(self.extractor.channels), self.grid, c).to(self.device).eval()
        self.losses: list[float] = []

    @property
    def view(self) -> View:
        return View(as_size(self.config.image_size))

    @property
    def weights_digest(self) -> str:
        return self.extractor.digest

    def features(self, maps: list[Tensor]) -> Tensor:
        """f_org: the taps' maps on one grid, (B, C, h, w)."""
        return concatenate(maps, self.grid, align_corners=True)

    def fit(self, samples: Sequence[Sample], *, checkpoint: Path | None = None, progress: bool | None = None) -> UniAD:
        """Train the reconstruction of jittered features (Sec. 3.4, S C.4). The last epoch is the one that counts."""
        c = self.config
        features = cached_features(samples, self.view, self.extractor, self.features, f"uniad grid {self.grid}",
                                   half=True, device=self.device, progress=progress)           # (n, C, h, w)
        optimizer = torch.optim.AdamW(self.network.parameters(), c.lr, weight_decay=c.weight_decay)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, c.lr_drop)
        self.losses = train(self.network, self.loss, features, optimizer, scheduler, epochs=c.epochs,
                            batch_size=c.batch_size, seed=self.seed, clip_norm=c.clip_norm, amp=c.amp,
                            checkpoint=checkpoint, progress=progress, desc="UniAD")
        return self

    def loss(self, features: Tensor) -> Tensor:
        """Rebuild the clean tokens from jittered ones: (B, C, h, w) -> scalar."""
        c = self.config
        tokens = features.flatten(2).transpose(1, 2)                                            # (B, N, C)
        seen = jitter_features(tokens, c.jitter_scale, c.jitter_probability) if c.jitter else tokens
        return mse(tokens, self.network(seen))

    @torch.no_grad()
    def predict(self, images: Tensor) -> Prediction:
        """Reconstruction error (Sec. 3.4), upsampled bilinearly; the score is its maximum over averaged windows."""
        images = self._checked(images)
        size, own = images.shape[-2:], self.view.shape
        if size != own:
            images = F.interpolate(images, own, mode="bilinear", antialias=True)
        tokens = self.features(self.extractor(images)).flatten(2).transpose(1, 2)               # (B, N, C)
        errors = mse_map(tokens, self.network(tokens)).unflatten(1, self.grid)[:, None]         # (B, 1, h, w)
        maps = F.interpolate(errors, own, mode="bilinear", align_corners=True)                  # (B, 1, H, W)
        window = min(self.config.score_window, *own)
        score = F.avg_pool2d(maps, window, stride=1).amax(dim=(1, 2, 3))                        # (B,)
        if size != own:
            maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
        return Prediction(score, maps[:, 0])
