"""Batches and training of all few-shot methods; the scores and losses of DevNet and DRA computed by hand."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from torch import Tensor

from adcore import training
from adcore.data import read_images
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features.stages import stage_parameters
from adcore.models import METHODS
from adcore.papers.atacnet.atacnet import STEPS
from adcore.papers.atacnet.few_shot import FewShot
from adcore.training import seeded

SMALL = {"backbone": "efficientnet_lite0", "taps": (3,), "image_size": 64, "epochs": 1, "steps": 2, "batch_size": 6, "lr": 1e-3}
OWN = {"devnet": {}, "dra": {"hidden": 8, "references": 2},
       "atacnet": {"smallest": 16, "window": 3, "share": 4, "statistics": "weights", "contrast": "none"}}
KINDS = ["devnet", "dra", *STEPS]     # compared methods and the steps of ATAC-Net's ablation


class PowerCutError(Exception):
    """The training stops here."""


def detector(kind: str, seed: int = 0, **changes: object) -> FewShot:
    name, step = (kind, {}) if kind in ("devnet", "dra") else ("atacnet", {"step": kind})
    return METHODS[name](METHODS[name].Config(**{**SMALL, **OWN[name], **step, **changes}), seed=seed)


@pytest.fixture(scope="module")
def few(tiny):
    """Four normal images and two anomalies, in mixed order."""
    blobs = [sample for sample in tiny.test if sample.label]
    return [tiny.train[0], blobs[0], *tiny.train[1:3], blobs[1], tiny.train[3]]


@pytest.fixture(scope="module")
def trained(few):
    """Methods trained on non-square images; no test changes them."""
    return functools.cache(lambda kind: detector(kind, image_size=(64, 96)).fit(few))


def images(count: int, h: int = 64, w: int = 96, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, h, w, generator=torch.Generator().manual_seed(seed))


# All methods.

@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_get_scores_and_maps_of_that_size(trained, kind):
    one = trained(kind)
    for size in ((64, 96), (50, 33)):
        prediction = one.predict(images(3, *size))
        assert prediction.score.shape == (3,) and prediction.map.shape == (3, *size)
        assert torch.isfinite(prediction.score).all() and torch.isfinite(prediction.map).all()
        assert not prediction.score.requires_grad and prediction.score.unique().numel() == 3
    assert len(one.losses) == 1 and len(one.normal) == 4 and len(one.anomalous) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_s_prediction_does_not_depend_on_its_batch(trained, kind):
    together, alone = trained(kind).predict(images(3)), trained(kind).predict(images(3)[1:2])
    assert float(together.score[1]) == approx(float(alone.score), rel=1e-4, abs=1e-5)
    assert torch.allclose(together.map[1], alone.map[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["devnet", "dra", "atacnet"])
def test_predicting_before_fitting_is_refused(name):
    with pytest.raises(AdcoreError, match=r"^(DevNet|DRA|ATACNet) is not trained yet: call fit before predict$"):
        detector(name).predict(images(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_is_stopped_and_resumed_gives_the_weights_of_an_uninterrupted_one(few, kind, monkeypatch, tmp_path):
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)
    whole = detector(kind, epochs=2, steps=1).fit(few)
    stopped, calls = detector(kind, epochs=2, steps=1), itertools.count()
    loss = stopped.loss

    def with_power_cut(*batch: Tensor) -> Tensor:
        if next(calls) == 1:
            raise PowerCutError
        return loss(*batch)

    stopped.loss = with_power_cut
    with pytest.raises(PowerCutError):
        stopped.fit(few, checkpoint=tmp_path / "checkpoint")
    resumed = detector(kind, epochs=2, steps=1).fit(few, checkpoint=tmp_path / "checkpoint")
    assert resumed.losses == whole.losses and len(whole.losses) == 2
    for (name, wanted), found in zip(whole.network.state_dict().items(), resumed.network.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), name
    assert any(not torch.equal(a, b) for a, b in zip(whole.network.parameters(), stopped.network.parameters(), strict=True))


def test_equal_seeds_give_equal_weights_and_batches_and_another_seed_gives_others(few):
    first, again, other = (detector("devnet", seed, steps=1).fit(few) for seed in (0, 0, 1))
    weights = [one.network["mapping"].combine.weight for one in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.allclose(weights[0], weights[2], atol=0.01)
    assert first.losses == again.losses != other.losses


@pytest.mark.parametrize(("name", "changes"), [("devnet", {}), ("dra", {}), ("atacnet", {"cutmix": "none"})])
def test_a_method_without_cutmix_refuses_to_train_without_labeled_anomalies(few, name, changes):
    normal = [sample for sample in few if not sample.label]
    with pytest.raises(ParameterError, match=rf"^{name} learns from labeled anomalies and has 0: set anomalies to 1 or more$"):
        detector(name, **changes).fit(normal)


@pytest.mark.parametrize("name", ["devnet", "dra", "atacnet"])
def test_training_without_normal_images_is_refused(few, name):
    one = detector(name)
    for samples in ([sample for sample in few if sample.label], []):
        with pytest.raises(DataError, match=rf"^{name} has no normal image to train on$"):
            one.fit(samples)


def test_an_epoch_has_steps_batches_and_all_of_them_differ(few):
    one, seen = detector("devnet", steps=3, epochs=2), []
    loss = one.loss
    one.loss = lambda *batch: (seen.append(batch), loss(*batch))[1]
    one.fit(few)
    assert len(seen) == 6 and len({float(batch.sum()) for batch, _ in seen}) == 6


def test_training_images_are_the_files_as_viewed_and_rotation_rotates_them(few):
    one = detector("devnet", rotation=0.0, epochs=0).fit(few)
    files = next(read_images(few, one.view))
    assert torch.equal(one.normal.float() / 255, files[[0, 2, 3, 5]])
    assert torch.equal(one.anomalous.float() / 255, files[[1, 4]])
    batch, labels = one.batch()
    for image, label in zip(batch, labels.tolist(), strict=True):
        assert [few[i].label for i in range(6) if torch.equal(image, files[i])] == [label]
    turned, _ = detector("devnet", epochs=0).fit(few).batch()
    assert not any(torch.equal(image, file) for image in turned for file in files) and (turned[:, :, 0, 0] == 0).any()


@pytest.mark.parametrize(("name", "size", "counts"), [("devnet", 6, [3, 3]), ("devnet", 13, [6, 6]), ("dra", 6, [2, 2, 2]),
                                                      ("dra", 20, [6, 6, 6])])
def test_batches_have_equal_parts_in_the_order_of_their_labels(name, size, counts):
    one = detector(name, batch_size=size, rotation=0.0)
    one.normal = torch.arange(1, 5, dtype=torch.uint8).view(4, 1, 1, 1) * (torch.arange(64 * 64) % 50).view(64, 64).byte() \
        .expand(4, 3, 64, 64)                                                       # up to 196
    one.anomalous = torch.full((2, 3, 64, 64), 250, dtype=torch.uint8)
    batch, labels = one.batch()
    assert labels.tolist() == [label for label, count in enumerate(counts) for _ in range(count)]
    same = [max(float((image == known.float() / 255).float().mean()) for known in one.normal) for image in batch]
    assert {s for s, label in zip(same, labels.tolist(), strict=True) if label == 0} == {1.0}
    assert (batch[labels == 1] * 255).round().eq(250).all()
    assert all(0.8 < s < 1 for s, label in zip(same, labels.tolist(), strict=True) if label == 2)   # CutMix of a normal one


@pytest.mark.parametrize("kind", ["devnet", "atacnet"])
def test_only_tuned_stages_and_new_layers_are_trained(few, kind):
    def changed(**changes: object) -> set[str]:
        one = detector(kind, **changes)
        before = {name: p.detach().clone() for name, p in one.network.named_parameters()}
        one.fit(few)
        return {name for name, p in one.network.named_parameters() if not torch.equal(p, before[name])}

    one = detector(kind)
    third = {f"extractor.network.{name}" for name in stage_parameters(one.extractor, (3,))}
    new = {name for name, _ in one.network.named_parameters() if not name.startswith("extractor")}
    tuned, everything = changed(tuned=(3,)), changed()
    assert tuned <= third | new and len(tuned & third) > 0.8 * len(third) and tuned & new
    assert "extractor.network.conv_stem.weight" in everything - tuned and everything > third


@pytest.mark.parametrize("kind", ["atacnet", "dra"])
def test_normalizing_by_the_weights_keeps_the_backbone_s_statistics_and_by_the_batch_changes_them(few, kind):
    for normalize in ("weights", "batch"):
        one = detector(kind, normalize=normalize)
        before = {name: b.clone() for name, b in one.network.named_buffers() if "running" in name}
        one.fit(few)
        moved = {name for name, b in one.network.named_buffers() if "running" in name and not torch.equal(b, before[name])}
        old = {name for name in before if name.startswith("extractor")}
        assert moved == set(before) - (old if normalize == "weights" else set()) and old < set(before)


def test_the_statistics_clip_are_clip_s_and_are_used():
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    usual, clip = (detector("devnet", statistics=statistics).extractor for statistics in ("weights", "clip"))
    assert clip.mean.flatten().tolist() == approx(mean) and clip.std.flatten().tolist() == approx(std)
    assert clip.key != usual.key
    x = images(2)
    same = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1) * usual.std + usual.mean
    with torch.no_grad():
        assert torch.allclose(clip(x)[0], usual(same)[0], atol=1e-4) and not torch.allclose(clip(x)[0], usual(x)[0], atol=1e-2)


@pytest.mark.parametrize(("name", "changes", "message"), [
    ("devnet", {"taps": (3, 4)}, r"DevNetConfig: taps=\(3, 4\) must have 1 item$"),
    ("devnet", {"batch_size": 3}, "DevNetConfig: batch_size=3 must be at least 4"),
    ("devnet", {"steps": -1}, "DevNetConfig: steps=-1 must be at least 1"),
    ("devnet", {"scales": 0}, "DevNetConfig: scales=0 must be at least 1"),
    ("devnet", {"image_size": 16, "scales": 3}, r"image_size 4x4 is smaller than the stride 8 of tap 3"),
    ("dra", {"heads": ("seen", "unseen")}, r"heads=\('seen', 'unseen'\) must be some of holistic, seen, pseudo, composite"),
    ("dra", {"heads": ()}, r"heads=\(\) must be some of"),
    ("dra", {"references": 0}, "references=0 must be at least 1"),
    ("dra", {"draw": "random"}, "draw is one of fixed, by_seed, not 'random'"),
    ("atacnet", {"step": "zoom"}, "step is one of cutmix, weighted_ce, deviation, gradcam, atacnet, not 'zoom'"),
    ("atacnet", {"threshold": 0.0}, "ATACNetConfig: threshold=0.0 must be above 0 and at most 1"),
    ("atacnet", {"made_share": 1.5}, "made_share=1.5 must be at least 0 and at most 1"),
    ("atacnet", {"window": 6}, "window=6 must be odd"),
    ("atacnet", {"window": 17}, "a window of 17 cells.*needs a grid of at least 9 cells a side, not 8x8")])
def test_invalid_settings_are_refused_by_name(name, changes, message):
    with pytest.raises(ParameterError, match=message):
        detector(name, **changes)


# DevNet and DRA by hand.

def scales(x: Tensor) -> list[Tensor]:
    """The images, and the images at half size: every second pixel, because the published code does not average."""
    return [x, x[:, :, ::2, ::2]]


def features(one: FewShot, x: Tensor) -> np.ndarray:
    with torch.no_grad():
        return one.extractor(x)[0].double().numpy()


def cells(mapping: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """|w . x + b| of each cell."""
    weight, bias = (p.detach().double().numpy() for p in mapping.combine.parameters())
    return np.abs(np.einsum("bchw,c->bhw", x, weight[0, :, 0, 0]) + bias)


def tenth(maps: np.ndarray) -> np.ndarray:
    count = max(int(maps[0].size * 0.1), 1)
    return np.sort(maps.reshape(len(maps), -1))[:, -count:].mean(1)


def enlarged(maps: list[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    return np.mean([F.interpolate(torch.from_numpy(m)[:, None], size, mode="bilinear")[:, 0].numpy() for m in maps], axis=0)


def test_devnet_s_score_is_the_mean_over_scales_of_the_top_k_score(trained):
    one, x = trained("devnet"), images(3)
    maps = [cells(one.network["mapping"], features(one, part)) for part in scales(x)]
    prediction = one.predict(x)
    assert [m.shape for m in maps] == [(3, 8, 12), (3, 4, 6)]
    assert prediction.score.tolist() == approx(np.mean([tenth(m) for m in maps], axis=0), rel=1e-4)
    assert prediction.map.numpy() == approx(enlarged(maps, (64, 96)), rel=1e-3, abs=1e-4)


def heads_by_hand(one: FewShot, x: Tensor, references: Tensor) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Score of each head, and the maps of all heads."""
    net, found, every = one.network, {"holistic": [], "seen": [], "pseudo": [], "composite": []}, []
    for part, reference in zip(scales(x), scales(references), strict=True):
        f, mean = features(one, part), features(one, reference).mean(0)
        first, second = (tuple(p.detach().double().numpy() for p in net["holistic"].layers[i].parameters()) for i in (0, 2))
        hidden = np.maximum(f.mean((2, 3)) @ first[0].T + first[1], 0)
        found["holistic"].append(np.abs(hidden @ second[0].T + second[1])[:, 0])
        with torch.no_grad():
            apart = net["composite"].convolution(torch.from_numpy(mean - f).float()).double().numpy()
        maps = [cells(net["seen"], f), cells(net["pseudo"], f), cells(net["composite"].mapping, apart)]
        for name, m in zip(("seen", "pseudo", "composite"), maps, strict=True):
            found[name].append(tenth(m))
        every += maps
    return {name: np.mean(scores, axis=0) for name, scores in found.items()}, every


