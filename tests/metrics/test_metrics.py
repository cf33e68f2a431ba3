"""Metrics against scikit-learn, against a slow loop over every threshold and region, and against values computed on paper."""

import itertools
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from sklearn.metrics import average_precision_score, roc_auc_score

from adcore.errors import ParameterError
from adcore.metrics import Scores, _blocks, aupro, auroc, average_precision, image_scores, pixel_scores

# ---------------------------------------------------------------- slow, independent code


def regions_by_hand(mask, diagonal):
    """Connected regions of a mask as sets of (y, x), by flooding."""
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy or dx) and (diagonal or not (dy and dx))]
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    regions = []
    while left:
        region, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            region.add((y, x))
            for dy, dx in steps:
                if (y + dy, x + dx) in left:
                    left.remove((y + dy, x + dx))
                    edge.append((y + dy, x + dx))
        regions.append(region)
    return regions


def aupro_by_hand(masks, maps, limit, diagonal=True):
    """Every distinct threshold, every region, by counting; trapezoids, the last one cut at the limit."""
    thresholds = sorted({float(v) for image in maps for v in image.ravel()}, reverse=True)
    normal = sum(int((mask == 0).sum()) for mask in masks)
    regions = [(i, region) for i, mask in enumerate(masks) for region in regions_by_hand(mask, diagonal)]
    curve = [(0.0, 0.0)]
    for threshold in thresholds:
        wrong = sum(int(((image >= threshold) & (mask == 0)).sum()) for mask, image in zip(masks, maps, strict=True))
        overlap = [sum(maps[i][pixel] >= threshold for pixel in region) / len(region) for i, region in regions]
        curve.append((wrong / normal, sum(overlap) / len(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 >= limit:
            break
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@st.composite
def tied_scores(draw):
    """Labels with both classes, and scores on few levels."""
    n = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(lambda values: 0 < sum(values) < n))
    levels = draw(st.integers(1, 8))
    scores = draw(st.lists(st.integers(-levels, levels), min_size=n, max_size=n))
    return np.array(labels), np.array(scores, dtype=draw(st.sampled_from([np.float32, np.float64])))


@st.composite
def maps_with_ties(draw):
    """Up to four images of different sizes, a mask and a map on few levels each; at least one region, one normal."""
    masks, maps = [], []
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.integers(1, 40))
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.tuples(st.integers(2, 7), st.integers(2, 7)))
        masks.append((rng.random(shape) < draw(st.sampled_from([0.0, 0.2, 0.5]))).astype(np.uint8))
        maps.append(rng.integers(0, levels, shape).astype(np.float32) + draw(st.sampled_from([0, 0.25])) * masks[-1])
    masks[0][0, 0], masks[0][-1, -1] = 1, 0
    return masks, maps


# ---------------------------------------------------------------- against other code


@given(tied_scores())
def test_auroc_and_ap_equal_scikit_learn_on_heavily_tied_scores(case):
    labels, scores = case
    found = image_scores(labels, scores)
    assert found.auroc == approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.ap == approx(average_precision_score(labels, scores), abs=1e-12)
    assert found.aupro is None
    assert (auroc(labels, scores), average_precision(labels, scores)) == (found.auroc, found.ap)


@settings(deadline=None)
@given(maps_with_ties(), st.sampled_from([0.05, 0.3, 0.77, 1.0]), st.sampled_from([4, 8]))
def test_aupro_equals_the_region_by_region_loop(case, limit, connectivity):
    masks, maps = case
    expected = aupro_by_hand(masks, maps, limit, diagonal=connectivity == 8)
    assert aupro(masks, maps, limit, connectivity) == approx(expected, abs=1e-12)


@settings(deadline=None)
@given(maps_with_ties())
def test_pixel_auroc_and_ap_pool_all_pixels_of_all_images(case):
    masks, maps = case
    found = pixel_scores(masks, maps)
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert found.auroc == approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.ap == approx(average_precision_score(labels, scores), abs=1e-12)
    assert found.aupro == aupro(masks, maps)


