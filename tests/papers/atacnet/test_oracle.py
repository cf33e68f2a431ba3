"""What the few-shot methods compute, written a second time as slow loops in plain Python.

Each test has three parts: a loop made from the description of the method, a few frozen numbers, and the code. The loop and the
code must both give the frozen numbers. The inputs are values of the sine, so that no random generator can change them.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor, nn

from adcore.papers import published
from adcore.papers.atacnet import cropping, cutmix, devnet, few_shot
from adcore.papers.atacnet.deviation import AnomalyMapping, deviation_loss, deviation_loss_printed, deviations, top_mean
from adcore.papers.atacnet.dra import DRA, Composite, DRAConfig, Holistic
from adcore.papers.atacnet.self_attention import AttentionBlock

EXACT = {"rel": 1e-11, "abs": 1e-12}


def wave(*shape: int, start: float = 0.0, pace: float = 0.7) -> np.ndarray:
    """sin(start), sin(start + pace), ... in this shape."""
    return np.sin(start + pace * np.arange(math.prod(shape))).reshape(shape)


def tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def filled(module: nn.Module) -> nn.Module:
    """A module in float64 and eval mode whose weights and statistics are values of the sine; variances are positive."""
    module = module.double().eval()
    for i, (name, values) in enumerate(module.state_dict().items()):
        if values.is_floating_point():
            new = tensor(0.6 * wave(*values.shape, start=i + 1.0))
            values.copy_(1 + new if "running_var" in name else new)
    return module


def numbers(module: nn.Module) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in module.state_dict().items()}


# --- loops --------------------------------------------------------------------------------------------------------------

def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """A convolution with zeros around the image: (C, h, w), (O, C, k, k) -> (O, h, w)."""
    (_, h, w), k = x.shape, weight.shape[-1]
    out = np.zeros((len(weight), h, w))
    for o, y, z in np.ndindex(*out.shape):
        for c, i, j in np.ndindex(*weight.shape[1:]):
            v, u = y + i - k // 2, z + j - k // 2
            if 0 <= v < h and 0 <= u < w:
                out[o, y, z] += weight[o, c, i, j] * x[c, v, u]
        out[o, y, z] += 0.0 if bias is None else bias[o]
    return out


def normalized(x: np.ndarray, part: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Batch norm with stored statistics, then ReLU: (C, ...) -> (C, ...)."""
    out = np.empty_like(x)
    for c in range(len(x)):
        gain = part[f"{name}.weight"][c] / math.sqrt(part[f"{name}.running_var"][c] + 1e-5)
        out[c] = np.maximum((x[c] - part[f"{name}.running_mean"][c]) * gain + part[f"{name}.bias"][c], 0)
    return out


def mean_of_largest(cells: np.ndarray) -> float:
    """Mean of the largest tenth of the cells, rounded down, at least one."""
    ordered = sorted(cells.flatten().tolist(), reverse=True)
    count = max(int(0.1 * len(ordered)), 1)
    return sum(ordered[:count]) / count


