"""What every training shares: device, seeds, the loop over batches, checkpoints from which it goes on exactly."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adcore.errors import AdcoreError, ParameterError
from adcore.files import atomic
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


Batches = Callable[[], Iterator[tuple[Tensor, ...]]]


def train(module: nn.Module, loss_of: Callable[..., Tensor], data: Tensor | tuple[Tensor, ...] | Batches,
          optimizer: torch.optim.Optimizer, scheduler: torch.optim.lr_scheduler.LRScheduler, *, epochs: int,
          batch_size: int = 0, seed: int, clip_norm: float | None = None, amp: bool = False, checkpoint: Path | None = None,
          each_step: bool = False, save_every: float = 30.0, progress: bool | None = None,
          desc: str = "training") -> list[float]:
    """Train on shuffled batches of a tensor, typically cached features, or of several that belong together; or on batches
    that a function draws.

    loss_of     batch (B, ...) on the module's device -> scalar; of several tensors, a batch of each
    data        (n, ...), may be memory-mapped and in half precision; batches of numbers come as float32, of bool as bool.
                Or a function that yields the batches of an epoch as they are, drawn from torch's random state
    scheduler   stepped once an epoch, or after every batch with `each_step`
    amp         bfloat16 autocast
    checkpoint  where the state is saved (at most every `save_every` seconds and at the end) and resumed from

    Interrupted and uninterrupted runs end with equal weights: shuffling, dropout and noise of an epoch depend on the
    seed and the epoch alone. Returns the mean loss of each epoch.

    Raises:
        AdcoreError: the loss is not finite.
        ParameterError: tensors of different lengths, or no data.
    """
    device = next(module.parameters()).device
    batches = data if callable(data) else _shuffled(data, batch_size, device, desc)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.is_file():
        losses = _restore(checkpoint, module, optimizer, scheduler, device)
    saved = time.monotonic()
    module.train()
    with progress_bar(total=epochs, initial=len(losses), desc=desc, unit="epoch", enabled=progress) as bar:
        for epoch in range(len(losses), epochs):
            with seeded(epoch_seed(seed, epoch)):
                losses.append(_epoch(module, loss_of, batches, optimizer, scheduler if each_step else None, clip_norm, amp,
                                     device))
            if not torch.isfinite(torch.tensor(losses[-1])):
                raise AdcoreError(f"{desc}: the loss became {losses[-1]} in epoch {epoch + 1}: lower the learning rate")
            if not each_step:
                scheduler.step()
            bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)
            bar.update()
            if checkpoint is not None and (time.monotonic() - saved > save_every or epoch + 1 == epochs):
                _save(checkpoint, module, optimizer, scheduler, losses)
                saved = time.monotonic()
    module.eval()
    return losses


def _shuffled(data: Tensor | tuple[Tensor, ...], batch_size: int, device: torch.device, desc: str) -> Batches:
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    if len({len(tensor) for tensor in tensors}) != 1 or len(tensors[0]) == 0:
        raise ParameterError(f"{desc}: data must be tensors of one length, not {[len(tensor) for tensor in tensors]}")
    if batch_size < 1:
        raise ParameterError(f"{desc}: batch_size={batch_size} must be at least 1 where data is cut into batches")

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for indices in torch.randperm(len(tensors[0])).split(batch_size):
            # Ascending order reads a memory-mapped file front to back; within a batch the order does not matter.
            ordered = indices.sort().values
            yield tuple(_as_numbers(tensor[ordered].to(device, non_blocking=True)) for tensor in tensors)

    return batches


def _epoch(module: nn.Module, loss_of: Callable[..., Tensor], batches: Batches, optimizer: torch.optim.Optimizer,
           scheduler: torch.optim.lr_scheduler.LRScheduler | None, clip_norm: float | None, amp: bool,
           device: torch.device) -> float:
    total, count = torch.zeros((), device=device), 0
    for batch in batches():
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            loss = loss_of(*batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        total, count = total + loss.detach() * len(batch[0]), count + len(batch[0])
    return float(total) / count


def _as_numbers(batch: Tensor) -> Tensor:
    return batch if batch.dtype == torch.bool else batch.float()


def _save(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer,
          scheduler: torch.optim.lr_scheduler.LRScheduler, losses: list[float]) -> None:
    state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(),
             "losses": losses}
    with atomic(path) as temporary:
        torch.save(state, temporary)


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer,
             scheduler: torch.optim.lr_scheduler.LRScheduler, device: torch.device) -> list[float]:
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdcoreError(f"checkpoint {path} cannot be resumed from ({reason}): delete it to start again") from error
    return list(state["losses"])
