"""What each of two processes does for test_distributed.py: every job of `JOBS`, whose outcome it saves under its number.

A test does the same jobs in one process to compare with.
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
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from adcore import distributed, training
from adcore.cli import main as main_of_adcore
from adcore.data import Sample
from adcore.data.mvtec import load_mvtec
from adcore.distributed import alike, from_first, gathered, joined, rank, sharing, summed, synced_norms, whole, world_size
from adcore.errors import ParameterError
from adcore.experiments import Store, fitted, grid, run, runner
from adcore.files import one_at_a_time
from adcore.models import UniAD, UniADConfig
from adcore.papers.ds2 import dense_pretraining, resnet_encoder
from adcore.papers.ds2.cutpaste_pretraining import CutPastePretrainingConfig, pretrain_cutpaste
from adcore.papers.ds2.dense_pretraining import DS2Pretraining, DS2PretrainingConfig, pretrain
from adcore.papers.ds2.ds2 import DS2, DS2Config
from adcore.papers.ds2.instance_ssl import BRANCHES
from adcore.papers.uniad2022 import reconstruction
from adcore.training import train
from support.tiny import write_tiny

IMAGES = torch.randint(256, (11, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DENSE = {"view_size": 32, "hidden": 16, "dim": 8, "batch_size": 5, "epochs": 2, "warmup_epochs": 0, "decay_epochs": (),
         "lr": 200.0, "ema": 0.5}
UNIAD = {"backbone": "efficientnet_lite0", "taps": (4,), "image_size": 64, "hidden": 32, "heads": 4, "ffn": 48,
         "encoder_layers": 1, "decoder_layers": 1, "neighbors": 3, "epochs": 3, "batch_size": 5, "lr": 1e-3, "lr_drop": 2}
STILL = {"dropout": 0.0, "jitter": False}
NOISY = {"dropout": 0.2, "jitter": True}


class PowerCutError(Exception):
    """The training stops here."""


def cut_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    count = itertools.count()

    def cut(*arguments: Any) -> Any:
        if next(count) == calls:
            raise PowerCutError
        return function(*arguments)

    return cut


@contextlib.contextmanager
def in_float64() -> Iterator[None]:
    """Where batch norms see a handful of numbers rounding grows a thousandfold in each step: only a mistake is to be seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


def outcome(module: nn.Module, losses: list[float]) -> dict[str, Any]:
    """Weights and losses, of the first process; and whether all have the same."""
    state = {**module.state_dict(), "losses": torch.tensor(losses)}
    sums = [alike(float(value.double().sum())) for value in state.values() if isinstance(value, Tensor)]
    return {**state, "same": all(sums)} if distributed.first() else {"same": all(sums)}


@contextlib.contextmanager
def shallow() -> Iterator[None]:
    """Four residual blocks instead of eight."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet_encoder, "resnet18", lambda **settings: ResNet(BasicBlock, [1, 1, 1, 1], zero_init_residual=True))
        yield


def ds2(folder: Path, checkpoint: Path | None = None, **settings: Any) -> dict[str, Any]:
    with shallow():
        networks = pretrain(DS2PretrainingConfig(**{**DENSE, **settings}), IMAGES, seed=3, checkpoint=checkpoint)
    return outcome(networks, networks.losses)


def ds2_branch(folder: Path, name: str) -> dict[str, Any]:
    with in_float64():
        return ds2(folder, instance=name, epochs=1, scales=("c5",), batch_size=21 if name == "distaug" else 5)


def ds2_resumed(folder: Path) -> dict[str, Any]:
    """Two batches an epoch; the power goes in the middle of the second."""
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(PowerCutError):
        patch.setattr(dense_pretraining, "train", functools.partial(train, save_every=-1.0))
        patch.setattr(DS2Pretraining, "loss", cut_after(3, DS2Pretraining.loss))
        ds2(folder, folder / "ds2")
    assert from_first(lambda: len(torch.load(folder / "ds2", weights_only=True)["losses"])) == 1
    return ds2(folder, folder / "ds2")


def samples_in(folder: Path) -> tuple[Sample, ...]:
    """Eleven images."""
    with distributed.after_first():
        if not (folder / "mvtec_ad").exists():
            write_tiny(folder / "mvtec_ad", train=11, categories=("bottle",))
    return load_mvtec(folder / "mvtec_ad", "tiny").train


def encoder(folder: Path) -> dict[str, Any]:
    """Whoever trains holds a lock on the encoder's file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADCORE_CACHE", str(folder / "own cache"))
        detector = DS2(DS2Config(**{**DENSE, "epochs": 1, "pretraining_size": 40}))
        detector.pretrain(samples_in(folder))
    return {"digest": detector.weights_digest, "losses": detector.losses,
            "files": sorted(path.suffix for path in (folder / "own cache" / "encoders").iterdir())}


