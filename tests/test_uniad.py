"""UniAD against counts on paper, slow loops, torch's own attention, and itself run twice."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import shared_extractor, texture, write_tiny
from torch import Tensor, nn

from adcore import training
from adcore.data.mvtec import load_mvtec
from adcore.errors import ParameterError
from adcore.models import UniAD, UniADConfig, reconstruction
from adcore.models.reconstruction import jitter_features
from adcore.models.transformer import Attention, EncoderLayer, PositionEmbedding, VanillaDecoderLayer, neighbor_mask
from adcore.models.uniad import WIRINGS, DecoderLayer, UniADNetwork
from adcore.training import seeded

SMALL = {"backbone": "efficientnet_lite0", "taps": (2, 4), "image_size": 64, "hidden": 32, "heads": 4, "ffn": 48,
         "encoder_layers": 1, "decoder_layers": 2, "neighbors": 3, "epochs": 3, "batch_size": 4, "lr": 1e-3, "lr_drop": 2}


@pytest.fixture(autouse=True)
def _one_backbone(monkeypatch):
    monkeypatch.setattr(reconstruction, "FeatureExtractor", shared_extractor)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_mvtec(write_tiny(tmp_path_factory.mktemp("tiny")), "tiny")


def detector(seed: int = 0, **changes: object) -> UniAD:
    return UniAD(UniADConfig(**{**SMALL, **changes}), seed=seed)


def exact(module: nn.Module) -> nn.Module:
    """The module in float64, in eval mode, every number random: as initialised, biases and norms would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    module.double().eval()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=generator) * 0.5)
    return module


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- neighbour mask -----------------------------------------------------------------------------------------------------

def test_with_a_window_of_7_an_interior_token_sees_147_others_and_a_corner_180():
    visible = (~neighbor_mask(14, 14, 7)).sum(1).reshape(14, 14)
    assert visible[7, 7] == visible[3, 10] == 196 - 49 == 147
    assert visible[0, 0] == visible[0, 13] == visible[13, 0] == visible[13, 13] == 196 - 16 == 180


def mask_by_hand(h: int, w: int, size: int) -> np.ndarray:
    blocked = np.zeros((h * w, h * w), bool)
    for query, key in itertools.product(itertools.product(range(h), range(w)), repeat=2):
        near = abs(query[0] - key[0]) <= size // 2 and abs(query[1] - key[1]) <= size // 2
        blocked[query[0] * w + query[1], key[0] * w + key[1]] = near
    return blocked


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 5, 7]))
def test_the_neighbour_mask_equals_the_double_loop_on_any_grid_or_says_that_it_hides_everything(h, w, size):
    by_hand = mask_by_hand(h, w, size)
    if by_hand.all(1).any():
        with pytest.raises(ParameterError, match=f"neighbors={size} hides the whole {h}x{w} grid"):
            neighbor_mask(h, w, size)
    else:
        assert np.array_equal(neighbor_mask(h, w, size).numpy(), by_hand)


@pytest.mark.parametrize("size", [0, -3, 2, 6])
def test_an_even_window_has_no_middle_and_is_refused(size):
    with pytest.raises(ParameterError, match=f"neighbors={size} must be odd"):
        neighbor_mask(14, 14, size)


def test_a_window_that_hides_a_token_from_everything_is_refused_when_the_detector_is_built():
    with pytest.raises(ParameterError, match="neighbors=7 hides the whole 4x4 grid"):
        detector(neighbors=7)


def test_a_token_does_not_influence_the_encoding_of_those_whose_window_it_is_in():
    layer = exact(EncoderLayer(UniADConfig(hidden=8, heads=2, ffn=12)))
    blocked = neighbor_mask(5, 6, 3)
    x, position = 0.3 * normal(1, 30, 8), 0.3 * normal(30, 8, seed=1)
    changed = x.clone()
    changed[0, 14] += 1
    moved = (layer(changed, position, ~blocked) - layer(x, position, ~blocked))[0].abs().amax(1) > 1e-13
    blind = blocked[:, 14].clone()
    blind[14] = False                       # the residual carries the token itself
    assert torch.equal(moved, ~blind)


