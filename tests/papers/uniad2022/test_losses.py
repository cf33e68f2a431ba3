"""The three losses of UniAD's supplement against their equations written out, and against each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adcore.papers.uniad2022 import losses
from adcore.papers.uniad2022.losses import LOSSES


def pair(seed: int, batch: int = 2, tokens: int = 5, channels: int = 7):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, tokens, channels, dtype=torch.float64, generator=generator) for _ in range(2))


@given(st.integers(0, 10_000))
def test_the_losses_equal_their_equations_written_out_token_by_token(seed):
    a, b = pair(seed)
    flat = [(x.numpy(), y.numpy()) for x, y in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)]
    unit = [(x / np.linalg.norm(x), y / np.linalg.norm(y)) for x, y in flat]
    s1 = np.mean([((x - y) ** 2).sum() for x, y in flat])
    assert float(losses.mse_printed(a, b)) == pytest.approx(s1)
    assert float(losses.mse(a, b)) == pytest.approx(s1 / 7)
    assert float(losses.normalized_mse(a, b)) == pytest.approx(np.mean([((x - y) ** 2).sum() for x, y in unit]))
    assert float(losses.cosine_printed(a, b)) == pytest.approx(np.mean([x @ y for x, y in unit]))
    assert float(losses.cosine(a, b)) == pytest.approx(1 - np.mean([x @ y for x, y in unit]))


@given(st.integers(0, 10_000))
def test_the_maps_are_the_losses_token_by_token(seed):
    a, b = pair(seed)
    np.testing.assert_allclose(losses.mse_map(a, b).numpy(), np.sqrt(((a - b).numpy() ** 2).sum(-1)), rtol=1e-12)
    torch.testing.assert_close(losses.mse_map(a, b).square().mean(), losses.mse_printed(a, b))
    torch.testing.assert_close(losses.normalized_mse_map(a, b).square().mean(), losses.normalized_mse(a, b))
    torch.testing.assert_close(losses.cosine_map(a, b).mean(), losses.cosine(a, b))


@given(st.integers(0, 10_000))
def test_normalized_mse_is_twice_the_cosine_distance(seed):
    a, b = pair(seed)
    torch.testing.assert_close(losses.normalized_mse(a, b), 2 * losses.cosine(a, b))


@pytest.mark.parametrize("name", ["mse", "mse_printed", "normalized_mse", "cosine"])
def test_a_perfect_reconstruction_has_loss_and_map_zero(name):
    a, b = pair(0)
    loss, error = LOSSES[name]
    assert abs(float(loss(a, a))) < 1e-12 < float(loss(a, b))
    assert float(error(a, a).abs().max()) == pytest.approx(0, abs=1e-7)


def test_minimizing_the_cosine_as_printed_drives_it_to_minus_one():
    original, start = pair(1)
    turned = {}
    for name in ("cosine", "cosine_printed"):
        rebuilt = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([rebuilt], 0.1)
        for _ in range(200):
            optimizer.zero_grad()
            LOSSES[name][0](original, rebuilt).backward()
            optimizer.step()
        turned[name] = float(torch.nn.functional.cosine_similarity(original, rebuilt.detach(), dim=-1).mean())
    assert turned["cosine"] > 0.99 and turned["cosine_printed"] < -0.99
