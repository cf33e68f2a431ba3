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
    Batch,
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
from adcore.papers.ds2.views import AUGMENTATIONS, Recipe, cropped, unstandardized
from adcore.training import seeded

IMAGES = torch.randint(256, (6, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TINY: dict[str, Any] = {"view_size": 32, "hidden": 32, "dim": 16, "batch_size": 4, "epochs": 2, "scales": ("c5",)}
MAPS = [torch.randn(4, 512, 2, 3, generator=torch.Generator().manual_seed(i)).relu() for i in range(4)]


def batch(count: int = 4, size: int = 32, categories: Tensor | None = None, quarters: Tensor | None = None) -> Batch:
    random = torch.rand(2, count, 3, size, size, generator=torch.Generator().manual_seed(9))
    return Batch((random[0], random[1]), categories, torch.zeros(count, 2, dtype=torch.long) if quarters is None else quarters)


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
    assert float(info_nce(q, k, negatives, None, temperature)) == approx(by_hand, rel=1e-5)
    assert float(info_nce(q, k, negatives)) == float(info_nce(q, k, negatives, temperature=0.2))


def test_removed_negatives_are_not_compared_with():
    q, k, negatives = unit(4, 0), unit(4, 1), unit(9, 2)
    removed = torch.arange(36).reshape(4, 9) % 3 == 0
    removed[3] = True                                           # nothing is left to confuse the last key with: a loss of 0
    by_hand = np.mean([cross_entropy([float(q[i] @ other) / 0.2 for other in (k[i], *negatives[~removed[i]])], 0)
                       for i in range(4)])
    assert float(info_nce(q, k, negatives, removed)) == approx(by_hand, rel=1e-5)


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
    found = byol(batch(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    p = [mean_direction(byol.predictor(byol.projector(x))) for x in MAPS[:2]]
    z = [mean_direction(byol.key_projector(x)) for x in MAPS[2:]]
    assert float(found.detach()) == approx(float(byol_loss((p[0], p[1]), (z[0], z[1])).detach()), abs=1e-6)
    found.backward()
    assert all(q.grad is not None for q in (*byol.projector.parameters(), *byol.predictor.parameters()))
    assert all(q.grad is None and not q.requires_grad for q in byol.key_projector.parameters())


def moco(length: int = 10) -> MoCoV2:
    with seeded(0):
        return MoCoV2(32, 16, length=length).eval()


def test_moco_s_queue_holds_the_newest_keys_of_the_first_view_first():
    made = moco()
    assert made.queue.shape == (10, 16) and torch.allclose(made.queue.norm(dim=1), torch.ones(10), atol=1e-6)
    before = made.queue.clone()
    first = made(batch(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    assert torch.equal(made.queue, before)                      # in eval mode the loss changes nothing
    q = [mean_direction(made.projector(x)) for x in MAPS[:2]]
    k = [mean_direction(made.key_projector(x)) for x in MAPS[2:]]
    by_hand = info_nce(q[0], k[1], before) + info_nce(q[1], k[0], before)
    assert float(first.detach()) == approx(float(by_hand.detach()), rel=1e-5)
    made.training = True                                        # its norms stay in eval mode
    loss = made(batch(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    assert torch.allclose(made.queue[:4], k[0], atol=1e-6) and torch.equal(made.queue[4:], before[:6])
    assert not made.queue.requires_grad
    keys = made.queue[:4].clone()
    loss.backward()                                             # works although the queue was replaced
    made(batch(), (MAPS[2], MAPS[3]), (MAPS[0], MAPS[1]), nothing)
    assert torch.equal(made.queue[4:8], keys)
    assert "queue" in made.state_dict() and MoCoV2(4, 4).queue.shape == (4096, 4)


def test_moco_compares_an_image_with_keys_of_other_categories_and_with_the_random_first_keys():
    made, categories = moco(), torch.tensor([5, 6, 5, 7])
    made.queue_categories[:6] = torch.tensor([5, 6, 7, 7, 5, 8])
    q = [mean_direction(made.projector(x)) for x in MAPS[:2]]
    k = [mean_direction(made.key_projector(x)) for x in MAPS[2:]]
    expected = 0.0
    for i, own in enumerate(categories.tolist()):
        others = [key for key, category in zip(made.queue, [5, 6, 7, 7, 5, 8, -1, -1, -1, -1], strict=True) if category != own]
        for a, b in ((0, 1), (1, 0)):
            logits = [float(q[a][i].detach() @ key) / 0.2 for key in (k[b][i].detach(), *others)]
            expected += cross_entropy(logits, 0) / 4
    found = made(batch(categories=categories), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    assert float(found.detach()) == approx(expected, rel=1e-5)
    made.training = True
    for given in (categories, None):                            # keys of unknown category are compared with all
        made(batch(categories=given), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
    assert made.queue_categories.tolist() == [-1, -1, -1, -1, 5, 6, 5, 7, 5, 6]


def test_rotnet_predicts_the_rotation_from_a_view_and_its_rotated_copy(monkeypatch):
    with seeded(0):
        rotnet = RotNet(64)
    rotnet.eval()
    assert [layer.in_features for layer in rotnet.head if isinstance(layer, nn.Linear)] == [2 * 64 * 4, 1024, 512, 512]
    assert RotNet().head[0].in_features == 6272                 # the published code's, at 224 pixels
    assert [layer.bias is None for layer in rotnet.head if isinstance(layer, nn.Linear)] == [True, True, False, False]
    monkeypatch.setattr(instance_ssl, "change_colors", lambda x, recipe: x)
    seen, rotated = [torch.randn(4, 512, 2, 2), torch.randn(4, 512, 2, 2)], []

    def encode(images: Tensor) -> Tensor:
        rotated.append(images)
        return images.mean((1, 2, 3))[:, None, None, None] * torch.ones(4, 512, 2, 2)

    given = batch(4, 64, quarters=torch.tensor([[0, 3], [1, 2], [2, 0], [3, 1]]))
    found = rotnet(given, (seen[0], seen[1]), (seen[0], seen[1]), encode)
    total = 0.0
    for crops, maps, copies, turns in zip(given.crops, seen, tuple(rotated), given.quarters.T, strict=True):
        for crop, copy, turn in zip(crops, unstandardized(copies), turns.tolist(), strict=True):
            assert np.rot90(crop.numpy(), turn, (1, 2)) == approx(copy.numpy(), abs=1e-5)
        parts = [rotnet.reduce(x).reshape(4, -1) for x in (maps, encode(copies))]
        total += float(rotation_loss(rotnet.head(torch.cat(parts, 1)), turns).detach())
    assert float(found.detach()) == approx(total, rel=1e-5)


def test_rotnet_s_copies_get_color_changes_of_their_own(monkeypatch):
    recipes: list[Recipe] = []
    monkeypatch.setattr(instance_ssl, "change_colors", lambda x, recipe: recipes.append(recipe) or x)
    RotNet(32)(batch(), (MAPS[0][..., :1, :1],) * 2, (MAPS[0][..., :1, :1],) * 2, lambda x: x.new_zeros(4, 512, 1, 1))
    assert recipes == [Recipe(jitter=0.8, jitter_range=(0.4, 0.4, 0.2, 0.1), grayscale=0.2, blur=0.5, solarize=0.3)] * 2


def test_rotnet_s_copies_are_made_of_the_crops_and_not_of_the_colored_views(monkeypatch):
    with seeded(0):
        module = DS2Pretraining(DS2PretrainingConfig(**TINY, instance="rotnet", augmentation="gb"), 4)
    seen: list[Batch] = []
    monkeypatch.setattr(module.branch, "forward", lambda batch, *rest: seen.append(batch) or torch.zeros(()))
    with seeded(1):
        module.loss(IMAGES[:4], torch.arange(4), torch.ones(4, 2, dtype=torch.long))
    with seeded(1):                                             # the first crop comes before any color
        first = cropped(IMAGES[:4], module.recipes[0], 32)[0]
    (given,) = seen
    assert torch.equal(given.crops[0], first) and given.categories.tolist() == [0, 1, 2, 3]
    assert (given.quarters == 1).all() and given.crops[1].shape == (4, 3, 32, 32)


def test_an_image_keeps_the_angles_of_its_two_views_for_the_whole_training(monkeypatch):
    seen: dict[int, list[int]] = {}

    def loss(module: DS2Pretraining, images: Tensor, categories: Tensor | None, quarters: Tensor) -> Tensor:
        for image, turns in zip(images, quarters.tolist(), strict=True):
            seen.setdefault(int(image[0, 0, 0]), []).append(turns)
        return module.propagation.value.bias.square().sum()

    monkeypatch.setattr(DS2Pretraining, "loss", loss)
    numbered = torch.arange(64, dtype=torch.uint8)[:, None, None, None].expand(64, 3, 40, 40)
    for seed in (0, 1):
        pretrain(DS2PretrainingConfig(**TINY | {"epochs": 3}, instance="rotnet"), numbered, seed=seed)
    assert len(seen) == 64 and all(len(turns) == 6 for turns in seen.values())
    assert all(turns[0] == turns[1] == turns[2] and turns[3] == turns[4] == turns[5] for turns in seen.values())
    angles = torch.tensor([turns[0] for turns in seen.values()])
    assert set(angles.flatten().tolist()) == {0, 1, 2, 3} and (angles[:, 0] != angles[:, 1]).float().mean() > 0.5
    assert any(turns[0] != turns[3] for turns in seen.values())            # another seed, other angles


@pytest.mark.parametrize(("settings", "categories", "known"), [
    ({}, [0, 0, 0, 1, 1, 1], True), ({}, [2] * 6, False), ({}, None, False),
    ({"class_aware": False}, [0, 0, 0, 1, 1, 1], False)])
def test_categories_reach_the_branch_if_there_are_several_and_they_are_asked_for(monkeypatch, settings, categories, known):
    seen: list[tuple[list[int], list[int] | None]] = []

    def loss(module: DS2Pretraining, images: Tensor, categories: Tensor | None, quarters: Tensor) -> Tensor:
        seen.append((images[:, 0, 0, 0].tolist(), None if categories is None else categories.tolist()))
        return module.propagation.value.bias.square().sum()

    monkeypatch.setattr(DS2Pretraining, "loss", loss)
    numbered = torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(6, 3, 40, 40)
    pretrain(DS2PretrainingConfig(**TINY, instance="mocov2", **settings), numbered,
             None if categories is None else torch.tensor(categories))
    assert len(seen) == 2 and all((given == [int(i >= 3) for i in images]) if known else given is None
                                  for images, given in seen)


def test_distaug_compares_pooled_maps_through_eight_layers():
    with seeded(0):
        distaug = DistAug()
    linear = [layer for layer in distaug.head if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [512] * 7 + [128] and all(layer.bias is None for layer in linear)
    assert [type(layer) for layer in distaug.head] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 7 + [nn.Linear]
    distaug.eval()
    found = distaug(batch(), (MAPS[0], MAPS[1]), (MAPS[2], MAPS[3]), nothing)
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
    monkeypatch.setattr(DS2Pretraining, "loss", lambda module, images, *rest: seen.append(images)
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
