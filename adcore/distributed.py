"""Training on several processes: who takes part, whose share of a batch is whose, and what all must agree on.

    torchrun --nproc-per-node 8 -m adcore measure uniad --dataset mvtec_ad --profile paper
    torchrun --nproc-per-node 8 script.py            a script of one's own, with all its work inside `with process_group():`

    global batch --> share of process 0 --> loss * weight --> backward --+
       |                                                                 +--> sum of the gradients --> the same step everywhere
       +-----------> share of process 1 --> loss * weight --> backward --+

Every process draws the same batches, because all have the same seed, and keeps all weights. Alone, without torchrun, a
process finds that everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adcore.errors import ParameterError

Made = TypeVar("Made")

# The others wait while the first evaluates, which takes hours; torchrun ends them where it dies.
PATIENCE = timedelta(days=2)

_apart: ContextVar[bool] = ContextVar("apart", default=False)


def launched() -> bool:
    """True in one of several processes that torchrun, or whoever sets the variables that it sets, has started."""
    there = all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return there and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Take part for a block, in a process that torchrun started; a process alone, or that takes part already, just goes on.

    Each process has a CUDA device of its own, which 'cuda' and 'auto' then mean, and sums go by NCCL; where there are fewer
    devices than processes they share them and sums go by Gloo, as they do on a CPU.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    devices, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if devices:
        torch.cuda.set_device(local % devices)
    enough = dist.is_nccl_available() and devices >= int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if devices and enough else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Processes that work together here."""
    return dist.get_world_size() if dist.is_initialized() and not _apart.get() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() and not _apart.get() else 0


