"""CutPaste: source and target of the pasted patches, read from images whose colors are coordinates; then the proxy task."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.transforms.v2 import functional as one

from adcore.errors import ParameterError
from adcore.papers.ds2 import cutpaste as module
from adcore.papers.ds2 import photometric
from adcore.papers.ds2.cutpaste import (
    CutPasteNetwork,
    CutPastePretrainingConfig,
    Rectangles,
    cutpaste,
    cutpaste_scar,
    jitter_colors,
    paste_rotated,
    pretrain_cutpaste,
    three_ways,
)
from adcore.papers.ds2.views import standardized
from adcore.training import seeded

DRAWS = 2000
SMALL = {"side": 32, "epochs": 2, "steps": 2, "batch_size": 4}
IMAGES = torch.randint(0, 256, (6, 3, 40, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def coordinates(b: int, h: int, w: int) -> Tensor:
    """Images whose red is the row and whose green is the column: (B, 3, h, w)."""
    y, x = torch.meshgrid(torch.arange(h) / 256, torch.arange(w) / 256, indexing="ij")
    return torch.stack([y, x, torch.zeros(h, w)]).expand(b, 3, h, w).contiguous()


def origins(images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the original image that each pixel shows, both (B, h, w)."""
    rows, columns = (images[:, i] * 256 for i in range(2))
    assert (rows - rows.round()).abs().max() < 1e-2 > (columns - columns.round()).abs().max()
    return rows.round().int().numpy(), columns.round().int().numpy()


def shapes_and_places(mixed: Tensor) -> list[tuple[int, int, int, int, int, int]]:
    """For each image: height and width of its rectangle, row and column of the target, row and column of the source."""
    h, w = mixed.shape[-2:]
    found = []
    for row, column in zip(*origins(mixed), strict=True):
        y, x = np.nonzero((row != np.arange(h)[:, None]) | (column != np.arange(w)))
        if not len(y):
            continue  # pasted where it was cut
        top, left, height, width = y.min(), x.min(), np.ptp(y) + 1, np.ptp(x) + 1
        part = np.s_[top:top + height, left:left + width]
        from_y, from_x = row[part][0, 0], column[part][0, 0]
        assert np.array_equal(row[part], np.broadcast_to(from_y + np.arange(height)[:, None], (height, width)))
        assert np.array_equal(column[part], np.broadcast_to(from_x + np.arange(width), (height, width)))
        found.append((height, width, top, left, from_y, from_x))
    return found


# CutPaste.

def test_rectangles_have_2_to_15_percent_area_and_aspect_0_3_to_3_3_and_are_cut_and_pasted_anywhere():
    with seeded(0):
        found = np.array(shapes_and_places(cutpaste(coordinates(DRAWS, 64, 64), jitter=0)))
    assert len(found) > 0.99 * DRAWS
    height, width, top, left, from_y, from_x = found.T
    area, ratio = height * width / 64**2, np.log(width / height)
    # Sides are rounded: half a pixel is a tenth of the shortest side, 5.
    assert 0.017 < area.min() < 0.024 and 0.145 < area.max() < 0.158
    assert area.mean() == approx(0.085, abs=0.002) and np.std(area) == approx(0.13 / math.sqrt(12), abs=0.002)
    assert np.abs(ratio).max() < math.log(1 / 0.3) + 0.15 and np.abs(ratio).max() > math.log(1 / 0.3) - 0.05
    assert ratio.mean() == approx(0, abs=0.04) and np.std(ratio) == approx(2 * math.log(1 / 0.3) / math.sqrt(12), abs=0.03)
    for start, length in ((top, height), (from_y, height), (left, width), (from_x, width)):
        assert start.min() == 0 and (start + length).max() == 64
        assert (start / (64 - length)).mean() == approx(0.5, abs=0.02)
    assert abs(np.corrcoef(top, from_y)[0, 1]) < 0.3  # both depend on the height, and on nothing else in common


def test_images_need_not_be_square_and_rectangles_are_limited_to_their_sides():
    with seeded(1):
        found = np.array(shapes_and_places(cutpaste(coordinates(500, 12, 80), area=(0.1, 0.15), jitter=0)))
        flat = shapes_and_places(cutpaste(coordinates(200, 4, 90), area=(0.1, 0.15), jitter=0))
    assert len(found) > 450 and found[:, 0].max() == 12 and (found[:, 3] + found[:, 1]).max() == 80
    assert max(height for height, *_ in flat) == 4


