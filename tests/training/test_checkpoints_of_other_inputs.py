"""A training resumes only from a checkpoint of the same images and weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from PIL import Image

from adcore.data import Dataset
from adcore.errors import AdcoreError
from adcore.experiments import Experiment
from adcore.experiments.inputs import Inputs
from adcore.models import METHODS
from adcore.training import Run, train

UNIAD = {"image_size": 64, "hidden": 16, "heads": 2, "ffn": 16, "neighbors": 1, "encoder_layers": 1, "decoder_layers": 1}
FEW_SHOT = {"image_size": 64, "steps": 1, "anomalies": 1}
SMALL = {
    "uniad": UNIAD, "mlp": {"image_size": 64, "hidden": 16}, "fastflow": {"image_size": 64, "steps": 2},
    "asymst": {"image_size": 64, "kernels": (3, 3), "teacher_hidden": 8, "student_hidden": 8, "student_blocks": 1},
    "devnet": FEW_SHOT, "dra": FEW_SHOT, "contrastive": {"image_size": 64, "components": 2, "cells": 64}}


def test_a_checkpoint_of_other_inputs_is_refused_and_one_of_the_same_is_resumed_from(tmp_path):
    def losses(inputs: str, epochs: int) -> list[float]:
        line = torch.nn.Linear(1, 1)
        return train(line, lambda x: line(x).square().mean(), torch.ones(4, 1), torch.optim.SGD(line.parameters(), lr=0.1),
                     epochs=epochs, batch_size=2, seed=0, run=Run(tmp_path / "state", inputs=inputs))

    first = losses("a", 2)
    assert losses("a", 3)[:2] == first
    with pytest.raises(AdcoreError, match=r"cannot be resumed from \(its training started from other images or weights\)"):
        losses("b", 3)


@pytest.mark.parametrize("name", SMALL)
def test_every_method_that_trains_refuses_the_checkpoint_of_other_images(name, tiny, tmp_path):
    method = METHODS[name]
    settings = {**method.quick, "backbone": "resnet18", "taps": (1,), "weights": "random", **SMALL[name], "epochs": 1}
    if "tuned" in settings or hasattr(method.Config, "tuned"):
        settings["tuned"] = (1,)
    config = method.Config.make({key: value for key, value in settings.items() if hasattr(method.Config, key)})
    samples = method.protocol(tiny, config, 0).train
    method(config).fit(samples, checkpoint=tmp_path / "state")
    Image.new("RGB", (64, 64), (90, 120, 30)).save(tmp_path / "other.png")
    others = (dataclasses.replace(samples[0], path=tmp_path / "other.png"), *samples[1:])
    with pytest.raises(AdcoreError, match="other images or weights"):
        method(config).fit(others, checkpoint=tmp_path / "state")


def test_the_photographs_that_negatives_are_cut_from_are_inputs(tiny, tmp_path):
    for i in range(3):
        Image.new("RGB", (64, 64), (40 * i, 9, 9)).save(tmp_path / f"{i}.png")
    experiment = Experiment("contrastive", settings=(("negatives", str(tmp_path)),))
    data = Dataset("tiny", tiny.train, tiny.test)
    before = Inputs().of_training(experiment, data)
    Image.new("RGB", (64, 64), (1, 250, 9)).save(tmp_path / "1.png")
    after = Inputs().of_training(experiment, data)
    assert {name for name in before if before[name] != after[name]} == {"other files"}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_weights_among_the_inputs_are_those_that_the_method_loads(name):
    experiment = Experiment(name, seed=3, settings=(("weights", "random"),) if hasattr(METHODS[name].Config, "weights") else ())
    if not METHODS[name].pretrains:                       # those have no weights before `pretrain`
        assert Inputs().of(experiment)["weights"] == experiment.detector().weights_digest
