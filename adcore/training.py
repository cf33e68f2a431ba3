"""The training loop of all methods, with devices, random seeds, mixed precision, checkpoints and several processes."""

from __future__ import annotations

import contextlib
import functools
import math
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from adcore import distributed
from adcore.deadline import TimeUp, remaining
from adcore.errors import AdcoreError, ParameterError
from adcore.files import atomic
from adcore.memory import kept_memory
from adcore.progress import progress_bar


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """A torch device by its name; 'auto' is the first CUDA device if there is one, else the CPU.

    >>> resolve_device("cpu")
    device(type='cpu')

    Raises:
        ParameterError: torch does not know the device, this machine does not have it, or nothing is computed on it here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ParameterError(f"unknown device '{name}': use auto, cpu, cuda, cuda:0 or mps") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ParameterError(f"device '{name}' is not supported: use auto, cpu, cuda or mps")
    count = {"cpu": 1, "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
             "mps": int(torch.backends.mps.is_available())}[device.type]
    if not count:
        raise ParameterError(f"device '{name}' is not here: this torch sees no {device.type.upper()} device, use device=cpu or "
                             f"auto")
    if device.index is not None and device.index >= count:
        last = device.type if count == 1 else f"{device.type}:0 to {device.type}:{count - 1}"
        raise ParameterError(f"device '{name}' is not here: use {last}")
    return device


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for a method on this device: there, but for Apple's GPUs on the CPU.

    >>> float64_device(torch.device("mps")), float64_device(torch.device("cuda"))
    (device(type='cpu'), device(type='cuda'))
    """
    return torch.device("cpu") if device.type == "mps" else device