# --- layers -------------------------------------------------------------------------------------------------------------

def attention_by_hand(a: Attention, query: np.ndarray, key: np.ndarray, value: np.ndarray, blocked: np.ndarray) -> np.ndarray:
    """(N, D) each: one token and one head at a time."""
    d = query.shape[1]
    width = d // a.heads
    weight, bias = a.in_weight.detach().numpy(), a.in_bias.detach().numpy()
    q, k, v = (x @ weight[i * d:(i + 1) * d].T + bias[i * d:(i + 1) * d] for i, x in enumerate((query, key, value)))
    out = np.zeros_like(query)
    for token in range(len(query)):
        for head in range(a.heads):
            part = slice(head * width, (head + 1) * width)
            scores = [-math.inf if blocked[token, other] else float(q[token, part] @ k[other, part]) / math.sqrt(width)
                      for other in range(len(key))]
            shares = [math.exp(score - max(scores)) for score in scores]
            for other, share in enumerate(shares):
                out[token, part] += share / sum(shares) * v[other, part]
    return out @ a.out.weight.detach().numpy().T + a.out.bias.detach().numpy()


def norm_by_hand(norm: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    rows = [(row - row.mean()) / math.sqrt(((row - row.mean()) ** 2).mean() + 1e-5) for row in x]
    return np.stack(rows) * norm.weight.detach().numpy() + norm.bias.detach().numpy()


def ffn_by_hand(ffn: nn.Sequential, x: np.ndarray) -> np.ndarray:
    first, last = (p for p in ffn if isinstance(p, nn.Linear))
    inner = np.maximum(x @ first.weight.detach().numpy().T + first.bias.detach().numpy(), 0)
    return inner @ last.weight.detach().numpy().T + last.bias.detach().numpy()


def test_an_encoder_layer_equals_the_loop_over_tokens_and_heads():
    layer = exact(EncoderLayer(UniADConfig(hidden=8, heads=2, ffn=12)))
    x, position, blocked = normal(2, 12, 8), normal(12, 8, seed=1), neighbor_mask(3, 4, 3)
    found = layer(x, position, ~blocked).detach().numpy()
    for image in range(2):
        tokens, where = x[image].numpy(), position.numpy()
        mixed = attention_by_hand(layer.attention, tokens + where, tokens + where, tokens, blocked.numpy())
        tokens = norm_by_hand(layer.norms[0], tokens + mixed)
        tokens = norm_by_hand(layer.norms[1], tokens + ffn_by_hand(layer.ffn, tokens))
        np.testing.assert_allclose(found[image], tokens, atol=1e-6)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_decoder_layer_of_any_wiring_equals_the_loop_over_tokens_and_heads(wiring):
    layer = exact(DecoderLayer(UniADConfig(hidden=8, heads=2, ffn=12, wiring=wiring), 12))
    encoded, previous, position = normal(2, 12, 8), normal(2, 12, 8, seed=1), normal(12, 8, seed=2)
    blocked = neighbor_mask(3, 4, 3)
    found = layer(encoded, previous, position, ~blocked).detach().numpy()
    # Fig. S1, written out once more: what asks, and what it is answered by, in the first and in the second attention.
    asks, answers = {"a": ("QR", "EP"), "b": ("QR", "PE"), "c": ("QP", "ER"), "d": ("QE", "PR"), "e": ("PQ", "ER"),
                     "f": ("EQ", "PR")}[wiring]
    for image in range(2):
        where = position.numpy()
        sources = {"Q": layer.query.detach().numpy(), "E": encoded[image].numpy(), "P": previous[image].numpy()}
        for step in range(2):
            query, value = sources[asks[step]], sources[answers[step]]
            mixed = attention_by_hand(layer.attentions[step], query + where, value + where, value, blocked.numpy())
            sources["R"] = norm_by_hand(layer.norms[step], query + mixed)
        out = norm_by_hand(layer.norms[2], sources["R"] + ffn_by_hand(layer.ffn, sources["R"]))
        np.testing.assert_allclose(found[image], out, atol=1e-6)


def test_a_vanilla_decoder_layer_equals_the_loop_over_tokens_and_heads():
    layer = exact(VanillaDecoderLayer(UniADConfig(hidden=8, heads=2, ffn=12)))
    encoded, previous, position = normal(2, 12, 8), normal(2, 12, 8, seed=1), normal(12, 8, seed=2)
    blocked = neighbor_mask(3, 4, 3)
    found = layer(encoded, previous, position, ~blocked).detach().numpy()
    for image in range(2):
        x, answers, where = previous[image].numpy(), encoded[image].numpy(), position.numpy()
        mixed = attention_by_hand(layer.self_attention, x + where, x + where, x, blocked.numpy())
        x = norm_by_hand(layer.norms[0], x + mixed)
        mixed = attention_by_hand(layer.cross_attention, x + where, answers + where, answers, blocked.numpy())
        x = norm_by_hand(layer.norms[1], x + mixed)
        np.testing.assert_allclose(found[image], norm_by_hand(layer.norms[2], x + ffn_by_hand(layer.ffn, x)), atol=1e-6)


def test_the_six_wirings_are_all_there_are_in_which_the_learned_query_asks_and_every_source_is_used():
    # Two attentions; the second must use the first one's result, or the first would be lost. Whether an attention's result
    # asks or answers, and which of the three sources stand in the other places, is free; the query only ever asks.
    found = set()
    for first in itertools.permutations("QEP", 2):
        last = ({"Q", "E", "P"} - set(first)).pop()
        for second in (("R", last), (last, "R")):
            found.add((first, second))
    allowed = {wiring for wiring in found if "Q" not in (wiring[0][1], wiring[1][1])}
    assert set(WIRINGS.values()) == allowed and len(allowed) == 6


def test_the_supplements_two_traits_hold_for_the_wirings_it_says_they_hold_for_and_no_others():
    # Sec. D.2: in (a), (b), (f) the previous layer's output is key and value; and a query that goes first asks again.
    previous_answers = {name for name, wiring in WIRINGS.items() if "P" in (wiring[0][1], wiring[1][1])}
    asks_again = {name for name, wiring in WIRINGS.items() if wiring[0][0] != "Q" or wiring[1][0] == "R"}
    assert previous_answers & asks_again == {"a", "b", "f"}


def test_wiring_a_is_the_default_network():
    with seeded(0):
        default = UniADNetwork(6, (3, 4), UniADConfig(hidden=8, heads=2, ffn=12, neighbors=3))
    with seeded(0):
        wired = UniADNetwork(6, (3, 4), UniADConfig(hidden=8, heads=2, ffn=12, neighbors=3, query="layerwise", wiring="a"))
    tokens = torch.randn(2, 12, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(default.eval()(tokens), wired.eval()(tokens))


@pytest.mark.parametrize("changes", [{"query": query} for query in ("none", "one", "layerwise")]
                         + [{"wiring": wiring} for wiring in "bcdef"])
@pytest.mark.parametrize("nma", [True, False])
def test_every_variant_keeps_the_shape_and_passes_finite_gradients_to_all_it_uses(changes, nma):
    network = UniADNetwork(10, (4, 5), UniADConfig(hidden=16, heads=4, ffn=24, neighbors=3, nma=nma, **changes)).train()
    tokens = torch.randn(2, 20, 10, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        rebuilt = network(tokens)
    assert rebuilt.shape == tokens.shape
    rebuilt.float().square().mean().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None and bool(torch.isfinite(p.grad).all()), name


def test_parameter_counts_of_the_variants_follow_from_the_shapes():
    d, inner, channels, n = 256, 1024, 272, 196
    attention, norm, ffn = 4 * d * d + 4 * d, 2 * d, 2 * d * inner + inner + d
    ends = channels * d + d + d * channels + channels + norm + (14 + 14) * d // 2
    encoder, decoder = attention + ffn + 2 * norm, 2 * attention + ffn + 3 * norm
    wanted = {"none": 0, "one": n * d, "layerwise": 4 * n * d}
    for query, queries in wanted.items():
        network = UniADNetwork(channels, (14, 14), UniADConfig(query=query))
        assert sum(p.numel() for p in network.parameters()) == ends + 4 * encoder + 4 * decoder + queries
    assert ends + 4 * encoder + 4 * decoder + 4 * n * d == 7_717_392


def test_a_vanilla_decoder_starts_from_its_one_query_or_from_the_encoders_output():
    for query in ("one", "none"):
        network = exact(UniADNetwork(6, (3, 4), UniADConfig(hidden=8, heads=2, ffn=12, neighbors=3, query=query)))
        seen, encoded = [], []
        network.encoder[-1].register_forward_hook(lambda _, __, output, encoded=encoded: encoded.append(output))
        network.decoder[0].register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given))
        network(normal(2, 12, 6))
        start = encoded[0] if query == "none" else network.query.expand(2, 12, 8)
        assert torch.equal(seen[0][0], encoded[0]) and torch.equal(seen[0][1], start)


@pytest.mark.parametrize(("changes", "message"), [
    ({"query": "two"}, "query is one of none, one, layerwise, not 'two'"),
    ({"wiring": "g"}, "wiring is one of a, b, c, d, e, f"), ({"loss": "l1"}, "loss is one of mse, "),
    ({"score": "median"}, "score is one of max, mean"),
    ({"query": "one", "wiring": "b"}, "wiring='b' is one of the layer-wise query decoder")])
def test_a_setting_that_does_not_exist_is_refused_with_those_that_do(changes, message):
    with pytest.raises(ParameterError, match=message):
        UniADConfig(**changes)


@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_torchs_multihead_attention_with_the_same_weights(masked):
    ours = exact(Attention(24, 3, dropout=0.5))
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).double().eval()
    theirs.load_state_dict({"in_proj_weight": ours.in_weight, "in_proj_bias": ours.in_bias, "out_proj.weight": ours.out.weight,
                            "out_proj.bias": ours.out.bias})
    q, k, v = normal(2, 20, 24), normal(2, 20, 24, seed=1), normal(2, 20, 24, seed=2)
    blocked = neighbor_mask(4, 5, 3) if masked else None
    torch.testing.assert_close(ours(q, k, v, ~blocked if masked else None), theirs(q, k, v, attn_mask=blocked)[0])