def test_dra_s_score_is_the_sum_of_three_heads_minus_the_holistic_one(trained):
    one, x = trained("dra"), images(3)
    heads, maps = heads_by_hand(one, x, one.network.references)
    prediction = one.predict(x)
    by_hand = heads["seen"] + heads["pseudo"] + heads["composite"] - heads["holistic"]
    assert min(scores.min() for scores in heads.values()) > 0 and prediction.score.tolist() == approx(by_hand, rel=1e-3)
    assert prediction.map.numpy() == approx(enlarged(maps, (64, 96)), rel=1e-2, abs=1e-3)


def test_each_head_of_dra_learns_from_its_images_and_the_holistic_one_from_reversed_labels(few):
    one = detector("dra", rotation=0.0, epochs=0).fit(few)
    for name in ("seen", "pseudo", "composite"):        # scores between the targets 0 and 5, where both have a gradient
        mapping = getattr(one.network[name], "mapping", one.network[name])
        mapping.combine.weight.data *= 0.2
    labels, x = torch.tensor([0, 1, 2, 2, 0, 1]), images(6, 64, 64, seed=4)
    with seeded(7):
        found = float(one.loss(x, labels).detach())
    with seeded(7):
        heads, _ = heads_by_hand(one, x, one.pick(one.normal, 2))
        total = 0.0
        assert all(scores.min() > 0.1 and scores.max() < 4.5 for scores in heads.values())
        for name, scores in heads.items():              # random numbers are drawn head by head
            r = torch.randn(5000).double().numpy()
            seen = {"seen": [0, 1], "pseudo": [0, 2]}.get(name, [0, 1, 2])
            far = [0] if name == "holistic" else [1, 2]
            dev = [((s - r.mean()) / r.std(ddof=1), label) for s, label in zip(scores, labels.tolist(), strict=True)]
            losses = [max(0.0, 5 - d) if label in far else abs(d) for d, label in dev if label in seen]
            total += sum(losses) / len(losses)
    assert found == approx(total, rel=1e-3)


