"""The identical shortcut's two numbers, on reconstructions whose answer is known, and the clean images they need."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pytest import approx
from support.reconstructions import Answer, small
from support.tiny import write_tiny

from adcore.data import load_dataset
from adcore.data.mini import clean_counterpart, is_mini
from adcore.data.mvtec import load_mvtec
from adcore.errors import ParameterError
from adcore.papers.uniad2022.shortcut import (
    clean_images,
    copied,
    covered_cells,
    error_inside,
    relative_error,
    shortcut_measures,
)


def features(seed: int):
    return torch.randn(3, 6, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def some_cells():
    cells = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(9)) < 0.4
    cells[:, 0, 0] = True
    return cells


def test_a_copy_brings_the_whole_defect_back_and_a_repair_nothing_of_it():
    defective, clean, cells = features(0), features(1), some_cells()
    for share in (1.0, 0.0, 0.25):
        rebuilt = share * defective + (1 - share) * clean
        assert copied(defective, rebuilt, clean, cells).tolist() == approx([share] * 3)
    elsewhere = clean + (~cells)[:, None] * features(2)          # what happens outside the mask does not count
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


def test_covered_cells_are_those_covered_by_half_or_else_the_one_covered_most():
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
    return [sample for sample in load_dataset("mini", ["gear"], train=1, good=1, defective=4).test if sample.label]


def test_a_clean_counterpart_equals_its_image_outside_the_mask_and_differs_inside(gears):
    for sample in gears:
        image, clean = np.asarray(sample.image).astype(int), np.asarray(clean_counterpart(sample)).astype(int)
        assert np.array_equal(image[~sample.mask], clean[~sample.mask])
        assert (np.abs(image - clean).max(2)[sample.mask] > 0).mean() > 0.9


def test_only_defective_images_of_mini_have_a_clean_counterpart(gears, tmp_path):
    assert all(is_mini(sample) for sample in gears)
    stranger = load_mvtec(write_tiny(tmp_path, categories=("gear",)), "tiny").test[-1]
    for sample in (stranger, replace(gears[0], label=0, defect="good"), replace(stranger, defect=gears[0].defect)):
        assert not is_mini(sample)
        with pytest.raises(ParameterError, match="is not a defective image of mini"):
            clean_counterpart(sample)


def test_a_detector_that_copies_is_diagnosed_as_one_and_so_is_one_that_repairs(gears, one_backbone):
    detector = small()
    detector.network = Answer()
    table = shortcut_measures(detector, gears)
    assert table["error"].max() == 0 and table["copied"].tolist() == approx([1] * 4)
    detector.network = Answer(detector.tokens(clean_images(gears, detector.view)))
    table = shortcut_measures(detector, gears)
    assert table["error"].min() > 0 and table["copied"].tolist() == approx([0] * 4, abs=1e-5)


def test_a_diagnosis_needs_masks_and_outside_mini_it_has_no_share_copied(one_backbone, tiny):
    detector = small()
    measures = detector.diagnose(list(tiny.test))
    assert set(measures) == {"error_inside", "error_normal"} and all(value > 0 for value in measures.values())
    defective = [sample for sample in tiny.test if sample.label]
    assert measures["error_inside"] == approx(float(shortcut_measures(detector, defective)["error"].mean()))
    bare = [replace(sample, mask_path=None) for sample in tiny.test]
    assert detector.diagnose(bare) == {}
    with pytest.raises(ParameterError, match="has no mask"):
        shortcut_measures(detector, [sample for sample in bare if sample.label])
