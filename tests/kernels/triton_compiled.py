"""The kernels through Triton's compiler, without a GPU; run by test_triton.py.

The interpreter accepts code that the compiler refuses (a global, a type that changes in a loop). So each kernel is compiled to
machine code for compute capability 8.0, with the arguments of a call; nothing is launched. This does not measure speed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from adcore.kernels.triton import color, gmm, kcenter, masked_attention, nearest

SHARED = 99 * 1024  # bytes of shared memory per program on the smaller GPUs of this generation (8.6, 8.9)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Makes calls compile without a launch; returns the compiled kernels by name."""
    found: dict[str, Any] = {}
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> None:
        found[self.__name__] = run(self, *args, grid=grid, warmup=True, **settings)
    monkeypatch.setattr(JITFunction, "run", compile_only)
    driver.set_active(SimpleNamespace(get_current_target=lambda: GPUTarget("cuda", 80, 32), get_current_device=lambda: 0,
                                      get_current_stream=lambda _: 0))
    return found


def check(compiled: dict[str, Any], *names: str) -> None:
    assert set(compiled) == set(names)
    for kernel in compiled.values():
        assert kernel.asm["cubin"] and kernel.metadata.shared <= SHARED


@pytest.mark.parametrize(("dtype", "n", "d"), [(torch.bfloat16, 196, 32), (torch.float32, 1, 1)])
def test_the_attention_kernels_compile(compiled, dtype, n, d):
    q = torch.zeros(2, n, 8, d, dtype=dtype).transpose(1, 2).requires_grad_()
    masked_attention.masked_attention(q, q, q, torch.ones(n, n, dtype=torch.bool) if n > 1 else None).sum().backward()
    check(compiled, "_forward", "_by_queries", "_by_keys")


@pytest.mark.parametrize(("dtype", "n", "m", "d"), [(torch.float32, 784, 1000, 1024), (torch.bfloat16, 1, 1, 1)])
def test_the_nearest_kernel_compiles(compiled, dtype, n, m, d, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "gather", lambda self, *_: self)        # its index has undefined values
    nearest.nearest(torch.zeros(n, d, dtype=dtype), torch.zeros(m, d, dtype=dtype))
    check(compiled, "_nearest")


@pytest.mark.parametrize(("n", "d"), [(2048, 128), (1, 1)])
def test_the_kcenter_kernels_compile(compiled, n, d):
    kcenter.steps(torch.zeros(n, d), torch.zeros(n), torch.zeros(2, dtype=torch.long), torch.zeros(2), 0, 2, -1.0)
    check(compiled, "_update", "_pick")


@pytest.mark.parametrize(("k", "d", "graded"), [(1, 1, False), (3, 128, True)])
def test_the_gmm_kernel_compiles(compiled, k, d, graded):
    gmm.gmm(torch.zeros(9, d), torch.zeros(k), torch.zeros(k, d), torch.zeros(k, d, d), graded)
    check(compiled, "_gmm")


def test_the_color_kernels_compile(compiled):
    images, mask = torch.zeros(2, 3, 9, 16, dtype=torch.float16).requires_grad_(), torch.ones(2, 9, 16, dtype=torch.bool)
    color.moments(images, mask, torch.zeros(2, 3))[0].sum().backward()
    color.affine(images, torch.zeros(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3)).sum().backward()
    check(compiled, "_sums", "_affine")


def test_the_color_kernels_compile_for_uint8(compiled):
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    color.moments_uint8(images)
    color.affine_uint8(images, torch.zeros(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    check(compiled, "_sums", "_affine")