def checked_seed(seed: int) -> int:
    """A seed as a plain integer.

    >>> checked_seed(np.int64(3))
    3

    Raises:
        ParameterError: not an integer from 0 to 2**32 - 1, the seeds that both numpy and torch take.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ParameterError(f"seed {seed!r} must be an integer from 0 to 2**32 - 1")
    return int(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's random state for a block, and restore the caller's state afterwards.

    >>> with seeded(1):
    ...     first = torch.rand(3)
    >>> with seeded(1):
    ...     torch.equal(first, torch.rand(3))
    True
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def epoch_seed(seed: int, epoch: int) -> int:
    """The seed of one epoch. A resumed training seeds its next epoch by it and needs no saved random state."""
    return (seed * 1_000_003 + epoch) % 2**63


Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def full_precision(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """Decorator that disables autocast, for similarities, losses and images: bfloat16 has two significant digits.

    Arguments in half precision, alone or in tuples, become float32. Outside autocast nothing changes.
    """
    @functools.wraps(function)
    def wide(*arguments: Inputs.args, **named: Inputs.kwargs) -> Output:
        devices = [device for device in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(device)]
        if not devices:
            return function(*arguments, **named)
        with contextlib.ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*map(_widened, arguments), **{name: _widened(value) for name, value in named.items()})

    return wide


def _widened(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_widened, value))
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16) else value


Batches = Callable[[], Iterator[tuple[Tensor, ...]]]
Scheduler = torch.optim.lr_scheduler.LRScheduler
SAVE_EVERY = 30.0  # seconds between two checkpoints of one training
MARGIN = 1.0  # seconds that must be left after the next epoch, see `adcore.deadline`


@dataclass(frozen=True)
class Run:
    """How one training is named, shown and saved.

    checkpoint  file to resume from, and to save to every `SAVE_EVERY` seconds and at the end; None saves nothing
    progress    show a progress bar; None shows it only in a terminal or a notebook
    desc        name of the training, in the progress bar and in error messages
    inputs      digest of the images and weights that it starts from; a checkpoint of others is not resumed from
    """

    checkpoint: Path | None = None
    progress: bool | None = None
    desc: str = "training"
    inputs: str = ""


DEFAULT_RUN = Run()


@kept_memory()
def train(module: nn.Module, loss_of: Callable[..., Tensor], data: Tensor | tuple[Tensor, ...] | Batches,
          optimizer: torch.optim.Optimizer, scheduler: Scheduler | None = None, *, epochs: int, batch_size: int = 0, seed: int,
          clip_norm: float | None = None, amp: bool = False, each_step: bool = False, data_parallel: bool = False,
          drop_last: bool = False, run: Run = DEFAULT_RUN) -> list[float]:
    """Train a module and return the mean loss of each epoch. The module is in eval mode afterwards.

    loss_of        batch (B, ...) on the module's device -> scalar; takes one batch for each tensor of `data`
    data           tensors (n, ...) of one length, which are shuffled and cut into batches of `batch_size`; may be
                   memory-mapped and in half precision, batches are float32 or bool. Or a function that yields the batches
                   of one epoch, drawn from torch's random state on the CPU
    scheduler      stepped after every epoch, or after every batch with `each_step`; None keeps the learning rate
    clip_norm      largest norm of the gradient; None does not clip
    amp            bfloat16 autocast
    data_parallel  under torchrun, split each batch over the ranks; otherwise every rank trains on all of it
    drop_last      leave out the last batch of an epoch if it is incomplete, unless it is the only one: fewer images than
                   `batch_size` are one batch. Only for `data` as tensors

    Every epoch has its own random seed, so that an interrupted training resumes to the same weights.

    With `data_parallel` all ranks draw the same batches, each computes the loss of its slice, and the gradients are averaged.
    The weights equal those of one process up to rounding if the loss is a mean over images and draws no random numbers. Each
    rank draws dropout and noise from a random stream of its own. Batch norms in training mode are synchronized.

    >>> line = nn.Linear(1, 1)
    >>> optimizer = torch.optim.SGD(line.parameters(), lr=0.1)
    >>> losses = train(line, lambda x: (line(x) - 2 * x).square().mean(), torch.linspace(-1, 1, 64)[:, None], optimizer,
    ...                epochs=20, batch_size=8, seed=0)
    >>> len(losses), round(line.weight.item(), 2)
    (20, 2.0)

    Raises:
        AdcoreError: the loss is not finite, ranks see different checkpoints, or the checkpoint is of other images or weights.
        TimeUp: the next epoch would end after the deadline; the checkpoint is written.
        ParameterError: no data, tensors of different lengths, or a batch norm that cannot be synchronized.
    """
    device, checkpoint = next(module.parameters()).device, run.checkpoint
    rank, size = (distributed.rank(), distributed.world_size()) if data_parallel else (0, 1)
    batches, read = (data, lambda *batch: batch) if callable(data) else _shuffled(data, batch_size, drop_last, device, run.desc)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.is_file():
        losses = _restore(checkpoint, run.inputs, module, optimizer, scheduler, device)
    if len(distributed.all_gather(torch.tensor([len(losses)])).unique()) > 1:
        raise AdcoreError(f"{run.desc}: not all processes see checkpoint {checkpoint}: put it where all of them can read it")
    module.train()
    loss_module = loss_of if size == 1 else _averaged(module, loss_of, device, run.desc)

    def loss_of_slice(*batch: Tensor) -> Tensor:
        part, weight = distributed.batch_slice(len(batch[0]), rank, size)
        own_stream = contextlib.nullcontext() if size == 1 else seeded(epoch_seed(int(torch.randint(2**40, ())), rank))
        with own_stream, torch.autocast(device.type, torch.bfloat16, enabled=amp):
            return loss_module(*read(*(tensor[part] for tensor in batch))) * weight

    saved = time.monotonic()
    with progress_bar(total=epochs, initial=len(losses), desc=run.desc, unit="epoch", enabled=run.progress) as bar:
        for epoch in range(len(losses), epochs):
            started = time.monotonic()
            with seeded(epoch_seed(seed, epoch)):
                losses.append(_epoch(module, loss_of_slice, batches(), optimizer, scheduler if each_step else None, clip_norm))
            if not math.isfinite(losses[-1]):
                raise AdcoreError(f"{run.desc}: the loss became {losses[-1]} in epoch {epoch + 1}: lower the learning rate")
            if scheduler is not None and not each_step:
                scheduler.step()
            bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
            bar.update()
            last, now = epoch + 1 == epochs, time.monotonic()
            stop = not last and remaining() < 1.5 * (now - started) + MARGIN
            due = now - saved > SAVE_EVERY or last or stop
            if checkpoint is not None and due and distributed.is_rank_zero():
                _save(checkpoint, run.inputs, module, optimizer, scheduler, losses)
                saved = time.monotonic()
            if stop:
                raise TimeUp
    distributed.barrier()  # all ranks find the last checkpoint
    module.eval()
    return losses


def _epoch(module: nn.Module, loss_of: Callable[..., Tensor], batches: Iterator[tuple[Tensor, ...]],
           optimizer: torch.optim.Optimizer, scheduler: Scheduler | None, clip_norm: float | None) -> float:
    """One optimizer step per batch; returns the mean loss of an image."""
    total, seen = torch.zeros(()), 0
    for batch in batches:
        loss = loss_of(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        total, seen = total + loss.detach() * len(batch[0]), seen + len(batch[0])
    return float(distributed.all_gather(total[None]).mean()) / seen


def _shuffled(data: Tensor | tuple[Tensor, ...], batch_size: int, drop_last: bool, device: torch.device,
              desc: str) -> tuple[Batches, Callable[[Tensor], tuple[Tensor, ...]]]:
    """Batches of shuffled indices, and a function that reads the rows of a batch."""
    tensors = (data,) if isinstance(data, Tensor) else data
    if len({len(tensor) for tensor in tensors}) != 1 or len(tensors[0]) == 0:
        raise ParameterError(f"{desc}: data must be tensors of one length, not {[len(tensor) for tensor in tensors]}")
    if batch_size < 1:
        raise ParameterError(f"{desc}: batch_size={batch_size} must be at least 1 where data is cut into batches")

    def batches() -> Iterator[tuple[Tensor, ...]]:
        parts = torch.randperm(len(tensors[0])).split(batch_size)
        for indices in parts[:-1] if drop_last and len(parts) > 1 and len(parts[-1]) < batch_size else parts:
            # Ascending order reads a memory-mapped file front to back; within a batch the order does not matter.
            yield (indices.sort().values,)

    def read(indices: Tensor) -> tuple[Tensor, ...]:
        rows = (tensor[indices].to(device, non_blocking=True) for tensor in tensors)
        return tuple(row if row.dtype == torch.bool else row.float() for row in rows)

    return batches, read


class _Loss(nn.Module):
    """A loss as the forward pass of a module, which DistributedDataParallel can wrap."""

    def __init__(self, module: nn.Module, loss_of: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.loss_of = module, loss_of

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss_of(*batch)


def _averaged(module: nn.Module, loss_of: Callable[..., Tensor], device: torch.device, desc: str) -> DistributedDataParallel:
    """The loss, whose gradients are averaged over ranks; batch norms of the module in training mode become synchronized."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    if any(norm.training for norm in norms):
        for kind in map(type, norms):
            # torch synchronizes on a GPU only, and would replace a subclass by its plain SyncBatchNorm.
            if device.type == "cpu" or kind not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
                raise ParameterError(f"{desc}: several processes cannot train {kind.__name__} on device {device.type}: train "
                                     f"in one process, without torchrun")
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
    return DistributedDataParallel(_Loss(module, loss_of), static_graph=True)


def _save(path: Path, inputs: str, module: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Scheduler | None,
          losses: list[float]) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(),
             "scheduler": None if scheduler is None else scheduler.state_dict(), "losses": losses,
             "inputs": inputs}
    with atomic(path) as temporary:
        torch.save(state, temporary)


def _restore(path: Path, inputs: str, module: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Scheduler | None,
             device: torch.device) -> list[float]:
    try:
        with zipfile.ZipFile(path) as parts:  # torch.load does not compare checksums
            if damaged := parts.testzip():
                raise ValueError(f"the checksum of {damaged} does not fit")
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        if state.get("inputs", "") != inputs:
            raise ValueError("its training started from other images or weights")
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
        return [float(loss) for loss in state["losses"]]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdcoreError(f"checkpoint {path} cannot be resumed from ({reason}): delete it to start again") from error