def test_two_hundred_thousand_pixels_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(20, 100, 100)).astype(np.float32)
    masks = np.zeros((20, 100, 100), bool)
    masks[::2, 20:50, 30:70] = True
    maps[masks] += 1
    found = pixel_scores(masks, maps)
    assert found.auroc == approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert found.ap == approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)


@settings(deadline=None)
@given(maps_with_ties(), st.integers(1, 60))
def test_sorting_the_normal_scores_in_blocks_changes_no_bit_of_the_scores(case, block):
    masks, maps = case
    at_once = pixel_scores(masks, maps)
    blocks = mock.Mock(side_effect=lambda pairs, least: _blocks(pairs, block))
    with mock.patch("adcore.metrics._blocks", blocks):
        assert pixel_scores(masks, maps) == at_once
    assert blocks.called


def test_images_of_float32_and_float64_are_pooled_without_rounding_either():
    rng = np.random.default_rng(1)
    masks = rng.random((6, 9, 9)) < 0.2
    maps = [rng.normal(size=(9, 9)).astype([np.float32, np.float64][i % 2]) for i in range(6)]
    maps[0][~masks[0]] += np.float32(1)
    maps[1][~masks[1]] += 1e-12
    assert pixel_scores(masks, maps) == pixel_scores(masks, np.array(maps, np.float64))


def test_metrics_take_memory_for_a_block_of_normal_scores_and_for_the_anomalous_ones(tmp_path):
    """The maps of ten times as many normal images, mapped from a file, take no more."""
    def peak(images: int) -> int:
        maps = np.memmap(tmp_path / f"{images}", np.float32, "w+", shape=(images, 64, 64))
        maps[:] = np.random.default_rng(0).normal(size=maps.shape)
        masks = np.memmap(tmp_path / f"{images} masks", bool, "w+", shape=maps.shape)
        masks[:50, :20, :20] = True
        tracemalloc.start()
        pixel_scores(masks, maps)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with mock.patch("adcore.metrics.BLOCK", 2**16):
        assert peak(500) == approx(peak(50), rel=0.1)


# ---------------------------------------------------------------- on paper


def test_a_perfect_map_scores_one_in_every_metric():
    mask = np.zeros((8, 8), int)
    mask[1:3, 1:3] = mask[5:7, 4:8] = 1
    assert pixel_scores([mask], [mask.astype(np.float32)]) == Scores(1.0, 1.0, 1.0)


def test_aupro_of_a_constant_map_is_half_the_limit():
    mask = np.zeros((10, 10), int)
    mask[2:4, 2:4] = 1
    found = pixel_scores([mask], [np.full((10, 10), 0.7)], limit=0.3)
    assert found.aupro == approx(0.15, abs=1e-15)          # the curve is the diagonal: (0.3 * 0.3 / 2) / 0.3
    assert found.auroc == 0.5
    assert found.ap == approx(4 / 100, abs=1e-15)          # all pixels enter at once: precision = fraction of anomalies


def test_a_small_region_has_the_same_weight_as_a_large_one():
    mask = np.zeros((10, 10), int)
    mask[0:4, 0:5] = 1                                     # 20 pixels, all found
    mask[9, 9] = 1                                         # 1 pixel, never found
    image = np.zeros((10, 10))
    image[0:4, 0:5] = 1
    image[9, 9] = -1
    assert aupro([mask], [image]) == approx(0.5, abs=1e-15)


def test_diagonal_neighbors_are_one_region_under_8_and_two_under_4_connectivity():
    mask = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 0]])     # the corner pixel found, the pair of pixels not
    image = np.array([[2, 0, 0], [0, -1, -1], [0, 0, 0.0]])
    assert aupro([mask], [image], connectivity=8) == approx(1 / 3, abs=1e-15)
    assert aupro([mask], [image], connectivity=4) == approx(1 / 2, abs=1e-15)


