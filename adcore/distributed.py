"""Several processes that torchrun starts: the process group, batch slices, and work that rank 0 does for all ranks.

    torchrun --nproc-per-node 8 -m adcore measure uniad --dataset mvtec_ad --profile paper
    torchrun --nproc-per-node 8 script.py            your own script, with all its work inside `with process_group():`

`adcore.training.train` splits each batch over the ranks; rank 0 alone evaluates, writes files and prints. A process without
torchrun has rank 0 and world size 1, and nothing here communicates.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

Result = TypeVar("Result")

# The other ranks wait while rank 0 evaluates, which may take hours. If a rank fails, torchrun ends the others.
TIMEOUT = timedelta(days=2)

_single: ContextVar[bool] = ContextVar("single", default=False)  # True while rank 0 runs something by itself


def launched() -> bool:
    """True in a process that torchrun started as one of several."""
    variables = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return all(name in os.environ for name in variables) and int(os.environ["WORLD_SIZE"]) > 1


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join torchrun's process group for a block; without torchrun, or inside another such block, do nothing.

    If each process has a GPU of its own, 'cuda' and 'auto' mean that GPU, and tensors on it are reduced by NCCL. If several
    processes use one GPU, or there is none, tensors are reduced by Gloo.
    """
    if not launched() or dist.is_initialized():
        yield
        return
    gpus, local_rank = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
    own_gpu = gpus >= int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) and dist.is_nccl_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if own_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Number of processes that work together."""
    return dist.get_world_size() if dist.is_initialized() and not _single.get() else 1


def rank() -> int:
    """Number of this process, from 0 to the world size minus 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_rank_zero() -> bool:
    """True in the process that writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until all ranks have come here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def run_on_rank_zero(function: Callable[[], Result]) -> Result:
    """Run a function on rank 0 while the others wait, and broadcast its result, which must be picklable."""
    if world_size() == 1:
        return function()
    result: list[Any] = [None]
    if is_rank_zero():
        token = _single.set(True)
        try:
            result = [function()]
        finally:
            _single.reset(token)
    dist.broadcast_object_list(result, src=0)
    return cast(Result, result[0])


@contextlib.contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run a block on rank 0 first and then on the others, which find the files that rank 0 wrote."""
    if not is_rank_zero():
        barrier()
    try:
        yield
    finally:
        if is_rank_zero():
            barrier()


def batch_slice(count: int, rank: int, world_size: int) -> tuple[slice, float]:
    """A rank's slice of a batch of `count` images, and the weight of the slice's mean loss.

    The mean over ranks of the weighted losses is the mean loss over the images. Slices are contiguous and differ by one image
    at most. If the batch has fewer images than there are ranks, every rank takes the full batch.

    >>> [batch_slice(5, rank, 2) for rank in range(2)]
    [(slice(0, 2, None), 0.8), (slice(2, 5, None), 1.2)]
    >>> batch_slice(1, 1, 2)
    (slice(0, 1, None), 1.0)
    """
    if count < world_size:
        return slice(0, count), 1.0
    start, stop = count * rank // world_size, count * (rank + 1) // world_size
    return slice(start, stop), (stop - start) * world_size / count


def all_gather(values: Tensor) -> Tensor:
    """Concatenate the rows of all ranks in the order of ranks, with gradient: (n, ...), any n per rank -> (sum of n, ...)."""
    if world_size() == 1:
        return values
    counts = torch.zeros(world_size(), dtype=torch.int64)
    counts[rank()] = len(values)
    dist.all_reduce(counts)
    before, after = (values.new_zeros(int(part.sum()), *values.shape[1:]) for part in (counts[:rank()], counts[rank() + 1:]))
    return cast(Tensor, _Sum.apply(torch.cat([before, values, after])))


class _Sum(torch.autograd.Function):
    """Sum over ranks. Each rank's input enters every rank's loss, so that the gradient is a sum over ranks, too."""

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
