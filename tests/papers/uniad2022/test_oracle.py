"""UniAD, written a second time as slow loops, from the supplement and from facts about the published code.

A test compares a loop in plain Python or NumPy, numbers that our code gave once in float64, and what our code gives today. The
inputs are sines, so that no random generator takes part.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor, nn

from adcore.features import concatenate
from adcore.features.static_padding import same_padding
from adcore.papers.uniad2022.feature_decoder import FeatureDecoder, FeatureDecoderConfig
from adcore.papers.uniad2022.losses import LOSSES
from adcore.papers.uniad2022.reconstruction import ReconstructionConfig
from adcore.papers.uniad2022.uniad import UniAD, UniADConfig, UniADNetwork, jitter_features, neighbor_mask


def wave(*shape: int, step: float = 0.7) -> Tensor:
    """sin(0), sin(step), sin(2 step), ... in float64."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * step).view(shape)


def test_static_padding_is_that_of_the_native_image():
    """b4 is made for 380 pixels; each strided layer pads so that it gives half the side that it would see there, rounded up."""
    side, pads = 380, []
    for kernel in (3, 3, 5, 3, 5):
        wanted, zeros = math.ceil(side / 2), 0
        while (side + zeros - kernel) // 2 + 1 < wanted:
            zeros += 1
        pads.append((zeros // 2, zeros - zeros // 2))                   # the smaller half above and left
        side = wanted
    assert pads == [(0, 1), (0, 1), (2, 2), (0, 1), (1, 2)]
    assert [same_padding(n, k, 2) for n, k in zip((380, 190, 95, 48, 24), (3, 3, 5, 3, 5), strict=True)] == pads


def resized(rows: list[list[float]], out: int, aligned: bool) -> list[list[float]]:
    """Bilinear interpolation of a square map, sample by sample."""
    n = len(rows)

    def place(i: int) -> tuple[int, float]:
        x = i * (n - 1) / (out - 1) if aligned else min(max((i + 0.5) * n / out - 0.5, 0), n - 1)
        first = min(int(x), n - 2)
        return first, x - first

    found = []
    for i in range(out):
        (y, v), row = place(i), []
        for j in range(out):
            x, u = place(j)
            top = rows[y][x] * (1 - u) + rows[y][x + 1] * u
            bottom = rows[y + 1][x] * (1 - u) + rows[y + 1][x + 1] * u
            row.append(top * (1 - v) + bottom * v)
        found.append(row)
    return found


def test_taps_are_resized_with_aligned_corners_and_concatenated():
    small, large = wave(1, 1, 2, 2), wave(1, 1, 4, 4)
    made = concatenate([large, small], (3, 3), align_corners=True)[0]
    assert made[0].numpy() == approx(np.array(resized(large[0, 0].tolist(), 3, True)), abs=1e-12)
    assert made[1].numpy() == approx(np.array(resized(small[0, 0].tolist(), 3, True)), abs=1e-12)
    assert made[:, 1].flatten().tolist() == approx(
        [-0.148139244, -0.137139625, 0.002857811, 0.492724865, 0.623219196, 0.753713527], abs=1e-9)


def test_the_detector_resizes_its_taps_to_the_grid_of_stride_16_with_aligned_corners():
    uniad = UniAD(UniADConfig(backbone="resnet18", taps=(1, 2), weights="random", image_size=48, hidden=8, heads=2, ffn=8,
                              encoder_layers=1, decoder_layers=1, neighbors=1))
    maps = [wave(1, 1, 12, 12), wave(1, 1, 6, 6, step=1.3)]
    made = uniad.features(maps)[0]
    assert made.shape == (2, 3, 3)
    for channel, tap in zip(made, maps, strict=True):
        assert channel.numpy() == approx(np.array(resized(tap[0, 0].tolist(), 3, True)), abs=1e-12)


def test_the_decoder_for_pictures_upsamples_without_aligned_corners():
    decoder = FeatureDecoder(1, FeatureDecoderConfig(widths=(1, 1, 1, 1), blocks=(1, 1, 1, 1)))
    double = next(module for module in decoder.modules() if isinstance(module, nn.Upsample))
    made = double(wave(1, 1, 3, 3))[0, 0]
    assert made.numpy() == approx(np.array(resized(wave(3, 3).tolist(), 6, False)), abs=1e-12)
    assert made[1].tolist() == approx(
        [0.215802342, 0.303579332, 0.479133313, 0.5880306, 0.630271194, 0.651391491], abs=1e-9)


def test_a_query_does_not_see_the_7_x_7_window_around_itself():
    blocked = np.zeros((196, 196), bool)
    for y in range(14):
        for x in range(14):
            for v in range(max(y - 3, 0), min(y + 3, 13) + 1):
                for u in range(max(x - 3, 0), min(x + 3, 13) + 1):
                    blocked[y * 14 + x, v * 14 + u] = True
    assert 196 - blocked[7 * 14 + 7].sum() == 147 and 196 - blocked[0].sum() == 180
    assert np.array_equal(neighbor_mask(14, 14, 7).numpy(), blocked)


def test_jitter_has_the_spread_of_a_tokens_length_divided_by_the_channels(monkeypatch):
    tokens, noise = wave(1, 2, 3), wave(1, 2, 3, step=1.3)
    monkeypatch.setattr(torch, "randn_like", lambda _: noise)
    expected = []
    for token, eps in zip(tokens[0].tolist(), noise[0].tolist(), strict=True):
        length = math.sqrt(sum(t * t for t in token))
        expected += [t + e * 20 * length / 3 for t, e in zip(token, eps, strict=True)]
    made = jitter_features(tokens, 20.0).flatten()
    assert expected == approx(made.tolist(), abs=1e-12)
    assert made.tolist() == approx([0.0, 8.2071165276, 5.0315828916, -3.6767334797, -5.496694015, 1.0692233225], abs=1e-8)


# The network, with weights that are sines.

SMALL = UniADConfig(hidden=4, heads=2, ffn=6, encoder_layers=1, decoder_layers=2, dropout=0.0, neighbors=1, nma=True)
GRID = (2, 3)


def network() -> UniADNetwork:
    made = UniADNetwork(3, GRID, SMALL).double().eval()
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            parameter.copy_(wave(*parameter.shape, step=0.3 + 0.11 * number) + (0.5 if parameter.ndim == 1 else 0))
    return made


class ByHand:
    """The network of the supplement in NumPy: x is (N, D), one row per token."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.w = {name: value.numpy() for name, value in weights.items()}
        rows, columns = self.w["position.rows"], self.w["position.columns"]
        self.position = np.array([[*columns[x], *rows[y]] for y in range(GRID[0]) for x in range(GRID[1])])

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attention(self, name: str, query: np.ndarray, source: np.ndarray) -> np.ndarray:
        """The position is added to queries and keys, not to values. A token does not see itself (window 1)."""
        weight, bias = np.split(self.w[f"{name}.in_weight"], 3), np.split(self.w[f"{name}.in_bias"], 3)
        q = (query + self.position) @ weight[0].T + bias[0]
        k = (source + self.position) @ weight[1].T + bias[1]
        v = source @ weight[2].T + bias[2]
        mixed = np.zeros_like(q)
        for head in (slice(0, 2), slice(2, 4)):
            for i in range(len(q)):
                seen = [j for j in range(len(k)) if j != i]
                score = np.array([math.exp(q[i, head] @ k[j, head] / math.sqrt(2)) for j in seen])
                mixed[i, head] = sum(s * v[j, head] for s, j in zip(score / score.sum(), seen, strict=True))
        return self.linear(f"{name}.out", mixed)

    def ffn(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.linear(f"{name}.3", np.maximum(self.linear(f"{name}.0", x), 0))

    def __call__(self, tokens: np.ndarray) -> np.ndarray:
        x = self.linear("reduce", tokens)
        x = self.norm("encoder.0.attention_norm", x + self.attention("encoder.0.attention", x, x))
        encoded = self.norm("encoder.0.ffn_norm", x + self.ffn("encoder.0.ffn", x))
        previous = encoded                                              # the first layer has no previous one
        for layer in ("decoder.0", "decoder.1"):
            query = self.w[f"{layer}.query"]                            # each layer's own
            x = self.norm(f"{layer}.first_norm", query + self.attention(f"{layer}.first_attention", query, encoded))
            x = self.norm(f"{layer}.second_norm", x + self.attention(f"{layer}.second_attention", x, previous))
            previous = self.norm(f"{layer}.ffn_norm", x + self.ffn(f"{layer}.ffn", x))
        return self.linear("expand", self.norm("norm", previous))


def test_the_network_is_that_of_the_supplement_with_wiring_a():
    net, tokens = network(), wave(1, 6, 3)
    with torch.no_grad():
        made = net(tokens)[0]
    assert ByHand(net.state_dict())(tokens[0].numpy()) == approx(made.numpy(), abs=1e-10)
    assert made[0].tolist() == approx([0.9240401262, 2.7060299309, 3.5423647298], abs=1e-7)


def test_the_mask_hides_a_token_from_itself_in_one_attention_and_not_in_the_network():
    """What a token holds goes to its neighbors and comes back: masking makes copying harder, not impossible."""
    torch.manual_seed(0)
    net = UniADNetwork(16, (6, 6), UniADConfig(hidden=32, ffn=64, dropout=0.0, neighbors=3)).double().eval()
    tokens = wave(1, 36, 16)
    changed = tokens.clone()
    changed[0, 14] += 1
    attention, same = net.encoder[0].attention, torch.zeros(1, 36, 32, dtype=torch.float64)
    other = same.clone()
    other[0, 14] = 1
    with torch.no_grad():
        once = attention(same, same, same, net.visible) - attention(same, other, other, net.visible)
        moved = (net(tokens) - net(changed)).norm(dim=-1)[0]
    assert once[0, 14].abs().max() == 0 < once[0, 0].abs().max()
    assert moved[14] > 0.2 * moved.mean()


@pytest.mark.parametrize(("name", "loss", "error"), [
    ("mse", 0.7555340359, [0.5681811446, 2.0519196872]),
    ("mse_printed", 2.2666021078, [0.5681811446, 2.0519196872]),
    ("normalized_mse", 1.9776144012, [0.4953422591, 1.9261009446]),
    ("cosine", 0.9888072006, [0.1226819768, 1.8549324243])])
def test_losses_and_their_maps(name, loss, error):
    original, rebuilt = wave(1, 2, 3), wave(1, 2, 3, step=1.3)
    losses, errors = [], []
    for a, b in zip(original[0].numpy(), rebuilt[0].numpy(), strict=True):
        cosine = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        squared = float(((a - b) ** 2).sum())
        losses.append({"mse": squared / 3, "mse_printed": squared, "normalized_mse": 2 - 2 * cosine,
                       "cosine": 1 - cosine}[name])
        errors.append({"normalized_mse": math.sqrt(2 - 2 * cosine), "cosine": 1 - cosine}.get(name, math.sqrt(squared)))
    made, made_map = (function(original, rebuilt) for function in LOSSES[name])
    assert sum(losses) / 2 == approx(float(made), abs=1e-12) and errors == approx(made_map[0].tolist(), abs=1e-12)
    assert float(made) == approx(loss, abs=1e-8) and made_map[0].tolist() == approx(error, abs=1e-8)


def test_the_map_is_upsampled_with_aligned_corners_and_the_score_is_its_largest_16_x_16_mean():
    uniad = UniAD(UniADConfig(backbone="resnet18", taps=(1,), weights="random", image_size=32, hidden=8, heads=2, ffn=8,
                              encoder_layers=1, decoder_layers=1, neighbors=1))
    tokens, rebuilt = wave(1, 4, 2), wave(1, 4, 2, step=1.3)
    maps = uniad.anomaly_map(tokens, rebuilt)
    errors = [math.dist(a, b) for a, b in zip(tokens[0].tolist(), rebuilt[0].tolist(), strict=True)]
    by_hand = np.array(resized([errors[:2], errors[2:]], 32, True))
    assert by_hand == approx(maps[0, 0].numpy(), abs=1e-12)
    windows = [by_hand[y:y + 16, x:x + 16].mean() for y in range(17) for x in range(17)]
    assert max(windows) == approx(float(uniad.score(maps)), abs=1e-12)
    assert float(uniad.score(maps)) == approx(1.8716519211, abs=1e-8)


def test_the_learning_rate_falls_after_801_epochs_as_in_the_published_trainer():
    """The trainer hands the finished epoch's number, counted from 0, to a schedule of 800 epochs."""
    rate, rates = 1e-4, []
    for epoch in range(1000):
        rates.append(rate)                                              # of this epoch
        rate = 1e-4 * 0.1 ** (epoch // 800)                             # of the next one
    assert ReconstructionConfig().lr_drop == FeatureDecoderConfig().lr_drop == rates.count(1e-4) == 801
