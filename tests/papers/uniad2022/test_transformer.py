"""Blocks of the transformers against slow loops and torch's own attention."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from support.by_hand import attention_by_hand, exact, ffn_by_hand, norm_by_hand, normal
from torch import nn

from adcore.papers.uniad2022.transformer import Attention, EncoderLayer, PositionEmbedding, VanillaDecoderLayer
from adcore.papers.uniad2022.uniad import DecoderLayer, neighbor_mask

SIZES = (8, 2, 12, 0.1)      # width, heads, inner width of the feed-forward network, dropout


def test_a_token_does_not_change_the_encoding_of_other_tokens_in_whose_window_it_is():
    layer = exact(EncoderLayer(*SIZES))
    blocked = neighbor_mask(5, 6, 3)
    x, position = 0.3 * normal(1, 30, 8), 0.3 * normal(30, 8, seed=1)
    changed = x.clone()
    changed[0, 14] += 1
    moved = (layer(changed, position, ~blocked) - layer(x, position, ~blocked))[0].abs().amax(1) > 1e-13
    unmoved = blocked[:, 14].clone()
    unmoved[14] = False                     # the residual carries the token itself
    assert torch.equal(moved, ~unmoved)


def test_an_encoder_layer_equals_the_loop_over_tokens_and_heads():
    layer = exact(EncoderLayer(*SIZES))
    x, position, blocked = normal(2, 12, 8), normal(12, 8, seed=1), neighbor_mask(3, 4, 3)
    found = layer(x, position, ~blocked).detach().numpy()
    for image in range(2):
        tokens, where = x[image].numpy(), position.numpy()
        mixed = attention_by_hand(layer.attention, tokens + where, tokens + where, tokens, blocked.numpy())
        tokens = norm_by_hand(layer.attention_norm, tokens + mixed)
        tokens = norm_by_hand(layer.ffn_norm, tokens + ffn_by_hand(layer.ffn, tokens))
        np.testing.assert_allclose(found[image], tokens, atol=1e-6)


def test_a_vanilla_decoder_layer_equals_the_loop_over_tokens_and_heads():
    layer = exact(VanillaDecoderLayer(*SIZES))
    encoded, previous, position = normal(2, 12, 8), normal(2, 12, 8, seed=1), normal(12, 8, seed=2)
    blocked = neighbor_mask(3, 4, 3)
    found = layer(encoded, previous, position, ~blocked).detach().numpy()
    for image in range(2):
        x, answers, where = previous[image].numpy(), encoded[image].numpy(), position.numpy()
        mixed = attention_by_hand(layer.self_attention, x + where, x + where, x, blocked.numpy())
        x = norm_by_hand(layer.self_norm, x + mixed)
        mixed = attention_by_hand(layer.cross_attention, x + where, answers + where, answers, blocked.numpy())
        x = norm_by_hand(layer.cross_norm, x + mixed)
        np.testing.assert_allclose(found[image], norm_by_hand(layer.ffn_norm, x + ffn_by_hand(layer.ffn, x)), atol=1e-6)


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
def test_one_query_for_all_images_equals_the_query_repeated_for_each_image(p):
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


def test_positions_change_attention_weights_but_never_values():
    # Equal tokens have equal values, so their weighted mean is the same whatever the positions.
    encoder, decoder = (exact(layer) for layer in (EncoderLayer(*SIZES), DecoderLayer(*SIZES, tokens=12)))
    visible, nowhere, somewhere = ~neighbor_mask(3, 4, 3), torch.zeros(12, 8).double(), normal(12, 8, seed=3)
    equal, mixed = normal(1, 1, 8).expand(1, 12, 8), normal(1, 12, 8)
    for tokens, same in ((equal, True), (mixed, False)):
        for call in (lambda t, p: encoder(t, p, visible), lambda t, p: decoder(t, t.flip(2), p, visible)):
            assert torch.allclose(call(tokens, nowhere), call(tokens, somewhere), atol=1e-9) is same


def test_the_position_embedding_of_a_cell_is_that_of_its_column_followed_by_that_of_its_row():
    position = PositionEmbedding(3, 5, 8)
    table = position().reshape(3, 5, 8)
    for y, x in itertools.product(range(3), range(5)):
        assert torch.equal(table[y, x], torch.cat([position.columns[x], position.rows[y]]))
