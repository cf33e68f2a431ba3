"""Localization with the Gaussian density, against patches cut by hand and scikit-learn's Gaussian."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pytest import approx
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from torch import nn

from adcore.data import View, read_images
from adcore.data.split import draw
from adcore.errors import AdcoreError, DataError, ParameterError
from adcore.models import GDE, METHODS, GDEConfig
from adcore.papers.ds2 import localization
from adcore.papers.ds2.localization import PatchDensity, PatchDensityConfig
from adcore.papers.ds2.upsampling import receptive_upsample

SMALL = {"image_size": 40, "patch": 16, "stride": 8}


class Simple(PatchDensity):
    """An encoder of one convolution, drawn from the seed."""

    name = "simple"
    Config = PatchDensityConfig

    def __init__(self, config=None, *, device="cpu", seed=0):
        super().__init__(config, device=device, seed=seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = nn.Conv2d(3, 6, 5, 2).eval()

    @property
    def encoder(self):
        return self.network


def simple(**changes) -> Simple:
    return Simple(PatchDensityConfig(**{**SMALL, **changes}))


def cut(detector: PatchDensity, images: torch.Tensor, side: int = 16, stride: int = 8) -> np.ndarray:
    """(n, N, D) by a loop over patches."""
    features = []
    for image in images:
        for top in range(0, image.shape[1] - side + 1, stride):
            for left in range(0, image.shape[2] - side + 1, stride):
                patch = image[None, :, top:top + side, left:left + side]
                with torch.no_grad():
                    features.append(F.normalize(detector.encoder(patch).mean((2, 3)), dim=1)[0])
    return torch.stack(features).double().numpy().reshape(len(images), -1, features[0].numel())


def test_defaults_are_those_of_the_published_evaluation():
    c = PatchDensityConfig()
    assert (c.image_size, c.patch, c.stride) == (256, 32, 4)
    assert GDE.Config is GDEConfig and simple(image_size=256, patch=32, stride=4).grid == (57, 57)
    most = {name: localization.published_images(name) for name in ("mvtec_ad", "mvtec_384", "mvtec_loco", "mtd", "ksdd2")}
    assert most == {"mvtec_ad": 350, "mvtec_384": 350, "mvtec_loco": 350, "mtd": 1000, "ksdd2": 1000}


@pytest.mark.parametrize("layout", ["aligned", "pooled"])
def test_distances_are_scikit_learn_s_and_the_map_is_their_receptive_upsampling(tiny, layout):
    detector = simple(layout=layout, dims=3).fit(tiny.train)
    (train,), (test,) = (list(read_images(samples, View(40))) for samples in (tiny.train, tiny.test[:3]))
    normal, found = cut(detector, train), cut(detector, test)
    if layout == "pooled":
        normal, found = normal.reshape(1, -1, 6), found.reshape(1, -1, 6)
    else:
        normal, found = normal.transpose(1, 0, 2), found.transpose(1, 0, 2)
    distances = []
    for here, there in zip(normal, found, strict=True):
        reduced = PCA(3).fit(here)
        density = LedoitWolf().fit(reduced.transform(here))
        distances.append(np.sqrt(density.mahalanobis(reduced.transform(there))))
    expected = np.stack(distances, 1).reshape(3, 4, 4) if layout == "aligned" else distances[0].reshape(3, 4, 4)
    assert detector.distances(test).numpy() == approx(expected, rel=2e-3)
    prediction = detector.predict(test)
    assert prediction.score.numpy() == approx(expected.reshape(3, -1).max(1), rel=2e-3)
    assert prediction.map.numpy() == approx(receptive_upsample(torch.from_numpy(expected), 16, 8).numpy(), rel=2e-3)


@pytest.mark.parametrize(("patch", "stride", "dims"), [(8, 4, 2), (24, 8, 4), (16, 12, 3)])
def test_patch_stride_and_dimensions_reach_the_features_the_density_and_the_map(tiny, patch, stride, dims):
    detector = simple(patch=patch, stride=stride, dims=dims).fit(tiny.train)
    (train,), (test,) = (list(read_images(samples, View(40))) for samples in (tiny.train, tiny.test[:2]))
    normal, found = (cut(detector, images, patch, stride).reshape(-1, 6) for images in (train, test))
    reduced = PCA(dims).fit(normal)
    distances = np.sqrt(LedoitWolf().fit(reduced.transform(normal)).mahalanobis(reduced.transform(found)))
    side = (40 - patch) // stride + 1
    expected = distances.reshape(2, side, side)
    assert detector.density.axes.shape == (1, 6, dims) and detector.distances(test).numpy() == approx(expected, rel=2e-3)
    assert detector.predict(test).map.numpy() == approx(receptive_upsample(torch.from_numpy(expected), patch, stride).numpy(),
                                                        rel=2e-3)


def by_pillow(pixels: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Each channel (..., H, W) resized by Pillow's bilinear filter, which is antialiased and does not align corners."""
    channels = [np.asarray(Image.fromarray(one.numpy()).resize((w, h), Image.Resampling.BILINEAR))
                for one in pixels.flatten(0, -3)]
    return torch.from_numpy(np.stack(channels)).unflatten(0, pixels.shape[:-2])


