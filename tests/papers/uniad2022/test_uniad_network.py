"""UniAD's network: the neighbor mask, six wirings and three kinds of query against counts on paper and slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.by_hand import attention_by_hand, exact, ffn_by_hand, norm_by_hand, normal
from torch import nn

from adcore.errors import ParameterError
from adcore.models import UniADConfig
from adcore.papers.uniad2022.transformer import Attention
from adcore.papers.uniad2022.uniad import WIRINGS, DecoderLayer, UniADNetwork, neighbor_mask
from adcore.training import seeded

# --- neighbor mask ------------------------------------------------------------------------------------------------------

def test_with_a_window_of_7_an_interior_token_sees_147_others_and_a_corner_token_180():
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
def test_the_neighbor_mask_equals_the_double_loop_on_any_grid_or_is_refused_if_it_hides_the_whole_grid(h, w, size):
    by_hand = mask_by_hand(h, w, size)
    if by_hand.all(1).any():
        with pytest.raises(ParameterError, match=f"neighbors={size} hides the whole {h}x{w} grid"):
            neighbor_mask(h, w, size)
    else:
        assert np.array_equal(neighbor_mask(h, w, size).numpy(), by_hand)


@pytest.mark.parametrize("size", [0, -3, 2, 6])
def test_a_window_that_is_not_odd_is_refused(size):
    with pytest.raises(ParameterError, match=f"neighbors={size} must be odd"):
        neighbor_mask(14, 14, size)


# --- layer-wise query decoder -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_decoder_layer_of_any_wiring_equals_the_loop_over_tokens_and_heads(wiring):
    layer = exact(DecoderLayer(8, 2, 12, dropout=0.1, tokens=12, wiring=wiring))
    encoded, previous, position = normal(2, 12, 8), normal(2, 12, 8, seed=1), normal(12, 8, seed=2)
    blocked = neighbor_mask(3, 4, 3)
    found = layer(encoded, previous, position, ~blocked).detach().numpy()
    # Fig. S1, written out once more: sources of the queries and of the keys and values of the first and second attention.
    queries, values = {"a": ("QR", "EP"), "b": ("QR", "PE"), "c": ("QP", "ER"), "d": ("QE", "PR"), "e": ("PQ", "ER"),
                       "f": ("EQ", "PR")}[wiring]
    steps = ((layer.first_attention, layer.first_norm), (layer.second_attention, layer.second_norm))
    for image in range(2):
        where = position.numpy()
        sources = {"Q": layer.query.detach().numpy(), "E": encoded[image].numpy(), "P": previous[image].numpy()}
        for (attention, norm), query_from, value_from in zip(steps, queries, values, strict=True):
            query, value = sources[query_from], sources[value_from]
            mixed = attention_by_hand(attention, query + where, value + where, value, blocked.numpy())
            sources["R"] = norm_by_hand(norm, query + mixed)
        out = norm_by_hand(layer.ffn_norm, sources["R"] + ffn_by_hand(layer.ffn, sources["R"]))
        np.testing.assert_allclose(found[image], out, atol=1e-6)


def test_there_are_six_wirings_in_which_the_learned_query_is_a_query_and_every_source_is_used():
    # The second attention must use the first one's result R, or the first would have no effect. R may be its query or its key
    # and value, and the three sources may take the other places in any order, except that Q is never key and value.
    found = set()
    for first in itertools.permutations("QEP", 2):
        last = ({"Q", "E", "P"} - set(first)).pop()
        for second in (("R", last), (last, "R")):
            found.add((first, second))
    allowed = {wiring for wiring in found if "Q" not in (wiring[0][1], wiring[1][1])}
    assert set(WIRINGS.values()) == allowed and len(allowed) == 6


def test_the_supplements_two_traits_hold_for_wirings_a_b_and_f_only():
    # S D.2: the previous layer's output is key and value; and if Q enters the first attention, R is the query of the second.
    previous_is_value = {name for name, wiring in WIRINGS.items() if "P" in (wiring[0][1], wiring[1][1])}
    query_stays_query = {name for name, wiring in WIRINGS.items() if wiring[0][0] != "Q" or wiring[1][0] == "R"}
    assert previous_is_value & query_stays_query == {"a", "b", "f"}


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
def test_every_variant_keeps_the_shape_and_has_finite_gradients_for_all_parameters(changes, nma):
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
    ({"query": "one", "wiring": "b"}, "wiring='b' needs the layer-wise query decoder: leave it out with query='one'")])
def test_a_value_that_a_setting_does_not_have_is_refused_and_the_message_lists_those_it_has(changes, message):
    with pytest.raises(ParameterError, match=message):
        UniADConfig(**changes)


def test_the_first_decoder_layer_takes_the_encoders_output_twice_and_each_next_layer_the_previous_ones_output():
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