def test_positions_steer_attention_but_never_enter_a_value():
    # Where all tokens are equal, all values are: whatever the positions, their mixture is the same.
    encoder, decoder = (exact(layer) for layer in (EncoderLayer(UniADConfig(hidden=8, heads=2, ffn=12)),
                                                   DecoderLayer(UniADConfig(hidden=8, heads=2, ffn=12), 12)))
    visible, nowhere, somewhere = ~neighbor_mask(3, 4, 3), torch.zeros(12, 8).double(), normal(12, 8, seed=3)
    equal, mixed = normal(1, 1, 8).expand(1, 12, 8), normal(1, 12, 8)
    for tokens, same in ((equal, True), (mixed, False)):
        for call in (lambda t, p: encoder(t, p, visible), lambda t, p: decoder(t, t.flip(2), p, visible)):
            assert torch.allclose(call(tokens, nowhere), call(tokens, somewhere), atol=1e-9) is same


def test_the_position_of_a_cell_is_its_columns_half_and_its_rows_half():
    position = PositionEmbedding(3, 5, 8)
    table = position().reshape(3, 5, 8)
    for y, x in itertools.product(range(3), range(5)):
        assert torch.equal(table[y, x], torch.cat([position.columns[x], position.rows[y]]))


def test_the_first_decoder_layer_sees_the_encoders_output_twice_and_the_next_ones_their_predecessor():
    config = UniADConfig(hidden=8, heads=2, ffn=12, encoder_layers=2, decoder_layers=3, neighbors=3)
    network = exact(UniADNetwork(6, (3, 4), config))
    seen, made, encoded = [], [], []
    network.encoder[-1].register_forward_hook(lambda _, __, output: encoded.append(output))
    for layer in network.decoder:
        layer.register_forward_pre_hook(lambda _, given: seen.append(given[:2]))
        layer.register_forward_hook(lambda _, __, output: made.append(output))
    network(normal(2, 12, 6))
    assert all(torch.equal(first, encoded[0]) for first, _ in seen)
    expected = [encoded[0], made[0], made[1]]
    assert all(torch.equal(previous, wanted) for (_, previous), wanted in zip(seen, expected, strict=True))