def test_only_the_pasted_patch_changes_color():
    images = torch.rand(200, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with seeded(2):
        mixed = cutpaste(images)
    changed = (mixed != images).any(1)
    for where in changed:
        y, x = where.nonzero().T
        assert (y.max() - y.min() + 1) * (x.max() - x.min() + 1) < 0.17 * 64**2
    assert mixed.min() >= 0 and mixed.max() <= 1 and changed.any((1, 2)).all()


# Scars.

def by_hand(source: np.ndarray, image: np.ndarray, cut: tuple[int, ...], turn: float, middle: tuple[float, ...]) -> np.ndarray:
    """One pixel at a time: rotate it back about the center and test whether it lies in the rectangle."""
    top, left, height, width = cut
    result = image.copy()
    for y in range(image.shape[1]):
        for x in range(image.shape[2]):
            dy, dx = y - middle[0], x - middle[1]
            back_x = dx * math.cos(turn) - dy * math.sin(turn) + width / 2
            back_y = dx * math.sin(turn) + dy * math.cos(turn) + height / 2
            if 0 <= back_x < width and 0 <= back_y < height:
                result[:, y, x] = source[:, top + int(back_y), left + int(back_x)]
    return result


def test_pasting_a_rotated_rectangle_equals_a_loop_over_pixels():
    g = torch.Generator().manual_seed(0)
    sources, images = torch.rand(2, 40, 3, 23, 31, dtype=torch.float64, generator=g)
    turn = torch.rand(40, dtype=torch.float64, generator=g) * 2 - 1
    middle = torch.rand(40, 2, dtype=torch.float64, generator=g) * torch.tensor([13, 21]) + 5
    cut = Rectangles(*(torch.randint(low, high, (40,), generator=g) for low, high in ((0, 14), (0, 24), (1, 9), (1, 7))))
    found = paste_rotated(sources, images, cut, turn, middle)
    for i in range(40):
        rectangle = tuple(int(part[i]) for part in cut)
        expected = by_hand(sources[i].numpy(), images[i].numpy(), rectangle, float(turn[i]), tuple(middle[i].tolist()))
        assert np.array_equal(found[i].numpy(), expected)


def test_a_positive_rotation_is_counterclockwise_as_pillow_s():
    image = coordinates(1, 41, 41)
    cut = Rectangles(*(torch.tensor([n]) for n in (10, 10, 21, 21)))
    rotation, center = torch.tensor([math.radians(30)]), torch.tensor([[20.0, 20.0]])
    found = paste_rotated(image, torch.zeros_like(image), cut, rotation, center)[0]
    other = one.rotate(image[0], 30, center=[20.5, 20.5])
    inside = found.any(0)
    assert inside.sum() == approx(441, abs=8)
    # torchvision rotates about (W - 1) / 2 or W / 2, depending on its version: the nearest pixel may be the neighboring one.
    assert (found - other)[:, inside].abs().max() <= 1.01 / 256


def test_scars_have_1_to_4_by_5_to_6_pixels_and_up_to_45_degrees_and_are_not_cut_off():
    with seeded(3):
        rows, columns = origins(cutpaste_scar(coordinates(DRAWS, 64, 64), jitter=0))
    moved = (rows != np.arange(64)[:, None]) | (columns != np.arange(64))
    counts = moved.sum((1, 2))
    assert counts.max() <= 4 * 6 + 6 and counts.min() >= 3 and counts.mean() == approx(2.5 * 5.5, abs=0.7)
    edges = np.array([moved[:, 0].any(), moved[:, -1].any(), moved[:, :, 0].any(), moved[:, :, -1].any()])
    assert edges.all()
    sizes, angles = set(), []
    for row, column, where in zip(rows, columns, moved, strict=True):
        y, x = np.nonzero(where)
        if len(y) < 3:
            continue
        from_y, from_x = row[where], column[where]
        sizes.add((int(np.ptp(from_y)) + 1, int(np.ptp(from_x)) + 1))
        # Direction in which the rows of the source follow each other: straight down, apart from the rotation.
        centered = np.stack([y - y.mean(), x - x.mean()])
        down = centered @ (from_y - from_y.mean())
        angles.append(math.degrees(math.atan2(down[1], down[0])))
    assert max(height for height, _ in sizes) == 6 and {width for _, width in sizes} == {1, 2, 3, 4}
    assert np.mean(np.abs(angles) < 46) > 0.9 and np.mean(angles) == approx(0, abs=2)
    assert np.std(angles) == approx(90 / math.sqrt(12), rel=0.12)


def test_scars_are_drawn_uniformly_from_their_ranges_and_fit_into_the_image(monkeypatch):
    drawn: list[tuple[Rectangles, Tensor, Tensor]] = []
    monkeypatch.setattr("adcore.papers.ds2.cutpaste.paste_rotated",
                        lambda sources, images, cut, turn, middle: drawn.append((cut, turn, middle)) or images)
    with seeded(4):
        cutpaste_scar(coordinates(DRAWS, 20, 30), jitter=0)
    ((cut, turn, middle),) = drawn
    width, height, degrees = (x.double().numpy() for x in (cut.width, cut.height, torch.rad2deg(turn)))
    # Rounded: of [1, 4] a sixth is 1 and a sixth is 4, of [5, 6] half is 5.
    assert [np.mean(width == n) for n in (1, 2, 3, 4)] == approx([1 / 6, 1 / 3, 1 / 3, 1 / 6], abs=0.03)
    assert [np.mean(height == n) for n in (5, 6)] == approx([0.5, 0.5], abs=0.03)
    assert -45 <= degrees.min() < -44.5 and 44.5 < degrees.max() <= 45
    assert np.std(degrees) == approx(90 / math.sqrt(12), rel=0.03)
    cos, sin = turn.cos().abs().numpy(), turn.sin().abs().numpy()
    for n, axis, reach in ((20, 0, height * cos + width * sin), (30, 1, width * cos + height * sin)):
        start, end = middle[:, axis].numpy() - reach / 2, middle[:, axis].numpy() + reach / 2
        assert -0.5 - 1e-5 <= start.min() < 0.6 and n - 1.6 < end.max() <= n - 0.5 + 1e-5
    assert int(cut.top.min()) == 0 == int(cut.left.min())
    assert int((cut.top + cut.height).max()) == 20 and int((cut.left + cut.width).max()) == 30


# Colors.

@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_the_cut_patch_changes_color_as_torchvision_changes_the_patch_alone(order):
    images = torch.rand(4, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    strength = torch.tensor([[0.6, 1.0, 1.3, 0.9], [0.5, 1.4, 1.0, 1.1], [0.7, 1.0, 1.5, 0.2], [0.1, -0.1, 0.03, 0.0]])
    cut = Rectangles(*(torch.tensor(n) for n in ((0, 3, 7, 12), (0, 1, 9, 20), (20, 5, 9, 8), (24, 9, 3, 4))))
    found = photometric.color_jitter(images, torch.tensor([order] * 4), strength, cut.mask(20, 24, images.device))
    changes = (one.adjust_brightness, one.adjust_contrast, one.adjust_saturation, one.adjust_hue)
    for i in range(4):
        top, left, height, width = (int(part[i]) for part in cut)
        here = np.s_[:, top:top + height, left:left + width]
        expected = images[i][here]
        for step in order:
            expected = changes[step](expected, float(strength[step, i]))
        assert torch.allclose(found[i][here], expected, atol=3e-6)


def test_color_jitter_is_at_most_a_tenth_and_uses_every_order(monkeypatch):
    drawn: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(photometric, "color_jitter",
                        lambda images, order, strength, where: drawn.append((order, strength)) or images)
    images = torch.rand(DRAWS, 3, 2, 2)
    with seeded(5):
        jitter_colors(images, torch.ones(DRAWS, 1, 2, 2, dtype=torch.bool), 0.1)
    ((order, strength),) = drawn
    assert len({tuple(one_of) for one_of in order.tolist()}) == 24
    for step, middle in enumerate((1, 1, 1, 0)):
        change = strength[step] - middle
        assert -0.1 - 1e-6 <= change.min() < -0.099 and 0.099 < change.max() <= 0.1 + 1e-6 and abs(change.mean()) < 0.005


# All three.

def test_the_three_ways_start_from_the_same_crop_which_comes_from_anywhere():
    with seeded(6):
        found = three_ways(coordinates(400, 90, 80), jitter=0)
    assert found.shape == (3, 400, 3, 64, 64)
    rows, columns = origins(found[0])
    top, left = rows[:, 0, 0], columns[:, 0, 0]
    assert np.array_equal(rows, np.broadcast_to(top[:, None, None] + np.arange(64)[:, None], rows.shape))
    assert np.array_equal(columns, np.broadcast_to(left[:, None, None] + np.arange(64), columns.shape))
    assert (top.min(), top.max(), left.min(), left.max()) == (0, 26, 0, 16)
    for kind, most in ((1, 0.17 * 64**2), (2, 30)):
        differ = (found[kind] - found[0]).abs().amax(1) > 1e-3
        assert differ.sum((1, 2)).float().quantile(0.02) >= 1 and differ.sum((1, 2)).max() <= most


def test_half_of_the_images_are_color_jittered_before_and_equally_in_all_three_ways():
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).repeat(300, 1, 1, 1)
    with seeded(7):
        plain, pasted, scar = three_ways(images)
    jittered = (plain != images).flatten(1).any(1)
    assert jittered.float().mean() == approx(0.5, abs=0.07)
    for kind, kept in ((scar, 0.98), (pasted, 0.8)):
        assert ((plain == kind).all(1).float().mean((1, 2)) > kept).all()
    assert len({round(float(x.mean()), 6) for x in plain[::2]}) > 120


def test_a_seed_decides_the_crops_and_the_images_are_not_changed():
    images = torch.rand(6, 3, 70, 64)
    kept = images.clone()
    with seeded(8):
        first, second = three_ways(images), three_ways(images)
    with seeded(8):
        again = three_ways(images)
    assert torch.equal(first, again) and not torch.equal(first, second) and torch.equal(images, kept)


def test_images_smaller_than_a_crop_or_a_scar_are_refused():
    with pytest.raises(ParameterError, match=r"^images \(2, 3, 63, 80\) to cut and paste in: expected \(B, 3, H, W\) of at "
                                             r"least 64x64 pixels$"):
        three_ways(torch.rand(2, 3, 63, 80))
    with pytest.raises(ParameterError, match=r"of at least 8x8 pixels$"):
        cutpaste_scar(torch.rand(2, 3, 7, 80))
    with pytest.raises(ParameterError, match=r"expected \(B, 3, H, W\)"):
        cutpaste(torch.rand(3, 64, 64))


# The proxy task.

def test_defaults_are_the_supplement_s():
    c = CutPastePretrainingConfig()
    assert (c.epochs, c.steps, c.batch_size, c.lr, c.momentum, c.weight_decay) == (256, 256, 96, 0.03, 0.9, 3e-5)
    network = CutPasteNetwork(c)
    linear = [layer for layer in network.head if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(512, 512), (512, 128), (128, 3)]
    assert [type(layer) for layer in network.head[:6]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU] * 2


def test_the_settings_side_head_and_jitter_reach_the_crops_and_the_classifier(monkeypatch):
    network = CutPasteNetwork(CutPastePretrainingConfig(side=40, head=(7, 5, 6), jitter=0.3))
    shapes = [(layer.in_features, layer.out_features) for layer in network.head if isinstance(layer, nn.Linear)]
    assert shapes == [(512, 7), (7, 5), (5, 6), (6, 3)]
    seen, three_ways = [], module.three_ways
    monkeypatch.setattr(module, "three_ways", lambda images, *rest: seen.append(rest) or three_ways(images, *rest))
    network.loss(IMAGES)
    assert seen == [(40, 0.3)]


def test_the_encoder_starts_with_torchvision_s_plain_weights():
    with seeded(0):
        ours = CutPasteNetwork(CutPastePretrainingConfig()).encoder
    with seeded(0):
        theirs = resnet18(weights=None)
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_the_loss_is_the_cross_entropy_of_all_three_crops_of_each_image(monkeypatch):
    torch.manual_seed(0)
    network = CutPasteNetwork(CutPastePretrainingConfig(**SMALL)).eval()
    crops = torch.rand(3, 4, 3, 32, 32)
    seen = []
    monkeypatch.setattr(module, "three_ways", lambda images, side, jitter: seen.append((images, side, jitter)) or crops)
    found = network.loss(IMAGES[:4]).detach()
    by_hand = []
    for way in range(3):
        for crop in crops[way]:
            features = network.encoder(standardized(crop[None]))["c5"].mean((2, 3))
            logits = network.head(features)[0].double()
            by_hand.append(logits.exp().sum().log() - logits[way])
    assert float(found) == approx(float(torch.stack(by_hand).mean().detach()), rel=1e-5)
    images, side, jitter = seen[0]
    assert torch.equal(images, IMAGES[:4].float() / 255) and (side, jitter) == (32, 0.1)


def test_the_learning_rate_is_one_cosine_over_all_steps(monkeypatch):
    rates = []
    real = torch.optim.SGD.step
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or real(self, *a))
    pretrain_cutpaste(CutPastePretrainingConfig(**SMALL | {"epochs": 3}), IMAGES, progress=False)
    expected = [1e-6 + (0.03 - 1e-6) * (1 + math.cos(math.pi * t / 6)) / 2 for t in range(6)]
    assert rates == approx(expected)