def test_regions_in_images_of_different_sizes_have_the_same_weight():
    small, large = np.zeros((4, 4), int), np.zeros((40, 50), int)
    small[1, 1] = 1
    large[10:30, 10:30] = 1
    maps = [small.astype(float), np.where(large == 1, -1.0, 0.0)]
    assert aupro([small, large], maps) == approx(0.5, abs=1e-15)


@given(tied_scores())
def test_negated_scores_have_one_minus_the_auroc_and_it_is_not_flipped(case):
    labels, scores = case
    assert auroc(labels, -scores) == approx(1 - auroc(labels, scores), abs=1e-12)


def test_the_auroc_of_scores_in_reverse_order_is_zero():
    assert auroc([0, 0, 1, 1], [4, 3, 2, 1]) == 0.0


# ---------------------------------------------------------------- properties


@settings(deadline=None)
@given(maps_with_ties(), st.sampled_from([0.05, 0.3, 1.0]))
def test_aupro_lies_between_0_and_1_and_does_not_change_under_strictly_increasing_transforms(case, limit):
    masks, maps = case
    found = pixel_scores(masks, maps, limit=limit)
    assert found.aupro is not None and 0 <= found.aupro <= 1
    for transform in (lambda x: x * 0.5 - 3, np.exp, lambda x: np.cbrt(x - 5)):
        assert pixel_scores(masks, [transform(m.astype(np.float64)) for m in maps], limit=limit) == found


# ---------------------------------------------------------------- inputs


@pytest.mark.parametrize("convert", [
    np.float16, np.float32, np.float64, np.uint8, lambda a: torch.tensor(a, dtype=torch.float32),
    lambda a: torch.tensor(a, dtype=torch.bfloat16), lambda a: torch.tensor(a, dtype=torch.float64, requires_grad=True),
    lambda a: [torch.tensor(image) for image in a], lambda a: [image[:, ::-1][:, ::-1] for image in a],
], ids=["float16", "float32", "float64", "uint8", "tensor", "bfloat16", "with gradient", "list of tensors", "strided"])
def test_arrays_tensors_and_lists_of_any_kind_give_the_same_numbers(convert):
    rng = np.random.default_rng(3)
    masks = (rng.random((3, 9, 7)) < 0.2).astype(np.uint8)
    maps = rng.integers(0, 50, (3, 9, 7))
    expected = pixel_scores(masks, maps)
    assert pixel_scores(masks, convert(maps)) == expected
    assert pixel_scores(torch.tensor(masks), convert(maps)) == expected
    assert pixel_scores(list(masks.astype(bool)), convert(maps)) == expected
    assert pixel_scores(masks.astype(np.float32), convert(maps)) == expected


def test_scores_that_differ_only_in_float64_are_not_tied():
    assert auroc([0, 1], np.array([1.0, 1.0 + 1e-12])) == 1.0
    masks = [np.array([[0, 1]]), np.array([[0, 0]])]
    maps = [np.array([[1.0, 1.0 + 1e-12]]), np.array([[0, 0]], np.float32)]        # mixed precisions compare as float64
    assert pixel_scores(masks, maps).auroc == 1.0


@pytest.mark.parametrize("kind", ["int32", "int64", "uint32", "uint64"])
def test_large_integers_that_float32_would_round_to_one_number_are_not_tied(kind):
    scores = np.array([2**24, 2**24 + 1, 2**24 + 2, 2**24 + 3], kind)
    assert image_scores([0, 1, 0, 1], scores).auroc == 0.75 and image_scores([0, 0, 1, 1], scores).auroc == 1
    mask = np.array([[False, True], [False, True]])
    assert pixel_scores([mask], scores.reshape(1, 2, 2)).auroc == 0.75


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "float16"])
def test_numbers_of_two_bytes_are_compared_exactly(kind):
    assert image_scores([0, 1, 0, 1], np.array([1, 2, 3, 4], kind)).auroc == 0.75


