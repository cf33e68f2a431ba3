"""Every method on a GPU gives what it gives on a CPU, where both can be compared: without its steps, or without noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adcore.data import Dataset, read_images
from adcore.detector import Detector
from adcore.models import METHODS

pytestmark = pytest.mark.gpu

FEW = {"image_size": 64, "epochs": 1, "batch_size": 4}
NETWORK = {**FEW, "hidden": 16, "dropout": 0.0}
LAYERS = {"ffn": 16, "encoder_layers": 1, "decoder_layers": 1}
PATCHES = {"image_size": 64, "density_images": 4}
SMALL: dict[str, dict[str, Any]] = {
    "uniad": {**NETWORK, **LAYERS, "heads": 2, "neighbors": 1}, "transformer": {**NETWORK, **LAYERS, "heads": 2},
    "mlp": {**NETWORK, **LAYERS}, "cnn": {**FEW, "hidden": 8},
    "patchcore": {"image_size": 64, "coreset": 50, "sigma": 2.0}, "brightness": {"image_size": 64}, "gde": PATCHES,
    "fastflow": {**FEW, "steps": 2}, "asymst": {**FEW, "kernels": (3,), "teacher_hidden": 4, "student_hidden": 4},
    "contrastive": {**FEW, "components": 2, "cells": 64},
    "ds2": {**PATCHES, "pretraining_size": 64, "hidden": 16, "dim": 8, "epochs": 1, "batch_size": 2, "decay_epochs": ()},
    "cutpaste": {**PATCHES, "pretraining_size": 64, "epochs": 1, "steps": 1, "batch_size": 2},
    **{name: {**FEW, "anomalies": 1, "steps": 1} for name in ("devnet", "atacnet")},
    "dra": {**FEW, "anomalies": 1, "steps": 1, "batch_size": 6}}


def fitted(name: str, device: torch.device, dataset: Dataset, **more: Any) -> tuple[Detector, Dataset]:
    """A detector with small settings, and the part of the data set that it trains and is tested on."""
    method = METHODS[name]
    known = {key: value for key, value in {**SMALL[name], **more}.items() if key in method.Config().values()}
    config = method.Config.make({**method.quick, **known})
    own = method.protocol(dataset, config, 0)
    return method(config, device=device, seed=0).fit(own.train, progress=False), own


@pytest.fixture
def two_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A cache for each device: otherwise the second one reads the features and encoders of the first."""
    def use(name: str) -> None:
        monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / name))
    return use


def near(found: Tensor, expected: Tensor, error: float) -> None:
    """Equal up to a fraction of the largest expected value."""
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=error * max(1e-6, float(expected.abs().max())))


@pytest.mark.parametrize("name", METHODS)
def test_scores_and_maps_equal_the_cpus_after_steps_that_change_nothing(name, chip, tiny, two_caches):
    runs = []
    for device in (torch.device("cpu"), chip):
        two_caches(device.type if not runs else "chip")
        detector, own = fitted(name, device, tiny, lr=1e-12, lr_end=0.0)
        runs.append(detector.predict(next(read_images(own.test, detector.view))))
    expected, found = runs
    assert found.score.device.type == chip.type and bool(torch.isfinite(found.score).all())
    error = 1e-3 if METHODS[name].paper == "uniad2022" else 1e-2  # rebuilt features are a small part of an error map
    near(found.score, expected.score, error)
    assert (found.map is None) is (expected.map is None)
    if expected.map is not None and found.map is not None:
        near(found.map, expected.map, error)


@pytest.mark.parametrize("name", ["uniad", "transformer", "mlp", "cnn", "fastflow", "asymst", "ds2", "cutpaste", "devnet"])
def test_the_losses_of_the_first_epochs_equal_the_cpus(name, chip, tiny, two_caches):
    losses = []
    noiseless = {"jitter": False} if METHODS[name].paper == "uniad2022" else {}  # features are jittered on the device
    for device in (torch.device("cpu"), chip):
        two_caches(device.type if not losses else "chip")
        detector, _ = fitted(name, device, tiny, epochs=3, **noiseless)
        losses.append(torch.tensor(getattr(detector, "losses", [])))
    assert len(losses[0]) == 3 or not hasattr(detector, "losses")
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["uniad", "fastflow", "contrastive", "atacnet", "ds2"])
def test_a_training_of_some_epochs_ends_with_finite_scores(name, chip, tiny, two_caches):
    two_caches("chip")
    detector, own = fitted(name, chip, tiny, epochs=2, amp=True)
    assert bool(torch.isfinite(detector.predict(next(read_images(own.test, detector.view))).score).all())