def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, monkeypatch):
    config = CutPastePretrainingConfig(**SMALL)
    whole = pretrain_cutpaste(config, IMAGES, progress=False)
    loss, calls = CutPasteNetwork.loss, []

    def power_cut(self, images):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return loss(self, images)

    monkeypatch.setattr(CutPasteNetwork, "loss", power_cut)
    with pytest.raises(KeyboardInterrupt):
        pretrain_cutpaste(config, IMAGES, checkpoint=tmp_path / "c", progress=False)
    monkeypatch.setattr(CutPasteNetwork, "loss", loss)
    again = pretrain_cutpaste(config, IMAGES, checkpoint=tmp_path / "c", progress=False)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    assert whole.losses == again.losses and len(whole.losses) == 2 and not again.training


def test_amp_runs_the_network_in_bfloat16_but_not_crops_and_weights(monkeypatch):
    crops, three_ways = [], module.three_ways
    monkeypatch.setattr(module, "three_ways", lambda *a: crops.append(three_ways(*a)) or crops[-1])
    networks = [pretrain_cutpaste(CutPastePretrainingConfig(**SMALL | {"epochs": 1, "steps": 1, "amp": amp}), IMAGES,
                                  progress=False) for amp in (False, True)]
    assert torch.equal(*crops) and networks[1].losses != networks[0].losses
    assert networks[1].losses == approx(networks[0].losses, abs=0.05)
    assert {p.dtype for p in networks[1].parameters()} == {torch.float32}