@pytest.mark.parametrize("size", [(31, 77), (80, 20), (100, 120)])
def test_images_of_another_size_are_resized_and_their_maps_resized_back(tiny, size):
    detector = simple().fit(tiny.train)
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    found, own = detector.predict(images), detector.predict(by_pillow(images, 40, 40).clamp(0, 1))
    assert found.score.numpy() == approx(own.score.numpy(), rel=1e-3)
    assert found.map.numpy() == approx(by_pillow(own.map[:, None], *size)[:, 0].numpy(), rel=5e-3)


def test_images_of_any_size_get_maps_of_their_own_size(tiny):
    detector = simple(image_size=(40, 56)).fit(tiny.train)
    assert detector.grid == (4, 6)
    prediction = detector.predict(torch.rand(2, 3, 31, 77))
    assert prediction.map.shape == (2, 31, 77) and bool(torch.isfinite(prediction.map).all())


@pytest.mark.parametrize(("dataset", "category", "aligned"), [
    ("mvtec_ad", "bottle", True), ("mvtec_ad", "screw", True), ("mvtec_ad", "carpet", False), ("mtd", "magnetic_tile", False),
    ("mvtec_loco", "juice_bottle", True), ("mvtec_loco", "screw_bag", False), ("mini", "chip", True),
    ("mini", "capsule", False),
    # Folders that hold a published data set, at any size, and parts of joined data sets.
    ("mvtec", "bottle", True), ("mvtec_anomaly_detection", "bottle", True), ("mvtec_384", "bottle", True),
    ("mvtec_ad_512", "bottle", True), ("mini", "mini/chip", True), ("mvtec_384", "mvtec_384/bottle", True),
    # Data sets that the paper has no rule for, although their categories have the same names.
    ("mine", "bottle", False), ("mvtec_mine", "bottle", False), ("my_mvtec", "bottle", False), ("mvtec_384b", "bottle", False),
    ("mini", "bottle", False), ("mvtec_ad", "chip", False), ("mine", "mvtec_ad/bottle", False), ("", "bottle", False)])
def test_the_published_layout_depends_on_the_data_set_and_the_category(dataset, category, aligned):
    assert simple().is_aligned(dataset, category) is aligned
    assert simple(layout="aligned").is_aligned(dataset, category) and not simple(layout="pooled").is_aligned(dataset, category)


def test_hazelnut_and_screw_are_aligned_for_ds2_and_not_for_cutpaste():
    ours, theirs = METHODS["ds2"].aligned_categories, METHODS["cutpaste"].aligned_categories
    assert ours["mvtec_ad"] - theirs["mvtec_ad"] == {"hazelnut", "screw"} and ours["mini"] == theirs["mini"]


def test_equal_images_get_equal_densities_whatever_their_category_is_called(tiny):
    bottle = [replace(sample, category="bottle") for sample in tiny.train]
    first, second = (simple().fit(samples).density for samples in (tiny.train, bottle))
    assert len(first.mean) == 1 and torch.equal(first.mean, second.mean)
    published = [replace(sample, dataset="mvtec_ad") for sample in bottle]
    assert len(simple().fit(published).density.mean) == len(simple(layout="aligned").fit(tiny.train).density.mean) == 16


