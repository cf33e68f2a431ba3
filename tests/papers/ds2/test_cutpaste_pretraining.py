"""CutPaste's proxy task: network, loss and schedule as the DS2 supplement prints them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from adcore.errors import ParameterError
from adcore.papers.ds2 import cutpaste_pretraining as module
from adcore.papers.ds2.cutpaste_pretraining import CutPasteNetwork, CutPastePretrainingConfig, pretrain_cutpaste
from adcore.papers.ds2.views import standardized

SMALL = {"side": 32, "epochs": 2, "steps": 2, "batch_size": 4}
IMAGES = torch.randint(0, 256, (6, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_defaults_are_the_supplement_s():
    c = CutPastePretrainingConfig()
    assert (c.epochs, c.steps, c.batch_size, c.lr, c.momentum, c.weight_decay) == (256, 256, 96, 0.03, 0.9, 3e-5)
    network = CutPasteNetwork(c)
    linear = [layer for layer in network.head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 512), (512, 128), (128, 3)]
    assert [type(layer) for layer in network.head[:6]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2


def test_the_loss_is_the_cross_entropy_of_all_three_crops_of_each_image(monkeypatch):
    torch.manual_seed(0)
    network = CutPasteNetwork(CutPastePretrainingConfig(**SMALL)).eval()
    crops = torch.rand(3, 4, 3, 32, 32)
    seen = []
    monkeypatch.setattr(module, "three_ways", lambda images, side, jitter: seen.append((images, side, jitter)) or crops)
    found = network.loss(IMAGES[:4]).detach()
    by_hand = []
    for way in range(3):
        for crop in crops[way]:
            features = network.encoder(standardized(crop[None]))["c5"].mean((2, 3))
            logits = network.head(features)[0].double()
            by_hand.append(logits.exp().sum().log() - logits[way])
    assert float(found) == pytest.approx(float(torch.stack(by_hand).mean().detach()), rel=1e-5)
    images, side, jitter = seen[0]
    assert torch.equal(images, IMAGES[:4].float() / 255) and (side, jitter) == (32, 0.1)


def test_the_learning_rate_is_one_cosine_over_all_steps(monkeypatch):
    rates = []
    real = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or real(self, *a))
    pretrain_cutpaste(CutPastePretrainingConfig(**SMALL | {"epochs": 3}), IMAGES, progress=False)
    expected = [1e-6 + (0.03 - 1e-6) * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)]
    assert rates == pytest.approx(expected)


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    config = CutPastePretrainingConfig(**SMALL)
    whole = pretrain_cutpaste(config, IMAGES, progress=False)
    loss, calls = CutPasteNetwork.loss, []

    def power_cut(self, images):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, images)

    monkeypatch.setattr(CutPasteNetwork, "loss", power_cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain_cutpaste(config, IMAGES, checkpoint=tmp_path / "c", progress=False)
    monkeypatch.setattr(CutPasteNetwork, "loss", loss)
    again = pretrain_cutpaste(config, IMAGES, checkpoint=tmp_path / "c", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert whole.losses == again.losses and len(whole.losses) == 2 and not again.training


def test_in_bfloat16_the_network_is_narrow_but_crops_and_weights_are_not(monkeypatch):
    crops, three_ways = [], module.three_ways
    monkeypatch.setattr(module, "three_ways", lambda *a: crops.append(three_ways(*a)) or crops[-1])
    networks = [pretrain_cutpaste(CutPastePretrainingConfig(**SMALL | {"epochs": 1, "steps": 1, "amp": amp}), IMAGES,
                                  progress=False) for amp in (False, True)]
    assert torch.equal(*crops) and networks[1].losses != networks[0].losses
    assert networks[1].losses == pytest.approx(networks[0].losses, abs=0.05)
    assert {p.dtype for p in networks[1].parameters()} == {torch.float32}


def test_seeds_differ_and_few_images_still_fill_a_batch():
    config = CutPastePretrainingConfig(**SMALL | {"epochs": 1, "steps": 1})
    one, two = (pretrain_cutpaste(config, IMAGES[:2], seed=seed, progress=False) for seed in (0, 1))
    assert one.losses != two.losses and all(math.isfinite(value) for value in (*one.losses, *two.losses))


@pytest.mark.parametrize(("images", "message"), [
    (IMAGES.float(), r"images must be \(n, 3, H, W\) uint8, not \(6, 3, 40, 48\) torch.float32"),
    (IMAGES[:, :1], r"uint8, not \(6, 1, 40, 48\)"), (IMAGES[:0], r"uint8, not \(0, 3, 40, 48\)")])
def test_other_images_are_refused(images, message):
    with pytest.raises(ParameterError, match=message):
        pretrain_cutpaste(CutPastePretrainingConfig(**SMALL), images, progress=False)


def test_settings_without_sense_are_refused():
    with pytest.raises(ParameterError, match="must be at least 1"):
        CutPastePretrainingConfig(steps=0)
    with pytest.raises(ParameterError, match="at least one layer"):
        CutPastePretrainingConfig(head=())