def uniad(folder: Path, stop: int | None = None, **settings: Any) -> dict[str, Any]:
    """Batches of five, which do not halve, and one of fewer images than there are processes."""
    samples = samples_in(folder)
    config, checkpoint = UniADConfig(**{**UNIAD, **settings}), None if stop is None else folder / "uniad"
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(PowerCutError):
        if stop is not None:
            patch.setattr(reconstruction, "train", functools.partial(train, save_every=-1.0))
            patch.setattr(UniAD, "loss", cut_after(stop, UniAD.loss))
            UniAD(config).fit(samples, checkpoint=checkpoint)
    detector = UniAD(config)
    detector.fit(samples, checkpoint=checkpoint)
    return outcome(detector.network, detector.losses)


def cutpaste(folder: Path) -> dict[str, Any]:
    with shallow():
        network = pretrain_cutpaste(CutPastePretrainingConfig(side=32, epochs=2, steps=2, batch_size=4), IMAGES)
    return outcome(network, network.losses)


def values(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64) * 3 + 5


def norms(folder: Path) -> dict[str, Any]:
    """Two steps of batch norm and a loss that is not symmetric, of batches that do not halve evenly."""
    found: dict[str, Any] = {}
    for name, norm, batch in (("1d", nn.BatchNorm1d(4), values(7, 4)), ("2d", nn.BatchNorm2d(3), values(5, 3, 4, 2)),
                              ("long", nn.BatchNorm1d(4, momentum=None), values(5, 4, 6)),
                              ("bare", nn.BatchNorm2d(3, affine=False, track_running_stats=False), values(5, 3, 4, 2))):
        norm = norm.double()
        with torch.no_grad():
            for p in norm.parameters():
                p += torch.arange(len(p))
        with synced_norms(norm), sharing(len(batch)) as share:
            assert (type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)) == (world_size() == 1)
            for step in range(2):
                x = share.own(batch + step).clone().requires_grad_()
                (norm(x).sin() * share.own(values(*batch.shape, 1)[..., 0])).sum().backward()
        distributed.add_gradients(norm.parameters())
        assert type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d)
        with sharing(len(batch)):
            found[f"{name}.x"] = gathered(x.grad)
        found |= {f"{name}.{key}": value for key, value in norm.state_dict().items()}
        found |= {f"{name}.{key}.gradient": p.grad for key, p in norm.named_parameters()}
    return found


def draws(folder: Path) -> dict[str, Any]:
    """What the losses see and draw; images are numbered. Batches of 4, 4 and 1, drawn in between by a function."""
    found: dict[str, Any] = {}
    for how in training.SHARES:
        module, seen, drawn = nn.Linear(1, 1), [], []
        module.requires_grad_(True)

        def loss_of(batch: Tensor, module: nn.Module = module, seen: list[Tensor] = seen,
                    drawn: list[Tensor] = drawn) -> Tensor:
            seen.append(batch[:, 0].clone())
            drawn.append(torch.rand(3))
            return module(batch).square().mean()

        def batches() -> Iterator[tuple[Tensor]]:
            for count in (4, 4, 1):
                yield torch.randperm(9)[:count, None].float(),

        optimizer = torch.optim.SGD(module.parameters(), 1e-3)
        train(module, loss_of, batches, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), epochs=1, seed=0, share=how)
        found[how] = {"seen": seen, "drawn": drawn}
    return found