@pytest.mark.parametrize(("name", "anomalous"), [("devnet", 1 / 3), ("dra", 2 / 6 + 2 / 4 + 2 / 4 + 4 / 6), ("atacnet", 1 / 3)])
def test_a_larger_margin_adds_its_difference_for_each_image_that_should_deviate(few, name, anomalous):
    """Far above all scores, the loss of such an image is the margin minus its deviation."""
    labels, x = torch.tensor([0, 1, 2, 2, 0, 1] if name == "dra" else [0, 1, 0, 1, 0, 0]), images(6, 64, 64, seed=4)
    losses = []
    for margin in (100.0, 300.0):
        one = detector(name, margin=margin, epochs=0).fit(few)
        with seeded(7), torch.no_grad():
            losses.append(float(one.loss(x, labels)))
    assert losses[1] - losses[0] == approx(200 * anomalous, rel=1e-4)


def test_a_top_share_of_one_averages_all_cells():
    x = images(3, 64, 64)
    with torch.no_grad():
        devnet, dra, atacnet = (detector(name, top_share=1.0) for name in ("devnet", "dra", "atacnet"))
        maps = devnet.maps(x)
        assert torch.allclose(devnet.score(x).score, torch.stack([m.mean((1, 2)) for m in maps]).mean(0), rtol=1e-4)
        for name, (scores, maps) in dra.heads(x, images(2, 64, 64, seed=1)).items():
            assert name == "holistic" or torch.allclose(scores, torch.stack([m.mean((1, 2)) for m in maps]).mean(0), rtol=1e-4)
        look = atacnet.network(x)
        assert torch.allclose(look.score, look.anomaly.mean((1, 2)), rtol=1e-4)


