"""The numbers below Fig. S2: own patches against a slow search, pixel AUROC against scikit-learn, the mean against numpy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest import approx
from sklearn.metrics import roc_auc_score
from support.reconstructions import Answer, small
from torch import nn

from adcore.data import load_dataset
from adcore.errors import ParameterError
from adcore.papers.uniad2022.feature_decoder import seen
from adcore.papers.uniad2022.shortcut import clean_images, shortcut_measures
from adcore.papers.uniad2022.shortcut_table import mean_feature, own_patch, pixel_auroc, shortcut_row


@pytest.fixture(scope="module")
def gears():
    return load_dataset("mini", ["gear"], train=3, good=2, defective=4)


class Noisy(nn.Module):
    """Copies, and errs by an amount that differs from token to token."""

    def forward(self, tokens):
        return tokens + torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0)) * tokens.std()


def test_a_network_that_copies_has_no_error_and_finds_every_patch_again(gears, one_backbone):
    detector = small()
    detector.network = Answer()
    assert shortcut_row(detector, gears.test, seen(detector, [*gears.train, *gears.test])) == approx(
        {"error inside": 0, "copied": 1, "own patch": 1, "error on normal": 0, "pixel AUROC": 0.5}, abs=1e-6)


def test_a_repaired_image_has_its_own_patches_where_the_defect_is_not_and_nowhere_else(gears, one_backbone):
    detector = small()
    defective = [sample for sample in gears.test if sample.label]
    (features, images), clean = seen(detector, defective), clean_images(defective, detector.view)
    repaired, _ = detector.rebuild(clean)
    own = own_patch(repaired, images, (torch.cat([features, repaired]), torch.cat([images, clean])))
    touched = (images != clean).any(1).unflatten(1, (4, 16)).unflatten(3, (4, 16)).any(4).any(2)     # a cell has 16 x 16 pixels
    assert torch.equal(own, ~touched) and 0.1 < float(touched.float().mean()) < 0.9


def test_own_patches_are_those_that_a_slow_search_finds():
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(3, 5, 2, 3, generator=generator), torch.rand(3, 3, 32, 48, generator=generator)
    known[1][2, :, :16, :16] = known[1][0, :, 16:, :16]                      # two cells that look alike to the pixel
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
    assert found[0, 1, 0] and not found[1, 0, 1] and 2 < int(found.sum()) < 10, "some of both, or the search shows nothing"


def test_pixel_auroc_is_that_of_scikit_learn_over_all_pixels_of_all_images(gears, one_backbone):
    detector = small()
    images = torch.stack([detector.view.image(sample.image) for sample in gears.test])
    masks = np.stack([detector.view.mask(sample.mask).numpy() for sample in gears.test])
    wanted = roc_auc_score(masks.ravel(), detector.predict(images).map.numpy().ravel())
    assert pixel_auroc(detector, gears.test) == approx(wanted, abs=1e-6) and abs(wanted - 0.5) > 0.01


def test_errors_are_means_over_the_defective_and_over_the_normal_images(gears, one_backbone):
    detector = small()
    detector.network = Noisy()
    row = shortcut_row(detector, gears.test, seen(detector, gears.test))
    measures = shortcut_measures(detector, [sample for sample in gears.test if sample.label])
    assert row["error inside"] == approx(measures["error"].mean()) and row["copied"] == approx(measures["copied"].mean())
    normal = torch.stack([detector.view.image(sample.image) for sample in gears.test if not sample.label])
    before, after = (f.numpy() for f in detector.rebuild(normal))
    ratios = np.linalg.norm(after - before, axis=1) / np.linalg.norm(before, axis=1)
    assert row["error on normal"] == approx(ratios.mean(), rel=1e-5) != approx(row["error inside"], rel=1e-3)


def test_outside_mini_nothing_is_known_to_be_copied_and_masks_are_needed(tiny, one_backbone):
    detector = small()
    known = seen(detector, tiny.test)
    assert list(shortcut_row(detector, tiny.test, known)) == ["error inside", "own patch", "error on normal", "pixel AUROC"]
    bare = [replace(sample, mask_path=None) for sample in tiny.test]
    for ask in (lambda: shortcut_row(detector, bare, known), lambda: pixel_auroc(detector, bare)):
        with pytest.raises(ParameterError, match=r"blob/000\.png has no mask"):
            ask()
    with pytest.raises(ParameterError, match="0 normal and 3 defective images: give some of each"):
        shortcut_row(detector, [sample for sample in tiny.test if sample.label], known)


def test_the_mean_feature_answers_every_image_with_the_mean_and_leaves_its_detector_alone(gears, one_backbone):
    detector = small()
    network = detector.network
    features, _ = seen(detector, gears.train)
    yardstick = mean_feature(detector, features)
    images = torch.stack([detector.view.image(sample.image) for sample in gears.test[:2]])
    before, after = yardstick.rebuild(images)
    assert before.numpy() == approx(detector.rebuild(images)[0].numpy())
    assert after.numpy() == approx(np.stack([features.numpy().mean(0)] * 2), abs=1e-6)
    assert detector.network is network and yardstick.network is not network
    row = shortcut_row(yardstick, gears.test, seen(detector, gears.test))
    assert row["own patch"] < 0.5, "of all images one, at most, lends its patch to a place"
