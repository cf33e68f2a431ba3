"""Blocks of a transformer over feature tokens, used by UniAD and the vanilla baseline (You et al., NeurIPS 2022, S C.1, C.2).

    paper               code          shape       meaning
    feature tokens      x             (B, N, D)   one token per cell of the h x w grid, N = h * w
    encoder embedding   encoded       (B, N, D)   output of the encoder
    position embedding  position      (N, D)      added to queries and keys of every attention
    attention mask      visible       (N, N)      bool, True where a query may see a key; None hides nothing
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.kernels import Dropout, masked_attention, relu_dropout


class PositionEmbedding(nn.Module):
    """Learned embedding of rows and columns (Sec. 3.1), one for the whole network: () -> (N, D)."""

    def __init__(self, h: int, w: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.rand(h, dim // 2))
        self.columns = nn.Parameter(torch.rand(w, dim // 2))

    def forward(self) -> Tensor:
        h, w = len(self.rows), len(self.columns)
        grid = torch.cat([self.columns.expand(h, w, -1), self.rows[:, None].expand(h, w, -1)], dim=-1)   # (h, w, D)
        return grid.flatten(0, 1)                                                                        # (N, D)


class Attention(nn.Module):
    """Multi-head attention. The caller adds positions to queries and keys, never to values."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_weight = nn.Parameter(torch.empty(3 * dim, dim))   # of queries, keys and values, one below the other
        self.in_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_weight)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D) x 3 -> (B, N, D).

        query    may be (1, N, D), the same for all images
        visible  (N, N) bool, True where a query may see a key; None hides nothing
        """
        query_weight, key_weight, value_weight = self.in_weight.chunk(3)                         # (D, D) each
        query_bias, key_bias, value_bias = self.in_bias.chunk(3)
        q = self._split_heads(F.linear(query, query_weight, query_bias)).expand(len(key), -1, -1, -1)
        k = self._split_heads(F.linear(key, key_weight, key_bias))
        v = self._split_heads(F.linear(value, value_weight, value_bias))
        mixed = masked_attention(q, k, v, visible, self.dropout if self.training else 0.0)       # (B, heads, N, D/heads)
        return self.out(mixed.transpose(1, 2).flatten(2))                                        # (B, N, D)

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, heads, N, D/heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    """Feed-forward network of Table S1, 256 -> 1024 -> 256 with ReLU between: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__(nn.Linear(dim, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        widen, _, dropout, narrow = self
        return narrow(relu_dropout(widen(x), dropout.p, self.training))  # type: ignore[arg-type]


class EncoderLayer(nn.Module):
    """Encoder layer: self-attention, then feed-forward network, each followed by residual and layer norm.

    Given UniAD's neighbor mask, it is a layer of the neighbor masked encoder.
    """

    def __init__(self, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, dropout)
        self.ffn = FeedForward(dim, inner, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = self.attention_norm(x + self.dropout(self.attention(x + position, x + position, x, visible)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class VanillaDecoderLayer(nn.Module):
    """Decoder layer of the vanilla transformer (S C.1): self-attention, cross-attention to the encoder's output, feed-forward.

    The self-attention receives the previous layer's output; in the first layer, the learned query.
    """

    def __init__(self, dim: int, heads: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = Attention(dim, heads, dropout)
        self.cross_attention = Attention(dim, heads, dropout)
        self.ffn = FeedForward(dim, inner, dropout)
        self.self_norm = nn.LayerNorm(dim)
        self.cross_norm = nn.LayerNorm(dim)
        self.ffn_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, encoded: Tensor, previous: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D), (B, N, D) -> (B, N, D)."""
        x, key = previous, encoded + position
        x = self.self_norm(x + self.dropout(self.self_attention(x + position, x + position, x, visible)))
        x = self.cross_norm(x + self.dropout(self.cross_attention(x + position, key, encoded, visible)))
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


def initialize(network: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear and convolutional map, as in the published code."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
