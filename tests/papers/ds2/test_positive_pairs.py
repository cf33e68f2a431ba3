"""Positive pairs of two views, against double loops in float64 and against cases that are known on paper."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adcore.errors import ParameterError
from adcore.papers.ds2.positive_pairs import bin_centers, geometric_pairs, positive_pairs, top_pairs
from adcore.papers.ds2.views import Recipe, draw_crops
from adcore.training import seeded


def boxes(count: int, seed: int) -> Tensor:
    with seeded(seed):
        return draw_crops(count, 60, 80, Recipe()).boxes(60, 80)


def centers_by_hand(box: list[float], h: int, w: int) -> list[tuple[float, float]]:
    x0, y0, x1, y1 = box
    return [(x0 + (column + 0.5) * (x1 - x0) / w, y0 + (row + 0.5) * (y1 - y0) / h) for row in range(h) for column in range(w)]


def pairs_by_hand(query: list[float], key: list[float], h: int, w: int, delta: float) -> np.ndarray:
    """Distances in units of the larger diagonal, minus delta; negative for a pair."""
    diagonal = max(math.hypot((box[2] - box[0]) / w, (box[3] - box[1]) / h) for box in (query, key))
    return np.array([[math.dist(a, b) / diagonal - delta for b in centers_by_hand(key, h, w)]
                     for a in centers_by_hand(query, h, w)])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.7, 3.0]))
def test_geometric_pairs_equal_the_loop_over_all_positions(h, w, seed, delta):
    query, key = boxes(3, seed), boxes(3, seed + 1)
    found = geometric_pairs(query, key, (h, w), delta)
    assert found.shape == (3, h * w, h * w) and found.dtype == torch.bool
    for mask, a, b in zip(found, query.tolist(), key.tolist(), strict=True):
        margin = pairs_by_hand(a, b, h, w, delta)
        decided = np.abs(margin) > 1e-5
        assert (mask.numpy() == (margin < 0))[decided].all()


def test_bin_centers_are_ordered_row_by_row_and_x_decreases_if_the_view_is_flipped():
    found = bin_centers(torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.8, 0.5, 0.2, 1.0]]), 2, 3)
    assert torch.allclose(found[0], torch.tensor([[1, 1], [3, 1], [5, 1], [1, 3], [3, 3], [5, 3]]) / torch.tensor([6, 4]))
    assert torch.allclose(found[1], torch.tensor([[0.7, 0.625], [0.5, 0.625], [0.3, 0.625],
                                                  [0.7, 0.875], [0.5, 0.875], [0.3, 0.875]]))


@pytest.mark.parametrize(("h", "w"), [(7, 7), (14, 14), (4, 5)])
def test_identical_crops_pair_each_position_with_itself_and_a_flipped_crop_with_its_mirror_image(h, w):
    views = boxes(20, 0)
    flipped = views[:, [2, 1, 0, 3]]
    itself = torch.eye(h * w, dtype=torch.bool)
    mirror = itself.reshape(h * w, h, w).flip(2).flatten(1)
    for delta in (0.01, 0.1, 0.3):
        assert torch.equal(geometric_pairs(views, views, (h, w), delta), itself.expand(20, -1, -1))
        assert torch.equal(geometric_pairs(flipped, flipped, (h, w), delta), itself.expand(20, -1, -1))
        assert torch.equal(geometric_pairs(views, flipped, (h, w), delta), mirror.expand(20, -1, -1))


def test_disjoint_crops_have_no_pairs_and_a_large_delta_pairs_neighbors_too():
    left, right = torch.tensor([[0.0, 0.0, 0.4, 1.0]]), torch.tensor([[0.6, 0.0, 1.0, 1.0]])
    assert not geometric_pairs(left, right, (7, 7)).any()
    square = torch.tensor([[0.1, 0.1, 0.9, 0.9]])
    # The next square bin is 1 / sqrt(2) = 0.707 diagonals away.
    assert geometric_pairs(square, square, (7, 7), 0.70).sum() == 49
    assert geometric_pairs(square, square, (7, 7), 0.72).sum() == 49 + 4 * 7 * 6


def test_with_the_paper_s_delta_similar_crops_give_each_position_at_most_one_partner():
    views = boxes(50, 3)
    moved = views + 0.01 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = geometric_pairs(views, moved, (7, 7))
    assert found.any() and found.sum(1).max() == 1 and found.sum(2).max() == 1


def test_exchanging_the_views_transposes_the_pairs():
    query, key = boxes(30, 1), boxes(30, 2)
    assert torch.equal(geometric_pairs(query, key, (5, 4)), geometric_pairs(key, query, (5, 4)).mT)


def test_a_view_of_a_single_pixel_has_no_pairs():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    assert not geometric_pairs(point, point, (2, 2)).any()


@pytest.mark.parametrize("k", [1, 5, 10])
def test_top_pairs_have_the_k_largest_products_of_each_image(k):
    random = torch.Generator().manual_seed(k)
    query, key = torch.randn(4, 6, 3, 4, generator=random), torch.randn(4, 6, 3, 4, generator=random)
    found = top_pairs(query, key, k)
    assert found.shape == (4, 12, 12) and found.flatten(1).sum(1).tolist() == [k] * 4
    for mask, a, b in zip(found.numpy(), query.double().numpy(), key.double().numpy(), strict=True):
        products = sorted(((float(a[:, i // 4, i % 4] @ b[:, j // 4, j % 4]) / 6, i, j) for i in range(12) for j in range(12)),
                          reverse=True)
        assert {(i, j) for _, i, j in products[:k]} == set(zip(*np.nonzero(mask), strict=True))


def test_the_feature_rule_uses_unnormalized_features_and_no_gradient():
    query = torch.tensor([[1.0, 0.0], [0.0, 5.0]])[None, :, :, None].requires_grad_()      # (1, C, h, w): two positions
    key = torch.tensor([[1.0, 3.0], [0.0, 2.0]])[None, :, :, None].requires_grad_()
    # The features at position 0 have the largest cosine; those at position 1 have the larger product, 10.
    found = top_pairs(query, key)
    assert found.tolist() == [[[False, False], [False, True]]] and not found.requires_grad


def test_both_is_the_union_of_the_two_rules():
    query, key = boxes(6, 5), boxes(6, 6)
    random = torch.Generator().manual_seed(0)
    features = torch.randn(6, 8, 4, 4, generator=random), torch.randn(6, 8, 4, 4, generator=random)
    geometric, similar = geometric_pairs(query, key, (4, 4), 0.3), top_pairs(*features, 5)
    found = {rule: positive_pairs(query, key, *features, pairs=rule, delta=0.3, top_k=5)
             for rule in ("geometric", "feature", "both")}
    assert torch.equal(found["geometric"], geometric) and torch.equal(found["feature"], similar)
    assert torch.equal(found["both"], geometric | similar) and found["both"].sum() > max(geometric.sum(), similar.sum())
    assert torch.equal(positive_pairs(query, key, *features), geometric_pairs(query, key, (4, 4)) | top_pairs(*features))


def test_unknown_rules_and_impossible_counts_are_refused():
    view, map_ = boxes(1, 0), torch.zeros(1, 2, 2, 2)
    with pytest.raises(ParameterError, match="geometric, feature, both"):
        positive_pairs(view, view, map_, map_, pairs="either")
    for k in (0, 17):
        with pytest.raises(ParameterError, match="16 pairs"):
            top_pairs(map_, map_, k)
