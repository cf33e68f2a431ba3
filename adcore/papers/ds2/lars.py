"""The LARS optimizer (layer-wise adaptive rate scaling) and DS2's learning-rate schedule.

You et al., "Large Batch Training of Convolutional Networks", 2017; He et al. (DS2), supplement Sec. 2 and the published code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


class LARS(torch.optim.Optimizer):
    """SGD with momentum in which each parameter's gradient is scaled to a fixed fraction of the parameter's norm.

        g <- g + weight_decay * p
        g <- g * trust * |p| / (|g| + eps)          if p and g are not 0
        v <- momentum * v + g
        p <- p - lr * v

    The first two lines skip parameters with one dimension (biases and norms): these take plain SGD steps without weight decay.
    """

    def __init__(self, params: Iterable[Any], lr: float, *, momentum: float = 0.9, weight_decay: float = 1e-5,
                 trust: float = 0.001, eps: float = 1e-8) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on all parameters that have a gradient. Gradients are not changed."""
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
        # torch.where instead of an if, which would wait for the GPU.
        return g * torch.where((length > 0) & (own > 0), group["trust"] * length / (own + group["eps"]), 1.0)


def schedule_factor(step: int, per_epoch: int, *, warmup: int = 5, start: float = 0.01,
                    decay_epochs: Sequence[int] = (120, 160, 200), decay: float = 0.1, released: bool = False) -> float:
    """DS2's schedule: the factor on the learning rate at step 0, 1, ... Linear warm-up, then step decay; epochs count from 0.

    per_epoch      number of steps in an epoch
    warmup, start  the factor rises linearly from `start` at the first step to 1 at epoch `warmup`
    decay_epochs   at each of them the factor is multiplied by `decay`
    released       follow the released scheduler, which counts every step of the warm-up twice. The warm-up is then half as
                   long, the factor stays at the value just below 1 with which it ends, and decays come half a warm-up earlier.
                   With the paper's settings: 0.986 from epoch 2.5 on, decays at epochs 117.5, 157.5 and 197.5

    >>> [round(schedule_factor(epoch * 14, 14), 3) for epoch in (0, 1, 5, 120)]
    [0.01, 0.208, 1.0, 0.1]
    """
    ramp = warmup * per_epoch                                         # steps of the warm-up
    # The released scheduler counts 1, 3, 5, ... up to the last odd number of the ramp, and then in steps of 1.
    each, first, last = (2, 1, ramp - 1 + ramp % 2) if released and ramp else (1, 0, ramp)
    skipped = ramp - ramp // 2 if released else 0                     # steps by which it is ahead after the warm-up
    rise = start + (1 - start) * min(each * step + first, last) / ramp if ramp else 1.0
    return rise * float(decay ** sum(step + skipped >= epoch * per_epoch for epoch in decay_epochs))


def step_schedule(optimizer: torch.optim.Optimizer, per_epoch: int, **settings: Any) -> torch.optim.lr_scheduler.LambdaLR:
    """`schedule_factor` as a scheduler, with its settings. Call its `step` after every step of the optimizer."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule_factor(step, per_epoch, **settings))