def test_without_nma_every_token_sees_every_other():
    network = UniADNetwork(6, (3, 4), UniADConfig(hidden=8, heads=2, ffn=12, nma=False, neighbors=99))
    assert network.visible is None


def test_weights_start_xavier_uniform_biases_at_zero_positions_in_0_to_1_and_queries_normal():
    with seeded(0):
        network = UniADNetwork(272, (14, 14), UniADConfig())
    linears = [module for module in network.modules() if isinstance(module, nn.Linear)]
    weights = [(m.weight, sum(m.weight.shape)) for m in linears]
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    weights += [(m.in_weight, 256 + 3 * 256) for m in attentions]
    assert len(linears) == 2 + 4 * 3 + 4 * 4 and len(attentions) == 12
    for weight, fans in ((w.detach(), fans) for w, fans in weights):
        bound = math.sqrt(6 / fans)
        assert 0.99 * bound < float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert all(not bool(bias.any()) for bias in [*(m.bias for m in linears), *(m.in_bias for m in attentions)])
    for table in (network.position.rows.detach(), network.position.columns.detach()):
        assert table.shape == (14, 128) and 0 <= float(table.min()) < 0.02 and 0.98 < float(table.max()) <= 1
    for layer in network.decoder:
        query = layer.query.detach()
        assert query.shape == (196, 256)
        assert float(query.std()) == pytest.approx(1, abs=0.02) and abs(float(query.mean())) < 0.02


