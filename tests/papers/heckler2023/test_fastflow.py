"""FastFlow: its subnets, its map compared with a loop over cells, and the effect of training on normal images."""

from __future__ import annotations

import math

import pytest
import torch
from pytest import approx
from support.by_hand import normal
from torch import nn

from adcore.data import read_images
from adcore.errors import DataError
from adcore.models import FastFlow, FastFlowConfig
from adcore.papers.heckler2023.fastflow import Step, TapFlow
from adcore.training import epoch_seed, seeded

pytestmark = pytest.mark.usefixtures("one_backbone")

SMALL = {"backbone": "efficientnet_lite0", "taps": (3,), "image_size": 64, "steps": 4, "epochs": 12, "batch_size": 3}


def detector(seed: int = 0, **changes: object) -> FastFlow:
    return FastFlow(FastFlowConfig(**{**SMALL, **changes}), seed=seed)


@pytest.mark.parametrize(("kernels", "expected"), [("alternating", [3, 1, 3, 1, 3, 1, 3, 1]), ("3x3", [3] * 8)])
def test_the_kernels_of_the_steps_alternate_or_are_all_3x3(kernels, expected):
    flow = TapFlow((6, 4, 4), FastFlowConfig(kernels=kernels)).flow
    assert [step.subnet[0].kernel_size[0] for step in flow] == [step.subnet[2].kernel_size[0] for step in flow] == expected


def test_each_step_moves_every_channel_to_one_place_and_mixes_none():
    for step in TapFlow((7, 2, 2), FastFlowConfig(steps=4)).flow:
        matrix = step.w_perm[:, :, 0, 0]
        assert set(matrix.flatten().tolist()) == {0, 1} and not step.w_perm.requires_grad
        assert matrix.sum(0).tolist() == matrix.sum(1).tolist() == [1] * 7 and not torch.equal(matrix, torch.eye(7))


def test_a_step_and_its_inverse_are_freia_s(monkeypatch):
    with seeded(0):
        ours = TapFlow((6, 4, 5), FastFlowConfig(steps=3)).flow
    for step in ours:
        step.global_scale.data += normal(*step.global_scale.shape).float()
        step.global_offset.data += normal(*step.global_offset.shape, seed=1).float()
    x = normal(2, 6, 4, 5, seed=2).float()
    z, log_det = ours(x)
    back, _ = ours(z, rev=True)
    monkeypatch.delattr(Step, "_permute")
    by_freia, its_log_det = ours(x)
    assert torch.equal(z, by_freia) and torch.allclose(log_det, its_log_det, rtol=1e-6)
    assert torch.allclose(back, x, atol=1e-4) and not torch.allclose(z, x, atol=0.1)


@pytest.mark.parametrize(("ratio", "hidden"), [(1.0, 4), (0.5, 2), (0.16, 1)])
def test_a_subnet_takes_the_larger_half_and_has_the_configured_width(ratio, hidden):
    step = TapFlow((7, 2, 2), FastFlowConfig(hidden_ratio=ratio, steps=1)).flow[0]
    assert (step.subnet[0].in_channels, step.subnet[0].out_channels, step.subnet[2].out_channels) == (4, hidden, 6)


def test_the_features_are_normalized_over_channels_and_cells_together():
    model = TapFlow((3, 4, 5), FastFlowConfig(steps=1)).double()
    x = 7 + 3 * normal(2, 3, 4, 5)
    found = model.norm(x)
    for i in range(2):
        by_hand = (x[i] - x[i].mean()) / (x[i].var(unbiased=False) + 1e-5).sqrt()
        assert torch.allclose(found[i], by_hand, atol=1e-12)


def test_the_map_is_minus_the_probability_of_each_cell_averaged_over_the_taps(tiny):
    one, images = detector(taps=(3, 4)), next(iter(read_images(tiny.test[:2], detector().view)))
    prediction = one.predict(images)
    maps = []
    for flow, features in zip(one.flows, one.extractor(images), strict=True):
        z = flow(features)[0].detach()
        cells = torch.tensor([[[-math.exp(-0.5 * sum(float(v) ** 2 for v in z[b, :, y, x]) / z.shape[1])
                                for x in range(z.shape[3])] for y in range(z.shape[2])] for b in range(2)])
        maps.append(nn.functional.interpolate(cells[:, None], (64, 64), mode="bilinear")[:, 0])
    assert torch.allclose(prediction.map, (maps[0] + maps[1]) / 2, atol=1e-6)
    assert prediction.score.tolist() == approx([float(m.max()) for m in prediction.map])