def agreement(folder: Path) -> dict[str, Any]:
    """The tools themselves, each where both processes can be wrong in their own way."""
    calls: list[int] = []
    number = from_first(lambda: calls.append(rank()) or world_size())
    with distributed.after_first():
        mine = not (folder / "left").exists()
        (folder / "left").touch()
    with distributed.apart():
        alone = world_size(), rank(), float(summed(torch.tensor(3.0)))
    with sharing(1) as nobody_s:
        pass
    x = torch.arange(3.0, requires_grad=True)
    with sharing(3) as share:
        everyone = gathered(share.own(x) * (1 + rank()))
        (everyone * torch.tensor([1.0, 2.0, 4.0])).sum().backward()
        try:
            whole(7)
        except ParameterError as error:
            refused = str(error)
    module = nn.BatchNorm3d(2)
    try:
        with synced_norms(module):
            pass
    except ParameterError as error:
        unknown = str(error)
    return {"calls": calls, "number": number, "mine": mine, "alone": alone, "nobody_s": astuple(nobody_s),
            "everyone": everyone.detach(), "gradient": x.grad, "refused": refused, "unknown": unknown,
            "sum": float(summed(torch.tensor(float(rank() + 1))))}


def astray(folder: Path) -> str:
    """Each process has a file of its own, and only the first saves."""
    module, path = nn.Linear(1, 1), folder / f"astray{rank()}"
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    again = functools.partial(train, module, lambda batch: module(batch).square().mean(), torch.ones(2, 1), optimizer,
                              torch.optim.lr_scheduler.StepLR(optimizer, 1), epochs=1, batch_size=2, seed=0, checkpoint=path)
    again()
    try:
        again()
    except training.AdcoreError as error:
        return str(error)
    return ""


def measure(folder: Path) -> dict[str, Any]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main_of_adcore(["measure", "uniad", "--dataset", "mvtec_ad", "-p", "jitter=false", "-p", "epochs=2"]) == 0
    (stored,) = folder.glob("runs/*/*/result.json")
    return {"printed": printed.getvalue(), "stored": json.loads(stored.read_text()),
            "files": sorted(path.name for path in stored.parent.iterdir())}


def waited(folder: Path) -> dict[str, Any]:
    """Another run is at the experiment, for a second, and then at what these two have fitted, which it puts where it was."""
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

        if distributed.first():
            threading.Thread(target=other).start()
            held.wait()
        distributed.barrier()

    meanwhile(place, lambda: None)
    began = time.monotonic()
    values = run([experiment], out=out, device="cpu").frame["value"].tolist()
    seconds = time.monotonic() - began
    weights = [fitted(experiment, out=out, device="cpu").network.expand.weight.detach()]
    (kept,) = from_first(lambda: [path.rename(out / path.name).name for path in place.glob("fitted-*")])
    meanwhile(place / kept, lambda: (out / kept).rename(place / kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_epoch", None)           # a second training would need it
        weights.append(fitted(experiment, out=out, device="cpu").network.expand.weight.detach())
    meanwhile(place / "any", (place / "left").touch)
    with runner._alone(place / "any", experiment):
        there = (place / "left").exists()
    distributed.barrier()
    return {"seconds": seconds, "values": values, "weights": weights, "there": there,
            "locks": [path.name for path in out.rglob("*.lock")]}


JOBS: dict[str, Callable[[Path], Any]] = {
    "ds2": ds2, "ds2 resumed": ds2_resumed, **{f"ds2 {name}": functools.partial(ds2_branch, name=name)
                                                   for name in BRANCHES[1:]},
    "uniad": functools.partial(uniad, **STILL), "noisy uniad": functools.partial(uniad, **NOISY),
    "noisy uniad resumed": functools.partial(uniad, stop=7, **NOISY),
    "cutpaste": cutpaste, "norms": norms, "draws": draws, "agreement": agreement, "astray": astray,
    "encoder": encoder, "measure": measure, "waited": waited}


def main(folder: Path) -> None:
    with joined():
        for name, job in JOBS.items():
            found = job(folder)
            torch.save(found, folder / f"{name}.{rank()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
