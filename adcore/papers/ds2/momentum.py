"""Key networks: exponential moving averages (EMA) of the trained networks, with a momentum that rises to 1.

Grill et al. (BYOL), NeurIPS 2020, App. J. DS2's published code starts at 0.99.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def cosine_momentum(step: int, steps: int, start: float = 0.99) -> float:
    """Momentum at step 0, 1, ...: `start` at step 0, 1 from `steps` on, half a cosine between."""
    return 1 - (1 - start) * (math.cos(math.pi * min(step, steps) / max(steps, 1)) + 1) / 2


def target_of(network: Network) -> Network:
    """A copy without gradients."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, network: nn.Module, momentum: float) -> None:
    """target <- momentum * target + (1 - momentum) * network.

    Parameters only. The target runs in training mode too, so its batch norms keep running statistics of their own.
    """
    for ours, theirs in zip(target.parameters(), network.parameters(), strict=True):
        ours.mul_(momentum).add_(theirs, alpha=1 - momentum)
