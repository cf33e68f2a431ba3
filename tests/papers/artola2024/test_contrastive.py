"""Contrastive fine-tuning: the loss compared with a slow loop, what training changes, negatives, resumed runs, messages."""

from __future__ import annotations

import math
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from pytest import approx
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

from adcore.data import PHOTOGRAPHS, read_images
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.features import FeatureExtractor
from adcore.features.stages import stage_parameters
from adcore.models import METHODS, Contrastive, ContrastiveConfig
from adcore.papers.artola2024.negatives import find_negatives, photograph_crops

SMALL = {"backbone": "efficientnet_lite0", "taps": (3,), "image_size": 64, "dim": 6, "components": 2, "epochs": 1,
         "batch_size": 3, "cells": 0, "lr": 1e-3, "negatives": "photographs", "held_out": 0.3,
         "smallest_crop": 0.25}


def detector(seed: int = 0, **changes: object) -> Contrastive:
    return Contrastive(ContrastiveConfig(**{**SMALL, **changes}), seed=seed)


@pytest.fixture(scope="module")
def untouched(tiny):
    """A mixture of untouched features; no test changes it."""
    return detector(epochs=0).fit(tiny.train)


@pytest.fixture(scope="module")
def images(tiny):
    return next(iter(read_images(tiny.train, detector().view)))


def log_density(one: Contrastive, points: np.ndarray) -> np.ndarray:
    """log GMM(u) with scipy, one component at a time."""
    m = one.network.mixture
    return logsumexp([math.log(w) + multivariate_normal(mean, cov, allow_singular=True).logpdf(points) for w, mean, cov in zip(
        m.weights.double().numpy(), m.means.double().numpy(), m.covariances.double().numpy(), strict=True)], axis=0)


