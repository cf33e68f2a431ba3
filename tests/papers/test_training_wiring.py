"""Every setting of a training reaches the training loop: what `train` receives, method by method."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adcore.models import METHODS
from adcore.papers.ds2 import cutpaste, ds2
from adcore.papers.ds2.lars import LARS
from adcore.papers.uniad2022 import feature_decoder

BACKBONE = {"backbone": "resnet18", "taps": (1,), "weights": "random", "image_size": 64}
UNIAD = {**BACKBONE, "hidden": 16, "lr": 0.0123, "weight_decay": 0.045, "epochs": 7, "batch_size": 3, "clip_norm": 0.67,
         "lr_drop": 5}
FEW_SHOT = {**BACKBONE, "lr": 0.0123, "weight_decay": 0.045, "epochs": 7, "batch_size": 4, "clip_norm": 0.67, "lr_every": 5,
            "anomalies": 1, "steps": 3, "tuned": (1,)}
SETTINGS: dict[str, dict[str, Any]] = {
    "uniad": {**UNIAD, "heads": 2, "ffn": 16, "neighbors": 1, "encoder_layers": 1, "decoder_layers": 1},
    "mlp": UNIAD, "cnn": UNIAD,
    "fastflow": {**BACKBONE, "lr": 0.0123, "weight_decay": 0.045, "epochs": 7, "batch_size": 3, "steps": 2},
    "asymst": {**BACKBONE, "lr": 0.0123, "weight_decay": 0.045, "epochs": 7, "batch_size": 3, "kernels": (3,) * 2,
               "teacher_hidden": 8, "student_hidden": 8, "student_blocks": 1},
    "contrastive": {**BACKBONE, "lr": 0.0123, "epochs": 7, "batch_size": 3, "components": 2, "cells": 64, "tuned": (1,),
                    "negatives": "photographs"},
    "devnet": FEW_SHOT, "dra": FEW_SHOT, "atacnet": FEW_SHOT}


class Received(Exception):  # noqa: N818, it is no error
    """Carries what the training loop was called with."""


def received(*given: Any, **named: Any) -> None:
    """Stands in for `train`."""
    module, _, data, optimizer, scheduler = (*given, None)[:5]
    raise Received(SimpleNamespace(module=module, data=data, optimizer=optimizer, scheduler=scheduler, **named))


@pytest.fixture
def receive(monkeypatch, tiny):
    """Calls `fit` of a method and returns what its training loop receives."""
    def fit(name: str, **more: Any) -> SimpleNamespace:
        method = METHODS[name]
        for base in method.__mro__:                  # the module that calls `train` may be that of a base class
            module = importlib.import_module(base.__module__)
            if base.__module__.startswith("adcore.papers") and hasattr(module, "train"):
                monkeypatch.setattr(module, "train", received)
        known = {field: value for field, value in {**SETTINGS[name], **more}.items() if hasattr(method.Config, field)}
        config = method.Config.make({**method.quick, **known})
        with pytest.raises(Received) as found:
            method(config, seed=11).fit(method.protocol(tiny, config, 0).train)
        return found.value.args[0]

    return fit


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """The learning rate before each of some steps of the scheduler."""
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("name", "kind", "decay"), [
    ("uniad", "AdamW", 0.045), ("mlp", "AdamW", 0.045), ("cnn", "AdamW", 0.045), ("fastflow", "Adam", 0.045),
    ("asymst", "Adam", 0.045), ("contrastive", "Adam", 0.0), ("devnet", "Adam", 0.045), ("dra", "Adam", 0.045),
    ("atacnet", "Adam", 0.045)])
def test_the_optimizer_has_the_methods_learning_rate_and_weight_decay(receive, name, kind, decay):
    found = receive(name)
    assert type(found.optimizer).__name__ == kind
    assert {(group["lr"], group["weight_decay"], group["betas"], group["eps"]) for group in found.optimizer.param_groups} == {
        (0.0123, decay, (0.9, 0.999), 1e-8)}
    trained = {id(p) for group in found.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in found.module.parameters() if p.requires_grad} != set()


@pytest.mark.parametrize("name", SETTINGS)
def test_epochs_batch_size_seed_and_precision_reach_the_training_loop(receive, name):
    found = receive(name)
    assert (found.epochs, found.seed) == (7, 11) and not getattr(found, "amp", False)
    if not callable(found.data):                     # the few-shot methods draw batches of their own
        assert found.batch_size == 3
    if "amp" in METHODS[name].Config.__dataclass_fields__:
        assert receive(name, amp=True).amp is True


@pytest.mark.parametrize(("name", "clip"), [("uniad", 0.67), ("mlp", 0.67), ("cnn", 0.67), ("devnet", 0.67), ("dra", 0.67),
                                            ("atacnet", 0.67), ("fastflow", None), ("asymst", None), ("contrastive", None)])
def test_gradients_are_clipped_at_the_methods_norm(receive, name, clip):
    assert getattr(receive(name), "clip_norm", None) == clip


@pytest.mark.parametrize("name", ["uniad", "mlp", "cnn", "devnet", "dra", "atacnet"])
def test_the_learning_rate_falls_to_a_tenth_after_every_fifth_epoch_and_dra_s_one_epoch_earlier(receive, name):
    found = receive(name)
    expected = [0.0123] * 5 + [0.00123] * 5 + [0.000123] * 2
    assert not getattr(found, "each_step", False)
    if name == "dra":
        expected = expected[1:]
    assert rates(found.scheduler, found.optimizer, len(expected)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["fastflow", "asymst", "contrastive"])
def test_methods_without_a_schedule_keep_their_learning_rate(receive, name):
    assert receive(name).scheduler is None


@pytest.mark.parametrize(("name", "left_out"), [("fastflow", True), ("asymst", True), ("uniad", False), ("contrastive", False)])
def test_an_incomplete_last_batch_is_left_out_by_the_methods_whose_code_does(receive, name, left_out):
    assert getattr(receive(name), "drop_last", False) is left_out


def test_asymst_trains_its_teacher_and_then_its_student_in_the_same_way(monkeypatch, tiny):
    calls: list[tuple[Any, ...]] = []

    def received(module: Any, _: Any, data: Any, optimizer: Any, **named: Any) -> list[float]:
        group = optimizer.param_groups[0]
        calls.append((type(module).__name__, type(optimizer).__name__, group["lr"], group["weight_decay"], named["epochs"],
                      named["batch_size"], named["seed"], named["amp"], named["drop_last"], named.get("clip_norm")))
        assert {id(p) for p in group["params"]} == {id(p) for p in module.parameters() if p.requires_grad}
        return [0.0]

    monkeypatch.setattr("adcore.papers.heckler2023.asymst.train", received)
    method = METHODS["asymst"]
    method(method.Config.make({**method.quick, **SETTINGS["asymst"], "amp": True}), seed=11).fit(tiny.train)
    assert [call[0] for call in calls] == ["Teacher", "Student"]
    assert [call[1:] for call in calls] == [("Adam", 0.0123, 0.045, 7, 3, 11, True, True, None)] * 2


def test_the_feature_decoder_is_trained_as_its_config_says(monkeypatch):
    monkeypatch.setattr(feature_decoder, "train", received)
    config = feature_decoder.FeatureDecoderConfig(widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1), lr=0.0123, weight_decay=0.045,
                                                  epochs=7, batch_size=3, lr_drop=5, clip_norm=0.67)
    with pytest.raises(Received) as found:
        feature_decoder.train_decoder(torch.zeros(3, 4, 8, 8), torch.zeros(3, 3, 128, 128), config, seed=11)
    one = found.value.args[0]
    assert type(one.optimizer).__name__ == "AdamW" and one.optimizer.param_groups[0]["weight_decay"] == 0.045
    assert (one.epochs, one.batch_size, one.seed, one.clip_norm) == (7, 3, 11, 0.67)
    assert rates(one.scheduler, one.optimizer, 6) == pytest.approx([0.0123] * 5 + [0.00123])


def test_ds2_is_trained_by_lars_with_a_rate_for_256_images(monkeypatch):
    monkeypatch.setattr(ds2, "train", received)
    config = ds2.DS2Config.make({**ds2.DS2.quick, "lr": 0.8, "batch_size": 4, "momentum": 0.77, "weight_decay": 0.045,
                                 "trust": 0.002, "warmup_epochs": 2, "decay_epochs": (4, 6), "epochs": 9})
    with pytest.raises(Received) as found:
        ds2.pretrain(config, torch.zeros(8, 3, 80, 80, dtype=torch.uint8), seed=11)
    one = found.value.args[0]
    group = one.optimizer.param_groups[0]
    assert type(one.optimizer) is LARS and (group["momentum"], group["weight_decay"]) == (0.77, 0.045)
    assert (one.epochs, one.seed) == (9, 11) and group["trust"] == 0.002
    assert max(group["initial_lr"] for group in one.optimizer.param_groups) == pytest.approx(0.8 * 4 / 256)
    assert {id(p) for p in group["params"]} == {id(p) for p in one.module.parameters() if p.requires_grad}
    assert one.each_step and one.data_parallel and not one.amp


@pytest.mark.parametrize(("released", "expected"), [
    (False, [0.01, 0.2575, 0.505, 0.7525, 1, 1, 0.1, 0.1, 0.01]),      # two steps per epoch: four of warm-up
    (True, [0.2575, 0.7525, 0.7525, 0.7525, 0.07525, 0.07525, 0.007525, 0.007525, 0.007525])])
def test_ds2_s_rate_changes_at_every_step_of_the_warm_up_and_falls_at_its_epochs(monkeypatch, released, expected):
    monkeypatch.setattr(ds2, "train", received)
    config = ds2.DS2Config.make({**ds2.DS2.quick, "lr": 64.0, "batch_size": 4, "warmup_epochs": 2, "decay_epochs": (3, 4),
                                 "released_warmup": released})
    with pytest.raises(Received) as found:
        ds2.pretrain(config, torch.zeros(9, 3, 80, 80, dtype=torch.uint8))
    one = found.value.args[0]
    assert rates(one.scheduler, one.optimizer, 9) == pytest.approx(expected)


def test_cutpaste_is_trained_by_sgd_with_a_cosine_over_all_steps(monkeypatch):
    monkeypatch.setattr(cutpaste, "train", received)
    config = cutpaste.CutPasteConfig.make({**cutpaste.CutPaste.quick, "lr": 0.5, "lr_end": 0.1, "momentum": 0.77,
                                           "weight_decay": 0.045, "epochs": 2, "steps": 4, "batch_size": 4})
    with pytest.raises(Received) as found:
        cutpaste.pretrain_cutpaste(config, torch.zeros(8, 3, 80, 80, dtype=torch.uint8), seed=11)
    one = found.value.args[0]
    group = one.optimizer.param_groups[0]
    assert type(one.optimizer) is torch.optim.SGD and (group["momentum"], group["weight_decay"]) == (0.77, 0.045)
    assert (one.epochs, one.seed, one.each_step, one.data_parallel, one.amp) == (2, 11, True, True, False)
    assert {id(p) for p in group["params"]} == {id(p) for p in one.module.parameters()}
    found_rates = rates(one.scheduler, one.optimizer, 9)
    assert found_rates[0] == 0.5 and found_rates[4] == pytest.approx(0.3) and found_rates[8] == pytest.approx(0.1)