# --- jitter and loss ----------------------------------------------------------------------------------------------------

def test_jitters_standard_deviation_is_20_lengths_of_the_token_over_its_channels():
    tokens = normal(1, 3, 40) * torch.tensor([0.1, 1.0, 7.0]).double()[:, None]
    with seeded(0):
        noise = jitter_features(tokens.expand(4000, 3, 40), 20.0) - tokens
    for token in range(3):
        wanted = 20 * math.sqrt(float((tokens[0, token] ** 2).sum())) / 40
        assert float(noise[:, token].std()) == pytest.approx(wanted, rel=0.01)
        assert float(noise[:, token].std(0).max()) < 1.06 * wanted and float(noise[:, token].std(0).min()) > 0.94 * wanted
        assert float(noise[:, token].mean(0).abs().max()) < 5 * wanted / math.sqrt(4000)


def test_jitter_is_drawn_anew_for_every_channel_and_token():
    with seeded(0):
        noise = jitter_features(torch.ones(4000, 2, 20), 20.0) - 1
    correlations = np.corrcoef(noise.flatten(1).T.numpy())
    assert np.abs(correlations - np.eye(40)).max() < 5.5 / math.sqrt(4000)


def test_jitter_of_probability_zero_leaves_tokens_alone_and_of_one_half_leaves_half_of_the_batches_alone():
    tokens = torch.ones(3, 4, 5)
    with seeded(0):
        untouched = [torch.equal(jitter_features(tokens, 20.0, 0.5), tokens) for _ in range(400)]
        assert all(torch.equal(jitter_features(tokens, 20.0, 0.0), tokens) for _ in range(20))
        assert not any(torch.equal(jitter_features(tokens, 20.0, 1.0), tokens) for _ in range(20))
    assert 160 < sum(untouched) < 240