def half(image: np.ndarray) -> np.ndarray:
    """An image at half size: a pixel is the one at twice its row and column. (C, H, W) -> (C, H // 2, W // 2)."""
    _, h, w = image.shape
    return np.array([[[channel[math.floor(y * h / (h // 2))][math.floor(x * w / (w // 2))] for x in range(w // 2)]
                      for y in range(h // 2)] for channel in image])


def enlarged(cells: np.ndarray, h: int, w: int) -> np.ndarray:
    """Bilinear interpolation between the centers of cells; outside the outermost centers the value stays: -> (h, w)."""
    def place(i: int, n: int, m: int) -> tuple[int, int, float]:
        at = min(max((i + 0.5) * m / n - 0.5, 0.0), m - 1.0)
        low = min(int(at), max(m - 2, 0))
        return low, min(low + 1, m - 1), at - low

    out = np.empty((h, w))
    for y, x in np.ndindex(h, w):
        (t, b, down), (left, right, along) = place(y, h, len(cells)), place(x, w, len(cells[0]))
        out[y, x] = ((1 - down) * ((1 - along) * cells[t, left] + along * cells[t, right])
                     + down * ((1 - along) * cells[b, left] + along * cells[b, right]))
    return out


# --- deviation loss -----------------------------------------------------------------------------------------------------

@pytest.fixture
def reference(monkeypatch) -> list[float]:
    """5,000 numbers in place of the loss's draw from N(0, 1)."""
    drawn = [1.5 * math.sin(i) + 0.1 for i in range(5000)]

    def randn(count: int) -> Tensor:
        assert count == 5000
        return tensor(drawn)

    monkeypatch.setattr(torch, "randn", randn)
    return drawn


def test_a_deviation_is_the_distance_to_the_mean_of_5000_numbers_in_their_standard_deviations(reference):
    mean = sum(reference) / 5000
    spread = math.sqrt(sum((r - mean) ** 2 for r in reference) / 4999)
    frozen = [-2.923031088215088, 0.28248073201848123, 1.7909568827166313]
    assert [(score - mean) / spread for score in (-3.0, 0.4, 2.0)] == approx(frozen, **EXACT)
    assert deviations(tensor([-3.0, 0.4, 2.0])).tolist() == approx(frozen, **EXACT)


def test_the_loss_at_deviations_of_0_5_and_7_is_the_distance_to_0_or_what_is_missing_to_5(reference):
    mean = sum(reference) / 5000
    spread = math.sqrt(sum((r - mean) ** 2 for r in reference) / 4999)
    for y, loss, frozen in ((0, deviation_loss, [0, 5, 7]), (1, deviation_loss, [5, 0, 0]),
                            (0, deviation_loss_printed, [0, 5, 7]), (1, deviation_loss_printed, [5, 0, -2])):
        clamp = (lambda value: max(0.0, value)) if loss is deviation_loss else (lambda value: value)
        for dev, expected in zip((0.0, 5.0, 7.0), frozen, strict=True):
            assert (1 - y) * abs(dev) + y * clamp(5 - (dev if loss is deviation_loss else abs(dev))) == expected
            assert float(loss(tensor([mean + dev * spread]), torch.tensor([y]))) == approx(expected, abs=1e-12)


def test_the_loss_of_a_batch_is_the_mean_over_its_images(reference):
    scores, labels = [-3.0, 0.4, 2.0, 9.0, -1.0], [0, 0, 1, 1, 1]
    mean = sum(reference) / 5000
    spread = math.sqrt(sum((r - mean) ** 2 for r in reference) / 4999)
    devs = [(score - mean) / spread for score in scores]
    clamped = sum((1 - y) * abs(d) + y * max(0.0, 5 - d) for d, y in zip(devs, labels, strict=True)) / 5
    printed = sum((1 - y) * abs(d) + y * (5 - abs(d)) for d, y in zip(devs, labels, strict=True)) / 5
    frozen = [2.4903981674718674, 1.3973157991306997]
    assert [clamped, printed] == approx(frozen, **EXACT)
    assert [float(loss(tensor(scores), torch.tensor(labels))) for loss in (deviation_loss, deviation_loss_printed)] == approx(
        frozen, **EXACT)


@pytest.mark.parametrize(("shape", "count", "frozen"), [
    ((7, 7), 4, 0.9935651160408696), ((5, 9), 4, 0.9915466923214038), ((3, 3), 1, 0.9854497299884601)])
def test_a_score_is_the_mean_of_the_largest_tenth_of_the_cells(shape, count, frozen):
    cells = wave(*shape)
    assert sum(sorted(cells.flatten())[-count:]) / count == approx(frozen, **EXACT)
    assert float(top_mean(tensor(cells)[None])) == approx(frozen, **EXACT)


# --- image sizes and rotation -------------------------------------------------------------------------------------------

def test_each_smaller_image_takes_single_pixels_of_the_image_and_averages_none():
    image = np.arange(63.0).reshape(7, 9)
    by_hand = [[image[math.floor(y * 7 / h)][math.floor(x * 9 / w)] for y in range(h) for x in range(w)]
               for h, w in ((7 // 2, 9 // 2), (7 // 4, 9 // 4))]
    frozen = [[0.0, 2.0, 4.0, 6.0, 18.0, 20.0, 22.0, 24.0, 36.0, 38.0, 40.0, 42.0], [0.0, 4.0]]
    found = devnet.pyramid(tensor(image)[None, None], 3)
    assert by_hand == frozen and [x.flatten().tolist() for x in found[1:]] == frozen
    assert torch.equal(found[0], tensor(image)[None, None])


@pytest.mark.parametrize(("degrees", "frozen"), [
    (50, [0, 4, 9, 10, 15, 2, 3, 8, 14, 20, 1, 7, 13, 18, 19, 6, 11, 12, 17, 0]),
    (-35, [6, 6, 2, 3, 0, 11, 12, 8, 9, 4, 17, 12, 13, 9, 10, 0, 18, 19, 15, 15])])
def test_a_rotated_image_takes_the_pixel_nearest_to_the_rotated_place_and_is_black_outside(monkeypatch, degrees, frozen):
    image = 1 + np.arange(20).reshape(4, 5)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    by_hand = []
    for y, x in np.ndindex(4, 5):
        down, along = y - 1.5, x - 2.0                                         # from the center of the image
        v, u = round(1.5 + sin * along + cos * down), round(2.0 + cos * along - sin * down)
        by_hand.append(int(image[v, u]) if 0 <= v < 4 and 0 <= u < 5 else 0)
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.fill_(high))
    found = few_shot.rotated(tensor(image)[None, None], float(degrees))
    assert by_hand == frozen and found.flatten().int().tolist() == frozen


# --- self-attention -----------------------------------------------------------------------------------------------------

def mirrored(i: int, n: int) -> int:
    """Index i of a row of n, reflected at both ends; the border cell is not repeated."""
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def attended(x: np.ndarray, part: dict[str, np.ndarray], kind: str, window: int, share: int, y: int, z: int) -> np.ndarray:
    """Output of the residual bottleneck at one cell: (C, h, w) -> (C,)."""
    _, h, w = x.shape
    inside = normalized(x, part, "before.0")
    query, key, value = (convolved(inside, part[f"attention.{name}.weight"], part[f"attention.{name}.bias"])
                         for name in ("query", "key", "value"))
    reach = window // 2
    around = [(mirrored(y + i, h), mirrored(z + j, w)) for i in range(-reach, reach + 1) for j in range(-reach, reach + 1)]

    def weigh(column: np.ndarray) -> np.ndarray:
        """Batch norm, ReLU, 1x1 convolution without bias, batch norm, ReLU, 1x1 convolution."""
        column = normalized(column, part, "attention.weigh.0")
        column = normalized(part["attention.weigh.2.weight"][:, :, 0, 0] @ column, part, "attention.weigh.3")
        return part["attention.weigh.5.weight"][:, :, 0, 0] @ column + part["attention.weigh.5.bias"]

    groups = len(value) // share
    weights = np.zeros((groups, len(around)))
    if kind == "pairwise":
        def place(v: int, u: int) -> np.ndarray:
            at = np.array([2 * u / (w - 1) - 1, 2 * v / (h - 1) - 1])          # x and y in [-1, 1]
            return part["attention.place.weight"][:, :, 0, 0] @ at + part["attention.place.bias"]

        for k, (v, u) in enumerate(around):
            weights[:, k] = np.exp(weigh(np.concatenate([query[:, y, z] - key[:, v, u], place(y, z) - place(v, u)])))
        weights /= weights.sum(1, keepdims=True)
    else:
        neighbors = [key[r, v, u] for r in range(len(key)) for v, u in around]
        weights = weigh(np.concatenate([query[:, y, z], neighbors])).reshape(groups, len(around))
    mixed = np.array([sum(weights[c // share, k] * value[c, v, u] for k, (v, u) in enumerate(around))
                      for c in range(len(value))])
    return x[:, y, z] + part["after.2.weight"][:, :, 0, 0] @ normalized(mixed, part, "after.0") + part["after.2.bias"]


@pytest.mark.parametrize(("kind", "frozen"), [
    ("pairwise", [0.6957569333515, 0.5345524925538, -0.1707836470481, 2.2237123784869, -1.132873326307, 1.6140541745253]),
    ("patchwise", [-0.6242467413999, 0.9797310522992, -0.6646743231222, 1.0686773335109, -0.9768851405797, 1.5001581308881])])
def test_the_attention_block_adds_weighted_neighbors_reflected_at_the_border(kind, frozen):
    block, x = filled(AttentionBlock(16, kind, window=3, share=2)), 1.5 * wave(16, 3, 4, pace=1.3)
    part = numbers(block)
    assert part["attention.query.weight"].shape[:2] == (1, 16) and part["attention.value.weight"].shape[:2] == (4, 16)
    by_hand = np.concatenate([attended(x, part, kind, 3, 2, y, z)[:3] for y, z in ((0, 0), (1, 2))])
    with torch.no_grad():
        found = block(tensor(x)[None])[0]
    assert by_hand.tolist() == approx(frozen, **EXACT)
    assert [*found[:3, 0, 0].tolist(), *found[:3, 1, 2].tolist()] == approx(frozen, **EXACT)


# --- attention box ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("scale", "reading", "frozen"), [
    (1.0, "relative", [8, 0, 21, 16]), (4.0, "relative", [8, 0, 21, 16]), (1.0, "as_printed", [8, 0, 21, 17]),
    (0.5, "as_printed", [6, 0, 21, 20]), (4.0, "as_printed", [0, 0, 21, 28])])
def test_the_box_spans_the_pixels_that_reach_omega_of_the_largest_or_as_printed_omega_times_the_largest(scale, reading, frozen):
    y, x = np.mgrid[:7, :7]
    attention = scale * np.exp(-((y - 4.2) ** 2 + (x - 1.7) ** 2) / 5)
    threshold = 0.5 * attention.max() if reading == "as_printed" else 0.5
    image = enlarged(attention / attention.max(), 21, 28)
    rows, columns = np.nonzero(image >= threshold)
    box = [0, 0, 21, 28] if not len(rows) else [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    assert [int(side) for side in box] == frozen
    assert cropping.attention_boxes(tensor(attention)[None], (21, 28), 0.5, reading, smallest=1)[0].tolist() == frozen


# --- CutMix -------------------------------------------------------------------------------------------------------------

def recolored(patch: np.ndarray, factor: float, turn: float) -> np.ndarray:
    """Brightness, contrast and saturation times a factor, hue plus a turn, in this order: (3, h, w) -> (3, h, w)."""
    def gray(x: np.ndarray) -> np.ndarray:
        return 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]

    patch = np.clip(factor * patch, 0, 1)
    patch = np.clip(factor * patch + (1 - factor) * gray(patch).mean(), 0, 1)
    patch = np.clip(factor * patch + (1 - factor) * gray(patch), 0, 1)
    for y, x in np.ndindex(*patch.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*patch[:, y, x])
        patch[:, y, x] = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
    return patch


def test_cutmix_pastes_a_patch_of_the_image_elsewhere_with_its_brightness_contrast_saturation_and_hue_changed(monkeypatch):
    """All random numbers take the upper end of their range: area 0.15, aspect 1 / 0.3, factors 1.1, hue 0.1."""
    corners = iter([1, 9, 2, 4])                                               # from (1, 9) to (2, 4)
    monkeypatch.setattr(Tensor, "uniform_", lambda self, low, high: self.fill_(high))
    monkeypatch.setattr(torch, "randint", lambda *given, **named: torch.tensor(next(corners)))
    monkeypatch.setattr(torch, "randperm", lambda count: torch.arange(count))
    image = 0.5 + 0.4 * wave(3, 12, 16, pace=1.9)
    area = 0.15 * 12 * 16
    h, w = round(math.sqrt(area / 0.3)), round(math.sqrt(area * 0.3))
    by_hand = image.copy()
    by_hand[:, 2:2 + h, 4:4 + w] = recolored(image[:, 1:1 + h, 9:9 + w], 1.1, 0.1)
    frozen = [0.381803364, 0.385032237, 0.099848285, 0.118878901, 0.069408685, 0.129626542]
    found = cutmix.in_image(tensor(image)[None])[0].numpy()
    assert (h, w) == (10, 3) and np.array_equal(found != image, by_hand != image)
    for mixed in (by_hand, found):
        assert [*mixed[:, 2, 4], *mixed[:, 11, 6]] == approx(frozen, rel=1e-6)
    assert np.abs(found - by_hand).max() < 1e-6


# --- DRA ----------------------------------------------------------------------------------------------------------------

def test_dra_adds_the_seen_pseudo_and_composite_scores_and_subtracts_the_holistic_one():
    """The features are the image itself, at full and at half size; the composite head sees the mean of five references."""
    one = DRA.__new__(DRA)
    one.config = DRAConfig(hidden=2)
    one.extractor = lambda images: [images]
    one.network = filled(nn.ModuleDict({"holistic": Holistic(3, 2), "seen": AnomalyMapping(3), "pseudo": AnomalyMapping(3),
                                        "composite": Composite(3)}))
    part, image, references = numbers(one.network), wave(3, 8, 6, start=2.0), wave(5, 3, 8, 6, pace=2.3)
    one.network.register_buffer("references", tensor(references))

    def cells(x: np.ndarray, name: str) -> np.ndarray:
        return np.abs(convolved(x, part[f"{name}.combine.weight"], part[f"{name}.combine.bias"])[0])

    sizes: list[dict[str, float]] = []
    maps: list[np.ndarray] = []
    for shrink in (lambda x: x, half):
        x, mean = shrink(image), sum(shrink(one) for one in references) / 5
        pooled = np.array([channel.sum() / channel.size for channel in x])
        hidden = np.maximum(part["holistic.layers.0.weight"] @ pooled + part["holistic.layers.0.bias"], 0)
        difference = convolved(mean - x, part["composite.convolution.0.weight"], part["composite.convolution.0.bias"])
        of_size = {"seen": cells(x, "seen"), "pseudo": cells(x, "pseudo"),
                   "composite": cells(normalized(difference, part, "composite.convolution.1"), "composite.mapping")}
        maps += of_size.values()
        sizes.append({"holistic": abs((part["holistic.layers.2.weight"] @ hidden + part["holistic.layers.2.bias"])[0]),
                      **{name: mean_of_largest(m) for name, m in of_size.items()}})
    heads = {name: (sizes[0][name] + sizes[1][name]) / 2 for name in sizes[0]}
    total = heads["seen"] + heads["pseudo"] + heads["composite"] - heads["holistic"]
    mean_map = sum(enlarged(m, 8, 6) for m in maps) / 6
    frozen = {"holistic": 0.48296261233379, "seen": 0.68199702771387, "pseudo": 0.7133102741203,
              "composite": 1.24272758374292}
    frozen_total, frozen_map = 2.155072273243294, [0.6583812094815445, 0.7267834133922076]
    with torch.no_grad():
        found = {name: float(scores) for name, (scores, _) in one.heads(tensor(image)[None], tensor(references)).items()}
        prediction = one.score(tensor(image)[None])
    assert heads == approx(frozen, **EXACT) and found == approx(frozen, **EXACT)
    assert total == approx(frozen_total, **EXACT) and float(prediction.score) == approx(frozen_total, **EXACT)
    assert [mean_map[0, 0], mean_map[5, 3]] == approx(frozen_map, **EXACT)
    assert [float(prediction.map[0, 0, 0]), float(prediction.map[0, 5, 3])] == approx(frozen_map, **EXACT)


def test_each_head_of_dra_learns_from_its_own_images_and_the_holistic_one_from_exchanged_labels(reference):
    """All scores lie between the two targets 0 and 5, so that each image in the wrong place would change the loss."""
    labels = [0, 1, 2, 2, 0, 1]                                                # normal, labeled anomaly, pseudo anomaly
    scores = {name: (2.5 + 2 * wave(6, start=i, pace=1.1)).tolist()
              for i, name in enumerate(("holistic", "seen", "pseudo", "composite"))}
    anomalies = {"holistic": [0], "seen": [1], "pseudo": [2], "composite": [1, 2]}    # whose score should be 5
    leaves_out = {"holistic": [], "seen": [2], "pseudo": [1], "composite": []}
    mean = sum(reference) / 5000
    spread = math.sqrt(sum((r - mean) ** 2 for r in reference) / 4999)
    by_hand = 0.0
    for name in scores:
        losses = [max(0.0, 5 - (s - mean) / spread) if y in anomalies[name] else abs((s - mean) / spread)
                  for s, y in zip(scores[name], labels, strict=True) if y not in leaves_out[name]]
        by_hand += sum(losses) / len(losses)
    one = DRA.__new__(DRA)
    one.config = DRAConfig()
    one.drawn_references = lambda: None
    one.heads = lambda images, references: {name: (tensor(values), []) for name, values in scores.items()}
    frozen = 11.978108509286324
    assert by_hand == approx(frozen, **EXACT)
    assert float(one.loss(torch.zeros(6, 3, 2, 2, dtype=torch.float64), torch.tensor(labels))) == approx(frozen, **EXACT)


# --- printed tables -----------------------------------------------------------------------------------------------------

def column_means(exhibit: str, chosen: Callable[[str], bool]) -> dict[str, float]:
    """Mean of each printed column over the chosen rows."""
    cells: dict[str, list[float]] = {}
    for row, column, value in published(exhibit)[["row", "column", "value"]].itertuples(index=False):
        if chosen(row):
            cells.setdefault(column, []).append(float(value))
    return {column: sum(values) / len(values) for column, values in cells.items()}


def test_the_printed_means_of_table_1_are_those_of_its_columns_and_the_first_is_cut_off():
    frozen = {"CUT-MIX": 0.8629, "Weighted CE": 0.9315, "Deviation Loss": 0.9440, "ATAC-Net": 0.9727}
    found = column_means("atacnet.table_1", lambda row: row != "MVTec-AD")
    printed = column_means("atacnet.table_1", lambda row: row == "MVTec-AD")
    assert {column: round(found[column], 4) for column in frozen} == frozen
    assert {column: printed[column] for column in frozen} == {
        "CUT-MIX": 0.862, "Weighted CE": 0.932, "Deviation Loss": 0.944, "ATAC-Net": 0.973}
    assert [column for column in frozen if round(found[column] + 1e-9, 3) != printed[column]] == ["CUT-MIX"]


def test_only_one_printed_mean_of_table_2_is_wrong_dra_s_on_tile_with_ten_anomalies():
    wrong = {}
    for name in ("Tile", "Metal Nut"):
        rows = column_means("atacnet.table_2", lambda row, name=name: row.startswith(name) and not row.endswith("Mean"))
        means = column_means("atacnet.table_2", lambda row, name=name: row.startswith(name) and row.endswith("Mean"))
        wrong |= {(name, column): (means[column], round(rows[column], 4)) for column in rows
                  if abs(means[column] - rows[column]) > 0.001}
    assert wrong == {("Tile", "Ten Anomaly DRA"): (0.935, 0.9534)}
