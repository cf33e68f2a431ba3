"""Every Triton kernel on a GPU against torch in float64 on the CPU: odd shapes, two dtypes, results and gradients.

The same kernels in Triton's interpreter are tested in tests/kernels. Here they are compiled and launched.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from adcore.kernels import choice, gmm, kcenter, kernels, masked_attention, nearest
from adcore.papers.artola2024.color import transport, transport_uint8
from adcore.papers.uniad2022.uniad import neighbor_mask

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16]
# Largest error of results and gradients, as a fraction of the largest value.
ERRORS = {torch.float32: 1e-3, torch.bfloat16: 4e-2}


@pytest.fixture(autouse=True)
def can_run(chip: torch.device) -> None:
    if choice._triton_error() or (chip.type == "cpu" and not choice._interpreted()):
        pytest.skip("needs triton, and on a CPU TRITON_INTERPRET=1")


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def compare(call: Callable[..., Tensor], leaves: Sequence[Tensor], others: Sequence[Any], chip: torch.device,
            dtype: torch.dtype, error: float | None = None) -> None:
    """Result and gradients of a kernel on the chip against torch's in float64 on the CPU, for numbers that `dtype` holds."""
    leaves = [leaf.to(dtype) for leaf in leaves]
    runs = []
    for who, device, kind in (("triton", chip, dtype), ("torch", torch.device("cpu"), torch.float64)):
        wide = torch.promote_types(kind, torch.float32)
        moved = [leaf.detach().to(device, kind).requires_grad_() for leaf in leaves]
        rest = [x.to(device, wide if x.is_floating_point() else x.dtype) for x in others]
        with kernels(who):
            out = call(*moved, *rest)
        weight = torch.linspace(-1, 2, out.numel(), dtype=torch.float64).reshape(out.shape).to(device, out.dtype)
        runs.append([out, *torch.autograd.grad((out * weight).sum(), moved)])
    for ours, theirs in zip(*runs, strict=True):
        assert ours.device.type == chip.type
        atol = (error or ERRORS[dtype]) * max(1.0, float(theirs.detach().abs().max()))
        torch.testing.assert_close(ours.detach().cpu().double(), theirs.detach(), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (7, 7, 5), (33, 65, 16), (65, 33, 70), (196, 196, 32)])
def test_masked_attention(n, m, d, dtype, chip):
    visible = torch.rand(n, m, generator=torch.Generator().manual_seed(9)) < 0.5
    visible[:, 0] = True
    inputs = [random(2, 3, rows, d, seed=seed) for seed, rows in enumerate((n, m, m))]
    compare(masked_attention, inputs, [visible], chip, dtype)
    compare(masked_attention, inputs, [], chip, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_masked_attention_under_uniads_mask_and_the_strides_of_its_heads(dtype, chip):
    inputs = [random(2, 196, 8, 32, seed=seed).transpose(1, 2) for seed in range(3)]
    compare(masked_attention, inputs, [~neighbor_mask(14, 14, 7)], chip, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m", "d"), [(1, 1, 1), (33, 129, 65), (130, 257, 32)])
def test_nearest(n, m, d, dtype, chip):
    queries, bank = random(n, d, seed=1).to(dtype), random(m, d, seed=2).to(dtype)
    with kernels("triton"):
        distances, indices = nearest(queries.to(chip), bank.to(chip))
    full = torch.cdist(queries.double(), bank.double(), compute_mode="donot_use_mm_for_euclid_dist")
    error = ERRORS[dtype] * max(1.0, float(full.amax()))
    torch.testing.assert_close(full.gather(1, indices.cpu()), full.amin(1, keepdim=True), rtol=0, atol=error)
    torch.testing.assert_close(distances.cpu().double(), full.amin(1, keepdim=True), rtol=0, atol=error)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d", "k"), [(33, 65, 9), (130, 129, 5), (300, 40, 50)])
def test_kcenter(n, d, k, dtype, chip):
    points = random(n, d).to(dtype)
    with kernels("triton"):
        picks = kcenter(points.to(chip), k, progress=False).cpu()
    assert len(set(picks.tolist())) == k
    for step in range(1, k):  # each pick is the farthest point, up to rounding
        distances = torch.cdist(points.double(), points[picks[:step]].double()).amin(1)
        assert float(distances[picks[step]]) >= float(distances.max()) * (1 - ERRORS[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (7, 3, 2), (65, 4, 33), (33, 2, 65), (5, 2, 128)])
def test_gmm(n, k, d, dtype, chip):
    factors = random(k, d, d, seed=3).div(d**0.5).triu(1) + torch.eye(d)
    parts = [random(k, seed=4).log_softmax(0), random(k, d, seed=5), factors]
    compare(lambda u, *mixture: gmm(u, *mixture)[0], [random(n, d, seed=6)], parts, chip, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("h", "w"), [(7, 33), (65, 129)])
def test_color_transport(h, w, dtype, chip):
    images = [random(2, 3, h, w, seed=seed).sigmoid() for seed in (1, 2)]
    compare(lambda u, v: transport(u, v, rho=0.8), images, [], chip, dtype)


def test_color_transport_of_bytes(chip):
    bytes_ = (255 * random(2, 3, 65, 33).sigmoid()).byte()
    with kernels("triton"):
        moved = transport_uint8(bytes_.to(chip), bytes_.flip(0).to(chip))
    assert (moved.cpu().int() - transport_uint8(bytes_, bytes_.flip(0)).int()).abs().max() <= 1
