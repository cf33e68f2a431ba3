"""What every training shares: device, seeds, the loop over batches, checkpoints from which it goes on exactly."""

from __future__ import annotations

import contextlib
import functools
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from adcore import distributed
from adcore.errors import AdcoreError, ParameterError
from adcore.files import atomic
from adcore.memory import kept_memory
from adcore.progress import progress_bar


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """'auto' is the first CUDA device if there is one, else the CPU.

    Raises:
        ParameterError: a device that torch does not know or this machine does not have.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ParameterError(f"unknown device '{name}': use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ParameterError(f"device '{name}' is not here: this torch sees no CUDA device, use device=cpu or auto")
    return device


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Run a block with torch's random state set by `seed`; the caller's state comes back afterwards."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for every epoch, so that going on from epoch e needs no saved random state."""
    return (seed * 1_000_003 + epoch) % 2**63


Inputs = ParamSpec("Inputs")
Output = TypeVar("Output")


def full_precision(function: Callable[Inputs, Output]) -> Callable[Inputs, Output]:
    """The function as it is without autocast: for similarities, losses and images, of which bfloat16 keeps two digits.

    Tensors that come in half precision, alone or in tuples, are widened first. Outside autocast nothing is changed.
    """
    @functools.wraps(function)
    def wide(*arguments: Inputs.args, **named: Inputs.kwargs) -> Output:
        devices = [device for device in ("cpu", "cuda") if torch.is_autocast_enabled(device)]
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
Cut = Callable[[distributed.Share], tuple[Tensor, ...]]  # a share of a batch -> its tensors
SAVE_EVERY = 30.0  # seconds between two checkpoints of one training


@dataclass(frozen=True)
class Run:
    """How one training is named, shown and saved.

    checkpoint  file to resume from, and to save to every `SAVE_EVERY` seconds and at the end; None saves nothing
    progress    show a progress bar; None shows it only in a terminal or a notebook
    desc        name of the training, in the progress bar and in error messages
    """

    checkpoint: Path | None = None
    progress: bool | None = None
    desc: str = "training"


DEFAULT_RUN = Run()


@kept_memory()
def train(module: nn.Module, loss_of: Callable[..., Tensor], data: Tensor | tuple[Tensor, ...] | Batches,
          optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler | None = None, *, epochs: int,
          batch_size: int = 0, seed: int, clip_norm: float | None = None, amp: bool = False, each_step: bool = False,
          data_parallel: bool = False, run: Run = DEFAULT_RUN) -> list[float]:
    """Train on shuffled batches of a tensor, typically cached features, or of several that belong together; or on batches
    that a function draws.

    loss_of     batch (B, ...) on the module's device -> scalar; of several tensors, a batch of each
    data        (n, ...), may be memory-mapped and in half precision; batches of numbers come as float32, of bool as bool.
                Or a function that yields the batches of an epoch as they are, drawn from torch's random state
    scheduler   stepped once an epoch, or after every batch with `each_step`; None keeps the learning rate
    amp         bfloat16 autocast
    data_parallel  split each batch over the processes (`adcore.distributed`); else every process trains on all of it

    Interrupted and uninterrupted runs end with equal weights: shuffling, dropout and noise of an epoch depend on the
    seed and the epoch alone, with own draws on the process and the number of processes, too. Returns the mean loss of each
    epoch.

    Raises:
        AdcoreError: the loss is not finite, or processes see different checkpoints.
        ParameterError: tensors of different lengths, no data, or a batch norm that cannot be shared.
    """
    checkpoint, desc = run.checkpoint, run.desc
    device = next(module.parameters()).device
    batches = _drawn(data) if callable(data) else _shuffled(data, batch_size, device, desc)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.is_file():
        losses = _restore(checkpoint, module, optimizer, scheduler, device)
    if not distributed.same_on_all_ranks(len(losses)):
        raise AdcoreError(f"{desc}: not all processes see checkpoint {checkpoint}: put it where all of them can read it")
    saved = time.monotonic()
    module.train()
    with (contextlib.nullcontext() if data_parallel else distributed.apart(), distributed.synced_norms(module),
          progress_bar(total=epochs, initial=len(losses), desc=desc, unit="epoch", enabled=run.progress) as bar):
        for epoch in range(len(losses), epochs):
            with seeded(epoch_seed(seed, epoch)):
                own = _OwnDraws(epoch_seed(seed, epoch)) if data_parallel and distributed.world_size() > 1 else None
                losses.append(_epoch(module, loss_of, batches, optimizer, scheduler if each_step else None, clip_norm, amp,
                                     own, device))
            if not torch.isfinite(torch.tensor(losses[-1])):
                raise AdcoreError(f"{desc}: the loss became {losses[-1]} in epoch {epoch + 1}: lower the learning rate")
            if scheduler is not None and not each_step:
                scheduler.step()
            bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
            bar.update()
            due = time.monotonic() - saved > SAVE_EVERY or epoch + 1 == epochs
            if checkpoint is not None and due and distributed.is_rank_zero():
                _save(checkpoint, module, optimizer, scheduler, losses)
                saved = time.monotonic()
    distributed.barrier()  # so that all find the last checkpoint
    module.eval()
    return losses


