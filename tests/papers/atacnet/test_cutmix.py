"""CutMix in both meanings: which pixels change, how many, and to which values."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor

from adcore.papers.atacnet.cutmix import MIXES, in_image, yun
from adcore.training import seeded


def distinct(count: int, h: int, w: int) -> Tensor:
    """Images without equal pixels; red and green encode the position of a pixel."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return torch.stack([(y + 0.5) / h, (x + 0.5) / w, ((7 * y + 3 * x) % 5) / 5])[None].repeat(count, 1, 1, 1)


def changed(before: Tensor, after: Tensor) -> list[tuple[int, int, int, int]]:
    """The rectangle (top, left, bottom, right) that changed in each image, (0, 0, 0, 0) where nothing changed. Fails if the
    changed pixels are not a rectangle."""
    found = []
    for differs in (before != after).any(1).numpy():
        ys, xs = np.nonzero(differs)
        box = (ys.min(), xs.min(), ys.max() + 1, xs.max() + 1) if len(ys) else (0, 0, 0, 0)
        assert (box[2] - box[0]) * (box[3] - box[1]) == len(ys), "the changed pixels are not a rectangle"
        found.append(tuple(int(side) for side in box))
    return found


# A patch of the same image.

@pytest.mark.parametrize(("h", "w"), [(48, 48), (40, 64)])
def test_only_a_rectangle_changes_and_its_area_and_aspect_are_in_range_up_to_rounding(h, w):
    images = distinct(1500, h, w)
    with seeded(0):
        boxes = changed(images, in_image(images, jitter=0))
    sides = np.array([(b - t, r - left) for t, left, b, r in boxes if b > t], float)
    assert len(sides) > 0.99 * len(images)             # few patches return to their own place
    # Sides are rounded to whole pixels, so the exact side differs by at most half a pixel.
    least, most = (sides - 0.5).prod(1) / (h * w), (sides + 0.5).prod(1) / (h * w)
    assert (most >= 0.02).all() and (least <= 0.15).all()
    assert ((sides[:, 0] + 0.5) / (sides[:, 1] - 0.5) >= 0.3).all()
    assert ((sides[:, 0] - 0.5) / (sides[:, 1] + 0.5) <= 1 / 0.3).all()
    # The area is uniform in its range, and so is the logarithm of the aspect.
    area, aspect = sides.prod(1) / (h * w), np.log(sides[:, 0] / sides[:, 1])
    assert area.mean() == approx(0.085, rel=0.03) and area.std() == approx(0.13 / math.sqrt(12), rel=0.06)
    assert aspect.mean() == approx(0, abs=0.06) and aspect.std() == approx(-2 * math.log(0.3) / math.sqrt(12), rel=0.06)


def test_the_rectangle_is_a_patch_of_the_same_image_and_its_place_is_uniform():
    h, w = 30, 40
    images = distinct(500, h, w)
    with seeded(1):
        mixed = in_image(images, jitter=0)
    corners = []
    for image, found, (t, left, b, r) in zip(images, mixed, changed(images, mixed), strict=True):
        if b > t:
            y, x = round(float(found[0, t, left] * h - 0.5)), round(float(found[1, t, left] * w - 0.5))   # original place
            assert torch.equal(found[:, t:b, left:r], image[:, y:y + b - t, x:x + r - left])
            corners.append((t / (h - (b - t)), left / (w - (r - left)), y / (h - (b - t)), x / (w - (r - left))))
    spread = np.array(corners)
    assert spread.mean(0) == approx([0.5] * 4, abs=0.05) and spread.min() == 0 and spread.max() == 1
    assert np.abs(np.corrcoef(spread.T) - np.eye(4)).max() < 0.2


def test_jitter_changes_the_colors_of_the_patch_slightly_and_keeps_them_in_range():
    images = distinct(200, 16, 16)
    flat = images.new_tensor([0.6, 0.5, 0.4])[None, :, None, None].expand(200, 3, 16, 16)   # only jitter changes it
    with seeded(2):
        mixed, jittered = in_image(images), in_image(flat)
    assert mixed.min() >= 0 and mixed.max() <= 1 and torch.equal(in_image(flat, jitter=0), flat)
    moved = (jittered - flat).abs().flatten(1).amax(1)
    assert (moved > 1e-4).float().mean() > 0.95 and moved.max() < 0.3 and len(changed(flat, jittered)) == 200


def test_brightness_contrast_saturation_and_hue_of_the_patch_change_by_up_to_a_tenth_each():
    """A gray image keeps its hue and saturation, so brightness and contrast show in it alone. In an image of one color,
    contrast and saturation do the same, and the hue is left to itself."""
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = (0.45 + 0.1 * ((x + y) % 2)).expand(400, 3, 16, 16)                              # a chess board of two grays
    color = torch.tensor([0.55, 0.5, 0.45])[None, :, None, None].expand(400, 3, 16, 16)
    with seeded(4):
        boards, colors = in_image(board, area=(1.0, 1.0), aspect=(1.0, 1.0)), in_image(color)
    dark, bright = boards.amin((1, 2, 3)).double().numpy(), boards.amax((1, 2, 3)).double().numpy()
    brightness, contrast = (dark + bright) / 1.0, (bright - dark) / (bright + dark) / 0.1
    patches = [image[:, differs][:, 0].double().tolist() for image, differs in
               zip(colors, (colors != color).any(1), strict=True) if differs.any()]
    hsv = np.array([colorsys.rgb_to_hsv(*pixel) for pixel in patches])
    hue = (hsv[:, 0] - colorsys.rgb_to_hsv(0.55, 0.5, 0.45)[0] + 0.5) % 1 - 0.5
    one = 0.2 / math.sqrt(12)                                                                # of a uniform factor
    for values, middle, spread, reach in ((brightness, 1, one, 0.1), (contrast, 1, one, 0.1), (hue, 0, one, 0.1)):
        assert values.mean() == approx(middle, abs=0.01) and values.std() == approx(spread, rel=0.1)
        assert np.abs(values - middle).max() == approx(reach, rel=0.03)
    saturation = np.log(hsv[:, 1])                                      # product of two factors, contrast and saturation
    assert saturation.std() == approx(math.sqrt(2) * one, rel=0.15)


