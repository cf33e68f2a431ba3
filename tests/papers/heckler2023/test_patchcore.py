"""PatchCore compared with slow loops: patch features, bank, distances; and its memory with the estimate."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from adcore import kernels
from adcore.data import read_images
from adcore.errors import AdcoreError, ParameterError
from adcore.models import PatchCore, PatchCoreConfig
from adcore.papers.heckler2023 import patchcore
from adcore.papers.heckler2023.patchcore import neighborhood_features, smoothed

SMALL = {"backbone": "efficientnet_lite0", "taps": (2, 3), "image_size": 64, "crop": None, "embed_dim": 0, "coreset": 0.25}


pytestmark = pytest.mark.usefixtures("one_backbone")


def detector(seed: int = 0, **changes: object) -> PatchCore:
    return PatchCore(PatchCoreConfig(**{**SMALL, **changes}), seed=seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def neighborhood(plane: np.ndarray, y: int, x: int) -> list[float]:
    """The 3 x 3 values around a cell, zeros outside the border."""
    h, w = plane.shape
    return [plane[v, u] if 0 <= v < h and 0 <= u < w else 0.0 for v in range(y - 1, y + 2) for u in range(x - 1, x + 2)]


def averaged_down(values: list[float], n: int) -> list[float]:
    """n means over stretches that cover the list, as torch documents adaptive average pooling."""
    edges = [(i * len(values) // n, -(-(i + 1) * len(values) // n)) for i in range(n)]
    return [sum(values[low:high]) / (high - low) for low, high in edges]


def resized(plane: np.ndarray, h: int, w: int) -> np.ndarray:
    """Bilinear interpolation between the centers of cells."""
    def along(line: np.ndarray, n: int) -> np.ndarray:
        return np.interp((np.arange(n) + 0.5) * len(line) / n - 0.5, np.arange(len(line)), line)
    across = np.stack([along(row, w) for row in plane])
    return np.stack([along(across[:, x], h) for x in range(w)], axis=1)


def test_without_embedding_a_patch_is_the_mean_of_its_neighborhood_channel_by_channel():
    first, second = normal(2, 3, 5, 6), normal(2, 4, 3, 2, seed=1)
    found = neighborhood_features([first, second], 0).numpy()
    assert found.shape == (2, 3 + 4, 5, 6)
    for b in range(2):
        for c in range(7):
            plane = (first[b, c] if c < 3 else second[b, c - 3]).numpy()
            mean = np.array([sum(neighborhood(plane, y, x)) / 9 for y, x in np.ndindex(*plane.shape)]).reshape(plane.shape)
            np.testing.assert_allclose(found[b, c], resized(mean, 5, 6), atol=1e-12)


@pytest.mark.parametrize("embed_dim", [7, 12, 27, 40])
def test_with_embedding_a_patch_is_its_unfolded_neighborhoods_averaged_down_tap_by_tap_and_then_together(embed_dim):
    maps = [normal(1, 3, 4, 5), normal(1, 4, 2, 3, seed=1)]
    found = neighborhood_features(maps, embed_dim)[0].numpy()
    embedded = []
    for m in (m[0].numpy() for m in maps):
        h, w = m.shape[1:]
        cells = np.array([[averaged_down([v for plane in m for v in neighborhood(plane, y, x)], embed_dim) for x in range(w)]
                          for y in range(h)])
        embedded.append(np.stack([resized(cells[..., i], 4, 5) for i in range(embed_dim)], axis=-1))
    joined = np.concatenate(embedded, axis=-1)
    wanted = np.array([[averaged_down(list(joined[y, x]), embed_dim) for x in range(5)] for y in range(4)])
    np.testing.assert_allclose(found, wanted.transpose(2, 0, 1), atol=1e-12)


@pytest.mark.parametrize(("coreset", "kept"), [(0.25, 384), (0.1, 153), (50, 50), (10**6, 1536), (1.0, 1536), (0.0001, 1)])
def test_the_bank_keeps_a_fraction_of_the_patches_or_a_number_of_them(tiny, coreset, kept):
    # Six images of 64 pixels; stride 4 at stage 2; stages 2 and 3 have 24 and 40 channels.
    assert 6 * (64 // 4) ** 2 == 1536
    assert detector(coreset=coreset).fit(tiny.train).bank.shape == (kept, 24 + 40)


@pytest.mark.parametrize(("size", "crop"), [(64, None), ((64, 96), None), ((67, 93), None), (80, 61), (96, (40, 72))])
@pytest.mark.parametrize("embed_dim", [0, 8])
def test_the_estimated_memory_equals_the_size_of_the_patches(size, crop, embed_dim):
    core = detector(image_size=size, crop=crop, embed_dim=embed_dim)
    features = core.features(core.extractor(torch.rand(3, 3, *core.view.shape)))
    assert core.memory(3)["patches"] == features.numel() * features.element_size()


def test_the_estimated_memory_includes_the_projected_patches_and_the_bank(tiny, monkeypatch):
    core, seen = detector(projection=32, coreset=0.25), []

    def watched(points, *rest, **more):
        seen.append(points)
        return kernels.kcenter(points, *rest, **more)

    monkeypatch.setattr(patchcore, "kcenter", watched)
    core.fit(tiny.train)
    memory = core.memory(len(tiny.train))
    assert memory == {"patches": 1536 * 64 * 4, "projected": seen[0].numel() * 4, "distances": 1536 * 3 * 4,
                      "bank": core.bank.numel() * 4}
    # Nothing is projected if the features are narrow already or if all are kept.
    assert detector(projection=64, coreset=0.25).memory(6)["projected"] == 0
    all_kept = detector(projection=32, coreset=1.0).memory(6)
    assert all_kept["projected"] == all_kept["distances"] == 0


def test_a_bank_over_the_memory_limit_is_refused_before_anything_is_computed(tiny, monkeypatch):
    memory = detector(projection=32).memory(6)
    assert memory["patches"] == 6 * 16 * 16 * (24 + 40) * 4 and memory["projected"] == 6 * 16 * 16 * 32 * 4
    held = memory["distances"] + memory["bank"]                 # on a CPU, the patches and their projections are files
    detector(projection=32, max_bank_bytes=held).fit(tiny.train)
    core = detector(projection=32, max_bank_bytes=held - 1)
    with pytest.raises(ParameterError, match=r"bank of 6 images takes 0\.0 GiB \(distances 0\.0, bank 0\.0\), "
                                             r"over max_bank_bytes=0\.0 GiB: keep fewer patches \(coreset\), use a smaller"):
        core.fit(tiny.train)
    assert core.bank is None
    core = detector(projection=32, max_bank_bytes=sum(memory.values()) - 1)
    monkeypatch.setattr(core, "device", torch.device("cuda"))   # on a GPU, all is in its memory
    with pytest.raises(ParameterError, match=r"takes 0\.0 GiB \(patches 0\.0, projected 0\.0, distances 0\.0, bank 0\.0\)"):
        core.fit(tiny.train)


def test_on_a_cpu_the_selection_reads_the_patches_from_the_cache_s_file(tiny, monkeypatch):
    stored, compute = [], patchcore.cached_features
    monkeypatch.setattr(patchcore, "cached_features", lambda *some, **more: stored.append(compute(*some, **more)) or stored[-1])
    core = detector(projection=64)                              # as wide as the patches, so nothing is projected
    monkeypatch.setattr(patchcore, "kcenter", lambda points, *_, **more: stored.append(points) or torch.arange(9))
    core.fit(tiny.train)
    assert stored[1].shape == (1536, 64) and stored[1].data_ptr() == stored[0].data_ptr()       # no copy


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("neighbors", [1, 3])
def test_the_score_is_the_largest_patch_distance_and_the_map_has_all_distances(tiny, neighbors, squared):
    core = detector(neighbors=neighbors, squared=squared, sigma=0.0).fit(tiny.train)
    images = next(read_images(tiny.test[-2:], core.view))
    found = core.predict(images)
    bank = core.bank.double().numpy()
    queries = core.features(core.extractor(images)).double().numpy()
    for features, score, plane in zip(queries, found.score, found.map, strict=True):
        distances = np.zeros(features.shape[1:])
        for y, x in np.ndindex(*distances.shape):
            lengths = ((bank - features[:, y, x]) ** 2).sum(1)
            lengths = lengths if squared else np.sqrt(lengths)
            distances[y, x] = np.sort(lengths)[:neighbors].mean()
        assert float(score) == pytest.approx(distances.max(), rel=1e-4)
        np.testing.assert_allclose(plane.numpy(), resized(distances, 64, 64), rtol=1e-3, atol=1e-3)


# A kernel of 4 sigma + 0.5 pixels: it ends inside the map, at its border, and far beyond it, several mirrors away.
@pytest.mark.parametrize(("size", "sigma"), [((40, 64), 4.0), ((31, 33), 2.5), ((16, 17), 4.0), ((5, 3), 4.0), ((1, 9), 1.0),
                                             ((12, 12), 0.3)])
def test_the_smoothing_equals_scipy_s_gaussian_filter_up_to_the_border(size, sigma):
    maps = normal(2, 1, *size)
    expected = np.stack([ndimage.gaussian_filter(plane, sigma, mode="reflect", truncate=4) for plane in maps[:, 0].numpy()])
    np.testing.assert_allclose(smoothed(maps, sigma)[:, 0].numpy(), expected, atol=1e-14)
    np.testing.assert_allclose(smoothed(maps.float(), sigma)[:, 0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", [2.0, 9.0])
def test_the_map_is_smoothed_by_a_gaussian_with_the_given_deviation_and_the_score_is_not(tiny, sigma):
    sharp, smooth = (detector(sigma=deviation).fit(tiny.train) for deviation in (0.0, sigma))
    images = next(read_images(tiny.test[-1:], sharp.view))
    plane, found = sharp.predict(images), smooth.predict(images)
    expected = ndimage.gaussian_filter(plane.map[0].double().numpy(), sigma)
    np.testing.assert_allclose(found.map[0].numpy(), expected, rtol=1e-5)
    assert torch.equal(found.score, plane.score)


def test_training_patches_are_at_distance_zero_when_the_bank_keeps_everything(tiny):
    core = detector(coreset=1.0).fit(tiny.train)
    found = core.predict(next(read_images(tiny.train, core.view)))
    assert float(found.score.max()) < 1e-6
    assert float(core.predict(next(read_images(tiny.test[-3:], core.view))).score.min()) > 1


@pytest.mark.parametrize("size", [(64, 64), (50, 97), (131, 33)])
def test_maps_have_the_size_of_the_images(tiny, size):
    found = detector().fit(tiny.train).predict(torch.rand(2, 3, *size))
    assert found.map.shape == (2, *size) and found.score.shape == (2,)
    assert bool(torch.isfinite(found.map).all())


def test_a_defect_scores_higher_than_any_normal_image_and_its_map_is_higher_inside(tiny):
    core = detector(sigma=2.0).fit(tiny.train)
    found = core.predict(next(read_images(tiny.test, core.view)))
    labels = np.array([sample.label for sample in tiny.test])
    assert found.score[labels == 1].min() > found.score[labels == 0].max()
    for sample, plane in zip(tiny.test, found.map.numpy(), strict=True):
        if sample.label:
            assert plane[sample.mask].mean() > 1.5 * plane[~sample.mask].mean()


def test_predict_before_fit_is_refused():
    with pytest.raises(AdcoreError, match=r"^PatchCore has no bank yet: call fit before predict$"):
        detector().predict(torch.rand(1, 3, 64, 64))


def test_equal_seeds_keep_equal_patches_and_another_seed_keeps_others(tiny):
    torch.manual_seed(0)
    first = detector(seed=1, projection=16).fit(tiny.train).bank
    torch.manual_seed(1)
    again, other = (detector(seed=seed, projection=16).fit(tiny.train).bank for seed in (1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_bank_consists_of_patches_of_the_training_images(tiny):
    core = detector(coreset=20).fit(tiny.train)
    patches = core.features(core.extractor(next(read_images(tiny.train, core.view)))).permute(0, 2, 3, 1).flatten(0, 2)
    nearest_of_each = torch.cdist(core.bank.double(), patches.double()).amin(1)
    assert float(nearest_of_each.max()) < 1e-3 and len(torch.unique(core.bank, dim=0)) == 20


def test_each_setting_of_the_features_gives_a_bank_of_its_own_though_all_share_one_cache(tiny):
    for settings in ({}, {"embed_dim": 8}, {"embed_dim": 16}, {"taps": (3, 2)}, {"taps": (2,)}, {"image_size": 48},
                     {"image_size": 80, "crop": 64}, {"image_size": 64, "crop": 48}):
        core = detector(coreset=1.0, **settings).fit(tiny.train)
        patches = core.features(core.extractor(next(read_images(tiny.train, core.view)))).permute(0, 2, 3, 1).flatten(0, 2)
        assert core.bank.shape == patches.shape and torch.allclose(core.bank, patches, rtol=1e-3, atol=1e-3), settings


def handed_over(core: PatchCore, patches: Tensor, keep: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor]:
    """What the greedy selection gets: points, and their distances to begin with."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(points: Tensor, keep: int, *, initial: Tensor, **more: object) -> Tensor:
        seen.append((points, initial))
        return kernels.kcenter(points, keep, initial=initial, **more)

    monkeypatch.setattr(patchcore, "kcenter", watched)
    core._coreset(patches, keep, False)
    return seen[0]


