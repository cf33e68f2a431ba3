"""Layers of a transformer computed one token and one head at a time, and random modules and tensors to compare them with."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from adcore.papers.uniad2022.transformer import Attention


def exact(module: nn.Module) -> nn.Module:
    """The module in float64 and eval mode with random parameters: initial biases of 0 and norms of 1 would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=generator) * 0.5)
    return module


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attention_by_hand(a: Attention, query: np.ndarray, key: np.ndarray, value: np.ndarray, blocked: np.ndarray) -> np.ndarray:
    """(N, D) each: one token and one head at a time."""
    d = query.shape[1]
    width = d // a.heads
    in_weight, in_bias = a.in_weight.detach().numpy(), a.in_bias.detach().numpy()
    q, k, v = (x @ in_weight[i * d:(i + 1) * d].T + in_bias[i * d:(i + 1) * d] for i, x in enumerate((query, key, value)))
    out = np.zeros_like(query)
    for token in range(len(query)):
        for head in range(a.heads):
            part = slice(head * width, (head + 1) * width)
            scores = [-math.inf if blocked[token, other] else float(q[token, part] @ k[other, part]) / math.sqrt(width)
                      for other in range(len(key))]
            weights = [math.exp(score - max(scores)) for score in scores]
            for other, weight in enumerate(weights):
                out[token, part] += weight / sum(weights) * v[other, part]
    return out @ a.out.weight.detach().numpy().T + a.out.bias.detach().numpy()


def norm_by_hand(norm: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    rows = [(row - row.mean()) / math.sqrt(((row - row.mean()) ** 2).mean() + 1e-5) for row in x]
    return np.stack(rows) * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def ffn_by_hand(ffn: nn.Sequential, x: np.ndarray) -> np.ndarray:
    first, last = (p for p in ffn if isinstance(p, nn.Linear))
    inner = np.maximum(x @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    return inner @ last.weight.detach().numpy().T + last.bias.detach().numpy()
