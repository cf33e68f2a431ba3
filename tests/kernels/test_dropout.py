"""Dropout and masked attention on a CPU, against plain torch with the same elements dropped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from adcore.kernels import Dropout, dropout, kernels, masked_attention, relu_dropout
from adcore.kernels.attention import plain_attention
from adcore.kernels.cpu import attention
from adcore.kernels.cpu.dropout import BLOCK, levels

# --- attention ----------------------------------------------------------------------------------------------------------

def scaled_by_hand(q, k, v, visible):
    """Softmax attention of one head, query by query, in float64."""
    out = torch.zeros_like(q)
    for i in range(len(q)):
        keys = [j for j in range(len(k)) if visible is None or visible[i, j]]
        logits = torch.stack([q[i] @ k[j] / q.shape[-1] ** 0.5 for j in keys])
        out[i] = logits.softmax(0) @ v[keys]
    return out


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("p", [0.0, 1e-9])
def test_masked_attention_equals_the_loop_with_and_without_the_code_for_dropout(masked, p):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 4, dtype=torch.float64, generator=generator) for n in (5, 7, 7))
    visible = torch.rand(5, 7, generator=generator) < 0.5 if masked else None
    if visible is not None:
        visible[:, 0] = True
    found = masked_attention(q, k, v, visible, p)            # 1e-9 is rounded to 0, but the code for dropout runs
    for b in range(2):
        for head in range(3):
            torch.testing.assert_close(found[b, head], scaled_by_hand(q[b, head], k[b, head], v[b, head], visible))


def test_attention_with_dropout_is_right_on_average_and_has_torchs_gradients_on_average():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3))
    visible = ~torch.eye(6, dtype=torch.bool)
    exact = masked_attention(q, k, v, visible)
    wanted = torch.autograd.grad(exact.square().sum(), v)[0]
    torch.manual_seed(0)
    many = masked_attention(*(x.expand(20_000, 1, 6, 4) for x in (q, k, v)), visible, 0.3)
    torch.testing.assert_close(many.mean(0, keepdim=True), exact, rtol=0, atol=0.02)
    weights = 2 * exact.detach()
    found = torch.autograd.grad((many * weights).sum() / 20_000, v)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.05)


def operands(images: int = 5, heads: int = 2, n: int = 6, m: int = 7, d: int = 4) -> list[Tensor]:
    """q, k, v in float64 as a projection leaves them: (B, N, heads, d) seen as (B, heads, N, d)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(images, rows, heads, d, dtype=torch.float64, generator=generator).transpose(1, 2).requires_grad_()
            for rows in (n, m, m)]


