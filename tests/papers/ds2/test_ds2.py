"""DS2's pretraining at a small size: its loss step by step, which networks are updated, exact resumption."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from torch import Tensor

from adcore import training
from adcore.errors import AdcoreError, ParameterError
from adcore.papers.ds2 import ds2, photometric
from adcore.papers.ds2.ds2 import DS2Pretraining, DS2PretrainingConfig, pretrain
from adcore.papers.ds2.instance_ssl import Batch
from adcore.papers.ds2.momentum import cosine_momentum
from adcore.papers.ds2.positive_pairs import geometric_pairs, top_pairs
from adcore.papers.ds2.views import AUGMENTATIONS, augmented, change_colors, cropped, unstandardized
from adcore.training import seeded

IMAGES = torch.randint(256, (10, 3, 40, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TINY: dict[str, Any] = {"view_size": 32, "hidden": 32, "dim": 16, "batch_size": 4, "epochs": 3, "decay_epochs": (2,),
                        "warmup_epochs": 1, "delta": 0.7}


class PowerCutError(Exception):
    """The training stops here."""


def tiny(**settings: Any) -> DS2PretrainingConfig:
    return DS2PretrainingConfig(**{**TINY, **settings})


def networks(config: DS2PretrainingConfig, steps: int = 8, moved: float = 0.0) -> DS2Pretraining:
    """`moved`: standard deviation of noise added to the key networks, so that they differ from the trained ones."""
    with seeded(0), torch.no_grad():
        module = DS2Pretraining(config, steps)
        for p in (*module.key_encoder.parameters(), *module.key_projectors.parameters()):
            p += moved * torch.randn_like(p)
    return module


def drawn(config: DS2PretrainingConfig, count: int = 4) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    with seeded(1):
        (view1, box1), (view2, box2) = (augmented(IMAGES[:count], recipe, config.view_size)
                                        for recipe in AUGMENTATIONS[config.augmentation])
    return (view1, view2), (box1, box2)


# The loss.

@pytest.mark.parametrize("scales", [("c5",), ("c4", "c5"), ("c3", "c4", "c5")])
@pytest.mark.parametrize(("pairs", "top_k", "delta"), [("geometric", 1, 0.7), ("feature", 2, 0.7), ("both", 1, 0.7),
                                                       ("both", 3, 0.3)])
def test_the_loss_is_the_loop_over_scales_directions_images_and_pairs(scales, pairs, top_k, delta):
    config = tiny(scales=scales, pairs=pairs, top_k=top_k, delta=delta, view_size=64)      # c5 has 2 x 2 positions
    module, (views, boxes) = networks(config, moved=0.02), drawn(config)
    module.eval()                                       # so that a loop may pass the images one by one
    total = 0.0
    with torch.no_grad():
        found = float(module.loss_of_views(views, boxes))
        for scale in scales:
            for q, k in ((0, 1), (1, 0)):
                for n in range(4):
                    feature, key = module.encoder(views[q][n:n + 1])[scale], module.key_encoder(views[k][n:n + 1])[scale]
                    y = module.propagation(module.projectors[scale](feature))[0].flatten(1).double()
                    z = F.normalize(module.key_projectors[scale](key), dim=1)[0].flatten(1).double()
                    h, w = feature.shape[-2:]
                    near = geometric_pairs(boxes[q][n:n + 1], boxes[k][n:n + 1], (h, w), delta)[0]
                    alike = top_pairs(feature, key, top_k)[0]
                    mask = {"geometric": near, "feature": alike, "both": near | alike}[pairs]
                    agreement = sum(float(y[:, i] @ z[:, j]) for i, j in mask.nonzero().tolist())
                    total += 0.5 / 4 * -2 * agreement / (int(mask.sum()) + 1e-6)
    assert found == approx(total, abs=1e-5) and abs(found) <= 2 * len(scales)


def test_the_two_views_follow_the_recipes_of_the_augmentation(monkeypatch):
    recipes = []
    monkeypatch.setattr(ds2, "cropped",
                        lambda images, recipe, size: recipes.append((recipe, size)) or cropped(images, recipe, size))
    monkeypatch.setattr(ds2, "change_colors",
                        lambda crops, recipe: recipes.append((recipe, len(crops))) or change_colors(crops, recipe))
    for name, pair in AUGMENTATIONS.items():
        networks(tiny(augmentation=name, scales=("c5",))).loss(IMAGES[:2])
        assert recipes[-4:] == [(pair[0], 32), (pair[0], 2), (pair[1], 32), (pair[1], 2)]


def test_the_loss_compares_the_augmented_views():
    module = networks(tiny(scales=("c5",))).eval()
    views, boxes = drawn(module.config)
    with seeded(1), torch.no_grad():                    # the state from which the views were drawn
        quarters = torch.zeros(4, 2, dtype=torch.long)
        assert float(module.loss(IMAGES[:4], None, quarters)) == float(module.loss_of_views(views, boxes))


def test_gradients_reach_all_trained_networks_and_no_key_network():
    module = networks(tiny())
    for name, p in module.named_parameters():           # blocks end in norms of weights 0, which let no gradient into them
        if name.endswith("bn2.weight"):
            torch.nn.init.ones_(p)
    module.loss(IMAGES[:4]).backward()
    for name, p in module.named_parameters():
        assert p.requires_grad != name.startswith("key_"), name
        assert (p.grad is None) if name.startswith("key_") else bool(torch.isfinite(p.grad).all()), name
    used = ("encoder.conv1.weight", "projectors.c4.0.weight", "projectors.c5.3.bias", "propagation.value.weight")
    assert all(module.get_parameter(name).grad.any() for name in used)


def test_training_lowers_the_loss():
    losses = pretrain(tiny(epochs=8, decay_epochs=(), lr=30.0), IMAGES).losses
    assert sum(losses[-3:]) / 3 < losses[0] - 0.5 and min(losses) > -4


@pytest.mark.parametrize(("name", "gray", "blurred", "solarized"), [
    ("cj", 0.0, (0.0, 0.0), 0.0), ("gb", 0.0, (1.0, 0.1), 0.0), ("cj+gb", 0.0, (1.0, 0.1), 0.0),
    ("cj+gb+gs", 0.2, (1.0, 0.1), 0.0), ("cj+gb+so", 0.0, (1.0, 0.1), 0.5), ("cj+gb+gs+so", 0.2, (1.0, 0.1), 0.5)])
def test_both_views_become_gray_the_first_is_blurred_and_the_second_solarized(monkeypatch, name, gray, blurred, solarized):
    seen: list[Tensor] = []
    changed: dict[str, list[int]] = {"gaussian_blur": [], "solarize": []}
    for change, counts in changed.items():
        original = getattr(photometric, change)
        monkeypatch.setattr(photometric, change, lambda x, *rest, counts=counts, original=original: (
            counts.append(len(x)) or original(x, *rest)))
    monkeypatch.setattr(DS2Pretraining, "loss_of_views", lambda module, views, *rest: seen.extend(views))
    module = networks(tiny(augmentation=name, view_size=8, scales=("c5",)))
    with seeded(2):
        module.loss(torch.tensor([230, 115, 25], dtype=torch.uint8)[:, None, None].expand(1000, 3, 8, 8))
    for view in map(unstandardized, seen):
        spread = (view.amax(1) - view.amin(1)).amax((1, 2))
        assert (spread < 1e-4).float().mean() == approx(gray, abs=0.04)
    assert [count / 1000 for count in changed["gaussian_blur"]] == approx([share for share in blurred if share], abs=0.03)
    assert [count / 1000 for count in changed["solarize"]] == approx([solarized] if solarized else [], abs=0.04)


# Key networks.

def test_key_networks_are_updated_with_the_momentum_of_the_step_before_they_are_used():
    module = networks(tiny(), steps=8, moved=0.05)
    expected = {name: p.clone() for name, p in module.named_parameters() if name.startswith("key_")}
    for step in range(3):
        momentum = cosine_momentum(step, 8)
        expected = {name: momentum * p + (1 - momentum) * module.get_parameter(name[4:]) for name, p in expected.items()}
        used = []
        hook = module.key_encoder.conv1.register_forward_pre_hook(
            lambda layer, _, used=used: used.append(layer.weight.clone()))
        module.loss(IMAGES[:4])
        hook.remove()
        assert module.step == step + 1 and len(used) == 2
        assert all(torch.allclose(weight, expected["key_encoder.conv1.weight"], atol=1e-7) for weight in used)
        for name, p in expected.items():
            assert torch.allclose(module.get_parameter(name), p, atol=1e-6), name


def test_key_networks_start_as_copies_and_keep_their_own_running_statistics():
    module = networks(tiny())
    for name, p in module.key_encoder.state_dict().items():
        assert torch.equal(p, module.encoder.state_dict()[name])
    module.train().loss(IMAGES[:4])
    assert module.key_encoder.training and module.key_encoder.bn1.num_batches_tracked == 2
    before = module.step, module.key_encoder.bn1.running_mean.clone()
    module.eval().loss(IMAGES[:4])                      # in eval mode the loss changes nothing
    assert module.step == before[0] and torch.equal(module.key_encoder.bn1.running_mean, before[1])


# Training.

def same(first: DS2Pretraining, second: DS2Pretraining) -> None:
    assert first.losses == second.losses and first.step == second.step
    for (name, wanted), found in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(wanted, found) if isinstance(wanted, Tensor) else wanted == found, name


def test_an_interrupted_pretraining_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = pretrain(tiny(), IMAGES, seed=3)
    calls, loss = itertools.count(), DS2Pretraining.loss

    def cut(module: DS2Pretraining, *batch: Any) -> Tensor:
        if next(calls) == 3:                            # two batches an epoch: in the middle of the second
            raise PowerCutError
        return loss(module, *batch)

    # Every epoch is saved, however short.
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        patch.setattr(DS2Pretraining, "loss", cut)
        pretrain(tiny(), IMAGES, seed=3, checkpoint=tmp_path / "checkpoint")
    resumed = pretrain(tiny(), IMAGES, seed=3, checkpoint=tmp_path / "checkpoint")
    same(whole, resumed)
    assert whole.step == 6 and len(whole.losses) == 3 and not whole.training
    state = torch.load(tmp_path / "checkpoint", weights_only=True)
    assert all("velocity" in entry for entry in state["optimizer"]["state"].values())


def test_a_training_that_stopped_early_equals_the_first_epochs_of_the_whole(tmp_path):
    whole = pretrain(tiny(), IMAGES)
    early = pretrain(tiny(stop_after=2), IMAGES, checkpoint=tmp_path / "checkpoint")
    assert early.losses == whole.losses[:2] and early.step == 4 and early.steps == 6
    same(whole, pretrain(tiny(), IMAGES, checkpoint=tmp_path / "checkpoint"))
    with pytest.raises(AdcoreError, match="holds 3 epochs, more than the 2"):
        pretrain(tiny(stop_after=2), IMAGES, checkpoint=tmp_path / "checkpoint")


def test_an_epoch_drops_the_incomplete_batch_and_repeats_no_image(monkeypatch):
    seen: list[Tensor] = []
    monkeypatch.setattr(DS2Pretraining, "loss", lambda module, images, *rest: seen.append(images)
                        or module.propagation.value.bias.square().sum())
    numbered = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, 40, 40)
    pretrain(tiny(epochs=6), numbered)
    epochs = [torch.cat(seen[i:i + 2])[:, 0, 0, 0].tolist() for i in range(0, 12, 2)]
    assert [len(set(epoch)) for epoch in epochs] == [8] * 6 and {len(batch) for batch in seen} == {4}
    assert len({frozenset(epoch) for epoch in epochs}) > 1 and set(itertools.chain(*epochs)) == set(range(10))


def test_a_seed_decides_the_weights_and_the_caller_s_random_state_is_kept():
    state = torch.get_rng_state()
    first, again, other = (pretrain(tiny(epochs=1), IMAGES, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    same(first, again)
    assert not torch.equal(first.encoder.conv1.weight, other.encoder.conv1.weight)


def test_the_learning_rate_grows_linearly_with_the_batch(monkeypatch):
    made = []
    lars = ds2.LARS
    monkeypatch.setattr(ds2, "LARS", lambda *a, **k: made.append(lars(*a, **k)) or made[-1])
    pretrain(tiny(epochs=0), IMAGES)
    pretrain(tiny(epochs=0, batch_size=8, warmup_epochs=0), IMAGES)
    assert [group["initial_lr"] for optimizer in made for group in optimizer.param_groups] == [2 * 4 / 256, 2 * 8 / 256]
    assert made[0].param_groups[0]["lr"] == approx(2 * 4 / 256 / 100) and made[1].param_groups[0]["lr"] == 2 * 8 / 256
    assert {key: made[0].defaults[key] for key in ("momentum", "weight_decay", "trust", "eps")} == {
        "momentum": 0.9, "weight_decay": 1e-5, "trust": 0.001, "eps": 1e-8}


def test_amp_runs_the_networks_in_bfloat16_but_not_views_similarities_and_weights(monkeypatch):
    seen: dict[bool, list[Tensor]] = {False: [], True: []}
    compared: list[torch.dtype] = []
    loss_of_views, scale_loss = DS2Pretraining.loss_of_views, ds2.scale_loss

    def record(module: DS2Pretraining, views: tuple[Tensor, Tensor], boxes: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        seen[module.config.amp] += [*views, *boxes]
        narrow = module.encoder(views[0])["c5"].dtype
        assert narrow == (torch.bfloat16 if module.config.amp else torch.float32)
        return loss_of_views(module, views, boxes, batch)

    monkeypatch.setattr(DS2Pretraining, "loss_of_views", record)
    monkeypatch.setattr(ds2, "scale_loss", lambda y, z, pairs: compared.extend(
        unit.dtype for unit in (*y, *z)) or scale_loss(y, z, pairs))
    for amp in (False, True):
        module = pretrain(tiny(amp=amp, scales=("c5",), epochs=1, decay_epochs=()), IMAGES[:4])
        assert torch.isfinite(torch.tensor(module.losses)).all()
        assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(seen[True], seen[False], strict=True))
    assert set(compared) == {torch.float32} and len(compared) == 2 * 4


# Settings.

def test_widths_reach_the_projectors_and_the_propagation():
    module = networks(tiny(hidden=24, dim=12, scales=("c3", "c5")))
    for projectors in (module.projectors, module.key_projectors):
        assert {name: (p[0].in_channels, p[0].out_channels, p[3].out_channels) for name, p in projectors.items()} == {
            "c3": (128, 24, 12), "c5": (512, 24, 12)}
    assert module.propagation.value.weight.shape == (12, 12, 1, 1)
    byol = networks(tiny(hidden=24, dim=12, instance="byol")).branch
    assert (byol.projector[0].out_channels, byol.predictor[0].in_channels, byol.predictor[3].out_channels) == (24, 12, 12)


@pytest.mark.parametrize("ema", [0.5, 0.9])
def test_the_setting_ema_is_the_momentum_of_the_first_step(ema):
    module = networks(tiny(ema=ema), moved=0.05)
    before = module.key_encoder.conv1.weight.clone()
    module.ema_step()
    expected = ema * before + (1 - ema) * module.encoder.conv1.weight
    assert torch.allclose(module.key_encoder.conv1.weight, expected, atol=1e-6)



def test_defaults_are_the_paper_s():
    c = DS2PretrainingConfig()
    assert (c.epochs, c.batch_size, c.lr, c.weight_decay, c.trust, c.delta) == (400, 256, 2.0, 1e-5, 0.001, 0.1)
    assert (c.scales, c.augmentation, c.pairs, c.top_k) == (("c4", "c5"), "cj+gb", "both", 1)
    assert (c.view_size, c.hidden, c.dim, c.ema) == (224, 4096, 256, 0.99)
    assert (c.warmup_epochs, c.decay_epochs, c.momentum, c.stop_after) == (5, (120, 160, 200), 0.9, 0)


@pytest.mark.parametrize("settings", [{"scales": ("c6",)}, {"scales": ()}, {"pairs": "all"}, {"augmentation": "so"},
                                      {"batch_size": 1}, {"stop_after": 5}, {"ema": 1.5}, {"top_k": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ParameterError):
        tiny(**settings)


@pytest.mark.parametrize(("images", "message"), [
    (IMAGES[:3], "batch_size=4 is more than the 3 images"), (IMAGES.float(), "uint8"), (IMAGES[:, :1], "uint8"),
    (IMAGES[0], "uint8")])
def test_images_that_cannot_be_trained_on_are_refused(images, message):
    with pytest.raises(ParameterError, match=message):
        pretrain(tiny(), images)


def test_a_checkpoint_of_other_widths_is_refused(tmp_path: Path):
    pretrain(tiny(epochs=1, decay_epochs=()), IMAGES, checkpoint=tmp_path / "checkpoint")
    with pytest.raises(AdcoreError, match="delete it to start again"):
        pretrain(tiny(epochs=1, decay_epochs=(), dim=8), IMAGES, checkpoint=tmp_path / "checkpoint")