def cells(one: Contrastive, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return one.network(images).flatten(0, 2).double().numpy()


# The loss.

@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize(("alpha", "shift"), [(0.2, 1.0), (0.5, 40.0)])
def test_the_loss_is_the_mean_of_eq_2_over_positives_plus_that_of_eq_4_over_negatives(
        untouched, images, alpha, shift, filtered):
    one = detector(alpha=alpha, filter=filtered, volume="given", log_volume=float(untouched.network.log_volume) + shift)
    one.network.mixture = untouched.network.mixture
    negatives = untouched.negatives(images, generator=torch.Generator().manual_seed(1))
    found = float(one.contrastive_loss(images, negatives).detach())
    inlier = {kind: (1 - alpha) * np.exp(log_density(one, cells(one, x)) + one.config.log_volume)
              for kind, x in (("+", images), ("-", negatives))}                    # both densities times L
    positive = [-math.log(p / (p + alpha)) for p in inlier["+"]]
    least = sorted(inlier["-"])[:math.ceil(0.1 * len(inlier["-"]))]
    outside = [p for p in inlier["-"] if p < alpha]
    sent = inlier["-"] if not filtered else outside if len(outside) >= len(least) else least
    negative = [-math.log(alpha / (p + alpha)) for p in sent]
    assert found == approx(sum(positive) / len(positive) + sum(negative) / len(negative), rel=1e-3)
    assert filtered is (0 < len(sent) < len(inlier["-"])) and one._measured["passing"] == approx(len(sent) / len(inlier["-"]))


def test_negatives_that_the_filter_stops_send_no_gradient(untouched, images):
    negatives = untouched.negatives(images, generator=torch.Generator().manual_seed(1))
    gradients = {}
    for filtered in (True, False):
        one = detector(filter=filtered, volume="given", log_volume=float(untouched.network.log_volume))
        one.network.mixture = untouched.network.mixture
        kept: list[torch.Tensor] = []
        one.network.register_forward_hook(lambda module, inputs, out, kept=kept: (out.retain_grad(), kept.append(out))[0])
        one.contrastive_loss(images, negatives).backward()
        gradients[filtered] = kept[1].grad.flatten(0, 2).norm(dim=1)
        u = kept[1].detach().flatten(0, 2)
    outside = torch.from_numpy(log_density(untouched, u.double().numpy())) + untouched.network.log_volume < 0
    assert 0.1 < outside.float().mean() < 0.9
    assert gradients[True][~outside].max() == 0 and gradients[False][~outside].min() > 0
    # The mean is over fewer negatives, so each of them weighs more.
    scaled = gradients[False][outside] * len(outside) / outside.sum()
    assert gradients[True][outside].numpy() == approx(scaled.numpy(), rel=1e-4)


def test_the_gradient_of_a_weight_equals_finite_differences_of_the_loss(untouched, images):
    one = detector(volume="given", log_volume=float(untouched.network.log_volume), filter=False)
    one.network.load_state_dict(untouched.network.state_dict())
    one.network.double()
    images = images.double()
    negatives = untouched.negatives(images, generator=torch.Generator().manual_seed(1))
    name, weight = [(n, p) for n, p in one.network.named_parameters() if p.requires_grad][-1]
    one.contrastive_loss(images, negatives).backward()
    values = []
    for step in (1e-6, -1e-6):
        with torch.no_grad():
            weight.flatten()[0] += step
            values.append(float(one.contrastive_loss(images, negatives)))
            weight.flatten()[0] -= step
    assert float(weight.grad.flatten()[0]) == approx((values[0] - values[1]) / 2e-6, rel=1e-4), name


def test_the_loss_uses_the_configured_number_of_cells_per_batch(untouched, images):
    one = detector(cells=50, volume="given", log_volume=float(untouched.network.log_volume))
    one.network.mixture = untouched.network.mixture
    one.contrastive_loss(images, images)
    assert one._positive.shape == (50, 6)
    assert len(torch.unique(one._positive, dim=0)) == 50


# What training changes.

def test_only_tuned_stages_change_and_batch_norms_keep_their_statistics(tiny):
    one = detector(taps=(2, 3), tuned=(3,))
    before = {name: value.clone() for name, value in one.network.extractor.state_dict().items()}
    one.fit(tiny.train)
    changed = {name for name, value in one.network.extractor.state_dict().items() if not torch.equal(value, before[name])}
    stages = {name.split(".")[2] for name in changed if ".blocks." in name}
    assert stages == {"2"} and all(name.startswith("network.blocks.2.") for name in changed)   # timm's third of seven
    assert not any("running" in name or "num_batches" in name for name in changed)
    trained = {f"network.{name}" for name, p in one.network.extractor.network.named_parameters() if p.requires_grad}
    assert trained == {f"network.{name}" for name in stage_parameters(one.network.extractor, (3,))} >= changed


def test_stages_are_consecutive_parameters_of_the_network_and_the_stem_belongs_to_the_first():
    with torch.device("meta"):
        extractor = FeatureExtractor("resnet18", (1, 2, 3), "random")
    names = [name for name, _ in extractor.network.named_parameters()]
    assert stage_parameters(extractor, (2, 3)) == [name for name in names if name.startswith(("layer2", "layer3"))]
    assert stage_parameters(extractor, (1, 2, 3)) == names and "conv1.weight" in stage_parameters(extractor, (1,))
    with torch.device("meta"):
        extractor = FeatureExtractor("efficientnet_lite0", (4,), "random")
    assert {name.split(".")[1] for name in stage_parameters(extractor, (4,))} == {"3", "4"}    # stage 4 ends with blocks.4


def test_without_an_epoch_features_are_unchanged_and_the_map_is_minus_the_log_density(untouched, images):
    frozen = FeatureExtractor("efficientnet_lite0", (3,))
    (maps,) = frozen(images)
    u = torch.einsum("bchw,cd->bhwd", maps, untouched.network.projection)
    assert (u - untouched.network(images)).abs().max() < 1e-4
    by_hand = -log_density(untouched, u.flatten(0, 2).detach().double().numpy()).reshape(len(images), 8, 8)
    prediction = untouched.predict(images)
    assert prediction.score.numpy() == approx(by_hand.max((1, 2)), rel=1e-3) and prediction.map.shape == (6, 64, 64)
    center = prediction.map[:, 3::8, 3::8].numpy() / 2 + prediction.map[:, 4::8, 4::8].numpy() / 2
    assert np.corrcoef(center.ravel(), by_hand.ravel())[0, 1] > 0.98
    assert untouched.predict(torch.rand(1, 3, 40, 90)).map.shape == (1, 40, 90) and untouched.history.empty


def test_images_that_are_not_square_and_taps_of_several_grids_are_concatenated_on_the_first_grid(tiny):
    one = detector(image_size=(64, 96), taps=(3, 4), dim=5).fit(tiny.train)
    assert one.network(torch.rand(2, 3, 64, 96)).shape == (2, 8, 12, 5) and one._positive.shape == (3 * 96, 5)
    deeper = {name.split(".")[1] for name, p in one.network.extractor.network.named_parameters() if p.requires_grad}
    assert deeper == {"2", "3", "4"} and one.predict(torch.rand(2, 3, 50, 70)).map.shape == (2, 50, 70)


def test_the_mixture_follows_the_features_with_the_configured_step(tiny, images):
    one = detector(gamma=0.3, batch_size=6, lr=1e-9)                     # one step; the features hardly change
    one.fit(tiny.train)
    u, before = torch.from_numpy(cells(one, images)), detector(epochs=0).fit(tiny.train).network.mixture
    r = before.responsibilities(u.float()).double()
    for name, batch in (("s0", r.mean(0)), ("s1", r.T @ u / len(u))):
        expected = 0.7 * getattr(before, name) + 0.3 * batch
        assert getattr(one.network.mixture, name).numpy() == approx(expected.numpy(), rel=1e-4, abs=1e-4)
    falling = detector(gamma=0.0, batch_size=6, lr=1e-9).fit(tiny.train).network.mixture       # 2^-0.6 at the first step
    expected = (1 - 2**-0.6) * before.s0 + 2**-0.6 * r.mean(0)
    assert falling.s0.numpy() == approx(expected.numpy(), rel=1e-4)


def test_after_fine_tuning_the_mixture_fits_the_features_better_than_the_initial_mixture(tiny, images, untouched):
    one = detector(epochs=6, gamma=0.2).fit(tiny.train)
    u = torch.from_numpy(cells(one, images)).float()
    assert (u - torch.from_numpy(cells(untouched, images)).float()).abs().mean() > 0.05
    assert one.network.mixture(u).mean() > untouched.network.mixture(u).mean() + 0.3


def test_history_has_one_row_per_step_with_the_gradient_norm_before_clipping_and_clipped_steps_are_small(tiny, untouched):
    free, clipped = detector().fit(tiny.train), detector(clip_norm=1e-9).fit(tiny.train)
    assert list(free.history) == ["positive", "negative", "gradient", "passing", "outside"] and len(free.history) == 2
    assert free.history.gradient[0] == approx(clipped.history.gradient[0], rel=1e-5) and free.history.gradient[0] > 1e-3
    row = free.history.iloc[:2]
    assert free.losses[0] == approx((row.positive + row.negative).mean(), rel=1e-5)
    assert np.isfinite(free.history.to_numpy()).all()

    def moved(one: Contrastive) -> float:
        """Mean change of a fine-tuned weight. Adam hardly moves one whose gradient is far below its epsilon of 1e-8."""
        pairs = zip(one.network.extractor.parameters(), untouched.network.extractor.parameters(), strict=True)
        return float(torch.cat([(a - b).detach().abs().flatten() for a, b in pairs if a.requires_grad]).mean())

    assert moved(free) > 1e-4 and moved(clipped) < 1e-5


def test_without_the_filter_all_negatives_pass_and_the_first_gradient_is_larger(tiny):
    with_it, without = (detector(filter=f, dim=3).fit(tiny.train).history for f in (True, False))
    assert without.gradient[0] > 1.3 * with_it.gradient[0] and (without.passing == 1).all()
    assert with_it.passing.to_list() == approx(with_it.outside.clip(0.1).to_list(), abs=0.01)


def test_fine_tuning_moves_held_out_negatives_out_of_the_mixture_and_keeps_normal_cells_inside(tiny):
    normal = [sample for sample in tiny.test if not sample.label]
    positive, negative = detector(epochs=0, dim=3).fit(tiny.train).misclassification(normal)
    assert positive.shape == negative.shape == (3 * 64,) and min(positive.min(), negative.min()) >= 0
    after = detector(epochs=12, dim=3).fit(tiny.train)
    positive_after, negative_after = after.misclassification(normal)
    assert negative.mean() > 0.3 and negative_after.mean() < 0.05
    assert positive_after.mean() < 0.1 < positive.mean() < 0.25
    measured = after.diagnose(tiny.test)
    assert measured == {"misclassified_positive": approx(positive_after.mean()),
                        "misclassified_negative": approx(negative_after.mean())}


def test_misclassification_of_given_images_is_the_posterior_of_the_wrong_class(untouched, images, tiny):
    positive, negative = untouched.misclassification(tiny.train, images)
    assert positive + negative == approx(np.ones(6 * 64), abs=1e-5)     # the same images as positives and negatives
    p = np.exp(log_density(untouched, cells(untouched, images)) + float(untouched.network.log_volume))
    assert positive == approx(1 / (1 + p), abs=1e-4)


# Runs.

def test_a_resumed_run_ends_with_equal_weights_mixture_and_history(tiny, tmp_path):
    whole = detector(epochs=3).fit(tiny.train, checkpoint=tmp_path / "a")
    detector(epochs=1).fit(tiny.train, checkpoint=tmp_path / "b")
    resumed = detector(epochs=3).fit(tiny.train, checkpoint=tmp_path / "b")
    a, b = whole.network.state_dict(), resumed.network.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a if isinstance(a[k], torch.Tensor))
    assert whole.history.equals(resumed.history) and len(whole.history) == 6 and whole.losses == resumed.losses
    done = detector(epochs=3).fit(tiny.train, checkpoint=tmp_path / "a")       # nothing is left to do
    assert torch.equal(done.predict(torch.ones(1, 3, 64, 64) / 2).map, whole.predict(torch.ones(1, 3, 64, 64) / 2).map)


