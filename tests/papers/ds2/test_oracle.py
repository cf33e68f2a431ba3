"""What DS2 and CutPaste compute, written a second time as slow loops in plain Python.

Each test has three parts: a loop made from the description of the method, a few frozen numbers, and the code. The loop and the
code must both give the frozen numbers. The inputs are values of the sine, so that no random generator can change them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pytest import approx
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from torch import Tensor, nn

from adcore.data import View
from adcore.features.patches import patch_features
from adcore.papers.ds2 import cutpaste
from adcore.papers.ds2.gaussian import GaussianDensity
from adcore.papers.ds2.instance_ssl import info_nce
from adcore.papers.ds2.lars import LARS, step_schedule
from adcore.papers.ds2.momentum import cosine_momentum, follow
from adcore.papers.ds2.pixel_propagation import Propagation, pair_loss, scale_loss
from adcore.papers.ds2.positive_pairs import bin_centers, geometric_pairs, positive_pairs, top_pairs
from adcore.papers.ds2.upsampling import receptive_kernel, receptive_upsample

EXACT = {"rel": 1e-10, "abs": 1e-11}


def wave(*shape: int, start: float = 0.0, pace: float = 0.7) -> np.ndarray:
    """sin(start), sin(start + pace), ... in this shape."""
    return np.sin(start + pace * np.arange(math.prod(shape))).reshape(shape)


def tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(x * x for x in vector))


# Positive pairs. The two views show parts of one image; the second is flipped, so its left border is on the right.

FIRST, SECOND = (0.1, 0.2, 0.7, 0.8), (0.72, 0.21, 0.12, 0.83)             # x0, y0, x1, y1
GRID = 3                                                                   # 3 x 3 positions per view


def centers_of(box: tuple[float, ...], side: int) -> list[tuple[float, float]]:
    """Start, plus half a bin, plus a bin for each further position; row by row."""
    bin_w, bin_h = (box[2] - box[0]) / side, (box[3] - box[1]) / side
    return [(box[0] + (column + 0.5) * bin_w, box[1] + (row + 0.5) * bin_h) for row in range(side) for column in range(side)]


def near_pairs(a: tuple[float, ...], b: tuple[float, ...], side: int, delta: float) -> list[list[int]]:
    """Pairs nearer than delta times the diagonal of the larger bin."""
    diagonal = max(math.sqrt(((box[2] - box[0]) / side) ** 2 + ((box[3] - box[1]) / side) ** 2) for box in (a, b))
    return [[i, j] for i, p in enumerate(centers_of(a, side)) for j, q in enumerate(centers_of(b, side))
            if math.sqrt((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2) / diagonal < delta]


def strongest_pairs(query: np.ndarray, key: np.ndarray, count: int) -> list[list[int]]:
    """The pairs with the largest product of the features (C, N), which are not brought to unit length."""
    scored = []
    for i in range(query.shape[1]):
        for j in range(key.shape[1]):
            product = sum(float(query[c, i]) * float(key[c, j]) for c in range(len(query))) / len(query)
            scored.append((product, [i, j]))
    return sorted(pair for _, pair in sorted(scored, reverse=True)[:count])


def test_the_centers_of_a_flipped_view_go_from_right_to_left():
    frozen = [0.62, 0.313333333333, 0.42, 0.313333333333, 0.22, 0.313333333333, 0.62, 0.52, 0.42, 0.52, 0.22, 0.52, 0.62,
              0.726666666667, 0.42, 0.726666666667, 0.22, 0.726666666667]
    assert [x for center in centers_of(SECOND, 3) for x in center] == approx(frozen, **EXACT)
    assert bin_centers(tensor([SECOND]), 3, 3).flatten().tolist() == approx(frozen, **EXACT)


@pytest.mark.parametrize(("delta", "frozen"), [
    (0.1, [[0, 2], [1, 1], [2, 0], [3, 5], [4, 4], [5, 3]]),
    (0.7, [[0, 2], [1, 1], [1, 2], [2, 0], [2, 1], [3, 2], [3, 5], [4, 1], [4, 4], [4, 5], [5, 0], [5, 3], [5, 4], [6, 5],
           [6, 8], [7, 4], [7, 7], [7, 8], [8, 3], [8, 6], [8, 7]])])
def test_geometric_pairs_are_nearer_than_delta_diagonals_of_the_larger_bin(delta, frozen):
    assert near_pairs(FIRST, SECOND, GRID, delta) == frozen
    assert geometric_pairs(tensor([FIRST]), tensor([SECOND]), (GRID, GRID), delta)[0].nonzero().tolist() == frozen


@pytest.mark.parametrize(("count", "frozen"), [(1, [[7, 0]]), (5, [[6, 0], [7, 0], [7, 1], [8, 0], [8, 1]])])
def test_feature_pairs_have_the_largest_products_of_features(count, frozen):
    query, key = wave(4, 9, pace=1.3) + 0.1 * np.arange(9), wave(4, 9, start=2, pace=1.1) + 0.1 * np.arange(9)[::-1]
    assert strongest_pairs(query, key, count) == frozen
    assert top_pairs(tensor(query).view(1, 4, 3, 3), tensor(key).view(1, 4, 3, 3), count)[0].nonzero().tolist() == frozen


def test_the_positive_pairs_are_the_geometric_ones_and_the_strongest_one():
    query, key = wave(4, 9, pace=1.3) + 0.1 * np.arange(9), wave(4, 9, start=2, pace=1.1) + 0.1 * np.arange(9)[::-1]
    frozen = [[0, 2], [1, 1], [2, 0], [3, 5], [4, 4], [5, 3], [7, 0]]
    assert sorted(near_pairs(FIRST, SECOND, GRID, 0.1) + strongest_pairs(query, key, 1)) == frozen
    found = positive_pairs(tensor([FIRST]), tensor([SECOND]), tensor(query).view(1, 4, 3, 3), tensor(key).view(1, 4, 3, 3))
    assert found[0].nonzero().tolist() == frozen


# Propagation and loss.

def propagated(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """y_i = sum_j max(cos(x_i, x_j), 0)^2 g_j / |...|, with g_j = (W x_j + b) / |...|: x (C, N) -> (C, N)."""
    columns = []
    for i in range(x.shape[1]):
        y = np.zeros(len(x))
        for j in range(x.shape[1]):
            cosine = float(sum(unit(x[:, i]) * unit(x[:, j])))
            y += max(cosine, 0.0) ** 2 * unit(weight @ x[:, j] + bias)
        columns.append(unit(y))
    return np.stack(columns, 1)


def test_a_prediction_is_the_sum_over_similar_positions_of_the_same_view():
    x, weight, bias = wave(3, 4, pace=0.9), wave(3, 3, start=1), wave(3, start=2)
    layer = Propagation(3).double()
    layer.value.weight.data, layer.value.bias.data = tensor(weight)[..., None, None], tensor(bias)
    frozen = [0.996043127784, 0.968783703152, 0.933289559971, 0.650948182167, 0.0493036595992, 0.137381030508, 0.2059710708,
              0.563395167196, -0.0739407651081, -0.20636033767, -0.294187891054, -0.508775343067]
    assert propagated(x, weight, bias).flatten() == approx(frozen, **EXACT)
    assert layer(tensor(x).view(1, 3, 2, 2)).flatten().tolist() == approx(frozen, **EXACT)


def loss_of_pairs(y: np.ndarray, z: np.ndarray, pairs: list[list[list[int]]]) -> float:
    """-2 times the mean product over the pairs of an image, with 1e-6 in the denominator, averaged over the images."""
    total = 0.0
    for a, b, mine in zip(y, z, pairs, strict=True):
        total += -2 * sum(float(sum(a[:, i] * b[:, j])) for i, j in mine) / (len(mine) + 1e-6)
    return total / len(pairs)


def test_the_loss_of_a_scale_is_the_mean_of_both_directions():
    y1, y2, z1, z2 = (np.stack([np.stack([unit(image[:, i]) for i in range(4)], 1) for image in wave(2, 3, 4, start=start)])
                      for start in (0, 3, 5, 8))
    there, back = [[[0, 1], [2, 2], [3, 0]], []], [[[1, 1]], [[0, 3], [2, 0]]]
    masks = torch.zeros(2, 2, 4, 4, dtype=torch.bool)
    for mask, pairs in zip(masks, (there, back), strict=True):
        for image, mine in enumerate(pairs):
            for i, j in mine:
                mask[image, i, j] = True
    ours = [tensor(x).view(2, 3, 2, 2) for x in (y1, y2, z1, z2)]
    frozen = [-0.274954399088, -0.0375111419475, -0.156232770518]  # 1 -> 2, 2 -> 1, and their mean
    loops = [loss_of_pairs(y1, z2, there), loss_of_pairs(y2, z1, back)]
    assert [*loops, sum(loops) / 2] == approx(frozen, **EXACT)
    found = [pair_loss(ours[0], ours[3], masks[0]), pair_loss(ours[1], ours[2], masks[1]),
             scale_loss((ours[0], ours[1]), (ours[2], ours[3]), (masks[0], masks[1]))]
    assert [float(loss) for loss in found] == approx(frozen, **EXACT)


# Key networks.

def test_the_momentum_rises_from_0_99_to_1_along_half_a_cosine():
    steps, frozen = (0, 1, 1400, 2800, 5599, 5600), [0.99, 0.990000000787, 0.991464466094, 0.995, 0.999999999213, 1.0]
    assert [1 - 0.01 * (math.cos(math.pi * k / 5600) + 1) / 2 for k in steps] == approx(frozen, **EXACT)
    assert [cosine_momentum(k, 5600) for k in steps] == approx(frozen, **EXACT)


def test_a_key_network_is_the_running_mean_of_the_trained_one():
    trained, key = (nn.Linear(2, 1, bias=False).double() for _ in range(2))
    trained.weight.data, key.weight.data = tensor([[1.0, -1.0]]), tensor([[0.0, 2.0]])
    loop, frozen = [0.0, 2.0], [0.0198814375, 1.9403556875]
    for step in range(3):
        momentum = 1 - 0.01 * (math.cos(math.pi * step / 3) + 1) / 2
        loop = [momentum * value + (1 - momentum) * new for value, new in zip(loop, (1.0, -1.0), strict=True)]
        follow(key, trained, cosine_momentum(step, 3))
    assert loop == approx(frozen, **EXACT)
    assert key.weight.flatten().tolist() == approx(frozen, **EXACT)


# Optimizer and schedule.

def test_lars_scales_the_step_of_a_matrix_and_leaves_biases_and_norms_alone():
    matrix, vector = nn.Parameter(tensor(wave(2, 3))), nn.Parameter(tensor(wave(3, start=1)))
    optimizer = LARS([matrix, vector], 2.0, momentum=0.9, weight_decay=0.01, trust=0.001, eps=1e-8)
    p, v = [list(wave(6)), list(wave(3, start=1))], [[0.0] * 6, [0.0] * 3]
    for step in range(2):
        gradients = wave(6, start=2 + step, pace=1.1), wave(3, start=3 + step, pace=0.4)
        matrix.grad, vector.grad = tensor(gradients[0]).view(2, 3), tensor(gradients[1])
        optimizer.step()
        for n, g in enumerate(map(list, gradients)):
            if n == 0:                                                     # two dimensions: weight decay and scaling
                g = [a + 0.01 * b for a, b in zip(g, p[n], strict=True)]
                lengths = [math.sqrt(sum(x * x for x in values)) for values in (p[n], g)]
                g = [a * 0.001 * lengths[0] / (lengths[1] + 1e-8) for a in g]
            v[n] = [0.9 * a + b for a, b in zip(v[n], g, strict=True)]
            p[n] = [a - 2.0 * b for a, b in zip(p[n], v[n], strict=True)]
    frozen = [-0.00325658983461, 0.645530839235, 0.989877097635, 0.865881324362, 0.332957288486, -0.355308229013,
              1.8188199448, 3.86592514593, 4.99285238381]
    assert [*p[0], *p[1]] == approx(frozen, **EXACT)
    assert [*matrix.flatten().tolist(), *vector.tolist()] == approx(frozen, **EXACT)


def rates(released: bool) -> list[float]:
    """The learning rate before each step of 400 epochs of 14 steps."""
    optimizer = LARS([nn.Parameter(torch.ones(1))], 2.0)
    (factor,) = step_schedule(optimizer, 14, released=released).lr_lambdas
    return [2.0 * factor(step) for step in range(5600)]


STEPS = (0, 1, 34, 35, 69, 70, 1644, 1645, 1679, 1680, 2239, 2240, 2800, 5599)


def test_the_learning_rate_rises_linearly_over_70_steps_and_falls_after_120_160_and_200_epochs():
    loop = []
    for step in range(5600):
        rate = 0.02 + (2.0 - 0.02) * step / 70 if step < 70 else 2.0
        for epoch in (120, 160, 200):
            rate = rate / 10 if step >= epoch * 14 else rate
        loop.append(rate)
    frozen = [0.02, 0.0482857142857, 0.981714285714, 1.01, 1.97171428571, 2.0, 2.0, 2.0, 2.0, 0.2, 0.2, 0.02, 0.002, 0.002]
    assert [loop[step] for step in STEPS] == approx(frozen, **EXACT) and rates(False) == approx(loop, **EXACT)
    assert [rates(False)[step] for step in STEPS] == approx(frozen, **EXACT)


def test_the_released_scheduler_counts_each_step_of_the_warm_up_twice():
    # One counter, which the scheduler and its parent both raise up to 70; after it, a second scheduler multiplies by 0.1.
    counter, later, rate, loop = -1, 0, 0.0, []
    for _ in range(5600 + 1):                                              # the first call is made when it is created
        counter += 1
        if counter <= 70:
            counter += 1
            if counter <= 70:
                rate = 2.0 / 100 * (99 * counter / 70 + 1)
        else:
            later += 1
            rate = rate / 10 if later in (115 * 14, 155 * 14, 195 * 14) else rate
        loop.append(rate)
    frozen = [0.0482857142857, 0.104857142857, 1.97171428571, 1.97171428571, 1.97171428571, 1.97171428571, 1.97171428571,
              0.197171428571, 0.197171428571, 0.197171428571, 0.0197171428571, 0.0197171428571, 0.00197171428571,
              0.00197171428571]
    assert [loop[step] for step in STEPS] == approx(frozen, **EXACT) and rates(True) == approx(loop[:5600], **EXACT)
    assert [rates(True)[step] for step in STEPS] == approx(frozen, **EXACT)
    assert max(frozen) == approx(1.97, abs=0.005)


# MoCo's branch.

def test_moco_leaves_out_the_keys_of_an_images_own_category():
    q, k, queue = (np.stack([unit(row) for row in wave(n, 3, start=start)]) for n, start in ((2, 0), (2, 3), (4, 6)))
    own, kept = [0, 1], [0, 1, 1, 2]
    losses = []
    for n in range(2):
        others = [queue[m] for m in range(4) if kept[m] != own[n]]
        exponentials = [math.exp(float(sum(q[n] * key)) / 0.2) for key in (k[n], *others)]
        losses.append(-math.log(exponentials[0] / sum(exponentials)))
    frozen = 6.68499599373
    removed = torch.tensor([[category == mine for category in kept] for mine in own])
    assert sum(losses) / 2 == approx(frozen, **EXACT)
    assert float(info_nce(tensor(q), tensor(k), tensor(queue), removed)) == approx(frozen, **EXACT)


# Localization.

class Corner(nn.Module):
    """Stands in for an encoder: the map of a patch is the patch itself, and a channel of ones."""

    def forward(self, patches: Tensor) -> Tensor:
        return torch.cat([patches, torch.ones_like(patches[:, :1])], 1)


def test_patches_are_taken_row_by_row_averaged_and_scaled_to_unit_length():
    image, loop = wave(3, 6, 8, pace=0.3), []
    for top in (0, 2):
        for left in (0, 2, 4):
            means = [sum(image[c, top + y, left + x] for y in range(4) for x in range(4)) / 16 for c in range(3)]
            loop.append(unit(np.array([*means, 1.0])))
    frozen = [0.188754204605, 0.238354406175, 0.207190610431, -0.132239905435, 0.0061362786085,
              0.140830087581]  # the first channel of each patch
    assert [feature[0] for feature in loop] == approx(frozen, **EXACT)
    found = patch_features(Corner().eval(), tensor(image)[None], 4, 2)[0]
    assert found[:, 0].tolist() == approx(frozen, **EXACT) and found.numpy() == approx(np.array(loop), **EXACT)


def window(k: int) -> list[float]:
    """Gaussian of an odd length; an even one has its central sample twice and half the height."""
    deviation = 10.0 if k >= 32 else math.log10(0.45 * k + 1) + 0.25
    half = (k - 1) // 2
    odd = [math.exp(-(n * n) / (2 * deviation ** 2)) for n in range(-half, half + 1)]
    return odd if k % 2 else [x / 2 for x in odd[:half + 1] + odd[half:]]


def test_the_receptive_kernel_of_even_length_has_its_center_twice_and_half_the_height():
    frozen = [0.0319436009867, 0.0893638643226, 0.0893638643226, 0.0319436009867]  # the first row for k = 4
    assert [window(4)[0] * x for x in window(4)] == approx(frozen, **EXACT)
    assert receptive_kernel(4)[0].tolist() == approx(frozen, **EXACT)
    for k, total in ((32, 132.63669946), (5, 3.64404134735)):
        assert sum(a * b for a in window(k) for b in window(k)) == approx(total, **EXACT)
        assert float(receptive_kernel(k).sum()) == approx(total, **EXACT)


def test_a_map_is_the_sum_of_the_kernels_of_its_patches_each_times_its_score():
    scores, loop = wave(2, 3, start=1), np.zeros((6, 8))
    for row in range(2):
        for column in range(3):
            for y in range(4):
                for x in range(4):
                    loop[2 * row + y, 2 * column + x] += scores[row, column] * window(4)[y] * window(4)[x]
    frozen = [0.0765253350073, 0.214083554878, 0.283157610124, 0.26976355207, 0.222374385053, 0.150583981577,  # the third row
              0.0815099263315, 0.0291361679905]
    assert loop[2] == approx(frozen, **EXACT)
    found = receptive_upsample(tensor(scores)[None], 4, 2)[0]
    assert found.shape == (6, 8) and found.numpy() == approx(loop, **EXACT) and found[2].tolist() == approx(frozen, **EXACT)


def shrunk_distances(normal: np.ndarray, test: np.ndarray, dims: int) -> np.ndarray:
    """Mahalanobis distances after a PCA, with the covariance that Ledoit and Wolf shrink towards a multiple of the identity."""
    mean = normal.mean(0)
    x = normal - mean
    axes = np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :dims]
    z, n = x @ axes, len(x)
    covariance = sum(np.outer(row, row) for row in z) / n
    level = np.trace(covariance) / dims
    spread = np.sum((covariance - level * np.eye(dims)) ** 2) / dims
    noise = sum(np.sum((np.outer(row, row) - covariance) ** 2) for row in z) / n ** 2 / dims
    share = min(noise, spread) / spread
    inverse = np.linalg.inv((1 - share) * covariance + share * level * np.eye(dims))
    return np.array([math.sqrt(row @ inverse @ row) for row in (test - mean) @ axes])


@pytest.mark.parametrize(("aligned", "frozen"), [
    (True, [1.77487702697, 2.60082704018, 1.59304061238, 2.06296515868]),
    (False, [2.3716547167, 2.50189143045, 2.00903082874, 2.02737997302])])
def test_distances_are_mahalanobis_with_ledoit_wolf_at_each_position_or_over_all_patches(aligned, frozen):
    normal, test = (np.sin(0.37 * (start + np.arange(n * 2 * 4)) ** 2).reshape(n, 2, 4) * [4, 2, 1, 0.5]
                    for n, start in ((9, 0), (2, 500)))
    parts = [(normal[:, j], test[:, j]) for j in range(2)] if aligned else [(normal.reshape(18, 4), test.reshape(4, 4))]
    loop = np.stack([shrunk_distances(*part, dims=3) for part in parts], 1).flatten()
    outside = []
    for fitted, scored in parts:
        reduced = PCA(3, svd_solver="full").fit(fitted)
        outside.append(np.sqrt(LedoitWolf().fit(reduced.transform(fitted)).mahalanobis(reduced.transform(scored))))
    assert loop == approx(frozen, rel=1e-9) and np.stack(outside, 1).flatten() == approx(frozen, rel=1e-9)
    density = GaussianDensity(3, aligned=aligned, dtype=torch.float64).fit(tensor(normal))
    assert density.score(tensor(test)).flatten().tolist() == approx(frozen, rel=1e-9)


def test_a_pixel_of_an_official_mask_is_the_mean_of_two_by_two_pixels_and_counts_if_it_is_1():
    mask = wave(9, 14, start=2, pace=0.37) > -0.5
    loop = []
    for y in range(4):
        for x in range(6):
            at_y, at_x = (y + 0.5) * 9 / 4 - 0.5, (x + 0.5) * 14 / 6 - 0.5
            top, left = math.floor(at_y), math.floor(at_x)
            total = 0.0
            for row, weight in ((top, 1 - (at_y - top)), (top + 1, at_y - top)):
                for column, other in ((left, 1 - (at_x - left)), (left + 1, at_x - left)):
                    total += weight * other * mask[min(max(row, 0), 8), min(max(column, 0), 13)]
            loop.append(int(total > 1 - 1e-9))
    frozen = [1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 1, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 0]
    assert loop == frozen
    assert View((4, 6), whole_masks=True).mask(mask).int().flatten().tolist() == frozen


# CutPaste.

@pytest.mark.parametrize(("share", "aspect", "frozen"), [
    (0.02, 0.3, [5, 17]), (0.08, 1.0, [18, 18]), (0.15, 1 / 0.3, [45, 14])])
def test_a_pasted_rectangle_has_the_rounded_sides_of_its_area_and_aspect(monkeypatch, share, aspect, frozen):
    area = share * 64 * 64
    assert [round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))] == frozen              # width, height
    monkeypatch.setattr(cutpaste, "_integers", lambda count, most: torch.as_tensor(most).expand(count))
    seen: list[cutpaste.Rectangles] = []
    mask = cutpaste.Rectangles.mask
    monkeypatch.setattr(cutpaste.Rectangles, "mask", lambda self, *size: seen.append(self) or mask(self, *size))
    cutpaste.cutpaste(torch.zeros(1, 3, 64, 64), (share, share), (aspect, aspect))
    assert [int(seen[0].width), int(seen[0].height)] == frozen and seen[0].left + seen[0].width == 64


@pytest.mark.parametrize(("drawn", "frozen"), [((1.0, 5.0), [1, 5]), ((2.6, 5.4), [3, 5]), ((4.0, 6.0), [4, 6])])
def test_a_scar_has_rounded_sides_of_1_to_4_and_5_to_6_pixels(monkeypatch, drawn, frozen):
    assert [math.floor(side + 0.5) for side in drawn] == frozen                                      # width, height
    assert cutpaste.SCAR_WIDTH == (1, 4) and cutpaste.SCAR_HEIGHT == (5, 6) and cutpaste.ANGLE == 45
    seen: list[Any] = []
    monkeypatch.setattr(cutpaste, "paste_rotated", lambda sources, images, cut, *rest: seen.append(cut) or images)
    cutpaste.cutpaste_scar(torch.zeros(1, 3, 64, 64), *((side, side) for side in drawn), angle=0)
    assert [int(seen[0].width), int(seen[0].height)] == frozen
