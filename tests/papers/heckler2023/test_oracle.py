"""What PatchCore, FastFlow, AsymST and the receptive field compute, written a second time as slow loops in plain Python.

Each test has three parts: a loop made from the description of the method, a few frozen numbers, and the code. The loop and the
code must both give the frozen numbers. The inputs are values of the sine, so that no random generator can change them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.resizing import cubic, enlarged, linear
from torch import Tensor, nn
from torchvision import models

from adcore.models import AsymST, AsymSTConfig, FastFlow, FastFlowConfig
from adcore.papers.heckler2023.asymst import Student, Teacher, position_encoding
from adcore.papers.heckler2023.fastflow import TapFlow
from adcore.papers.heckler2023.patchcore import neighborhood_features, patch_distances, smoothed
from adcore.papers.heckler2023.receptive_field import TABLE_2, Field, analytic, linearized, measure


def wave(*shape: int, start: float = 0.0, pace: float = 0.7) -> np.ndarray:
    """sin(start), sin(start + pace), ... in this shape."""
    return np.sin(start + pace * np.arange(math.prod(shape))).reshape(shape)


def tensor(values: Any) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float64)


def filled(module: nn.Module) -> tuple[Any, dict[str, np.ndarray]]:
    """A module in float64 and eval mode whose parameters and statistics are values of the sine, and its state by name.

    Variances are positive, and permutations stay as they were drawn.
    """
    module = module.double().eval()
    for i, (name, values) in enumerate(module.state_dict().items()):
        if values.is_floating_point() and "perm" not in name:
            new = tensor(0.6 * wave(*values.shape, start=i + 1.0))
            values.copy_(1 + new if "running_var" in name else new)
    return module, {name: values.numpy() for name, values in module.state_dict().items()}


def without_backbone(method: type[Any], features: np.ndarray, **parts: Any) -> Any:
    """A detector that takes these features (B, C, h, w) for any image."""
    one = method.__new__(method)
    vars(one).update(parts, extractor=lambda images: [tensor(features)])
    return one


def equal(loop: Any, code: Any, frozen: Any, exact: float = 1e-12) -> None:
    """Both give the frozen numbers."""
    for found in (loop, code):
        found = found.detach().numpy() if isinstance(found, Tensor) else np.asarray(found, dtype=float)
        np.testing.assert_allclose(found.ravel(), frozen, rtol=exact, atol=exact)


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, border: str = "zeros") -> np.ndarray:
    """A convolution that keeps the size: (C, h, w), (O, C, k, k), (O,) -> (O, h, w). Beyond the border zeros, or its values."""
    (_, h, w), k = x.shape, weight.shape[-1]
    out = np.zeros((len(weight), h, w))
    for o, y, z in np.ndindex(*out.shape):
        out[o, y, z] = bias[o]
        for c, i, j in np.ndindex(*weight.shape[1:]):
            v, u = y + i - k // 2, z + j - k // 2
            if border == "repeated":
                v, u = min(max(v, 0), h - 1), min(max(u, 0), w - 1)
            if 0 <= v < h and 0 <= u < w:
                out[o, y, z] += weight[o, c, i, j] * x[c, v, u]
    return out


# --- PatchCore ----------------------------------------------------------------------------------------------------------

def pooled(values: Sequence[float], n: int) -> list[float]:
    """Adaptive average: n means over stretches that cover all values and overlap where n does not divide their number."""
    stretches = [values[i * len(values) // n:math.ceil((i + 1) * len(values) / n)] for i in range(n)]
    return [sum(stretch) / len(stretch) for stretch in stretches]


def test_patch_features_are_3x3_neighborhoods_averaged_to_d_numbers_per_tap_and_then_over_the_joined_taps():
    taps, size = [wave(2, 2, 3), wave(3, 1, 2, start=2.0)], 4
    code = neighborhood_features([tensor(tap[None]) for tap in taps], size)

    joined = []                                      # of each tap, (2, 3) cells with `size` numbers
    for tap in taps:
        c, h, w = tap.shape
        cells = np.zeros((size, h, w))
        for y, x in np.ndindex(h, w):
            around = [tap[k, v, u] if 0 <= v < h and 0 <= u < w else 0.0
                      for k in range(c) for v in range(y - 1, y + 2) for u in range(x - 1, x + 2)]
            cells[:, y, x] = pooled(around, size)
        joined.append(np.stack([enlarged(plane, linear, 2, 3) for plane in cells]))
    loop = np.array([[pooled([plane[y, x] for tap in joined for plane in tap], size) for x in range(3)] for y in range(2)])
    equal(loop.transpose(2, 0, 1), code, [
          0.18424152040425, 0.3121299393579, 0.25993220696809, 0.27056245706913, 0.28120698564972, 0.12630891120028,
          -0.20518036582484, -0.18057789024544, -0.059983105577319, -0.11634139853504, -0.016633969111131, 0.10196038159761,
          0.079505631627574, 0.053934471906811, 0.028363312186048, 0.079505631627574, 0.053934471906811, 0.028363312186048,
          -0.18866399077579, -0.18067833133745, -0.17269267189911, -0.18866399077579, -0.18067833133745, -0.17269267189911])


@pytest.mark.parametrize(("neighbors", "squared", "frozen"), [
    (1, True, [1.2201614299927, 1.4090355491221, 3.4405341966918, 3.7822078048247]),
    (3, True, [1.49395019956, 1.7049990415441, 3.5181835497611, 3.9850004203014]),
    (3, False, [1.2185208840904, 1.3022559918441, 1.8755514140338, 1.9949864518594])])
def test_a_patch_s_score_is_the_mean_of_its_squared_distances_to_the_nearest_of_the_bank(neighbors, squared, frozen):
    features, bank = wave(3, 2, 2), wave(5, 3, start=0.5, pace=1.1)
    code = patch_distances(tensor(features[None]), tensor(bank), neighbors, squared)
    loop = np.zeros((2, 2))
    for y, x in np.ndindex(2, 2):
        lengths = sorted(sum((features[k, y, x] - entry[k]) ** 2 for k in range(3)) for entry in bank)[:neighbors]
        loop[y, x] = sum(length if squared else math.sqrt(length) for length in lengths) / neighbors
    equal(loop, code, frozen)


def test_a_map_is_smoothed_by_a_gaussian_of_4_sigma_with_the_map_mirrored_at_its_border():
    plane, sigma = wave(2, 5), 1.2
    code = smoothed(tensor(plane[None, None]), sigma)

    radius = math.floor(4 * sigma + 0.5)             # 5 pixels, more than the map is high
    kernel = {d: math.exp(-d * d / (2 * sigma * sigma)) for d in range(-radius, radius + 1)}

    def mirrored(i: int, n: int) -> int:
        """... 1 0 | 0 1 ... n-1 | n-1 n-2 ..."""
        while not 0 <= i < n:
            i = -1 - i if i < 0 else 2 * n - 1 - i
        return i

    loop = np.zeros((2, 5))
    for y, x in np.ndindex(2, 5):
        loop[y, x] = sum(kernel[a] * kernel[b] * plane[mirrored(y + a, 2), mirrored(x + b, 5)] for a in kernel for b in kernel)
    equal(loop / sum(kernel.values()) ** 2, code, [
          -0.057521936407589, 0.021782230730672, 0.12215036101527, 0.18717857689514, 0.20853600881438, -0.20929529685634,
          -0.18662412333198, -0.11997133295209, -0.018609053363091, 0.060975149371045])


# --- FastFlow -----------------------------------------------------------------------------------------------------------

def flow_step(x: np.ndarray, state: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, float]:
    """One step (C, h, w) -> (C, h, w) and its log-determinant: affine coupling, scale and offset per channel, permutation."""
    half = math.ceil(len(x) / 2)
    inner = np.maximum(convolved(x[:half], state[f"{name}.subnet.0.weight"], state[f"{name}.subnet.0.bias"]), 0)
    both = 0.1 * convolved(inner, state[f"{name}.subnet.2.weight"], state[f"{name}.subnet.2.bias"])
    log_scale, shift = 2.0 * np.tanh(both[:len(x) - half]), both[len(x) - half:]
    x = np.concatenate([x[:half], x[half:] * np.exp(log_scale) + shift])
    scale = 0.1 * 2 * np.log(1 + np.exp(0.5 * state[f"{name}.global_scale"][0]))
    x = x * scale + state[f"{name}.global_offset"][0]
    order = [list(row).index(1.0) for row in state[f"{name}.w_perm"][..., 0, 0]]       # one channel for each
    return x[order], float(log_scale.sum() + x[0].size * np.log(scale).sum())


def test_fastflow_s_likelihood_map_and_score_are_those_of_layer_norm_and_couplings():
    features, image = wave(4, 2, 3), torch.zeros(1, 3, 4, 9)
    flow, state = filled(TapFlow((4, 2, 3), FastFlowConfig(steps=2)))
    for step in (0, 1):                              # a fixed permutation: 0123 -> 2031
        state[f"flow.module_list.{step}.w_perm"][:, :, 0, 0] = np.eye(4)[[2, 0, 3, 1]]
    one = without_backbone(FastFlow, features[None], flows=[flow])
    found = one._predict(image)

    mean, spread = features.mean(), math.sqrt(((features - features.mean()) ** 2).mean() + 1e-5)
    z, log_det = (features - mean) / spread * state["norm.weight"] + state["norm.bias"], 0.0
    for step in (0, 1):                              # 3x3, then 1x1
        z, more = flow_step(z, state, f"flow.module_list.{step}")
        log_det += more
    equal(z, flow(tensor(features[None]))[0], [
          0.45443471571477, 0.46636530735381, 0.44596669652529, 0.42839574928219, 0.42521519687678, 0.42977575840415,
          -0.38153561228886, -0.38940840505516, -0.37067321407898, -0.36997265400056, -0.37582971525413, -0.3764250860007,
          0.53060900516169, 0.53053638140612, 0.52445066164226, 0.52628806271401, 0.53102318589656, 0.52399459823435,
          0.034641935576029, 0.039002272687553, 0.033017045382255, 0.019031085088702, 0.014674245859457, 0.02622269853309])
    equal(0.5 * (z**2).sum() - log_det, one.loss(flow, tensor(features[None])), 102.35771251991)
    cells = np.array([[-math.exp(-0.5 * sum(z[k, y, x] ** 2 for k in range(4)) / 4) for x in range(3)] for y in range(2)])
    loop = enlarged(cells, linear, 4, 9)
    equal(loop[1], found.map[0, 1], [
          -0.92478643353404, -0.92478643353404, -0.92422468010037, -0.9236629266667, -0.92310117323303, -0.9242726567688,
          -0.92544414030458, -0.92661562384035, -0.92661562384035])
    equal(loop.max(), found.score, -0.92171824624125)


# --- AsymST -------------------------------------------------------------------------------------------------------------

SMALL = AsymSTConfig(positions=4, kernels=(3, 5), teacher_hidden=2, student_hidden=3, student_blocks=1)


def test_a_position_is_encoded_by_sines_and_cosines_of_its_column_and_then_of_its_row():
    loop = [f(index / 10_000 ** (2 * i / 4)) for index in (5, 2) for i in (0, 1) for f in (math.sin, math.cos)]
    equal(loop, position_encoding(8, 4, 6)[:, 2, 5], [
          -0.95892429, 0.2836622, 0.049979165, 0.99875027, 0.90929741, -0.41614684, 0.019998666, 0.99980003],
          exact=1e-6)                                # computed in float32


def subnet(x: np.ndarray, positions: np.ndarray, state: dict[str, np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Log-scale and shift of one half given the other: convolution, ReLU, convolution, one gain; borders repeated."""
    x = np.concatenate([x, positions])
    inner = np.maximum(convolved(x, state[f"{name}.first.weight"], state[f"{name}.first.bias"], "repeated"), 0)
    both = state[f"{name}.gain"][0] * convolved(inner, state[f"{name}.second.weight"], state[f"{name}.second.bias"], "repeated")
    return 1.9 * 0.636 * np.arctan(both[:len(both) // 2] / 1.9), both[len(both) // 2:]


def taught(x: np.ndarray, positions: np.ndarray, state: dict[str, np.ndarray]) -> tuple[np.ndarray, float]:
    """The teacher: for each step a permutation, the first half given the second, and the second given the new first."""
    log_det, half = 0.0, len(x) // 2
    for name in ("1", "3"):
        x = x[state[f"flow.module_list.{int(name) - 1}.perm"]]
        log_scale, shift = subnet(x[half:], positions, state, f"flow.module_list.{name}.subnet2")
        first = x[:half] * np.exp(log_scale) + shift
        log_det += log_scale.sum()
        log_scale, shift = subnet(first, positions, state, f"flow.module_list.{name}.subnet1")
        x = np.clip(np.concatenate([first, x[half:] * np.exp(log_scale) + shift]), -1e6, 1e6)
        log_det += log_scale.sum()
    return x, log_det


def learned(x: np.ndarray, positions: np.ndarray, state: dict[str, np.ndarray]) -> np.ndarray:
    """The student: a convolution, a residual block, a convolution."""
    def leaky(x: np.ndarray) -> np.ndarray:
        return np.where(x > 0, x, 0.01 * x)

    def normalized(x: np.ndarray, name: str) -> np.ndarray:
        mean, variance, weight, bias = (state[f"{name}.{part}"][:, None, None]
                                        for part in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    x = leaky(convolved(np.concatenate([x, positions]), state["0.weight"], state["0.bias"]))
    inner = x
    for i in (0, 3):
        inner = leaky(normalized(convolved(inner, state[f"2.body.{i}.weight"], state[f"2.body.{i}.bias"]), f"2.body.{i + 1}"))
    return convolved(x + inner, state["3.weight"], state["3.bias"])


@pytest.mark.parametrize("score", ["max", "mean"])
def test_asymst_s_losses_map_and_score_are_those_of_couplings_and_residual_convolutions(score):
    features, positions, image = wave(4, 2, 3), wave(4, 2, 3, start=3.0), torch.zeros(1, 3, 16, 28)
    (teacher, teacher_state), (student, student_state) = filled(Teacher((4, 2, 3), SMALL)), filled(Student(4, SMALL))
    for step, order in ((0, [2, 0, 3, 1]), (2, [3, 2, 0, 1])):
        teacher_state[f"flow.module_list.{step}.perm"][:] = order
    one = without_backbone(AsymST, features[None], teacher=teacher, student=student, positions=tensor(positions),
                           shape=(4, 2, 3), mean=0.0, std=1.0, config=SimpleNamespace(score=score))
    with torch.no_grad():
        found, code = one._predict(image), one.teacher(tensor(features[None]), tensor(positions[None]))[0]

    z, log_det = taught(features, positions, teacher_state)
    equal(z, code, [
          -0.68793283644752, -0.80454392322722, -0.67804214793409, 0.064610612124627, 0.64380490192846, 1.0081520790241,
          0.20124456369999, 1.3279044479391, 1.9098573367812, 1.1821057634695, 0.67277885501088, 0.021862067395606,
          4.9591176998537, 4.3256353123436, 2.5725030765277, -0.51364809978709, -0.65220801966875, -0.78139705513603,
          -0.67404567184651, -0.049036426051922, 0.30521056566403, -0.070132209278733, -0.61758012469562, -1.4952267402645])
    equal((0.5 * (z**2).sum() - log_det) / 6, one.teacher_loss(tensor(features[None])), 6.0565924119382)
    cells = ((z - learned(features, positions, student_state)) ** 2).mean(0)
    equal(cells.mean(), one.student_loss(tensor(features[None])), 6.7957602058841)
    quarter = enlarged(cells, cubic, 4, 7)
    equal(enlarged(quarter, linear, 16, 28)[5, ::4], found.map[0, 5, ::4], [
          4.7819351985709, 5.8258051451894, 8.695896725951, 11.625804054701, 11.997317485685, 10.109823688288,
          8.5577266710933])
    if score == "max":
        equal(quarter.max(), found.score, 16.430169715058)
    else:
        equal(cells.mean(), found.score, 6.7957602058841)


# --- receptive field ----------------------------------------------------------------------------------------------------

def fields(layers: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Field and stride after each layer of (kernel, stride)."""
    found, size, jump = [], 1, 1
    for kernel, stride in layers:
        size, jump = size + (kernel - 1) * jump, jump * stride
        found.append((size, jump))
    return found


def resnet(blocks: Sequence[int], convolutions: int) -> tuple[list[tuple[int, int]], list[int]]:
    """Stem and 3x3 convolutions of a ResNet as (kernel, stride), and the index of each stage's last. 1x1 ones see no more."""
    layers, last = [(7, 2), (3, 2)], []
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers += [(3, 2 if stage and not block else 1), *[(3, 1)] * (convolutions - 1)]
        last.append(len(layers) - 1)
    return layers, last


@pytest.mark.parametrize(("name", "blocks", "convolutions", "taps", "sizes"), [
    ("resnet18", (2, 2, 2, 2), 2, [f"layer{i}.1.relu_1" for i in (1, 2, 3, 4)], [43, 99, 211, 435]),
    ("wide_resnet50_2", (3, 4, 6, 3), 1, TABLE_2["wide_resnet50_2"], [35, 91, 267, 427])])
def test_the_fields_of_a_linearized_resnet_are_the_sums_over_its_kernels_and_strides(name, blocks, convolutions, taps, sizes):
    layers, last = resnet(blocks, convolutions)
    loop = [fields(layers)[i] for i in last]
    with torch.device("meta"):                       # geometry needs no weights
        code = analytic(getattr(models, name)(), taps)
    assert loop == [(field.size, field.stride) for field in code.values()] == list(zip(sizes, (4, 8, 16, 32), strict=True))
    chain = nn.Sequential(nn.Conv2d(3, 1, 7, 2, 3), nn.MaxPool2d(3, 2, 1), *(nn.Conv2d(1, 1, 3, s, 1) for _, s in layers[2:]))
    measured = measure(linearized(chain), [str(i) for i in last], 512, threshold=0, border=0, dtype=torch.float64)
    assert [field.size for field in measured.values()] == sizes


def test_the_relative_field_is_the_field_divided_by_the_image_s_side():
    code = [Field(high=(size - 1, size - 1)).relative(256) for size in (35, 91, 267, 427)]
    equal([size / 256 for size in (35, 91, 267, 427)], code, [0.13671875, 0.35546875, 1.04296875, 1.66796875])


def test_a_measured_field_is_the_box_of_the_gradient_s_norm_over_a_hundredth_of_the_largest():
    weight = wave(2, 3, 5, 7, pace=0.9) ** 9         # small at many pixels
    conv = nn.Conv2d(3, 2, (5, 7), padding=(2, 3)).double()
    conv.weight.data = tensor(weight)
    code = measure(nn.Sequential(conv), ["0"], 16, border=2, dtype=torch.float64)["0"]

    # Of a map with 16 rows the center is row 7. The gradient of the channels' mean is the mean over their kernels.
    norm = np.zeros((16, 16))
    for i, j in np.ndindex(5, 7):
        norm[7 + i - 2, 7 + j - 3] = math.sqrt(sum((weight[0, c, i, j] / 2 + weight[1, c, i, j] / 2) ** 2 for c in range(3)))
    seen = [(y, x) for y, x in np.ndindex(16, 16) if norm[y, x] / norm.max() >= 0.01 and 2 <= y < 14 and 2 <= x < 14]
    (top, left), (bottom, right) = np.min(seen, axis=0), np.max(seen, axis=0) + 1
    equal([top, left, bottom, right], code.box, [5, 5, 10, 11])
    assert code.size == max(bottom - top, right - left) == 6
    equal(norm[9, 4:11] / norm.max(), code.gradient[9, 4:11], [
          0.00035154069, 0.5628612, 0.38096452, 3.7137172e-05, 0.062284064, 0.98468328, 0.021482058],
          exact=1e-6)                                # kept in float32