def test_equal_seeds_give_equal_numbers_and_another_seed_gives_others(tiny):
    first, again, other = (detector(seed).fit(tiny.train).history for seed in (0, 0, 1))
    assert first.equals(again) and not np.isclose(first.negative, other.negative).any()


def test_fitting_does_not_change_the_callers_random_state(tiny):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    detector().fit(tiny.train)
    assert torch.equal(torch.rand(1), expected)


def test_pca_projects_on_the_directions_in_which_untouched_features_vary_most(tiny, images):
    one = detector(reduction="pca", epochs=0).fit(tiny.train)
    with torch.no_grad():
        x = FeatureExtractor("efficientnet_lite0", (3,))(images)[0].permute(0, 2, 3, 1).flatten(0, 2).double().numpy()
    values = np.linalg.svd(x - x.mean(0), compute_uv=False)[:6] ** 2 / len(x)
    u = cells(one, images)
    assert np.cov(u.T, bias=True) == approx(np.diag(values), rel=2e-2, abs=2e-2 * values[0])
    assert np.abs(u.mean(0)).max() < 1e-2 * math.sqrt(values[0])


# Negatives.

@pytest.mark.parametrize("method", ["monge_kantorovich", "diagonal", "none"])
def test_negatives_have_the_colors_of_the_image_at_the_same_place_in_the_batch(untouched, images, method):
    one = detector(transport=method)
    one.photographs, one.colors = untouched.photographs, untouched.colors
    negatives = one.negatives(images, generator=torch.Generator().manual_seed(2))
    crops = photograph_crops(one.photographs.train, 6, (64, 64), 0.25, torch.Generator().manual_seed(2))
    assert torch.equal(negatives, crops) is (method == "none")
    pixels = negatives.double().flatten(2).numpy()
    goal = images.double().flatten(2).numpy()
    for p, g in zip(pixels, goal, strict=True):
        same_mean = np.allclose(p.mean(1), g.mean(1), atol=1e-3)
        same_spread = np.allclose(p.std(1), g.std(1), rtol=0.02)
        close = np.allclose(np.cov(p), np.cov(g), atol=0.02 * np.cov(g).max())
        assert (same_mean and same_spread) is (method != "none")
        if method == "monge_kantorovich":
            assert close