class Knows(nn.Module):
    """Answers with what it was told, whatever it sees; keeps what it saw."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.seen = answer, torch.empty(0)

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen = tokens
        return self.answer


@pytest.mark.parametrize("jitter", [True, False])
def test_the_network_sees_jittered_tokens_and_is_held_against_clean_ones(jitter):
    uni = detector(jitter=jitter)
    features = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    clean = torch.stack([features[:, :, y, x] for y in range(4) for x in range(4)], dim=1)        # (B, N, C)
    uni.network = Knows(clean)
    assert float(uni.loss(features).detach()) == 0
    assert torch.equal(uni.network.seen, clean) is not jitter


def test_gradients_are_finite_under_bfloat16_autocast():
    uni = detector()
    with torch.autocast("cpu", torch.bfloat16):
        loss = uni.loss(torch.randn(4, sum(uni.extractor.channels), 4, 4))
    loss.backward()
    gradients = [p.grad for p in uni.network.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert sum(float(g.norm()) for g in gradients) > 0


# --- fit ----------------------------------------------------------------------------------------------------------------

def test_the_same_seed_gives_the_same_losses_twice_and_another_seed_others(tiny):
    torch.manual_seed(0)
    first = detector(seed=3).fit(tiny.train)
    torch.manual_seed(1)
    again, other = detector(seed=3).fit(tiny.train), detector(seed=4).fit(tiny.train)
    assert first.losses == again.losses != other.losses
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True))


def test_building_fitting_and_predicting_leave_the_global_random_state_as_it_was(tiny):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    detector().fit(tiny.train).predict(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@pytest.mark.parametrize("epochs_done", [1, 3])
def test_a_fit_that_was_killed_goes_on_from_its_checkpoint_to_the_same_weights(tiny, tmp_path, monkeypatch, epochs_done):
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=itertools.count(0, 100).__next__))   # saves every epoch
    whole = detector(epochs=5).fit(tiny.train)
    killed, loss, batches = detector(epochs=5), UniAD.loss, itertools.count()

    def dies(features: Tensor) -> Tensor:
        if next(batches) == 2 * epochs_done + 1:             # six images are two batches an epoch
            raise KeyboardInterrupt
        return loss(killed, features)

    killed.loss = dies
    with pytest.raises(KeyboardInterrupt):
        killed.fit(tiny.train, checkpoint=tmp_path / "checkpoint")
    assert len(torch.load(tmp_path / "checkpoint")["losses"]) == epochs_done
    resumed = detector(epochs=5).fit(tiny.train, checkpoint=tmp_path / "checkpoint")
    assert resumed.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(resumed.network.parameters(), whole.network.parameters(), strict=True))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(resumed.predict(images).map, whole.predict(images).map)


def test_a_fitted_detector_rebuilds_without_dropout(tiny):
    images = torch.rand(2, 3, 64, 64)
    uni = detector().fit(tiny.train)
    assert torch.equal(uni.predict(images).map, uni.predict(images).map)


# --- predict ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("image_size", [64, (64, 96), (70, 100)])
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (37, 131), (200, 40)])
def test_maps_come_back_at_the_size_of_the_images_whatever_was_configured(image_size, size):
    found = detector(image_size=image_size).predict(torch.rand(2, 3, *size))
    assert found.map.shape == (2, *size) and found.score.shape == (2,)
    assert bool(torch.isfinite(found.map).all()) and bool((found.map >= 0).all())


def test_an_image_alone_is_scored_as_it_is_in_a_batch():
    uni, images = detector(), torch.rand(3, 3, 64, 64)
    together = uni.predict(images)
    for i in range(3):
        alone = uni.predict(images[i:i + 1])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.map[0], together.map[i], rtol=1e-4, atol=1e-4)


def test_the_map_is_the_error_of_each_token_drawn_out_between_the_corners_of_the_image():
    uni, image = detector(image_size=(48, 80), neighbors=3), torch.rand(1, 3, 48, 80)
    tokens = uni.features(uni.extractor(image)).flatten(2).transpose(1, 2)
    errors = (tokens - uni.network(tokens)).detach().double().square().sum(-1).sqrt().reshape(3, 5).numpy()
    rows, columns = np.linspace(0, 2, 48), np.linspace(0, 4, 80)
    along = np.stack([np.interp(columns, np.arange(5), row) for row in errors])
    wanted = np.stack([np.interp(rows, np.arange(3), along[:, x]) for x in range(80)], axis=1)
    np.testing.assert_allclose(uni.predict(image).map[0].numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 16, 50])
def test_the_score_is_the_largest_mean_of_a_window_of_the_map(window):
    uni = detector(score_window=window, image_size=(64, 96))
    found = uni.predict(torch.rand(2, 3, 64, 96))
    for score, plane in zip(found.score, found.map.double().numpy(), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(plane, (window, window))
        assert windows.shape[:2] == (64 - window + 1, 96 - window + 1)
        assert float(score) == pytest.approx(windows.mean((2, 3)).max(), rel=1e-5)


@pytest.mark.parametrize("size", [8, 15, (8, 64), (64, 15)])
def test_an_image_size_below_one_token_is_refused(size):
    with pytest.raises(ParameterError, match="is smaller than one token of 16 pixels"):
        detector(image_size=size)


@pytest.mark.parametrize("images", [torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64),
                                    torch.zeros(1, 3, 64, 64, dtype=torch.uint8)])
def test_what_is_not_a_batch_of_float_rgb_images_is_refused(images):
    with pytest.raises(ParameterError, match=r"images must be \(B, 3, H, W\) floats in \[0, 1\], not"):
        detector().predict(images)


def test_images_with_nan_pixels_are_refused():
    with pytest.raises(ParameterError, match="NaN or infinite pixels"):
        detector().predict(torch.full((1, 3, 64, 64), torch.nan))


def test_after_a_short_training_a_pasted_defect_stands_out_in_map_and_score(tmp_path):
    dataset = load_mvtec(write_tiny(tmp_path / "data", side=96, train=12, good=1, blobs=1), "tiny")
    uni = detector(image_size=96, epochs=25, hidden=64, lr=2e-3, lr_drop=20).fit(dataset.train)
    assert uni.losses[-1] < 0.8 * uni.losses[0]
    rng = np.random.default_rng(99)
    pictures = np.stack([texture(rng, 96) for _ in range(4)])
    inside = np.zeros((4, 96, 96), bool)
    for i, (top, left) in enumerate([(10, 12), (50, 40), (30, 60), (60, 10)]):
        inside[i, top:top + 24, left:left + 24] = True
    defective = pictures.copy()
    defective[inside] = (20, 20, 90)
    clean, found = (uni.predict(torch.from_numpy(p).permute(0, 3, 1, 2) / 255) for p in (pictures, defective))
    for i in range(4):
        plane = found.map[i].numpy()
        assert plane[inside[i]].mean() > 1.2 * plane[~inside[i]].mean()
    assert float(found.score.min()) > float(clean.score.max())


def test_the_papers_settings_are_the_defaults():
    paper = UniADConfig()
    assert (paper.backbone, paper.taps, paper.image_size) == ("efficientnet_b4", (1, 2, 3, 4), 224)
    assert (paper.hidden, paper.heads, paper.ffn, paper.encoder_layers, paper.decoder_layers) == (256, 8, 1024, 4, 4)
    assert (paper.neighbors, paper.jitter_scale, paper.jitter_probability, paper.score_window) == (7, 20.0, 1.0, 16)
    assert (paper.epochs, paper.lr, paper.lr_drop, paper.weight_decay, paper.clip_norm) == (1000, 1e-4, 800, 1e-4, 0.1)


def test_the_checkpoint_file_can_be_read_without_running_code_in_it(tiny, tmp_path):
    path: Path = tmp_path / "checkpoint"
    detector().fit(tiny.train, checkpoint=path)
    assert set(torch.load(path, weights_only=True)) == {"module", "optimizer", "scheduler", "losses"}
