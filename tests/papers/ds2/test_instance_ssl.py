"""Instance branches: what each takes of c5, what it draws, and that it trains beside the dense loss."""

from __future__ import annotations

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
from adcore.papers.ds2.dense_pretraining import DS2Pretraining, DS2PretrainingConfig, pretrain
from adcore.papers.ds2.instance_losses import byol_loss, info_nce, rotation_loss, simclr_loss
from adcore.papers.ds2.instance_ssl import BRANCHES, BYOL, DistAug, MoCoV2, RotNet, branch, turned
from adcore.papers.ds2.views import AUGMENTATIONS, standardized, unstandardized
from adcore.training import seeded

IMAGES = torch.randint(256, (6, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TINY: dict[str, Any] = {"view_size": 32, "hidden": 32, "dim": 16, "batch_size": 4, "epochs": 2, "scales": ("c5",)}
MAPS = [torch.randn(4, 512, 2, 3, generator=torch.Generator().manual_seed(i)).relu() for i in range(4)]


def views(count: int = 4, size: int = 32) -> tuple[Tensor, Tensor]:
    random = torch.rand(2, count, 3, size, size, generator=torch.Generator().manual_seed(9))
    return standardized(random[0]), standardized(random[1])


def nothing(images: Tensor) -> Tensor:
    raise AssertionError("this branch encodes nothing of its own")


def mean_direction(maps: Tensor) -> Tensor:
    return F.normalize(maps.flatten(2).mean(2), dim=1)


def test_the_branches_are_those_of_table_1b():
    assert {match["instance"] for match in published("ds2.table_1b")["match"]} == set(BRANCHES)
    assert branch("none") is None
    assert [type(branch(name, hidden=4, dim=4)) for name in BRANCHES[1:]] == [BYOL, MoCoV2, RotNet, DistAug]


# Each branch.

def test_byol_predicts_the_pooled_key_of_the_other_view():
    with seeded(0):
        byol = BYOL(32, 16)
    nn.init.normal_(byol.key_projector[0].weight)               # apart from the projector
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
    assert torch.equal(moco.queue, before)                      # looking at a loss changes nothing
    q = [mean_direction(moco.projector(x)) for x in MAPS[:2]]
    k = [mean_direction(moco.key_projector(x)) for x in MAPS[2:]]
    by_hand = info_nce(q[0], k[1], before) + info_nce(q[1], k[0], before)
    assert float(first.detach()) == approx(float(by_hand.detach()), rel=1e-5)
    moco.train()
    loss = moco(views(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    keys = moco.queue[:8].clone()
    assert torch.equal(moco.queue[8:], before[:2]) and not moco.queue.requires_grad
    loss.backward()                                             # although the queue has moved on
    moco(views(), (MAPS[2], MAPS[3]), (MAPS[0], MAPS[1]), nothing)
    assert torch.equal(moco.queue[8:], keys[:2])
    assert "queue" in moco.state_dict() and MoCoV2(4, 4).queue.shape == (4096, 4)


def test_rotnet_joins_a_view_with_its_rotated_copy_and_asks_for_the_turn(monkeypatch):
    with seeded(0):
        rotnet = RotNet(64)
    rotnet.eval()
    assert [layer.in_features for layer in rotnet.head if isinstance(layer, nn.Linear)] == [2 * 64 * 4, 1024, 512, 512]
    assert RotNet().head[0].in_features == 6272                 # the published code's, at 224 pixels
    monkeypatch.setattr(instance_ssl, "recolored", lambda x, recipe: x)
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


def test_rotnet_s_copies_are_recolored_on_top_of_the_view():
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
    for image, result, turn in zip(images, turned(images, quarters), quarters.tolist(), strict=True):
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
def test_views_are_the_branch_s_own_but_rotnet_s(name):
    module = DS2Pretraining(DS2PretrainingConfig(**TINY, instance=name, augmentation="gb"))
    first, second = module.recipes
    assert {"byol": (first, second) == AUGMENTATIONS["cj+gb+gs+so"], "rotnet": (first, second) == AUGMENTATIONS["gb"],
            "mocov2": first == second and first.jitter_range == (0.4, 0.4, 0.4, 0.1) and first.scale == (0.08, 1),
            "distaug": first == second and first.jitter_range == (0.4,) * 4 and first.scale == (0.5, 1)}[name]
    if name in ("mocov2", "distaug"):
        assert (first.jitter, first.grayscale, first.blur, first.solarize) == (0.8, 0.2, 0.5, 0)


@pytest.mark.parametrize("name", ["byol", "mocov2"])
def test_key_projectors_follow_with_the_key_networks(name):
    with seeded(0):
        module = DS2Pretraining(DS2PretrainingConfig(**TINY, instance=name, ema=0.5), 100)
    nn.init.ones_(module.branch.projector[0].weight)
    before = module.branch.key_projector[0].weight.clone()
    module.ema_step()
    assert torch.allclose(module.branch.key_projector[0].weight, (before + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("name", ["byol", "mocov2"])               # those with a state of their own
def test_a_training_with_a_branch_goes_on_to_the_same_weights(tmp_path, name):
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