@pytest.mark.parametrize("mix", list(MIXES))
def test_the_inputs_do_not_change_and_a_seed_determines_the_result(mix):
    images, others = distinct(4, 12, 20), torch.rand(4, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    kept = images.clone(), others.clone()
    made = []
    for seed in (5, 5, 6):
        with seeded(seed):
            made.append(MIXES[mix](images, others))
    assert torch.equal(images, kept[0]) and torch.equal(others, kept[1])
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2]) and made[0].shape == images.shape
    assert all(m.min() >= 0 and m.max() <= 1 for m in made)
    assert not torch.equal(made[0][0], made[0][1])                        # each image has its own patch


@pytest.mark.parametrize("mix", list(MIXES))
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (30, 2), (3, 100)])
def test_an_image_of_any_shape_can_be_mixed(mix, size):
    images, others = distinct(20, *size), torch.zeros(20, 3, *size)
    with seeded(0):
        mixed = MIXES[mix](images, others)
    assert mixed.shape == images.shape and torch.isfinite(mixed).all() and len(changed(images, mixed)) == 20


# A rectangle of another image.

def test_yun_pastes_the_other_image_at_the_same_place_and_always_at_least_one_pixel():
    images, others = distinct(300, 20, 28), 1 - distinct(300, 20, 28)
    with seeded(0):
        mixed = yun(images, others)
    for image, other, found, (t, left, b, r) in zip(images, others, mixed, changed(images, mixed), strict=True):
        assert b > t and r > left and torch.equal(found[:, t:b, left:r], other[:, t:b, left:r])
        outside = torch.ones(20, 28, dtype=torch.bool)
        outside[t:b, left:r] = False
        assert torch.equal(found[:, outside], image[:, outside])


@pytest.mark.parametrize(("h", "w"), [(120, 120), (80, 200)])
def test_the_mean_pasted_area_is_that_of_a_rectangle_clipped_at_the_border(h, w):
    # A side of length L with its center uniform on [0, 1] has the mean length L - L^2 / 4 inside. With L = sqrt(1 - lambda) and
    # lambda uniform, the mean area is the integral of (sqrt(u) - u / 4)^2 over [0, 1].
    analytic = 1 / 2 - 1 / 5 + 1 / 48
    images = torch.zeros(1500, 1, h, w, dtype=torch.uint8)
    with seeded(0):
        mixed = yun(images, torch.ones_like(images))
    areas = mixed.float().mean((1, 2, 3)).double().numpy()
    assert areas.mean() == approx(analytic, abs=0.02)
    # The same by simulation with floats, which also gives the standard deviation and the quantiles.
    rng = np.random.default_rng(0)
    length = np.sqrt(1 - rng.beta(1, 1, 100_000))
    inside = [np.minimum(middle + length / 2, 1) - np.maximum(middle - length / 2, 0) for middle in rng.random((2, 100_000))]
    assert (inside[0] * inside[1]).mean() == approx(analytic, abs=0.003)
    assert areas.std() == approx((inside[0] * inside[1]).std(), rel=0.05)
    assert np.quantile(areas, [0.1, 0.5, 0.9]) == approx(np.quantile(inside[0] * inside[1], [0.1, 0.5, 0.9]), abs=0.03)


def test_a_rectangle_that_is_not_clipped_has_the_image_s_aspect_and_places_are_symmetric():
    h, w = 60, 120
    images = torch.zeros(3000, 1, h, w, dtype=torch.uint8)
    with seeded(3):
        boxes = np.array(changed(images, yun(images, torch.ones_like(images))), float)
    small = boxes[(boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, 2] < h) & (boxes[:, 3] < w)]
    assert len(small) > 200 and np.abs((small[:, 3] - small[:, 1]) - 2 * (small[:, 2] - small[:, 0])).max() <= 2
    # Number of times that each row and column is pasted over: symmetric, and largest in the center.
    rows, columns = (np.mean([(boxes[:, a] <= i) & (i < boxes[:, a + 2]) for i in range(n)], axis=1)
                     for a, n in ((0, h), (1, w)))
    assert np.abs(rows - rows[::-1]).max() < 0.05 and np.abs(columns - columns[::-1]).max() < 0.05
    assert rows[h // 2] > rows[0] + 0.1


def test_a_larger_alpha_reduces_the_spread_of_the_pasted_area():
    images = torch.zeros(800, 1, 64, 64, dtype=torch.uint8)
    spread = []
    for alpha in (0.2, 1.0, 20.0):
        with seeded(0):
            spread.append(float(yun(images, torch.ones_like(images), alpha).float().mean((1, 2, 3)).std()))
    assert spread[0] > spread[1] > spread[2]
