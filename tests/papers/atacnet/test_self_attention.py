"""The self-attention convolution block, compared with a loop over cells, channels and neighbors."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from adcore.errors import ParameterError
from adcore.papers.atacnet.self_attention import AttentionBlock, SelfAttention, neighbors


def mirrored(i: int, n: int) -> int:
    """Index i of a row of n with reflection at both ends; the border cell is not repeated."""
    return -i if i < 0 else 2 * (n - 1) - i if i >= n else i


def by_hand(part: SelfAttention, x: Tensor) -> Tensor:
    """Loop over cells and neighbors; each layer is applied to one cell at a time."""
    query, key, value = part.query(x), part.key(x), part.value(x)
    (b, _, h, w), reach = x.shape, part.window // 2
    ys, xs = torch.linspace(-1, 1, h, dtype=x.dtype), torch.linspace(-1, 1, w, dtype=x.dtype)
    place = part.place(torch.stack([xs.repeat(h), ys.repeat_interleave(w)])[None, :, :, None])[0, :, :, 0] \
        if part.kind == "pairwise" else None                                                   # (2, N), x first
    out = torch.zeros(b, value.shape[1], h, w, dtype=x.dtype)
    share = value.shape[1] // part.groups
    for i, y, xx in itertools.product(range(b), range(h), range(w)):
        steps = range(-reach, reach + 1)
        cells = [(mirrored(y + dy, h), mirrored(xx + dx, w)) for dy in steps for dx in steps]
        if part.kind == "pairwise":
            apart = [torch.cat([query[i, :, y, xx] - key[i, :, v, u], place[:, y * w + xx] - place[:, v * w + u]])
                     for v, u in cells]
            logits = torch.stack([part.weigh(one[None, :, None, None])[0, :, 0, 0] for one in apart])  # (K, groups)
            weights = logits.exp() / logits.exp().sum(0)
        else:
            # The order is channel by channel, and within a channel neighbor by neighbor.
            around = torch.stack([key[i, :, v, u] for v, u in cells], 1).flatten()
            together = torch.cat([query[i, :, y, xx], around])[None, :, None, None]
            weights = part.weigh(together)[0, :, 0, 0].view(part.groups, len(cells)).T
        for channel in range(value.shape[1]):
            out[i, channel, y, xx] = sum(weights[k, channel // share] * value[i, channel, v, u]
                                         for k, (v, u) in enumerate(cells))
    return out


def settled(part: nn.Module) -> nn.Module:
    """In eval mode, with batch norms that are not the identity."""
    for layer in part.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 2)
            nn.init.normal_(layer.bias)
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return part.double().eval()


@pytest.mark.parametrize("kind", ["pairwise", "patchwise"])
@pytest.mark.parametrize(("size", "window"), [((3, 5), 3), ((4, 4), 7)])
def test_self_attention_equals_the_loop_over_cells_and_neighbors(kind, size, window):
    torch.manual_seed(1)
    part = settled(SelfAttention(6, kind, reduced=2, middle=4, share=2, window=window))
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(part(x), by_hand(part, x), rtol=1e-10, atol=1e-10)


def test_pairwise_weights_sum_to_one_and_patchwise_weights_do_not():
    x = torch.randn(2, 32, 5, 4)
    sums = {kind: SelfAttention(32, kind, 2, 8, 4, 3).eval().weights(x).sum(2) for kind in ("pairwise", "patchwise")}
    assert sums["pairwise"].shape == (2, 2, 20) and torch.allclose(sums["pairwise"], torch.ones(1))
    assert (sums["patchwise"] - 1).abs().max() > 1e-3


def test_a_constant_map_stays_constant():
    part = settled(SelfAttention(6, "pairwise", 2, 4, 2, 3))
    out = part(torch.ones(1, 6, 5, 5, dtype=torch.float64))
    # The weights depend on the position but sum to one, so the mean of equal values is that value.
    assert torch.allclose(out, part.value(torch.ones(1, 6, 1, 1, dtype=torch.float64)).expand_as(out))


def test_neighbors_are_reflected_at_the_border_without_repeating_it():
    row = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    around = neighbors(row, 5)[0, 0].view(5, 5, 4, 4)
    assert around[2, :, 0, 0].tolist() == [2, 1, 0, 1, 2] and around[2, :, 0, 3].tolist() == [1, 2, 3, 2, 1]


def test_the_block_has_the_published_widths_and_adds_to_its_input():
    block = AttentionBlock(2048)
    assert block.attention.query.out_channels == 128 and block.attention.value.out_channels == 512
    assert block.attention.groups == 64 and block.attention.window == 7
    small = AttentionBlock(112).eval()
    assert small.attention.query.out_channels == 7 and small.attention.value.out_channels == 32  # 28 rounded up
    nn.init.zeros_(small.after[2].weight)
    nn.init.zeros_(small.after[2].bias)
    x = torch.randn(1, 112, 4, 6)
    assert torch.equal(small(x), x)


def test_a_grid_smaller_than_the_window_an_unknown_kind_and_an_even_window_are_refused():
    with pytest.raises(ParameterError, match=r"window of 7 cells.*at least 4 cells a side, not 3x8"):
        AttentionBlock(32)(torch.zeros(1, 32, 3, 8))
    with pytest.raises(ParameterError, match="pairwise, patchwise, not 'global'"):
        AttentionBlock(32, "global")
    with pytest.raises(ParameterError, match="odd window"):
        SelfAttention(32, "pairwise", 2, 8, 4, 6)
