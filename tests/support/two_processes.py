"""The jobs that each of two processes runs for test_distributed.py. Each saves its results to a file named by job and rank.

A test runs the same job in one process to compare.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adcore import training
from adcore.cli import main as main_of_adcore
from adcore.data import Sample
from adcore.data.mvtec import load_mvtec
from adcore.distributed import (
    all_gather,
    barrier,
    is_rank_zero,
    process_group,
    rank,
    rank_zero_first,
    run_on_rank_zero,
    world_size,
)
from adcore.errors import AdcoreError
from adcore.experiments import Store, fitted, grid, run, runner
from adcore.files import one_at_a_time
from adcore.models import DS2, DS2Config, UniAD, UniADConfig
from adcore.papers.ds2 import ds2
from adcore.training import Run, train
from support.tiny import write_tiny

UNIAD = {"backbone": "efficientnet_lite0", "taps": (4,), "image_size": 64, "hidden": 32, "heads": 4, "ffn": 48,
         "encoder_layers": 1, "decoder_layers": 1, "neighbors": 3, "epochs": 3, "batch_size": 5, "lr": 1e-3, "lr_drop": 2}
STILL = {"dropout": 0.0, "jitter": False}
NOISY = {"dropout": 0.2, "jitter": True}


class PowerCutError(Exception):
    """The training stops here."""


def outcome(module: nn.Module, losses: list[float]) -> dict[str, Any]:
    """Weights and losses, and whether they are the same on all ranks."""
    state = {**module.state_dict(), "losses": torch.tensor(losses, dtype=torch.float64)}
    sums = torch.stack([value.double().sum().cpu() for value in state.values() if isinstance(value, Tensor)])
    return {**state, "same": bool((all_gather(sums[None]) == sums).all())}


def samples_in(folder: Path) -> tuple[Sample, ...]:
    """Eleven images."""
    with rank_zero_first():
        if not (folder / "mvtec_ad").exists():
            write_tiny(folder / "mvtec_ad", train=11, categories=("bottle",))
    return load_mvtec(folder / "mvtec_ad", "tiny").train


def uniad(folder: Path, stop: int | None = None, **settings: Any) -> dict[str, Any]:
    """Batches of five, which the ranks split two to three, and a batch of one. `stop` interrupts after so many batches."""
    samples = samples_in(folder)
    config, checkpoint = UniADConfig(**{**UNIAD, **settings}), None if stop is None else folder / "uniad"
    if stop is not None:
        calls, loss = itertools.count(), UniAD.loss

        def cut(detector: UniAD, features: Tensor) -> Tensor:
            if next(calls) == stop:
                raise PowerCutError
            return loss(detector, features)

        with pytest.MonkeyPatch.context() as patch, pytest.raises(PowerCutError):
            patch.setattr(training, "SAVE_EVERY", -1.0)
            patch.setattr(UniAD, "loss", cut)
            UniAD(config).fit(samples, checkpoint=checkpoint)
    detector = UniAD(config)
    detector.fit(samples, checkpoint=checkpoint)
    return outcome(detector.network, detector.losses)


class Norms(nn.Module):
    """A network with a group norm and with a batch norm that is frozen, or in training mode."""

    def __init__(self, frozen: bool) -> None:
        super().__init__()
        with training.seeded(0):
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3))
            self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 2)
        self.frozen = frozen

    def train(self, mode: bool = True) -> Norms:
        super().train(mode)
        self.norm.train(mode and not self.frozen)
        return self

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(images)).relu().mean((2, 3)))


def norms(folder: Path, frozen: bool, device: str = "cpu") -> dict[str, Any] | str:
    """In float64, because rounding grows where a batch norm sees few numbers."""
    module = Norms(frozen).double().to(device)
    optimizer = torch.optim.AdamW(module.parameters(), 0.05)
    images = torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    try:
        losses = train(module, lambda batch: module(batch.double()).sin().sum(1).square().mean(), images, optimizer, epochs=3,
                       batch_size=5, seed=0, clip_norm=0.1, data_parallel=True, run=Run(desc="norms"))
    except AdcoreError as error:
        return str(error)
    return outcome(module, losses)


def draws(folder: Path) -> dict[str, Any]:
    """What the loss sees and draws, of numbered images. A function draws batches of 4, 4 and 1 between the losses."""
    found: dict[str, Any] = {}
    for data_parallel in (False, True):
        module, seen, drawn = nn.Linear(1, 1), [], []

        def loss_of(batch: Tensor, module: nn.Module = module, seen: list[Tensor] = seen,
                    drawn: list[Tensor] = drawn) -> Tensor:
            seen.append(batch[:, 0].clone())
            drawn.append(torch.rand(3))
            return module(batch).square().mean()

        def batches() -> Iterator[tuple[Tensor]]:
            for count in (4, 4, 1):
                yield torch.randperm(9)[:count, None].float(),

        train(module, loss_of, batches, torch.optim.SGD(module.parameters(), 1e-3), epochs=1, seed=0,
              data_parallel=data_parallel)
        found["parallel" if data_parallel else "alone"] = {"seen": seen, "drawn": drawn}
    return found


def agreement(folder: Path) -> dict[str, Any]:
    """The functions themselves."""
    calls: list[int] = []
    number = run_on_rank_zero(lambda: calls.append(rank()) or world_size())
    with rank_zero_first():
        wrote = not (folder / "left").exists()
        (folder / "left").touch()
    x = torch.arange(3.0, requires_grad=True)
    rows = x[slice(0, 1) if is_rank_zero() else slice(1, 3)] * (1 + rank())
    gathered = all_gather(rows)
    (gathered * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
    return {"calls": calls, "number": number, "wrote": wrote, "gathered": gathered.detach(), "gradient": x.grad}


def astray(folder: Path) -> str:
    """Each rank has a checkpoint file of its own, and only rank 0 saves."""
    module, path = nn.Linear(1, 1), folder / f"astray{rank()}"
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    again = functools.partial(train, module, lambda batch: module(batch).square().mean(), torch.ones(2, 1), optimizer,
                              epochs=1, batch_size=2, seed=0, run=Run(checkpoint=path))
    again()
    try:
        again()
    except AdcoreError as error:
        return str(error)
    return ""


def measure(folder: Path) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main_of_adcore(["measure", "uniad", "--dataset", "mvtec_ad", "-p", "jitter=false", "-p", "epochs=2"]) == 0
    (stored,) = folder.glob("runs/*/*/result.json")
    return {"printed": printed.getvalue(), "stored": json.loads(stored.read_text()),
            "files": sorted(path.name for path in stored.parent.iterdir())}


def waited(folder: Path) -> dict[str, Any]:
    """Another run holds the lock of an experiment for a second, and then the lock of the fitted model, which it puts back."""
    samples_in(folder)
    (experiment,) = grid("uniad", dataset="mvtec_ad", **{**UNIAD, **STILL, "epochs": 2})
    out = folder / "waited"
    place = Store(out).folder(experiment)

    def meanwhile(path: Path, left: Callable[[], object]) -> None:
        held = threading.Event()

        def other() -> None:
            with one_at_a_time(path.with_name(f"{path.name}.lock")):
                held.set()
                time.sleep(1)
                left()

        if is_rank_zero():
            threading.Thread(target=other).start()
            held.wait()
        barrier()

    meanwhile(place, lambda: None)
    began = time.monotonic()
    values = run([experiment], out=out, device="cpu").frame["value"].tolist()
    seconds = time.monotonic() - began
    weights = [fitted(experiment, out=out, device="cpu").network.expand.weight.detach()]
    (kept,) = run_on_rank_zero(lambda: [path.rename(out / path.name).name for path in place.glob("fitted-*")])
    meanwhile(place / kept, lambda: (out / kept).rename(place / kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_epoch", None)           # a second training would need it
        weights.append(fitted(experiment, out=out, device="cpu").network.expand.weight.detach())
    meanwhile(place / "any", (place / "left").touch)
    with runner._alone(place / "any", experiment):
        there = (place / "left").exists()
    barrier()
    return {"seconds": seconds, "values": values, "weights": weights, "there": there,
            "locks": [path.name for path in out.rglob("*.lock")]}


def encoder(folder: Path) -> dict[str, Any]:
    """DS2's encoder with MoCo's queue of keys: the rank that trains holds a lock on the encoder's file."""
    made: list[dict[str, Any]] = []
    settings = {"view_size": 32, "hidden": 16, "dim": 8, "batch_size": 5, "epochs": 2, "warmup_epochs": 0, "decay_epochs": (),
                "instance": "mocov2", "pretraining_size": 40}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADCORE_CACHE", str(folder / "own cache"))
        patch.setattr(ds2, "pretrain", lambda *a, _pretrain=ds2.pretrain, **k: made.append(_pretrain(*a, **k)) or made[-1])
        detector = DS2(DS2Config(**settings), device="cuda")
        detector.pretrain(samples_in(folder))
    return {**outcome(made[0], detector.losses), "digest": detector.weights_digest,
            "files": sorted(path.suffix for path in (folder / "own cache" / "encoders").iterdir())}


Jobs = dict[str, Callable[[Path], Any]]
CPU_JOBS: Jobs = {
    "uniad": functools.partial(uniad, **STILL), "noisy uniad": functools.partial(uniad, **NOISY),
    "noisy uniad resumed": functools.partial(uniad, stop=7, **NOISY), "frozen norm": functools.partial(norms, frozen=True),
    "batch norm": functools.partial(norms, frozen=False), "draws": draws, "agreement": agreement, "astray": astray,
    "measure": measure, "waited": waited}
GPU_JOBS: Jobs = {"batch norm": functools.partial(norms, frozen=False, device="cuda"), "encoder": encoder}


def main(folder: Path, device: str) -> None:
    with process_group():
        for name, job in (CPU_JOBS if device == "cpu" else GPU_JOBS).items():
            torch.save(job(folder), folder / f"{name}.{rank()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
