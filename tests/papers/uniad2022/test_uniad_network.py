"""UniAD's network: six wirings, three kinds of query, counted on paper and rebuilt by slow loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from support.by_hand import attention_by_hand, exact, ffn_by_hand, norm_by_hand, normal
from torch import nn

from adcore.errors import ParameterError
from adcore.models import UniADConfig
from adcore.papers.uniad2022.transformer import Attention, neighbor_mask
from adcore.papers.uniad2022.uniad import WIRINGS, DecoderLayer, UniADNetwork
from adcore.training import seeded


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
