"""Blocks of the reconstructing transformers against counts on paper, slow loops and torch's own attention."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.by_hand import attention_by_hand, exact, ffn_by_hand, norm_by_hand, normal
from torch import nn

from adcore.errors import ParameterError
from adcore.models import UniADConfig
from adcore.papers.uniad2022.transformer import Attention, EncoderLayer, PositionEmbedding, VanillaDecoderLayer, neighbor_mask
from adcore.papers.uniad2022.uniad import DecoderLayer


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
def test_the_neighbor_mask_equals_the_double_loop_on_any_grid_or_says_that_it_hides_everything(h, w, size):
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

@pytest.mark.parametrize("masked", [True, False])
def test_attention_equals_torchs_multihead_attention_with_the_same_weights(masked):
    ours = exact(Attention(24, 3, dropout=0.5))
    theirs = nn.MultiheadAttention(24, 3, batch_first=True).double().eval()
    theirs.load_state_dict({"in_proj_weight": ours.in_weight, "in_proj_bias": ours.in_bias, "out_proj.weight": ours.out.weight,
                            "out_proj.bias": ours.out.bias})
    q, k, v = normal(2, 20, 24), normal(2, 20, 24, seed=1), normal(2, 20, 24, seed=2)
    blocked = neighbor_mask(4, 5, 3) if masked else None
    torch.testing.assert_close(ours(q, k, v, ~blocked if masked else None), theirs(q, k, v, attn_mask=blocked)[0])


@pytest.mark.parametrize("p", [0.0, 0.2])
def test_a_query_that_is_the_same_for_all_images_need_be_given_once(p):
    layer = Attention(24, 3, p).double()
    query, key = normal(1, 20, 24), normal(2, 20, 24, seed=1)
    found = []
    for q in (query, query.expand(2, -1, -1)):
        torch.manual_seed(0)
        q = q.clone().requires_grad_()
        out = layer(q, key, key, None)
        found.append((out, torch.autograd.grad(out.square().sum(), q)[0].sum(0)))
    for once, twice in zip(*found, strict=True):
        torch.testing.assert_close(once, twice)


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