def test_negatives_take_the_colors_of_the_category_or_are_interpolated_by_rho(untouched, images):
    pixels = {}
    for name, changes in (("category", {"target": "category"}), ("half", {"rho": 0.5}), ("none", {"transport": "none"}),
                          ("image", {})):
        one = detector(**changes)
        one.photographs, one.colors = untouched.photographs, untouched.colors
        pixels[name] = one.negatives(images, generator=torch.Generator().manual_seed(2))
    whole = images.permute(1, 0, 2, 3).flatten(1)
    for p in pixels["category"].flatten(2):
        assert p.mean(1).tolist() == approx(whole.mean(1).tolist(), abs=2e-3)
    assert (pixels["half"] - (pixels["none"] + pixels["image"]) / 2).abs().max() < 1e-4


def test_a_crop_is_a_window_of_its_photograph_with_the_given_aspect_and_size(tmp_path):
    rows, columns = np.mgrid[0:200, 0:240]
    Image.fromarray(np.stack([rows, columns, 0 * rows], -1).astype(np.uint8)).save(tmp_path / "a.png")
    seen = photograph_crops([str(tmp_path / "a.png")], 64, (30, 60), 0.5, torch.Generator().manual_seed(0)) * 255
    step = seen.diff(dim=2)[:, 0, 2:-2, 2:-2].mean((1, 2)), seen.diff(dim=3)[:, 1, 2:-2, 2:-2].mean((1, 2))
    assert step[0].tolist() == approx(step[1].tolist(), abs=0.05)        # the aspect ratio is kept
    assert step[0].min() >= 1.98 and step[0].max() <= 4.02              # 60 columns of 120 to 240
    assert step[0].min() < 2.3 and step[0].max() > 3.7
    assert seen[:, 0].max() > 190 and seen[:, 0].min() < 5 and seen[:, 1].min() < 5 and seen[:, 1].max() > 230