def _drawn(data: Batches) -> Callable[[], Iterator[tuple[int, Cut]]]:
    def batches() -> Iterator[tuple[int, Cut]]:
        for batch in data():
            yield len(batch[0]), functools.partial(_own, batch)

    return batches


def _own(batch: tuple[Tensor, ...], share: distributed.Share) -> tuple[Tensor, ...]:
    return batch if share.all else tuple(map(share.own, batch))


def _shuffled(data: Tensor | tuple[Tensor, ...], batch_size: int, device: torch.device,
              desc: str) -> Callable[[], Iterator[tuple[int, Cut]]]:
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    if len({len(tensor) for tensor in tensors}) != 1 or len(tensors[0]) == 0:
        raise ParameterError(f"{desc}: data must be tensors of one length, not {[len(tensor) for tensor in tensors]}")
    if batch_size < 1:
        raise ParameterError(f"{desc}: batch_size={batch_size} must be at least 1 where data is cut into batches")

    def read(indices: Tensor, share: distributed.Share) -> tuple[Tensor, ...]:
        return tuple(_as_numbers(tensor[share.own(indices)].to(device, non_blocking=True)) for tensor in tensors)

    def batches() -> Iterator[tuple[int, Cut]]:
        for indices in torch.randperm(len(tensors[0])).split(batch_size):
            # Ascending order reads a memory-mapped file front to back; within a batch the order does not matter.
            yield len(indices), functools.partial(read, indices.sort().values)

    return batches


class _OwnDraws:
    """A stream of random numbers of this process's own, beside the one by which all draw the same batches."""

    def __init__(self, seed: int) -> None:
        common = torch.get_rng_state()
        torch.manual_seed(epoch_seed(seed, 1 + distributed.rank()))  # a device's stream, too: batches are drawn on the CPU
        self.state = torch.get_rng_state()
        torch.set_rng_state(common)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        common = torch.get_rng_state()
        torch.set_rng_state(self.state)
        yield
        self.state = torch.get_rng_state()
        torch.set_rng_state(common)


def _epoch(module: nn.Module, loss_of: Callable[..., Tensor], batches: Callable[[], Iterator[tuple[int, Cut]]],
           optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler | None, clip_norm: float | None,
           amp: bool, own: _OwnDraws | None, device: torch.device) -> float:
    learned = [p for group in optimizer.param_groups for p in group["params"]]
    total, seen = torch.zeros((), device=device), 0
    for count, cut in batches():
        with distributed.sharing(count) as share:
            batch = cut(share)
            draws = contextlib.nullcontext() if own is None or share.all else own.used()
            with draws, torch.autocast(device.type, torch.bfloat16, enabled=amp):
                loss = loss_of(*batch) * share.weight
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        distributed.add_gradients(learned)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        total, seen = total + loss.detach() * count, seen + count
    return float(distributed.summed(total)) / seen


def _as_numbers(batch: Tensor) -> Tensor:
    return batch if batch.dtype == torch.bool else batch.float()


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer,
          scheduler: torch.optim.lr_scheduler.LRScheduler | None, losses: list[float]) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(),
             "scheduler": None if scheduler is None else scheduler.state_dict(), "losses": losses}
    with atomic(path) as temporary:
        torch.save(state, temporary)


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer,
             scheduler: torch.optim.lr_scheduler.LRScheduler | None, device: torch.device) -> list[float]:
    try:
        _check_sums(path)
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        if scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
        return [float(loss) for loss in state["losses"]]
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdcoreError(f"checkpoint {path} cannot be resumed from ({reason}): delete it to start again") from error


def _check_sums(path: Path) -> None:
    """Hold every part of a checkpoint against its checksum, which torch writes and does not read: weights with a changed bit
    would be trained on in silence. Raises ValueError or what the zip reader raises."""
    with zipfile.ZipFile(path) as parts:
        damaged = parts.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} does not fit")
