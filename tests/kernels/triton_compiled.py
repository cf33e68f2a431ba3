"""The kernels through Triton's compiler, for a GPU that is not here; test_triton.py runs this file in a process of its own.

The interpreter takes what the compiler refuses (a global, a type that changes in a loop). So each kernel is compiled to machine
code for compute capability 8.0, with the arguments of a call; nothing is launched. Says nothing of speed.
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

SHARED = 99 * 1024  # bytes of shared memory a program may take on the smaller GPUs of this generation (8.6, 8.9)


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Calls compile and do not launch; kernels by name, as far as they were compiled."""
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
def test_attention(compiled, dtype, n, d):
    q = torch.zeros(2, n, 8, d, dtype=dtype).transpose(1, 2).requires_grad_()
    masked_attention.masked_attention(q, q, q, torch.ones(n, n, dtype=torch.bool) if n > 1 else None).sum().backward()
    check(compiled, "_forward", "_by_queries", "_by_keys")


@pytest.mark.parametrize(("dtype", "n", "m", "d"), [(torch.float32, 784, 1000, 1024), (torch.bfloat16, 1, 1, 1)])
def test_nearest(compiled, dtype, n, m, d, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "gather", lambda self, *_: self)        # the index is not written, and may be anything
    nearest.nearest(torch.zeros(n, d, dtype=dtype), torch.zeros(m, d, dtype=dtype))
    check(compiled, "_nearest")


@pytest.mark.parametrize(("n", "d"), [(2048, 128), (1, 1)])
def test_kcenter(compiled, n, d):
    kcenter.steps(torch.zeros(n, d), torch.zeros(n), torch.zeros(2, dtype=torch.long), torch.zeros(2), 0, 2, -1.0)
    check(compiled, "_update", "_pick")


@pytest.mark.parametrize(("k", "d", "graded"), [(1, 1, False), (3, 128, True)])
def test_gmm(compiled, k, d, graded):
    gmm.gmm(torch.zeros(9, d), torch.zeros(k), torch.zeros(k, d), torch.zeros(k, d, d), graded)
    check(compiled, "_gmm")


def test_color(compiled):
    images, mask = torch.zeros(2, 3, 9, 16, dtype=torch.float16).requires_grad_(), torch.ones(2, 9, 16, dtype=torch.bool)
    color.moments(images, mask, torch.zeros(2, 3))[0].sum().backward()
    color.affine(images, torch.zeros(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3)).sum().backward()
    check(compiled, "_sums", "_affine")


def test_color_of_bytes(compiled):
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    color.moments_uint8(images)
    color.affine_uint8(images, torch.zeros(2, 3, 3), torch.zeros(2, 3), torch.zeros(2, 3))
    check(compiled, "_sums", "_affine")
