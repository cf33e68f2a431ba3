"""LARS, steps of a length that follows each layer's own, and the schedule with which DS2 trains by it.

You et al., "Large Batch Training of Convolutional Networks", 2017; He et al. (DS2), supplement Sec. 2 and the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose gradients are scaled, parameter by parameter, to a share of the parameter's length.

        g <- g + weight_decay * p
        g <- g * trust * |p| / (|g| + eps)          unless p or g is 0
        v <- momentum * v + g
        p <- p - lr * v

    The first two lines leave out what has one dimension, biases and norms: those take plain steps of SGD without decay.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.9, weight_decay: float = 1e-5,
                 trust: float = 0.001, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters that have a gradient, which stays as it is."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = self._scaled(p, group) if p.ndim > 1 else p.grad
                if "velocity" not in self.state[p]:
                    self.state[p]["velocity"] = torch.zeros_like(p)
                velocity = self.state[p]["velocity"].mul_(group["momentum"]).add_(g)
                p.sub_(group["lr"] * velocity)
        return loss

    @staticmethod
    def _scaled(p: Tensor, group: dict[str, Any]) -> Tensor:
        g = p.grad + group["weight_decay"] * p
        length, own = p.norm(), g.norm()
        # Chosen without looking, which would wait for the device.
        return g * torch.where((length > 0) & (own > 0), group["trust"] * length / (own + group["eps"]), 1.0)


def step_schedule(optimizer: torch.optim.Optimizer, *, warmup: int = 5, start: float = 0.01,
                  decay_epochs: Sequence[int] = (120, 160, 200), decay: float = 0.1) -> torch.optim.lr_scheduler.LambdaLR:
    """The learning rate of each epoch: it rises evenly from `start` of itself to all of it at epoch `warmup`, and falls by
    the factor `decay` at each of `decay_epochs`. Epochs count from 0."""
    def factor(epoch: int) -> float:
        if epoch < warmup:
            return start + (1 - start) * epoch / warmup
        return float(decay ** sum(epoch >= milestone for milestone in decay_epochs))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