@pytest.mark.parametrize("starts", [1, 2, 5, 12, 40])
def test_the_selection_begins_with_the_mean_distance_to_as_many_random_patches_as_set(monkeypatch, starts):
    patches = normal(12, 4).float()
    _, initial = handed_over(detector(starts=starts), patches, 3, monkeypatch)
    used = min(starts, 12)
    distances = torch.cdist(patches, patches)
    # Of all choices of so many patches, exactly one explains these distances.
    explained = [subset for subset in itertools.combinations(range(12), used)
                 if torch.allclose(distances[:, list(subset)].mean(1), initial, atol=1e-5)]
    assert len(explained) == 1
    _, others = handed_over(detector(1, starts=starts), patches, 3, monkeypatch)
    assert used == 12 or not torch.allclose(initial, others)         # another seed, other patches


def test_the_first_distances_are_the_same_when_they_are_computed_in_parts(monkeypatch):
    patches = normal(30, 4).float()
    whole = handed_over(detector(), patches, 3, monkeypatch)[1]
    monkeypatch.setattr(patchcore, "PART", 7)
    assert torch.allclose(handed_over(detector(), patches, 3, monkeypatch)[1], whole, atol=1e-3)


@pytest.mark.parametrize(("width", "projected"), [(7, False), (8, False), (9, True)])
def test_only_patches_wider_than_the_projection_are_projected(monkeypatch, width, projected):
    patches = normal(30, width).float()
    points, _ = handed_over(detector(projection=8), patches, 3, monkeypatch)
    assert points.shape == (30, min(width, 8)) and torch.equal(points, patches) is not projected


def test_the_coreset_covers_the_patches_better_than_a_random_choice(tiny):
    core = detector(coreset=60).fit(tiny.train)
    patches = core.features(core.extractor(next(read_images(tiny.train, core.view)))).permute(0, 2, 3, 1).flatten(0, 2)
    some = patches[torch.randperm(len(patches), generator=torch.Generator().manual_seed(0))[:60]]
    radius, at_random = (float(torch.cdist(patches, centers).amin(1).max()) for centers in (core.bank, some))
    assert radius < at_random and not math.isnan(radius)


def test_the_defaults_are_the_settings_of_the_published_code():
    paper = PatchCoreConfig()
    assert (paper.image_size, paper.crop, paper.embed_dim, paper.coreset) == (256, 224, 1024, 0.1)
    assert (paper.projection, paper.starts, paper.neighbors, paper.squared, paper.sigma) == (128, 10, 1, True, 4.0)