def test_minus_zero_ties_with_zero():
    assert auroc([0, 1], [0.0, -0.0]) == 0.5


def test_inputs_are_not_changed():
    maps, masks = np.random.default_rng(0).random((2, 6, 6)), np.zeros((2, 6, 6), int)
    masks[0, 2:4, 2:4] = 1
    before = maps.copy(), masks.copy()
    pixel_scores(masks, maps)
    pixel_scores([masks[0]], [maps[0]])
    assert (maps == before[0]).all() and (masks == before[1]).all()


# ---------------------------------------------------------------- messages


def blank(shape=(3, 4, 5)):
    masks, maps = np.zeros(shape, int), np.zeros(shape, np.float32)
    masks[0, 1, 1] = 1
    return masks, maps


def test_nan_and_infinity_are_counted_and_their_image_is_named():
    masks, maps = blank()
    maps[2, 1, 3], maps[2, 3, 0] = np.nan, -np.inf
    with pytest.raises(ParameterError, match=r"image 2: 2 of 20 values are NaN or infinite, the first at \(1, 3\)"):
        pixel_scores(masks, maps)
    with pytest.raises(ParameterError, match="scores: 1 of 3 values are NaN or infinite, the first at 1"):
        image_scores([0, 1, 1], [0.5, np.nan, 0.1])


def test_a_mask_of_another_size_is_named_with_both_shapes():
    masks, maps = blank()
    with pytest.raises(ParameterError, match=r"image 1: mask is \(5, 5\) and map \(4, 5\); expected one \(H, W\)"):
        aupro([masks[0], np.zeros((5, 5)), masks[2]], maps)
    with pytest.raises(ParameterError, match=r"image 0: mask is \(1, 4, 5\) and map \(1, 4, 5\); expected one"):
        pixel_scores(masks[:, None], maps[:, None])
    with pytest.raises(ParameterError, match="3 masks for 2 maps: expected one mask per image"):
        pixel_scores(masks, maps[:2])
    with pytest.raises(ParameterError, match=r"labels are \(2,\) and scores \(3,\): they must have the same shape"):
        auroc([0, 1], [1, 2, 3])
    with pytest.raises(ParameterError, match=r"image scores are \(3, 4, 5\), expected \(n,\).*use pixel_scores"):
        image_scores(masks, maps)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_has_no_auroc_and_the_message_says_which(label):
    with pytest.raises(ParameterError, match=f"all 3 labels are {label}: AUROC and AP are undefined"):
        image_scores([label] * 3, [1, 2, 3])


def test_no_score_at_all_is_refused():
    with pytest.raises(ParameterError, match="there are no scores"):
        image_scores([], [])


def test_masks_without_a_region_or_without_a_normal_pixel_are_refused():
    masks, maps = blank()
    with pytest.raises(ParameterError, match="no anomalous region in 3 masks"):
        pixel_scores(masks * 0, maps)
    with pytest.raises(ParameterError, match="no normal pixel in 3 masks"):
        pixel_scores(masks * 0 + 1, maps)


def test_labels_other_than_0_and_1_are_named():
    masks, maps = blank()
    masks[1, 0, 0] = 255
    with pytest.raises(ParameterError, match=r"mask of image 1: found 255, expected only 0 \(normal\) and 1"):
        pixel_scores(masks, maps)
    with pytest.raises(ParameterError, match="labels: found -1, expected only 0"):
        auroc([-1, 1], [1, 2])


@pytest.mark.parametrize("limit", [0, -0.1, 1.01, float("nan")])
def test_a_limit_outside_0_to_1_is_refused(limit):
    for function in (lambda: aupro(*blank(), limit=limit), lambda: pixel_scores(*blank(), limit=limit)):
        with pytest.raises(ParameterError, match=r"limit is .*must be in \(0, 1\]"):
            function()


def test_a_connectivity_other_than_4_and_8_is_refused():
    with pytest.raises(ParameterError, match="connectivity is 6: expected 4 or 8"):
        aupro(*blank(), connectivity=6)
