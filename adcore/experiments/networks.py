"""Small networks that were trained longer than a notebook's minute and come with the checkout.

    results/checkpoints/NAME.safetensors   the tensors that the training changed, in half precision
                        NAME.json          what was trained (settings, seed), what it measured, and where it comes from:
                                           seconds, commit, versions, digests of images and weights

`adcore checkpoints` trains them and writes both files. The numbers are those of the rounded tensors in the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from adcore.data import Sample, map_name
from adcore.errors import ParameterError, StoreError, WeightsError, did_you_mean
from adcore.experiments.evaluation import predict_all
from adcore.experiments.experiment import Experiment
from adcore.experiments.record import METRICS
from adcore.experiments.runner import run_one
from adcore.experiments.store import Result, Store, body_of, file_digest, read_result, sealed
from adcore.experiments.table import ResultTable
from adcore.files import atomic, write_text
from adcore.paths import repository
from adcore.training import resolve_device

# Settings that differ from the quick profile's, which trains UniAD for 28 epochs and ATAC-Net for 20 steps. UniAD and its
# baselines train for the paper's number of epochs.
_EPOCHS = (("epochs", 1000), ("lr_drop", 801))
NETWORKS: dict[str, Experiment] = {
    **{name: Experiment(name, settings=_EPOCHS) for name in ("uniad", "transformer", "mlp", "cnn")},
    "atacnet": Experiment("atacnet", category="brick", settings=(("epochs", 30), ("image_size", 112), ("steps", 20)))}


class TrainedNetwork(NamedTuple):
    """A network of results/checkpoints: the detector, ready to predict, and the result of its experiment."""

    detector: Any       # a Detector with a `network` and the `losses` of its training
    result: Result

    @property
    def table(self) -> ResultTable:
        """What it measured on the test images of its data set."""
        return ResultTable([self.result], Store())

    def maps(self, samples: Sequence[Sample]) -> dict[str, np.ndarray]:
        """Anomaly maps of samples: 'category/folder/file' -> (H, W)."""
        _, maps = predict_all(self.detector, samples, False)
        return {} if maps is None else {map_name(sample): one for sample, one in zip(samples, maps, strict=True)}


def trained(name: str, *, device: str = "auto", folder: Path | None = None) -> TrainedNetwork:
    """Load a network by its name.

    >>> network, result = trained("uniad")
    >>> result.experiment.dataset, network.losses[-1] < network.losses[0]
    ('mini', True)

    Raises:
        ParameterError: no network of this name.
        WeightsError: a missing or damaged file, or one of another version of the method or on other pretrained weights.
    """
    path = _path(name, folder)
    again = f"run `adcore checkpoints {name}`, which trains it again"
    try:
        result, digests = read_result(path.with_suffix(".json"))
        if digests.get(path.name) != file_digest(path):
            raise StoreError(f"{path} is damaged (its digest does not fit)")
        changed = load(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{error.filename or path} cannot be read ({error.strerror or error}): {again}") from error
    except (StoreError, SafetensorError) as error:
        raise WeightsError(f"{error}: {again}") from error
    made = result.provenance
    if result.experiment.key != made["key"]:
        raise WeightsError(f"{path} was trained by another version of {result.experiment.method}: {again}")
    detector: Any = result.experiment.detector(resolve_device(device))
    if detector.weights_digest != made["weights"]:
        raise WeightsError(f"{path} was trained on features of other weights than those here: {again}")
    detector.network.load_state_dict({**detector.network.state_dict(), **changed})      # half precision becomes float32
    detector.losses = list(made["losses"])
    return TrainedNetwork(detector, result)


def overview(names: Sequence[str]) -> pd.DataFrame:
    """One row per network: epochs, loss of the first and the last epoch, means over categories in percent, minutes, commit.

    'copied' is the percentage of the defects that a reconstruction contains, see `uniad2022.shortcut.copied`.
    """
    rows = {}
    for name in names:
        network = trained(name, device="cpu")
        losses, made = network.detector.losses, network.result.provenance
        measured = set(network.table.frame["metric"])
        percent = {title: 100 * network.table.value(metric) for metric, title in {**METRICS, "copied": "copied"}.items()
                   if metric in measured}
        rows[name] = {"epochs": len(losses), "first loss": losses[0], "last loss": losses[-1], **percent,
                      "minutes": made["seconds"] / 60, "seed": network.result.experiment.seed, "commit": made["commit"]}
    return pd.DataFrame.from_dict(rows, orient="index")


def train_networks(names: Sequence[str] = (), *, out: str | Path | None = None, device: str = "auto",
                   progress: bool | None = None, folder: Path | None = None) -> Iterator[str]:
    """Train networks, the named ones or all, and write their files; yields a line about each.

    An interrupted training resumes from its checkpoint in the store.

    Raises:
        ParameterError: no network of this name.
        AdcoreError: see `run`.
    """
    paths = {name: _path(name, folder) for name in names or NETWORKS}
    for name, path in paths.items():
        experiment = NETWORKS[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        losses: list[float] = []

        def keep(detector: Any, path: Path = path, losses: list[float] = losses) -> None:
            losses += detector.losses
            _keep_rounded(detector.network, type(detector)(detector.config, seed=detector.seed).network, path)

        result = run_one(experiment, Store(out), resolve_device(device), progress, keep)
        made = {**result.provenance, "key": experiment.key, "losses": [round(loss, 4) for loss in losses]}
        body = {**body_of(replace(result, provenance=made)), "files": {path.name: file_digest(path)}}
        write_text(path.with_suffix(".json"), sealed(body))
        yield f"{path}: {path.stat().st_size / 1e6:.1f} MB, {made['seconds']:.0f} s, {ResultTable([result], Store(out))}"


def _keep_rounded(network: nn.Module, fresh: nn.Module, path: Path) -> None:
    """Write the tensors in which a trained network differs from a fresh one, rounded; the network then has them too."""
    start = fresh.state_dict()
    changed = {name: tensor.cpu().half() if tensor.is_floating_point() else tensor.cpu()
               for name, tensor in network.state_dict().items() if not torch.equal(tensor.cpu(), start[name].cpu())}
    with atomic(path) as temporary:
        save_file(changed, temporary)
    network.load_state_dict({**network.state_dict(), **changed})


def _path(name: str, folder: Path | None) -> Path:
    if name not in NETWORKS:
        raise ParameterError(f"there is no trained network '{name}'{did_you_mean(name, NETWORKS)}; there are "
                             f"{', '.join(NETWORKS)}")
    return (folder or (repository() or Path.cwd()) / "results" / "checkpoints") / f"{name}.safetensors"