def test_the_loss_of_a_tap_is_half_z_squared_minus_the_log_determinant_averaged_over_images():
    flow, x = detector(taps=(3,)).flows[0], normal(2, 40, 8, 8).float()
    z, log_det = flow(x)
    by_hand = sum(0.5 * float(z[i].detach().double().square().sum()) - float(log_det[i].detach()) for i in range(2)) / 2
    assert float(FastFlow.loss(flow, x).detach()) == approx(by_hand, rel=1e-5)


def test_flows_trained_one_after_the_other_are_those_of_one_training_on_the_sum_of_their_losses(tiny):
    one, together = detector(taps=(3, 4), epochs=2).fit(tiny.train), detector(taps=(3, 4))
    maps, losses = [m.float() for m in together.cached_maps(tiny.train)], []
    optimizer = torch.optim.Adam([p for p in together.flows.parameters() if p.requires_grad], 1e-3, weight_decay=1e-5)
    together.flows.train()
    for epoch in range(2):
        with seeded(epoch_seed(0, epoch)):
            batches = torch.randperm(len(tiny.train)).split(3)
        steps = []
        for rows in batches:
            loss = sum(FastFlow.loss(flow, m[rows.sort().values]) for flow, m in zip(together.flows, maps, strict=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append(float(loss.detach()))
        losses.append(sum(steps) / len(steps))
    assert one.losses == approx(losses, rel=1e-5)
    for a, b in zip(one.flows.state_dict().values(), together.flows.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_tap_that_is_given_twice_has_two_trainings(tiny, tmp_path):
    detector(taps=(3, 3), epochs=1).fit(tiny.train, checkpoint=tmp_path / "c")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["c-0", "c-1"]


def test_training_raises_the_likelihood_and_a_defect_scores_above_every_normal_image(tiny):
    one = detector().fit(tiny.train)
    assert one.losses[-1] < one.losses[0] - 100
    scores = torch.cat([one.predict(images).score for images in read_images(tiny.test, one.view)])
    labels = torch.tensor([sample.label for sample in tiny.test])
    assert scores[labels == 1].min() > scores[labels == 0].max()


def test_a_resumed_run_ends_with_equal_weights(tiny, tmp_path):
    whole = detector(epochs=3).fit(tiny.train)
    detector(epochs=2).fit(tiny.train, checkpoint=tmp_path / "c")
    resumed = detector(epochs=3).fit(tiny.train, checkpoint=tmp_path / "c")
    assert len(resumed.losses) == 3
    for a, b in zip(whole.flows.state_dict().values(), resumed.flows.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_weights_and_permutations_depend_only_on_the_seed(tiny):
    states = [detector(seed).flows.state_dict() for seed in (0, 0, 1)]
    same = [torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True)]
    assert all(same) and any("w_perm" in key and not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_constant_features_of_empty_images_are_refused(tiny, monkeypatch):
    one = detector(epochs=1)
    monkeypatch.setattr(one.extractor, "forward", lambda images: [torch.ones(len(images), 40, 8, 8)])
    monkeypatch.setattr(type(one.extractor), "key", "constant")
    with pytest.raises(DataError, match=r"^features of tap 3 are constant over all 6 training images"):
        one.fit(tiny.train)


def test_the_defaults_are_the_settings_of_the_common_reimplementations():
    c = FastFlowConfig()
    assert (c.backbone, c.taps, c.image_size, c.steps, c.clamp, c.hidden_ratio) == ("wide_resnet50_2", (1, 2, 3), 256, 8, 2, 1)
    assert (c.epochs, c.batch_size, c.lr, c.weight_decay) == (500, 32, 1e-3, 1e-5)