def is_rank_zero() -> bool:
    """True in the process that writes files and talks to people, also where it works apart."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """A block in which this process works as if it were alone."""
    token = _apart.set(True)
    try:
        yield
    finally:
        _apart.reset(token)


def barrier() -> None:
    """Go on when all processes have come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def same_on_all_ranks(number: float) -> bool:
    """True on every process when all of them have the same number."""
    extremes = torch.tensor([number, -number], dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(extremes, dist.ReduceOp.MAX)
    return bool(extremes[0] == -extremes[1])


def run_on_rank_zero(make: Callable[[], Made]) -> Made:
    """What the first process makes, on every process: it alone does the work, the others wait. Takes what can be pickled."""
    if world_size() == 1:
        return make()
    made: list[Any] = [None]
    if is_rank_zero():
        with apart():
            made = [make()]
    dist.broadcast_object_list(made, src=0)
    return cast(Made, made[0])


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """A block that the first process does before all others, who find on disk what it left there."""
    if not is_rank_zero():
        barrier()
    try:
        yield
    finally:
        if is_rank_zero():
            barrier()


# A batch and its shares.

@dataclass(frozen=True)
class Share:
    """Images start to stop, of a batch of count, are this process's; its loss has this weight in the batch's."""

    start: int
    stop: int
    count: int
    weight: float = 1.0

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def all(self) -> bool:
        return len(self) == self.count

    def own(self, drawn: Tensor) -> Tensor:
        """Of what was drawn for each image of the batch: (count, ...) -> (stop - start, ...)."""
        return drawn[self.start:self.stop]


_share: ContextVar[Share | None] = ContextVar("share", default=None)


@contextlib.contextmanager
def sharing(count: int) -> Iterator[Share]:
    """A block on this process's share of a batch. Shares are contiguous, in the order of processes, and differ by one at most.

    A batch with fewer images than processes is nobody's share: everyone has all of it, apart, and weighs as little more.
    """
    size, number = world_size(), rank()
    with contextlib.ExitStack() as stack:
        if count < size:
            stack.enter_context(apart())
            share = Share(0, count, count, 1 / size)
        else:
            start, stop = count * number // size, count * (number + 1) // size
            share = Share(start, stop, count, (stop - start) / count)
        token = _share.set(share)
        stack.callback(_share.reset, token)
        yield share


def whole(count: int) -> Share:
    """The share that `count` images are of the batch at hand, for those who draw for all of it so that a batch in shares is
    the batch that one process draws; without several processes they are all.

    Raises:
        ParameterError: the share has another number of images.
    """
    share = _share.get()
    if share is None or share.all:
        return Share(0, count, count)
    if len(share) != count:
        raise ParameterError(f"{count} images are not this process's share of the batch, which has {len(share)}")
    return share


def all_gather(values: Tensor) -> Tensor:
    """Everyone's rows in the order of the batch, with gradient: (stop - start, ...) -> (count, ...)."""
    share = whole(len(values))
    if share.all:
        return values
    before, after = (values.new_zeros(rows, *values.shape[1:]) for rows in (share.start, share.count - share.stop))
    return summed(torch.cat([before, values, after]))


class _Sum(torch.autograd.Function):
    """A change here changes every process's loss through the sum, so that the gradient is a sum, too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone()
        dist.all_reduce(gradient)
        return gradient


def summed(values: Tensor) -> Tensor:
    """The sum over processes, any shape, with gradient."""
    return values if world_size() == 1 else cast(Tensor, _Sum.apply(values))


@torch.no_grad()
def add_gradients(parameters: Iterable[Tensor]) -> None:
    """Each parameter's gradient becomes the sum of all processes', which must have gradients for the same parameters."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if world_size() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


# Batch norm by the statistics of the batch, not of a share. torch's SyncBatchNorm would do, but refuses a CPU.

class _Normalized(torch.autograd.Function):
    """(x - mean) / sqrt(variance + eps) * weight + bias, both taken over the batch of all processes.

    With d = gradient * weight and n numbers a channel, the gradient of x is (d - sum d / n - normed * sum(d * normed) / n) /
    sqrt(variance + eps), sums over all processes; those of weight and bias are this process's part.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor,
                                                                                                       Tensor]:
        wide, others = _wide(x), [0, *range(2, x.ndim)]
        sums = torch.cat([wide.sum(others), wide.new_tensor([x.numel() / x.shape[1]])])
        dist.all_reduce(sums)
        count, mean = sums[-1], sums[:-1] / sums[-1]
        # A second sum: the mean square less the squared mean would lose what float32 cannot hold.
        squares = (wide - _along(mean, x)).square().sum(others)
        dist.all_reduce(squares)
        variance = squares / count
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps), mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, scale, count = ctx.saved_tensors
        gradient, others = _wide(gradients[0]), [0, *range(2, x.ndim)]
        normed = (_wide(x) - _along(mean, x)) * _along(scale, x)
        sums = torch.stack([gradient.sum(others), (gradient * normed).sum(others)])                     # (2, C)
        of_bias, of_weight = sums.clone()
        dist.all_reduce(sums)
        shift, slope = sums / count
        inner = gradient - _along(shift, x) - normed * _along(slope, x)
        of_x = inner * _along(scale if weight is None else scale * weight, x)
        return of_x.to(x), None if weight is None else of_weight, None if weight is None else of_bias, None


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def _along(values: Tensor, x: Tensor) -> Tensor:
    """(C,) beside x (B, C, ...)."""
    return values.view(1, -1, *[1] * (x.ndim - 2))


class _Synced(_BatchNorm):
    """In training, a norm of the whole batch; in all else torch's own."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        self._check_input_dim(x)
        normed, mean, variance, count = _Normalized.apply(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                factor = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), factor)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), factor)
        return cast(Tensor, normed)


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d):
    """Of (B, C) or (B, C, L)."""


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d):
    """Of (B, C, H, W)."""


SYNCED: dict[type[nn.Module], type[_Synced]] = {nn.BatchNorm1d: SyncedBatchNorm1d, nn.BatchNorm2d: SyncedBatchNorm2d}


@contextlib.contextmanager
def synced_norms(module: nn.Module) -> Iterator[None]:
    """A block in which the batch norms of a module, in training, are those of the batch of all processes.

    Raises:
        ParameterError: a batch norm of another kind, in training.
    """
    norms = [] if world_size() == 1 else [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kinds = [type(norm) for norm in norms]
    other = next((kind for kind in kinds if kind not in SYNCED), None)
    if other is not None:
        raise ParameterError(f"{other.__name__} cannot be trained in shares: run it on one process, without torchrun")
    try:
        # Its class alone is changed: it stays the object that others hold, with its parameters, buffers and hooks.
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = SYNCED[kind]
        yield
    finally:
        for norm, kind in zip(norms, kinds, strict=True):
            norm.__class__ = kind