def sight(n: int = 6, m: int = 7) -> Tensor:
    visible = torch.rand(n, m, generator=torch.Generator().manual_seed(1)) < 0.6
    visible[:, 0] = True
    return visible


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None, p: float = 0.3, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    return masked_attention(q, k, v, visible, p)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("cached_bytes", [1, 700, 2**22])                # one image at a time, two, all
def test_values_and_gradients_under_the_drawn_mask_are_those_of_plain_torch(masked, cached_bytes, monkeypatch):
    monkeypatch.setattr(attention, "CACHED_BYTES", cached_bytes)
    (q, k, v), visible = operands(), sight() if masked else None
    # With unit vectors as values the output is the matrix of weights, zero where dropped.
    weights = dropped_attention(q, k, torch.eye(7, dtype=torch.float64).expand(5, 2, 7, 7), visible)
    seen = torch.ones(6, 7, dtype=torch.bool) if visible is None else visible
    kept = (weights != 0).double()
    assert 0.6 < float(kept[:, :, seen].mean()) < 0.8 and not kept[:, :, ~seen].any()
    assert len({tuple(row.flatten().tolist()) for row in kept[:, :, :, :].flatten(0, 1)}) == 10   # heads and images differ
    logits = (q @ k.mT / 2).masked_fill(~seen, -torch.inf)
    plain = (logits.softmax(-1) * kept * levels(0.3)[1]) @ v
    ours = dropped_attention(q, k, v, visible)
    assert_close(ours, plain)
    aim = torch.randn(ours.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for found, expected in zip(torch.autograd.grad(ours, (q, k, v), aim), torch.autograd.grad(plain, (q, k, v), aim),
                               strict=True):
        assert_close(found, expected)


@pytest.mark.parametrize("masked", [True, False])
def test_the_code_for_dropout_gives_the_values_and_gradients_of_the_plain_code(masked):
    inputs, visible = operands(), sight() if masked else None
    ours, plain = masked_attention(*inputs, visible, 1e-9), plain_attention(*inputs, visible)      # nothing is dropped
    assert type(ours.grad_fn).__name__ == "_AttentionBackward"
    assert_close(ours, plain)
    gradients = [torch.autograd.grad(out.square().sum(), inputs) for out in (ours, plain)]
    for found, expected in zip(*gradients, strict=True):
        assert_close(found, expected)


def test_plain_kernels_drop_with_torchs_own_dropout():
    x, (q, k, v) = torch.ones(50), operands()
    for call, theirs in ((lambda: dropout(x, 0.5), lambda: nn.functional.dropout(x, 0.5)),
                         (lambda: relu_dropout(x, 0.5), lambda: nn.functional.dropout(x, 0.5)),
                         (lambda: masked_attention(q, k, v, None, 0.5), lambda: plain_attention(q, k, v, None, 0.5))):
        torch.manual_seed(0)
        with kernels("plain"):
            found = call()
        torch.manual_seed(0)
        assert torch.equal(found, theirs())


def test_large_logits_neither_overflow_nor_lose_the_largest():
    q, k, v = (x.detach().float() for x in operands())
    found = dropped_attention(1e4 * q, k, v, sight(), p=1e-9)
    assert_close(found.double(), masked_attention(*(x.double() for x in (1e4 * q, k, v)), sight()), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_stays_near_float64_and_keeps_its_dtype(dtype):
    inputs = [x.detach() for x in operands()]
    exact = dropped_attention(*inputs, sight())
    few = [x.to(dtype).requires_grad_() for x in inputs]
    found = dropped_attention(*few, sight())
    found.sum().backward()
    error = 1e-5 if dtype == torch.float32 else 0.05
    assert found.dtype == dtype and all(x.grad.dtype == dtype and torch.isfinite(x.grad).all() for x in few)
    assert_close(found.double(), exact, atol=error, rtol=error)


def test_autocast_does_not_change_attention_with_dropout():
    inputs = [x.detach().float() for x in operands()]
    alone = dropped_attention(*inputs, sight())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(dropped_attention(*inputs, sight()), alone)


def test_no_attention_weights_are_stored_for_the_backward_pass():
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    q, k, v = (torch.randn(8, 2, 64, 4, requires_grad=True) for _ in range(3))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        masked_attention(q, k, v, None, 0.1)
    assert 0 < sum(kept) < 8 * 2 * 64 * 64 * 4                           # less than one matrix of weights


def test_an_empty_batch_gives_an_empty_batch():
    q, k, v = (torch.empty(0, 2, n, 4) for n in (6, 7, 7))
    assert masked_attention(q, k, v, None, 0.3).shape == (0, 2, 6, 4)


# --- dropout ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1_000_003,), (7, 11, 9001)])
def test_dropout_drops_a_fraction_p_and_keeps_the_mean(p, shape):
    torch.manual_seed(0)
    x = dropout(torch.ones(shape), p)
    count = x.numel()
    assert abs(float((x == 0).double().mean()) - p) < 5 * (p * (1 - p) / count) ** 0.5 + 1 / 65536
    assert len(x.unique()) == 2 and float(x.max()) == pytest.approx(1 / (1 - p), rel=2e-4)
    assert float(x.double().mean()) == pytest.approx(1, abs=6 * (p / (1 - p) / count) ** 0.5)


def test_the_draws_of_dropout_are_independent_repeatable_and_off_outside_training():
    torch.manual_seed(0)
    first = dropout(torch.ones(400_000), 0.5)
    assert not torch.equal(first, dropout(torch.ones(400_000), 0.5))
    torch.manual_seed(0)
    assert torch.equal(first, dropout(torch.ones(400_000), 0.5))
    kept = (first != 0).double() - 0.5
    for lag in (1, 2, 3, 4, 8):                                   # four neighbors share one draw of 64 bits
        assert abs(float((kept[:-lag] * kept[lag:]).mean())) < 5 * 0.25 / 400_000**0.5
    x = torch.randn(10)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0) is x and not bool(dropout(x, 1.0).any())


@pytest.mark.parametrize("size", [5, BLOCK - 1, 2 * BLOCK + 3])
def test_dropped_elements_get_no_gradient_and_the_others_the_same_scale(size):
    x = torch.ones(size, requires_grad=True)
    torch.manual_seed(0)
    out = dropout(x, 0.25)
    (gradient,) = torch.autograd.grad(out, x, torch.full((size,), 2.0))
    assert_close(gradient, 2 * out.detach())


@pytest.mark.parametrize("shape", [(3,), (2, BLOCK // 2 + 5), (4, 0)])
def test_relu_with_dropout_is_relu_then_dropout_of_the_same_draw(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.manual_seed(1)
    ours = relu_dropout(x, 0.25)
    torch.manual_seed(1)
    plain = dropout(torch.relu(x), 0.25)
    assert torch.equal(ours, plain)
    aim = torch.arange(x.numel(), dtype=torch.float32).view(shape)
    assert_close(torch.autograd.grad(ours, x, aim)[0], torch.autograd.grad(plain, x, aim)[0])


def test_gradients_pass_finite_differences():
    def again(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def seeded(*inputs: Tensor) -> Tensor:
            torch.manual_seed(4)
            return function(*inputs, 0.4)
        return seeded
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(again(dropout), (x,)) and torch.autograd.gradcheck(again(relu_dropout), (x,))
    assert torch.autograd.gradcheck(again(lambda q, k, v, p: masked_attention(q, k, v, sight(), p)), operands())


def test_a_view_gives_the_same_as_its_contiguous_copy():
    base = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    for function in (dropout, relu_dropout):
        for view in (base.T, base[::2, 1:7:3], base[:1].expand(4, 8)):
            torch.manual_seed(0)
            ours = function(view, 0.5)
            torch.manual_seed(0)
            assert torch.equal(ours, function(view.contiguous(), 0.5))
    assert torch.equal(base, torch.randn(6, 8, generator=torch.Generator().manual_seed(0)))      # the input is unchanged


def test_relu_with_dropout_is_relu_outside_training_and_where_nothing_is_dropped():
    x = torch.tensor([-1.0, 0.0, 2.0])
    for found in (relu_dropout(x, 0.0), relu_dropout(x, 0.5, training=False)):
        assert found.tolist() == [0, 0, 2]
    assert torch.equal(Dropout(0.5).eval()(x), x)


def test_with_p_close_to_one_a_few_elements_are_still_kept():
    torch.manual_seed(0)
    found = dropout(torch.ones(2_000_000), 1 - 1e-7)
    assert torch.isfinite(found).all() and 5 < int((found > 0).sum()) < 90 and float(found.max()) == 65536


def test_torch_compile_gets_torchs_own_dropout(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x, (q, k, v) = torch.ones(50, requires_grad=True), operands()
    for out in (dropout(x, 0.5), relu_dropout(x, 0.5), masked_attention(q, k, v, sight(), 0.5)):
        assert not type(out.grad_fn).__name__.startswith("_")
    assert_close(masked_attention(q, k, v, sight(), 1e-300), masked_attention(q, k, v, sight()))


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_a_p_that_is_not_a_probability_is_refused(p):
    for call in (lambda: dropout(torch.ones(3), p), lambda: relu_dropout(torch.ones(3), p),
                 lambda: masked_attention(*operands(), None, p)):
        with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1"):
            call()
