"""Measures of the identical shortcut, on reconstructions for which the numbers are known; pixel AUROC against scikit-learn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest import approx
from sklearn.metrics import roc_auc_score
from support.reconstructions import Answer, small
from support.tiny import write_tiny
from torch import nn

from adcore.data import load_dataset
from adcore.data.mini import clean_counterpart, is_mini
from adcore.data.mvtec import load_mvtec
from adcore.errors import ParameterError
from adcore.papers.uniad2022.shortcut import (
    clean_images,
    copied,
    covered_cells,
    diagnose,
    error_inside,
    mean_feature,
    own_patch,
    pixel_auroc,
    relative_error,
    shortcut_measures,
    shortcut_row,
)


def features(seed: int):
    return torch.randn(3, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_cells():
    cells = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(9)) < 0.4
    cells[:, 0, 0] = True
    return cells


def test_copied_is_one_for_a_copy_zero_for_a_repair_and_the_fraction_between():
    defective, clean, cells = features(0), features(1), some_cells()
    for fraction in (1.0, 0.0, 0.25):
        rebuilt = fraction * defective + (1 - fraction) * clean
        assert copied(defective, rebuilt, clean, cells).tolist() == approx([fraction] * 3)
    elsewhere = clean + (~cells)[:, None] * features(2)          # cells outside the mask do not count
    assert copied(defective, elsewhere, clean, cells).tolist() == approx([0] * 3)


def test_the_error_inside_is_the_mean_relative_error_of_the_covered_cells():
    before, after, cells = features(0), features(1), some_cells()
    for i in range(3):
        wanted = [np.linalg.norm((after - before)[i, :, y, x]) / np.linalg.norm(before[i, :, y, x])
                  for y in range(4) for x in range(5) if cells[i, y, x]]
        assert float(error_inside(before, after, cells)[i]) == approx(np.mean(wanted))
    assert float(error_inside(before, before, cells).max()) == 0
    assert relative_error(before, torch.zeros_like(before)).numpy() == approx(1)
    assert bool(torch.isfinite(relative_error(torch.zeros_like(before), after)).all())


def test_covered_cells_are_those_covered_by_half_or_if_there_are_none_the_one_covered_most():
    masks = torch.zeros(2, 32, 48, dtype=torch.bool)
    masks[0, :16, :24] = True                                    # one cell whole, half of its right neighbor
    masks[1, 20:23, 40:44] = True                                # a speck
    cells = covered_cells(masks, (2, 3))
    assert cells[0].tolist() == [[True, True, False], [False] * 3]
    assert cells[1].tolist() == [[False] * 3, [False, False, True]]
    with pytest.raises(ParameterError, match="mask 1 of the batch is empty"):
        covered_cells(torch.stack([masks[0], torch.zeros_like(masks[0])]), (2, 3))


@pytest.fixture(scope="module")
def gears():
    return load_dataset("mini", ["gear"], train=3, good=2, defective=4)


@pytest.fixture(scope="module")
def defective(gears):
    return [sample for sample in gears.test if sample.label]


def test_a_clean_counterpart_equals_its_image_outside_the_mask_and_differs_inside(defective):
    for sample in defective:
        image, clean = np.asarray(sample.image).astype(int), np.asarray(clean_counterpart(sample)).astype(int)
        assert np.array_equal(image[~sample.mask], clean[~sample.mask])
        assert (np.abs(image - clean).max(2)[sample.mask] > 0).mean() > 0.9


def test_only_defective_images_of_mini_have_a_clean_counterpart(defective, tmp_path):
    assert all(is_mini(sample) for sample in defective)
    stranger = load_mvtec(write_tiny(tmp_path, categories=("gear",)), "tiny").test[-1]
    for sample in (stranger, replace(defective[0], label=0, defect="good"), replace(stranger, defect=defective[0].defect)):
        assert not is_mini(sample)
        with pytest.raises(ParameterError, match="is not a defective image of mini"):
            clean_counterpart(sample)


def test_shortcut_measures_tell_a_detector_that_copies_from_one_that_repairs(defective, one_backbone):
    detector = small()
    detector.network = Answer()
    table = shortcut_measures(detector, defective)
    assert table["error"].max() == 0 and table["copied"].tolist() == approx([1] * 4)
    detector.network = Answer(detector.tokens(clean_images(defective, detector.view)))
    table = shortcut_measures(detector, defective)
    assert table["error"].min() > 0 and table["copied"].tolist() == approx([0] * 4, abs=1e-5)


def test_diagnose_needs_masks_and_gives_the_fraction_copied_for_mini_only(one_backbone, tiny):
    detector = small()
    measures = detector.diagnose(list(tiny.test))
    assert measures == diagnose(detector, tiny.test)
    assert set(measures) == {"error_inside", "error_normal"} and all(value > 0 for value in measures.values())
    defective = [sample for sample in tiny.test if sample.label]
    assert measures["error_inside"] == approx(float(shortcut_measures(detector, defective)["error"].mean()))
    bare = [replace(sample, mask_path=None) for sample in tiny.test]
    assert detector.diagnose(bare) == {}
    with pytest.raises(ParameterError, match="has no mask"):
        shortcut_measures(detector, [sample for sample in bare if sample.label])


# --- networks compared on one category ----------------------------------------------------------------------------------

class Noisy(nn.Module):
    """Copies with an error that differs from token to token."""

    def forward(self, tokens):
        return tokens + torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)) * tokens.std()


def test_a_network_that_copies_has_no_error_and_finds_every_own_patch(gears, one_backbone):
    detector = small()
    detector.network = Answer()
    assert shortcut_row(detector, gears.test, detector.extract([*gears.train, *gears.test])) == approx(
        {"error inside": 0, "copied": 1, "own patch": 1, "error on normal": 0, "pixel AUROC": 0.5}, abs=1e-6)


def test_a_repaired_image_has_its_own_patches_exactly_in_the_cells_without_defect(defective, one_backbone):
    detector = small()
    (features, images), clean = detector.extract(defective), clean_images(defective, detector.view)
    repaired, _ = detector.rebuild(clean)
    own = own_patch(repaired, images, (torch.cat([features, repaired]), torch.cat([images, clean])))
    touched = (images != clean).any(1).unflatten(1, (4, 16)).unflatten(3, (4, 16)).any(4).any(2)     # a cell has 16 x 16 pixels
    assert torch.equal(own, ~touched) and 0.1 < float(touched.float().mean()) < 0.9


def test_own_patches_equal_those_of_a_slow_search():
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(3, 5, 2, 3, generator=generator), torch.rand(3, 3, 32, 48, generator=generator)
    known[1][2, :, :16, :16] = known[1][0, :, 16:, :16]                      # two cells with equal pixels
    features = known[0][:2] + 1.2 * torch.randn(2, 5, 2, 3, generator=generator)
    features[0, :, 1, 0] = known[0][2, :, 0, 0]
    known[1][2, :, :16, 16:32] = known[1][1, :, :16, 16:32] / 2              # the same patch, but for its first pixel
    known[1][2, :, 0, 16] = known[1][1, :, 0, 16]                            # at half its brightness
    features[1, :, 0, 1] = known[0][2, :, 0, 1]
    found = own_patch(features, known[1][:2], known)

    def patch(i, y, x):
        return known[1][i, :, 16 * y:16 * y + 16, 16 * x:16 * x + 16]

    places = [(i, y, x) for i in range(3) for y in range(2) for x in range(3)]
    for i, y, x in places[:12]:
        nearest = min(places, key=lambda at: float((known[0][at[0], :, at[1], at[2]] - features[i, :, y, x]).norm()))
        assert bool(found[i, y, x]) is bool((patch(*nearest) == patch(i, y, x)).all())
    assert found[0, 1, 0] and not found[1, 0, 1] and 2 < int(found.sum()) < 10, "cells of both kinds, or the test shows nothing"


def test_pixel_auroc_is_that_of_scikit_learn_over_all_pixels_of_all_images(gears, one_backbone):
    detector = small()
    images = torch.stack([detector.view.image(sample.image) for sample in gears.test])
    masks = np.stack([detector.view.mask(sample.mask).numpy() for sample in gears.test])
    wanted = roc_auc_score(masks.ravel(), detector.predict(images).map.numpy().ravel())
    assert pixel_auroc(detector, gears.test) == approx(wanted, abs=1e-6) and abs(wanted - 0.5) > 0.01


def test_errors_are_means_over_the_defective_and_over_the_normal_images(gears, defective, one_backbone):
    detector = small()
    detector.network = Noisy()
    row = shortcut_row(detector, gears.test, detector.extract(gears.test))
    measures = shortcut_measures(detector, defective)
    assert row["error inside"] == approx(measures["error"].mean()) and row["copied"] == approx(measures["copied"].mean())
    normal = torch.stack([detector.view.image(sample.image) for sample in gears.test if not sample.label])
    before, after = (f.numpy() for f in detector.rebuild(normal))
    ratios = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert row["error on normal"] == approx(ratios.mean(), rel=1e-5) != approx(row["error inside"], rel=1e-3)


def test_a_row_needs_masks_and_both_kinds_of_images_and_has_no_copied_outside_mini(tiny, one_backbone):
    detector = small()
    known = detector.extract(tiny.test)
    assert list(shortcut_row(detector, tiny.test, known)) == ["error inside", "own patch", "error on normal", "pixel AUROC"]
    bare = [replace(sample, mask_path=None) for sample in tiny.test]
    for ask in (lambda: shortcut_row(detector, bare, known), lambda: pixel_auroc(detector, bare)):
        with pytest.raises(ParameterError, match=r"blob/000\.png has no mask"):
            ask()
    with pytest.raises(ParameterError, match="0 normal and 3 defective images: give some of each"):
        shortcut_row(detector, [sample for sample in tiny.test if sample.label], known)


def test_the_mean_feature_reconstructs_every_image_as_the_mean_and_leaves_its_detector_unchanged(gears, one_backbone):
    detector = small()
    network = detector.network
    features, _ = detector.extract(gears.train)
    constant = mean_feature(detector, features)
    images = torch.stack([detector.view.image(sample.image) for sample in gears.test[:2]])
    before, after = constant.rebuild(images)
    assert before.numpy() == approx(detector.rebuild(images)[0].numpy())
    assert after.numpy() == approx(np.stack([features.numpy().mean(0)] * 2), abs=1e-6)
    assert detector.network is network and constant.network is not network
    row = shortcut_row(constant, gears.test, detector.extract(gears.test))
    assert row["own patch"] < 0.5, "for each cell one image at most has the nearest patch"
