"""Instance branches: their losses against loops in float64, their heads on c5, and training beside the dense loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from torch import Tensor, nn

from adcore.errors import ParameterError
from adcore.papers import published
from adcore.papers.ds2 import instance_ssl
from adcore.papers.ds2.ds2 import DS2Pretraining, DS2PretrainingConfig, pretrain
from adcore.papers.ds2.instance_ssl import (
    BRANCHES,
    BYOL,
    DistAug,
    MoCoV2,
    RotNet,
    branch,
    byol_loss,
    info_nce,
    rotate_quarters,
    rotation_loss,
    simclr_loss,
)
from adcore.papers.ds2.views import AUGMENTATIONS, standardized, unstandardized
from adcore.training import seeded

IMAGES = torch.randint(256, (6, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TINY: dict[str, Any] = {"view_size": 32, "hidden": 32, "dim": 16, "batch_size": 4, "epochs": 2, "scales": ("c5",)}
MAPS = [torch.randn(4, 512, 2, 3, generator=torch.Generator().manual_seed(i)).relu() for i in range(4)]


def views(count: int = 4, size: int = 32) -> tuple[Tensor, Tensor]:
    random = torch.rand(2, count, 3, size, size, generator=torch.Generator().manual_seed(9))
    return standardized(random[0]), standardized(random[1])


def nothing(images: Tensor) -> Tensor:
    raise AssertionError("this branch must not encode further images")


def mean_direction(maps: Tensor) -> Tensor:
    return F.normalize(maps.flatten(2).mean(2), dim=1)


# Losses.

def unit(count: int, seed: int, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def cross_entropy(logits: list[float], right: int) -> float:
    """-log of the softmax probability of the right one."""
    return -math.log(math.exp(logits[right]) / sum(math.exp(x) for x in logits))


def test_byol_compares_each_prediction_with_the_other_view_s_key():
    (p1, p2), (z1, z2) = (unit(6, 0), unit(6, 1)), (unit(6, 2), unit(6, 3))
    a, b, c, d = (x.double().numpy() for x in (p1, p2, z1, z2))
    by_hand = np.mean([-2 * a[i] @ d[i] - 2 * b[i] @ c[i] for i in range(6)])
    assert float(byol_loss((p1, p2), (z1, z2))) == approx(by_hand, abs=1e-6)
    assert float(byol_loss((p1, p2), (p2, p1))) == approx(-4, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_info_nce_is_the_cross_entropy_of_the_own_key_among_the_negatives(temperature):
    q, k, negatives = unit(4, 0), unit(4, 1), unit(9, 2)
    by_hand = np.mean([cross_entropy([float(q[i] @ other) / temperature for other in (k[i], *negatives)], 0) for i in range(4)])
    assert float(info_nce(q, k, negatives, temperature)) == approx(by_hand, rel=1e-5)
    assert float(info_nce(q, k, negatives)) == float(info_nce(q, k, negatives, 0.2))


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_simclr_is_the_cross_entropy_of_the_other_view_among_all_views_of_the_batch(temperature):
    first, second = unit(5, 0), unit(5, 1)
    views, losses = torch.cat([first, second]), []
    for i in range(10):
        others = [j for j in range(10) if j != i]
        logits = [float(views[i] @ views[j]) / temperature for j in others]
        losses.append(cross_entropy(logits, others.index((i + 5) % 10)))
    assert float(simclr_loss(first, second, temperature)) == approx(np.mean(losses), rel=1e-5)
    assert float(simclr_loss(first, second)) == float(simclr_loss(first, second, 0.2))


def test_gradients_are_finite_for_identical_views():
    first = unit(4, 0).requires_grad_()
    simclr_loss(first, first).backward()
    assert torch.isfinite(first.grad).all()


def test_the_rotation_loss_is_the_cross_entropy_of_outputs_at_unit_length():
    outputs, quarters = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 3, 0])
    by_hand = np.mean([cross_entropy([float(x) / float(row.norm()) / 0.2 for x in row], int(right))
                       for row, right in zip(outputs, quarters, strict=True)])
    assert float(rotation_loss(outputs, quarters)) == approx(by_hand, rel=1e-5)
    assert float(rotation_loss(100 * outputs, quarters)) == approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("loss", [lambda a, b, c: byol_loss((a, b), (c, a)), info_nce, lambda a, b, c: simclr_loss(a, b),
                                  lambda a, b, c: rotation_loss(a[:, :4], torch.arange(4))],
                         ids=["byol", "info_nce", "simclr", "rotation"])
def test_autocast_does_not_round_the_losses(loss):
    vectors = [unit(4, seed) for seed in range(3)]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(*vectors)
        of_narrow = loss(*(x.bfloat16() for x in vectors))
    assert torch.equal(found, loss(*vectors)) and torch.equal(of_narrow, loss(*(x.bfloat16().float() for x in vectors)))


# Each branch.

def test_the_branches_are_those_of_table_1b():
    assert {match["instance"] for match in published("ds2.table_1b")["match"]} == set(BRANCHES)
    assert branch("none") is None
    assert [type(branch(name, hidden=4, dim=4)) for name in BRANCHES[1:]] == [BYOL, MoCoV2, RotNet, DistAug]


def test_byol_predicts_the_pooled_key_of_the_other_view():
    with seeded(0):
        byol = BYOL(32, 16)
    nn.init.normal_(byol.key_projector[0].weight)               # so that it differs from the projector
    byol.eval()                                                 # so that passing twice changes no statistic
    found = byol(views(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    p = [mean_direction(byol.predictor(byol.projector(x))) for x in MAPS[:2]]
    z = [mean_direction(byol.key_projector(x)) for x in MAPS[2:]]
    assert float(found.detach()) == approx(float(byol_loss((p[0], p[1]), (z[0], z[1])).detach()), abs=1e-6)
    found.backward()
    assert all(q.grad is not None for q in (*byol.projector.parameters(), *byol.predictor.parameters()))
    assert all(q.grad is None and not q.requires_grad for q in byol.key_projector.parameters())


def test_moco_s_queue_holds_the_newest_keys_of_both_views_first():
    with seeded(0):
        moco = MoCoV2(32, 16, length=10)
    assert moco.queue.shape == (10, 16) and torch.allclose(moco.queue.norm(dim=1), torch.ones(10), atol=1e-6)
    before = moco.queue.clone()
    moco.eval()
    first = moco(views(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    assert torch.equal(moco.queue, before)                      # in eval mode the loss changes nothing
    q = [mean_direction(moco.projector(x)) for x in MAPS[:2]]
    k = [mean_direction(moco.key_projector(x)) for x in MAPS[2:]]
    by_hand = info_nce(q[0], k[1], before) + info_nce(q[1], k[0], before)
    assert float(first.detach()) == approx(float(by_hand.detach()), rel=1e-5)
    moco.train()
    loss = moco(views(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    keys = moco.queue[:8].clone()
    assert torch.equal(moco.queue[8:], before[:2]) and not moco.queue.requires_grad
    loss.backward()                                             # works although the queue was replaced
    moco(views(), (MAPS[2], MAPS[3]), (MAPS[0], MAPS[1]), nothing)
    assert torch.equal(moco.queue[8:], keys[:2])
    assert "queue" in moco.state_dict() and MoCoV2(4, 4).queue.shape == (4096, 4)


def test_rotnet_predicts_the_rotation_from_a_view_and_its_rotated_copy(monkeypatch):
    with seeded(0):
        rotnet = RotNet(64)
    rotnet.eval()
    assert [layer.in_features for layer in rotnet.head if isinstance(layer, nn.Linear)] == [2 * 64 * 4, 1024, 512, 512]
    assert RotNet().head[0].in_features == 6272                 # the published code's, at 224 pixels
    monkeypatch.setattr(instance_ssl, "change_colors", lambda x, recipe: x)
    seen, rotated = [torch.randn(4, 512, 2, 2), torch.randn(4, 512, 2, 2)], []

    def encode(images: Tensor) -> Tensor:
        rotated.append(images)
        return images.mean((1, 2, 3))[:, None, None, None] * torch.ones(4, 512, 2, 2)

    pair = views(4, 64)
    with seeded(5):
        found = rotnet(pair, (seen[0], seen[1]), (seen[0], seen[1]), encode)
    with seeded(5):
        quarters = torch.randint(4, (4,)), torch.randint(4, (4,))
    total = 0.0
    for view, maps, copies, turns in zip(pair, seen, tuple(rotated), quarters, strict=True):
        for image, copy, turn in zip(view, copies, turns.tolist(), strict=True):
            assert torch.allclose(copy, torch.from_numpy(np.rot90(image.numpy(), turn, (1, 2)).copy()), atol=1e-5)
        parts = [rotnet.reduce(x).reshape(4, -1) for x in (maps, encode(copies))]
        total += float(rotation_loss(rotnet.head(torch.cat(parts, 1)), turns).detach())
    assert float(found.detach()) == approx(total, rel=1e-5)


def test_rotnet_s_copies_get_further_color_changes():
    with seeded(0):
        rotnet = RotNet(32)
    copies: list[Tensor] = []
    flat = standardized(torch.tensor([0.9, 0.6, 0.2])[None, :, None, None].expand(400, 3, 32, 32))
    with seeded(1):
        rotnet((flat, flat), (torch.zeros(400, 512, 1, 1),) * 2, (torch.zeros(400, 512, 1, 1),) * 2,
               lambda x: copies.append(x) or torch.zeros(400, 512, 1, 1))
    raw = unstandardized(torch.cat(copies))
    gray = (raw[:, 0] - raw[:, 1]).abs().amax((1, 2)) < 1e-4
    solarized = raw[:, 0, 0, 0] < 0.5                           # red, or the gray that it became, was bright
    assert gray.float().mean() == approx(0.2, abs=0.06) and solarized.float().mean() == approx(0.3, abs=0.06)


def test_distaug_compares_pooled_maps_through_eight_layers():
    with seeded(0):
        distaug = DistAug()
    linear = [layer for layer in distaug.head if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [512] * 7 + [128]
    distaug.eval()
    found = distaug(views(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    z = [F.normalize(distaug.head(x.flatten(2).mean(2)), dim=1) for x in MAPS[:2]]
    assert float(found.detach()) == approx(float(simclr_loss(z[0], z[1]).detach()), rel=1e-5)


def test_quarter_turns_are_numpy_s():
    images, quarters = torch.rand(8, 3, 5, 5), torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    for image, result, turn in zip(images, rotate_quarters(images, quarters), quarters.tolist(), strict=True):
        assert np.array_equal(result.numpy(), np.rot90(image.numpy(), turn, (1, 2)))


# Beside the dense loss.

@pytest.mark.parametrize("name", BRANCHES[1:])
def test_a_branch_adds_its_weighted_loss_to_the_dense_one(name):
    found = {}
    for weight in (0.0, 1.0, 3.0):
        with seeded(0):
            module = DS2Pretraining(DS2PretrainingConfig(**TINY, instance=name, instance_weight=weight), 4)
        with seeded(1):
            found[weight] = float(module.loss(IMAGES[:4]).detach())
    assert found[3.0] - found[0.0] == approx(3 * (found[1.0] - found[0.0]), rel=1e-3) and found[1.0] != found[0.0]


@pytest.mark.parametrize("name", BRANCHES[1:])
def test_every_branch_but_rotnet_brings_its_own_augmentations(name):
    module = DS2Pretraining(DS2PretrainingConfig(**TINY, instance=name, augmentation="gb"))
    first, second = module.recipes
    assert {"byol": (first, second) == AUGMENTATIONS["cj+gb+gs+so"], "rotnet": (first, second) == AUGMENTATIONS["gb"],
            "mocov2": first == second and first.jitter_range == (0.4, 0.4, 0.4, 0.1) and first.scale == (0.08, 1),
            "distaug": first == second and first.jitter_range == (0.4,) * 4 and first.scale == (0.5, 1)}[name]
    if name in ("mocov2", "distaug"):
        assert (first.jitter, first.grayscale, first.blur, first.solarize) == (0.8, 0.2, 0.5, 0)


@pytest.mark.parametrize("name", ["byol", "mocov2"])
def test_key_projectors_are_updated_together_with_the_key_networks(name):
    with seeded(0):
        module = DS2Pretraining(DS2PretrainingConfig(**TINY, instance=name, ema=0.5), 100)
    nn.init.ones_(module.branch.projector[0].weight)
    before = module.branch.key_projector[0].weight.clone()
    module.ema_step()
    assert torch.allclose(module.branch.key_projector[0].weight, (before + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["byol", "mocov2"])               # those with a state of their own
def test_a_training_with_a_branch_resumes_to_the_same_weights(tmp_path, name):
    settings = {**TINY, "instance": name, "batch_size": 6}
    whole = pretrain(DS2PretrainingConfig(**settings), IMAGES)
    pretrain(DS2PretrainingConfig(**settings, stop_after=1), IMAGES, checkpoint=tmp_path / "checkpoint")
    resumed = pretrain(DS2PretrainingConfig(**settings), IMAGES, checkpoint=tmp_path / "checkpoint")
    assert whole.losses == resumed.losses and whole.step == 2
    for (key, wanted), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(wanted, found) if isinstance(wanted, Tensor) else wanted == found, key


def test_distaug_shows_each_image_in_four_rotations_an_epoch(monkeypatch):
    seen: list[Tensor] = []
    monkeypatch.setattr(DS2Pretraining, "loss", lambda module, images: seen.append(images)
                        or module.propagation.value.bias.square().sum())
    pretrain(DS2PretrainingConfig(**{**TINY, "epochs": 1}, instance="distaug"), IMAGES)
    shown = {image.numpy().tobytes() for image in torch.cat(seen)}
    assert shown == {np.rot90(image.numpy(), turn, (1, 2)).tobytes() for image in IMAGES for turn in range(4)}
    with pytest.raises(ParameterError, match="square"):
        pretrain(DS2PretrainingConfig(**TINY, instance="distaug"), IMAGES[..., :20])


def test_a_branch_without_c5_is_refused():
    with pytest.raises(ParameterError, match="works on c5"):
        DS2PretrainingConfig(scales=("c4",), instance="byol")
    with pytest.raises(ParameterError, match="mocov2"):
        DS2PretrainingConfig(instance="moco")