def test_dra_s_references_are_normal_training_images_and_part_of_its_state_dict(few):
    one = detector("dra", references=3, epochs=0).fit(few)
    kept = one.network.state_dict()["references"]
    which = [[i for i, known in enumerate(one.normal) if torch.equal(image, known.float() / 255)] for image in kept]
    assert kept.shape == (3, 3, 64, 64) and len({i for (i,) in which}) == 3        # three different images
    again = detector("dra", references=3)
    again.network.load_state_dict(one.network.state_dict())
    x = images(2, 64, 64)
    with torch.no_grad():
        assert torch.equal(again.score(x).score, one.score(x).score)
    more = detector("dra", references=9, epochs=0).fit(few).network.references
    assert len(more) == 9 and len(more.flatten(1).unique(dim=0)) == 4              # there are four normal images


def test_references_that_are_drawn_at_test_are_other_rotated_training_images_for_every_batch(few, monkeypatch):
    one, seen = detector("dra", at_test="drawn", references=3, rotation=180.0, epochs=0).fit(few), []
    heads = one.heads
    monkeypatch.setattr(one, "heads", lambda x, references: (seen.append(references), heads(x, references))[1])
    x = images(2, 64, 64)
    first, second = one.predict(x), one.predict(x)
    assert not torch.allclose(first.score, second.score, rtol=1e-3) and seen[0].shape == (3, 3, 64, 64)
    assert (seen[0][:, :, 0, 0] == 0).any() and not torch.equal(seen[0], seen[1])            # black corners
    known = [set(image.flatten().tolist()) for image in one.normal.float() / 255]
    assert all(any(set(drawn.flatten().tolist()) <= colors | {0.0} for colors in known) for drawn in torch.cat(seen))
    one.fit(few)                                          # counts from the start again, so that results can be repeated
    assert torch.equal(one.predict(x).score, first.score)
    fixed = detector("dra", references=3, rotation=180.0, epochs=0).fit(few)
    assert torch.equal(fixed.predict(x).score, fixed.predict(x).score)


@pytest.mark.parametrize("heads", [("seen",), ("holistic",), ("composite", "pseudo")])
def test_some_of_dra_s_heads_can_be_trained_and_scored_alone(few, heads):
    one = detector("dra", heads=heads, steps=1).fit(few)
    assert set(one.network) == {"extractor", *heads}
    x = images(2, 64, 64)
    prediction = one.predict(x)
    with torch.no_grad():
        found = one.heads(x, one.network.references)
    sign = -1 if heads == ("holistic",) else 1
    assert tuple(found) == heads and torch.equal(prediction.score, sign * sum(scores for scores, _ in found.values()))
    assert (prediction.map is None) is (heads == ("holistic",))
