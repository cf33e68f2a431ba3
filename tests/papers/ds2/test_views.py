"""Augmented views: crops drawn and resized as by torchvision, boxes of the views, the augmentation sets of Table 1 (c)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pytest import approx
from scipy.stats import ks_2samp
from torch import Tensor
from torchvision.transforms.v2 import RandomResizedCrop
from torchvision.transforms.v2 import functional as one

from adcore.features.backbones import IMAGENET
from adcore.papers import published
from adcore.papers.ds2.views import (
    AUGMENTATIONS,
    Crops,
    Recipe,
    augmented,
    change_colors,
    draw_crops,
    resized,
    standardized,
    unstandardized,
)
from adcore.training import seeded

PLAIN = Recipe(flip=0, jitter=0)


def noise(count: int, h: int, w: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, h, w), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# Crops.

@pytest.mark.parametrize(("h", "w"), [(64, 64), (48, 200), (300, 40)])
def test_crops_are_distributed_as_torchvision_s(h, w):
    recipe = Recipe()
    with seeded(0):
        found = draw_crops(3000, h, w, recipe)
        image = torch.zeros(3, h, w)
        crop = RandomResizedCrop(8, scale=recipe.scale, ratio=recipe.ratio)
        theirs = [crop.make_params([image]) for _ in range(3000)]
    for name, mine in zip(("top", "left", "height", "width"), found[:4], strict=True):
        assert ks_2samp(mine.numpy(), np.array([drawn[name] for drawn in theirs])).pvalue > 1e-3, name
    assert found.flipped.float().mean() == approx(0.5, abs=0.04)
    assert (found.top + found.height).max() <= h and (found.left + found.width).max() <= w and min(x.min() for x in found) >= 0


def test_if_no_attempt_fits_the_crop_is_the_largest_central_one_with_a_ratio_in_range():
    found = draw_crops(50, 10, 400, Recipe(scale=(0.9, 1.0)))
    assert {tuple(int(x) for x in row) for row in zip(*found[:4], strict=True)} == {(0, 193, 10, 13)}   # 13 = round(10 * 4 / 3)
    assert draw_crops(5, 1, 1, Recipe()).height.tolist() == [1] * 5


CROPS = Crops(*(torch.tensor(x) for x in ([3, 0, 20, 7, 5], [0, 11, 2, 5, 50], [40, 64, 9, 1, 17], [90, 30, 70, 3, 1])),
              torch.tensor([False, True, True, False, True]))


@pytest.mark.parametrize("size", [7, 32, 100])
def test_resizing_equals_torchvision_with_antialias_and_pillow_s_bilinear_filter(size):
    images = noise(5, 64, 96)
    found = resized(images.float() / 255, CROPS, size)
    for image, result, (top, left, height, width, flipped) in zip(images, found, zip(*CROPS, strict=True), strict=True):
        place = [int(x) for x in (top, left, height, width)]
        theirs = one.resized_crop(image.float() / 255, *place, [size, size], antialias=True)
        assert torch.allclose(result, theirs.flip(2) if flipped else theirs, atol=2e-5)
        box = (place[1], place[0], place[1] + place[3], place[0] + place[2])
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(box).resize((size, size), Image.Resampling.BILINEAR)
        rounded = torch.from_numpy(np.array(pillow)).permute(2, 0, 1) / 255
        assert torch.allclose(result, rounded.flip(2) if flipped else rounded, atol=1.01 / 255)      # Pillow rounds twice


def test_the_whole_image_at_its_own_size_is_itself():
    images = noise(2, 30, 30).float() / 255
    whole = Crops(*(torch.full((2,), x) for x in (0, 0, 30, 30)), torch.tensor([False, True]))
    found = resized(images, whole, 30)
    assert torch.equal(found[0], images[0]) and torch.equal(found[1], images[1].flip(2))


# Boxes.

def test_boxes_are_the_outermost_pixels_as_fractions_and_a_flip_swaps_left_and_right():
    found = CROPS.boxes(64, 96).double().numpy()
    assert found[0] == approx([0 / 95, 3 / 63, 89 / 95, 42 / 63]) and found[1] == approx([40 / 95, 0, 11 / 95, 1])
    whole = Crops(*(torch.tensor([x]) for x in (0, 0, 64, 96)), torch.tensor([False]))
    assert whole.boxes(64, 96).tolist() == [[0, 0, 1, 1]]
    assert torch.isfinite(draw_crops(2, 1, 1, Recipe()).boxes(1, 1)).all()


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_view_shows_the_part_of_the_image_in_its_box(flip):
    # Red grows to the right and green downwards, so a pixel's color gives its position in the image.
    h, w, size = 90, 120, 33
    y, x = torch.meshgrid(torch.linspace(0, 1, h), torch.linspace(0, 1, w), indexing="ij")
    images = torch.stack([x, y, torch.zeros_like(x)])[None].repeat(20, 1, 1, 1)
    with seeded(0):
        views, boxes = augmented(images, Recipe(flip=flip, jitter=0, scale=(0.4, 1)), size)
    shown = unstandardized(views)
    assert shown.shape == (20, 3, size, size) and bool((boxes[:, 0] > boxes[:, 2]).all()) == bool(flip)
    for view, (x0, y0, x1, y1) in zip(shown, boxes.tolist(), strict=True):
        # The centers of the outermost new pixels are slightly inside those of the old ones or, if enlarged, outside.
        assert view[0, 16, 0] == approx(x0, abs=0.02) and view[0, 16, -1] == approx(x1, abs=0.02)
        assert view[1, 0, 16] == approx(y0, abs=0.02) and view[1, -1, 16] == approx(y1, abs=0.02)
        assert view[0, 16, 16] == approx((x0 + x1) / 2, abs=1e-3) and view[1, 16, 16] == approx((y0 + y1) / 2, abs=1e-3)


# Colors.

def test_color_jitter_is_torchvision_s_four_operations_in_an_order_drawn_for_each_image(monkeypatch):
    from adcore.papers.ds2 import photometric
    images, done = noise(12, 9, 11).float() / 255, []
    single = {"brightness": one.adjust_brightness, "contrast": one.adjust_contrast, "saturation": one.adjust_saturation,
              "hue": one.adjust_hue}
    for name in single:
        original = getattr(photometric, name)
        monkeypatch.setattr(photometric, name, lambda x, strength, name=name, original=original: done.append(
            (name, x.clone(), strength)) or original(x, strength))
    with seeded(3):
        found = change_colors(images, replace(PLAIN, jitter=1.0, jitter_range=(0.4, 0.4, 0.2, 0.1)))
    orders = set()
    for image, result in zip(images, found, strict=True):
        order = []
        for name, before, strength in done:                             # follow the image through the operations
            mine = [i for i, x in enumerate(before) if torch.allclose(x, image, atol=1e-5)]
            if mine:
                image = single[name](image, float(strength[mine[0]]))
                order.append(name)
                limits = {"saturation": (0.8, 1.2), "hue": (-0.1, 0.1)}.get(name, (0.6, 1.4))
                assert limits[0] <= strength[mine[0]] <= limits[1]
        assert sorted(order) == sorted(single) and torch.allclose(result, image, atol=1e-5)
        orders.add(tuple(order))
    assert len(orders) > 4


@pytest.mark.parametrize(("recipe", "probability"), [
    ({"jitter": 0.8}, 0.8), ({"grayscale": 0.2}, 0.2), ({"blur": 0.1}, 0.1), ({"blur": 1.0}, 1.0), ({"solarize": 0.5}, 0.5),
    ({"flip": 0.5}, 0.5)])
def test_each_change_is_made_with_its_probability(recipe, probability):
    images = noise(1, 12, 12).repeat(1500, 1, 1, 1)
    images[:, 0], images[:, 2] = images[:, 0] // 2, 255 - images[:, 2] // 2          # colored
    whole = replace(PLAIN, scale=(1, 1), ratio=(1, 1), radius=(0.5, 2.0))            # smaller radii change nothing
    with seeded(0):
        views = augmented(images, replace(whole, **recipe), 12)[0]
    untouched = augmented(images[:1], whole, 12)[0]
    changed = (views - untouched).abs().flatten(1).amax(1) > 1e-3
    assert changed.float().mean() == approx(probability, abs=0.06)


def test_the_augmentation_sets_are_those_of_table_1c_with_the_published_probabilities():
    assert {match["augmentation"] for match in published("ds2.table_1c")["match"]} == set(AUGMENTATIONS)
    for name, (first, second) in AUGMENTATIONS.items():
        parts = name.split("+")
        assert first.jitter == second.jitter == (0.8 if "cj" in parts else 0)
        assert (first.blur, second.blur) == ((1.0, 0.1) if "gb" in parts else (0, 0))
        assert first.grayscale == second.grayscale == (0.2 if "gs" in parts else 0)
        assert (first.solarize, second.solarize) == (0, 0.5 if "so" in parts else 0)
        assert first.scale == (0.08, 1.0) and first.ratio == (3 / 4, 4 / 3) and second.flip == 0.5


def test_a_seed_decides_the_views():
    images = noise(6, 40, 50)
    kept, made = images.clone(), []
    for seed in (1, 1, 2):
        with seeded(seed):
            made.append(augmented(images, AUGMENTATIONS["cj+gb+gs+so"][1], 24))
    assert torch.equal(made[0][0], made[1][0]) and torch.equal(made[0][1], made[1][1]) and torch.equal(images, kept)
    assert not torch.equal(made[0][0], made[2][0])
    assert made[0][0].dtype == torch.float32
    with seeded(4):
        from_bytes = augmented(images, PLAIN, 24)[0]
    with seeded(4):
        from_floats = augmented(images.double() / 255, PLAIN, 24)[0]
    assert torch.allclose(from_bytes, from_floats, atol=1e-5)


def test_an_image_is_resized_independently_of_the_others_in_its_batch():
    images = noise(4, 30, 30).float() / 255
    crops = draw_crops(4, 30, 30, Recipe())
    together = resized(images, crops, 16)
    alone = torch.cat([resized(images[i:i + 1], Crops(*(x[i:i + 1] for x in crops)), 16) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-6)


def test_views_are_standardized_with_imagenet_s_statistics_and_this_can_be_inverted():
    images = noise(3, 8, 9).float() / 255
    mean, std = (torch.tensor(statistic)[:, None, None] for statistic in IMAGENET)
    assert torch.allclose(standardized(images), (images - mean) / std)
    assert torch.allclose(unstandardized(standardized(images)), images, atol=1e-6)
    with seeded(0):
        views = augmented(noise(8, 20, 20), AUGMENTATIONS["cj+gb+gs+so"][1], 16)[0] * std + mean
    assert views.min() >= -1e-5 and views.max() <= 1 + 1e-5
