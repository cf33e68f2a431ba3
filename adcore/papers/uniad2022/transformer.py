"""Blocks of the transformers that reconstruct feature tokens: UniAD and the vanilla baseline (You et al., NeurIPS 2022).

    x (B, N, D) tokens, one a cell of the h x w grid; position (N, D); visible (N, N) True where a query may look
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.errors import ParameterError
from adcore.kernels import Dropout, masked_attention, relu_dropout


class Widths(Protocol):
    """What the blocks need to know of a method's settings."""

    @property
    def hidden(self) -> int: ...
    @property
    def heads(self) -> int: ...
    @property
    def ffn(self) -> int: ...
    @property
    def dropout(self) -> float: ...


def neighbor_mask(h: int, w: int, size: int) -> Tensor:
    """Keys that each query may not see (neighbor masked attention, Sec. 3.2).

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
        """(B, N, D) x 3 -> (B, N, D); a query (1, N, D) asks the same of every image. `visible` (N, N) is True where a query
        may look, None where it may everywhere."""
        weights, biases = self.in_weight.chunk(3), self.in_bias.chunk(3)
        q, k, v = (F.linear(x, weight, bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)     # (B, heads, N, D/heads)
                   for x, weight, bias in zip((query, key, value), weights, biases, strict=True))
        q = q.expand(len(k), -1, -1, -1)
        mixed = masked_attention(q, k, v, visible, self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))                                        # (B, N, D)


class FeedForward(nn.Sequential):
    """Table S1: 256 -> 1024 -> 256 with ReLU between."""

    def __init__(self, dim: int, inner: int, dropout: float) -> None:
        super().__init__(nn.Linear(dim, inner), nn.ReLU(), Dropout(dropout), nn.Linear(inner, dim))

    def forward(self, x: Tensor) -> Tensor:
        into, _, dropped, back = self
        return back(relu_dropout(into(x), dropped.p, self.training))  # type: ignore[arg-type]


class EncoderLayer(nn.Module):
    """Neighbor masked encoder layer: self-attention and feed-forward, each with residual and layer norm after."""

    def __init__(self, c: Widths) -> None:
        super().__init__()
        self.attention = Attention(c.hidden, c.heads, c.dropout)
        self.ffn = FeedForward(c.hidden, c.ffn, c.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(c.hidden) for _ in range(2))
        self.dropout = Dropout(c.dropout)

    def forward(self, x: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = self.norms[0](x + self.dropout(self.attention(x + position, x + position, x, visible)))
        return self.norms[1](x + self.dropout(self.ffn(x)))


class VanillaDecoderLayer(nn.Module):
    """Decoder layer of the vanilla transformer (S C.1): self-attention over what comes in, then attention to the encoder's
    output. What comes in is the previous layer's output; for the first layer, the learned query."""

    def __init__(self, c: Widths) -> None:
        super().__init__()
        self.self_attention = Attention(c.hidden, c.heads, c.dropout)
        self.cross_attention = Attention(c.hidden, c.heads, c.dropout)
        self.ffn = FeedForward(c.hidden, c.ffn, c.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(c.hidden) for _ in range(3))
        self.dropout = Dropout(c.dropout)

    def forward(self, encoded: Tensor, previous: Tensor, position: Tensor, visible: Tensor | None) -> Tensor:
        """(B, N, D), (B, N, D) -> (B, N, D)."""
        x, key = previous, encoded + position
        x = self.norms[0](x + self.dropout(self.self_attention(x + position, x + position, x, visible)))
        x = self.norms[1](x + self.dropout(self.cross_attention(x + position, key, encoded, visible)))
        return self.norms[2](x + self.dropout(self.ffn(x)))


def initialize(network: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear and convolutional map, as the published code starts."""
    for module in network.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