def test_seeds_differ_and_few_images_still_fill_a_batch():
    config = CutPastePretrainingConfig(**SMALL | {"epochs": 1, "steps": 1})
    one, two = (pretrain_cutpaste(config, IMAGES[:2], seed=seed, progress=False) for seed in (0, 1))
    assert one.losses != two.losses and all(math.isfinite(value) for value in (*one.losses, *two.losses))


@pytest.mark.parametrize(("images", "message"), [
    (IMAGES.float(), r"images must be \(n, 3, H, W\) uint8, not \(6, 3, 40, 48\) torch.float32"),
    (IMAGES[:, :1], r"uint8, not \(6, 1, 40, 48\)"), (IMAGES[:0], r"uint8, not \(0, 3, 40, 48\)")])
def test_images_of_another_dtype_or_shape_are_refused(images, message):
    with pytest.raises(ParameterError, match=message):
        pretrain_cutpaste(CutPastePretrainingConfig(**SMALL), images, progress=False)


def test_impossible_settings_are_refused():
    with pytest.raises(ParameterError, match=r"^CutPastePretrainingConfig: steps=0 must be at least 1$"):
        CutPastePretrainingConfig(steps=0)
    with pytest.raises(ParameterError, match=r"head=\(\) must have at least 1 item$"):
        CutPastePretrainingConfig(head=())