def test_the_density_is_fitted_to_density_images_images(tiny):
    few, all_of_them, more = (simple(layout="aligned", density_images=n).fit(tiny.train) for n in (3, 6, 100))
    by_hand = simple(layout="aligned").fit(draw(tiny.train, 3)[0])
    assert torch.equal(few.density.mean, by_hand.density.mean)
    assert torch.equal(all_of_them.density.mean, more.density.mean) and not torch.equal(few.density.mean, more.density.mean)


def test_features_too_large_for_memory_are_encoded_twice_with_the_same_result(tiny, monkeypatch):
    whole = simple().fit(tiny.train)
    encoded, read = [], localization.read_images
    monkeypatch.setattr(localization, "read_images",
                        lambda samples, *rest: encoded.append(len(samples)) or read(samples, *rest))
    monkeypatch.setattr(localization, "IN_MEMORY", 100)
    parts = simple().fit(tiny.train)
    assert encoded == [1, 6, 6]
    assert torch.allclose(whole.density.variances, parts.density.variances, rtol=1e-5)
    encoded.clear()
    simple(layout="aligned").fit(tiny.train)                                            # needs all at once
    assert encoded == [1, 6]


def test_sameness_is_one_if_the_features_have_collapsed(tiny):
    detector = simple().fit(tiny.train)
    (train,) = read_images(tiny.train, View(40))
    assert detector.diagnose(tiny.test)["sameness"] == approx(np.linalg.norm(cut(detector, train).mean((0, 1))), rel=1e-5)
    assert detector.diagnose(tiny.test)["sameness"] < 0.99995
    with torch.no_grad():
        detector.encoder.weight.zero_()
    assert detector.fit(tiny.train).diagnose(tiny.test)["sameness"] == approx(1, abs=1e-6)
    assert simple().diagnose(tiny.test) == {}


def test_official_masks_change_the_view_and_the_default_does_not():
    assert simple(official_masks=True).view == View((40, 40), whole_masks=True)
    assert simple().view == View((40, 40))


@pytest.mark.parametrize(("changes", "message"), [
    ({"stride": 7}, "do not end at the border of images of 40x40"), ({"patch": 64}, "patches of 64x64 pixels"),
    ({"dims": -1}, r"^PatchDensityConfig: dims=-1 must be at least 0$"),
    ({"layout": "turned"}, "layout is one of published, aligned, pooled")])
def test_impossible_settings_are_refused_in_one_sentence(changes, message):
    with pytest.raises(ParameterError, match=message):
        simple(**changes)


def test_bad_input_gets_one_sentence(tiny):
    with pytest.raises(AdcoreError, match="has no density yet"):
        simple().predict(torch.rand(1, 3, 40, 40))
    with pytest.raises(DataError, match="of one category, not of none"):
        simple().fit([])
    with pytest.raises(ParameterError, match="lower dims or give more images"):
        simple(layout="aligned", dims=6).fit(tiny.train)
    with pytest.raises(ParameterError, match="NaN"):
        simple().fit(tiny.train).predict(torch.full((1, 3, 40, 40), float("nan")))


def test_gde_takes_the_average_of_a_backbone_s_map_at_each_patch(tiny):
    detector = GDE(GDEConfig(backbone="resnet18", weights="random", image_size=48, stride=16), seed=3).fit(tiny.train)
    (images,) = read_images(tiny.train[:2], View(48))
    by_hand = F.normalize(detector.encoder.network(images[:1, :, 16:48, :32])[0].mean((2, 3)), dim=1)
    assert torch.allclose(detector.encode_patches(images)[0, 2], by_hand[0], atol=1e-5)
    assert detector.weights_digest == "random-3" and detector.encode_patches(images).shape == (2, 4, 512)


def test_gde_s_tap_and_backbone_decide_the_encoder():
    dims = {tap: GDE(GDEConfig(backbone="resnet18", weights="random", image_size=48, stride=16, tap=tap)).encode_patches(
        torch.rand(1, 3, 48, 48)).shape[2] for tap in (2, 4)}
    assert dims == {2: 128, 4: 512}


def test_gde_refuses_patches_smaller_than_a_tap_s_stride():
    with pytest.raises(ParameterError, match="smaller than the stride 32"):
        GDE(GDEConfig(backbone="resnet18", weights="random", image_size=32, patch=16, stride=4))