def test_held_out_photographs_are_always_the_same_and_never_trained_on(tmp_path, monkeypatch):
    packaged = find_negatives("photographs")
    assert sorted(packaged.train + packaged.held_out) == sorted(PHOTOGRAPHS) and len(packaged.held_out) == 1
    for i in range(10):
        folder = tmp_path / "imagenet" / f"n{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (i, i, i)).save(folder / f"{i}.png")
    (tmp_path / "imagenet" / "list.txt").write_text("no image")
    os.mkfifo(tmp_path / "imagenet" / "pipe.png")  # which would wait for a writer
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    found = find_negatives("imagenet", 0.3)
    assert found == find_negatives("imagenet", 0.3) and (len(found.train), len(found.held_out)) == (7, 3)
    assert len({*found.train, *found.held_out}) == 10
    assert found.train + found.held_out != tuple(sorted(found.train + found.held_out))
    below = find_negatives("imagenet/n1")
    assert all("/n1/" in name for name in below.train + below.held_out)


# Messages.

def test_missing_photographs_are_reported_with_where_to_put_them(tiny, tmp_path, nothing_here):
    sentence = ("negatives 'imagenet' are not here: put photographs, ImageNet's or any others, into a folder imagenet below "
                "ADCORE_DATA, or set negatives='photographs' for the few that come with installed packages")
    with pytest.raises(DataError, match=f"^{re.escape(sentence)}$"):
        detector(negatives="imagenet").fit(tiny.train)
    with pytest.raises(DataError, match=r"hold no image: give a folder of at least two"):
        find_negatives(str(tmp_path))
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"hold one image: give a folder of at least two"):
        find_negatives(str(tmp_path))


def test_inputs_that_cannot_be_fitted_are_refused(tiny):
    with pytest.raises(ParameterError, match=r"^dim=41 is more than the 40 channels of taps \(3,\) of efficientnet_lite0: "):
        detector(dim=41)
    with pytest.raises(ParameterError, match="384 points cannot start 385 components"):
        detector(components=385).fit(tiny.train)
    with pytest.raises(AdcoreError, match="call fit first"):
        detector().negatives(torch.zeros(1, 3, 64, 64))
    with pytest.raises(AdcoreError, match="call fit before predict or misclassification"):
        detector().misclassification(tiny.test[:1])
    with pytest.raises(AdcoreError, match="call fit before predict or misclassification"):
        detector().predict(torch.zeros(1, 3, 64, 64))
    with pytest.raises(DataError, match="no image to fine-tune on"):
        detector().fit([])
    with pytest.raises(ParameterError, match=r"stage 4 of backbone .* comes after the last of the taps \(3,\)"):
        detector(tuned=(4,))
    with pytest.raises(ParameterError, match=r"stage 'blocks\.2' .* cannot be fine-tuned: set tuned to some .* 1, 2, 3, 4, 5"):
        detector(taps=("blocks.2",))


@pytest.mark.parametrize(("changes", "says"), [
    ({"alpha": 1.0}, "alpha=1.0"), ({"gamma": 1.5}, "gamma=1.5"), ({"rho": -0.1}, "rho=-0.1"), ({"dim": 0}, "dim=0"),
    ({"filter_share": 0.0}, "filter_share=0.0"), ({"held_out": 1.0}, "held_out=1.0"), ({"cells": -1}, "cells=-1"),
    ({"log_volume": 3.0}, "is used only with volume='given'"),
    ({"transport": "mk"}, "transport is one of diagonal, monge_kantorovich, none"),
])
def test_a_setting_outside_its_range_is_refused_by_the_config(changes, says):
    with pytest.raises(ParameterError, match=re.escape(says)):
        ContrastiveConfig(**changes)


def test_quick_and_default_settings_are_accepted_as_plain_values():
    config = ContrastiveConfig.make({**Contrastive.quick, "taps": [3]})
    assert config.taps == (3,) and ContrastiveConfig.make(config.values()) == config
    assert ContrastiveConfig().negatives == "imagenet" and (ContrastiveConfig().taps, ContrastiveConfig().lr) == ((2, 3), 1e-5)
    assert METHODS["contrastive"] is Contrastive and not Contrastive.pooled


def test_a_device_without_float64_is_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    message = "^contrastive keeps its mixture in float64, which device mps does not have: use device=cpu$"
    with pytest.raises(ParameterError, match=message):
        Contrastive(device="mps")
