"""Masked attention in Triton's interpreter against torch in float64; run by test_triton.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adcore.kernels import kernels, masked_attention
from adcore.kernels.triton import masked_attention as fused

# Largest error of the output, and of the gradients, whose values are about 1.
ERRORS = {torch.float32: (1e-6, 5e-6), torch.float16: (1e-3, 4e-3), torch.bfloat16: (1e-2, 3e-2)}
SHAPES = [(1, 1, 1), (7, 7, 5), (33, 65, 16), (65, 33, 70)]                     # queries, keys, dimensions per head


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def some_visible(n: int, m: int) -> Tensor:
    """Half of the keys, at least one for each query; the first query sees all."""
    visible = torch.rand(n, m, generator=torch.Generator().manual_seed(9)) < 0.5
    visible[torch.arange(n), torch.arange(n) % m] = True
    visible[0] = True
    return visible


def outside_window(h: int, w: int, size: int) -> Tensor:
    """UniAD's mask, cell by cell: a query sees what is farther than the window reaches."""
    cells = [(y, x) for y in range(h) for x in range(w)]
    return torch.tensor([[max(abs(y - b), abs(x - a)) > size // 2 for b, a in cells] for y, x in cells])


def agree(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> None:
    """Output and gradients against torch's in float64 of the same numbers."""
    weight = random(*q.shape, seed=5).transpose(2, 3).contiguous().transpose(2, 3)          # a gradient that is not contiguous
    runs = []
    for dtype, choice in ((q.dtype, "triton"), (torch.float64, "torch")):
        leaves = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        # The same strides as given: .to() of another dtype keeps them only if they are dense.
        inputs = [leaf.as_strided(x.shape, x.stride()) if leaf.stride() != x.stride() and dtype == q.dtype else leaf
                  for leaf, x in zip(leaves, (q, k, v), strict=True)]
        with kernels(choice):
            out = masked_attention(*inputs, visible)
        assert ("_Attention" in out.grad_fn.name()) == (choice == "triton")
        assert out.dtype == dtype and out.shape == q.shape
        runs.append((out, *torch.autograd.grad(out, leaves, weight.to(dtype))))
    for found, expected, error in zip(*runs, (ERRORS[q.dtype][0], *[ERRORS[q.dtype][1]] * 3), strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=error, atol=error)


@pytest.mark.parametrize(("n", "m", "d", "dtype"), [*((*shape, torch.float32) for shape in SHAPES),
                                                    *((33, 65, 16, dtype) for dtype in (torch.float16, torch.bfloat16))])
def test_output_and_gradients_equal_torchs_under_a_mask(n, m, d, dtype):
    q, k, v = (random(1, 2, rows, d, seed=seed, dtype=dtype) for seed, rows in enumerate((n, m, m)))
    agree(q, k, v, some_visible(n, m))


@pytest.mark.parametrize(("n", "m", "d"), SHAPES)
def test_output_and_gradients_equal_torchs_without_a_mask(n, m, d):
    agree(*(random(2, 1, rows, d, seed=seed) for seed, rows in enumerate((n, m, m))), None)


@pytest.mark.parametrize(("h", "w", "size"), [(14, 14, 7), (3, 13, 5)])
def test_output_and_gradients_equal_torchs_under_uniads_neighbor_mask(h, w, size):
    agree(*(random(1, 2, h * w, 32, seed=seed) for seed in range(3)), outside_window(h, w, size))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transposed_strided_and_expanded_inputs_are_supported(dtype):
    q = random(2, 33, 3, 8, seed=0, dtype=dtype).transpose(1, 2)                            # the layout of a model's heads
    k = random(2, 3, 2 * 35, 16, seed=1, dtype=dtype)[:, :, ::2, ::2]
    v = random(2, 3, 8, 35, seed=2, dtype=dtype).transpose(2, 3)
    visible = some_visible(35, 33).T
    visible[:, 0] = True
    assert not any(x.is_contiguous() for x in (q, k, v, visible))
    with kernels("triton"):
        found = masked_attention(q, k, v, visible)
    with kernels("torch"):
        expected = masked_attention(q.double(), k.double(), v.double(), visible)
    torch.testing.assert_close(found.double(), expected, rtol=ERRORS[dtype][0], atol=ERRORS[dtype][0])
    agree(q, k, v, visible)
    one = random(1, 1, 35, 8, seed=3, dtype=dtype).expand(2, 3, 35, 8)
    with kernels("triton"):
        assert torch.equal(masked_attention(q, one, one, visible), masked_attention(q, one.clone(), one.clone(), visible))


def test_large_logits_neither_overflow_nor_lose_the_largest():
    q, k = 100 * random(1, 1, 7, 4, seed=0), 100 * random(1, 1, 65, 4, seed=1)
    v = random(1, 1, 65, 4, seed=2)
    with kernels("triton"):
        found = masked_attention(q, k, v)
    torch.testing.assert_close(found, v[0, 0][(q @ k.mT)[0, 0].argmax(1)][None, None], rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_no_key_gets_zero_and_no_gradient():
    q, k, v = (random(1, 1, 7, 4, seed=seed).requires_grad_() for seed in range(3))
    visible = some_visible(7, 7)
    visible[2] = False
    with kernels("triton"):
        out = masked_attention(q, k, v, visible)
        gradients = torch.autograd.grad(out[:, :, 2].sum(), (q, k, v))
    assert not out[0, 0, 2].any() and bool(torch.isfinite(out).all()) and not any(bool(g.any()) for g in gradients)


def test_under_autocast_the_dtype_is_the_same_as_torchs():
    q, k, v = (random(1, 1, 7, 4, seed=seed) for seed in range(3))
    with torch.autocast("cpu", torch.bfloat16):
        with kernels("triton"):
            found = masked_attention(q, k, v)
        with kernels("torch"):
            expected = masked_attention(q, k, v)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_a_second_derivative_is_refused_rather_than_wrong():
    q = random(1, 1, 3, 4, seed=0).requires_grad_()
    with kernels("triton"):
        (first,) = torch.autograd.grad(masked_attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(("shapes", "visible"), [
    (((1, 1, 3, 4), (1, 1, 3, 5), (1, 1, 3, 5)), None),
    (((1, 1, 3, 4), (1, 1, 5, 4), (1, 1, 5, 4)), torch.ones(3, 4, dtype=torch.bool)),
    (((1, 1, 3, 4), (1, 1, 3, 4), (1, 1, 3, 4)), torch.ones(3, 3, dtype=torch.long))])
def test_shapes_that_do_not_fit_together_are_refused_with_torchs_message(shapes, visible):
    said = []
    for choice in ("triton", "torch"):
        with kernels(choice), pytest.raises(RuntimeError) as refusal:
            masked_attention(*(torch.zeros(shape) for shape in shapes), visible)
        said.append(str(refusal.value))
    assert said[0] == said[1]


def test_torch_computes_what_the_kernel_does_not_support():
    q = random(1, 2, 5, 4, seed=0)
    wide = random(1, 1, 2, 129, seed=1)
    with kernels("triton"):
        for x in (q.double(), q[:0], q[:, :, :0], wide):
            assert not fused.takes(x, x, x, None)
            with kernels("torch"):
                expected = masked_attention(x, x, x)
            assert torch.equal(masked_attention(x, x, x), expected)
        torch.manual_seed(0)
        dropped = masked_attention(q, q, q, None, 0.5)
        torch.manual_seed(0)
        with kernels("torch"):
            assert torch.equal(masked_attention(q, q, q, None, 0.5), dropped)
