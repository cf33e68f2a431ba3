"""Backend selection, and the Triton kernels in Triton's interpreter and through its compiler.

triton reads TRITON_INTERPRET when it is imported, and it may have been imported before these tests. So the kernels' own tests
are in tests/kernels/triton_*.py, which pytest does not collect, and run from here in separate processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.kernels import choice, gmm, kcenter, kernels, masked_attention, nearest, use_plain, use_triton
from adcore.papers.artola2024.color import transport, transport_uint8

HERE = Path(__file__).parent
installed = pytest.mark.skipif(bool(choice._triton_error()), reason="triton is not installed here")


def in_own_process(words: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "ADCORE_KERNELS", "PYTEST_"))}
    return subprocess.run([sys.executable, *words], env=kept | variables, capture_output=True, text=True, cwd=HERE.parent)


def pytest_passes(*files: str, **variables: str) -> None:
    run = in_own_process(["-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / file) for file in files)], **variables)
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]


@installed
def test_the_kernels_equal_torch_forward_and_backward_in_tritons_interpreter():
    names = ("attention", "nearest", "kcenter", "gmm", "color")
    pytest_passes(*(f"triton_{name}.py" for name in names), TRITON_INTERPRET="1")


@installed
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="triton compiles for NVIDIA GPUs on Linux")
def test_the_kernels_compile_for_a_gpu(tmp_path):
    pytest_passes("triton_compiled.py", TRITON_CACHE_DIR=str(tmp_path))


@installed
def test_the_environment_variable_selects_the_interpreter_for_cpu_tensors():
    lines = ("import os, torch", "from adcore.kernels import masked_attention", "q = torch.ones(1, 1, 3, 4).requires_grad_()",
             "for word in ('triton', 'torch', 'auto', ''):", "    os.environ['ADCORE_KERNELS'] = word",
             "    print(word, masked_attention(q, q, q).grad_fn.name().startswith('_Attention'))")
    run = in_own_process(["-c", "\n".join(lines)], TRITON_INTERPRET="1")
    assert run.stdout.splitlines() == ["triton True", "torch False", "auto False", " False"], run.stderr


def test_without_triton_the_kernels_are_imported_and_fail_only_if_triton_is_selected():
    lines = ("import sys", "sys.modules['triton'] = None", "import torch", "import adcore.papers.artola2024.color",
             "from adcore.kernels import kernels, nearest", "x = torch.eye(3)", "assert not nearest(x, x)[0].any()",
             "with kernels('triton'):", "    nearest(x, x)")
    run = in_own_process(["-c", "\n".join(lines)])
    assert run.returncode == 1
    assert "ParameterError: the kernels are set to triton, which cannot be imported here" in run.stderr.splitlines()[-1]


@installed
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_kernels_equal_torch_in_float64_on_a_cpu():
    g = torch.Generator().manual_seed(0)
    q, k, v, u, photograph = (torch.randn(*shape, generator=g) for shape in (
        (2, 8, 196, 32), (2, 8, 130, 32), (2, 8, 130, 32), (300, 40), (2, 3, 65, 33)))
    visible = torch.rand(196, 130, generator=g) < 0.5
    visible[:, 0] = True
    parts = torch.randn(7, generator=g).log_softmax(0), torch.randn(7, 40, generator=g), torch.eye(40).repeat(7, 1, 1)

    def transported(x: Tensor) -> Tensor:
        return transport(x, x.flip(0).detach(), rho=0.8)
    for call, leaves, others in ((masked_attention, (q, k, v), (visible,)), (lambda *x: gmm(*x)[0], (u,), parts),
                                 (transported, (photograph.sigmoid(),), ()), (lambda *x: nearest(*x)[0], (u[:99], u[99:]), ())):
        runs = []
        for who, device, dtype in (("triton", "cuda", torch.float32), ("torch", "cpu", torch.float64)):
            moved = [x.detach().to(device, dtype).requires_grad_() for x in leaves]
            rest = [x.to(device, dtype if x.is_floating_point() else x.dtype) for x in others]
            with kernels(who):
                out = call(*moved, *rest)
            runs.append([x.double().cpu() for x in (out, *torch.autograd.grad(out.square().mean(), moved))])
        for ours, theirs in zip(*runs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    bytes_ = (255 * photograph.sigmoid()).byte()
    with kernels("triton"):
        picks, moved = kcenter(u.cuda(), 50, pool=64), transport_uint8(bytes_.cuda(), bytes_.flip(0).cuda())
    assert torch.equal(picks.cpu(), kcenter(u.double(), 50, pool=64))
    assert (moved.cpu().int() - transport_uint8(bytes_, bytes_.flip(0)).int()).abs().max() <= 1


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(choice.KERNELS.variable, raising=False)


def test_cpu_tensors_use_torch_by_default_and_the_innermost_block_decides(unset, monkeypatch):
    x = torch.zeros(1)
    assert not use_triton(x, "gmm")
    monkeypatch.setattr(choice, "_interpreted", lambda: True)
    monkeypatch.setattr(choice, "_triton_error", lambda: "")
    assert not use_triton(x, "gmm")
    with kernels("triton"):
        assert use_triton(x, "gmm")
        with kernels("torch"):
            assert not use_triton(x, "gmm")
        assert use_triton(x, "gmm")
    assert not use_triton(x, "gmm")
    monkeypatch.setenv(choice.KERNELS.variable, "triton")
    assert use_triton(x, "gmm")
    with kernels("auto"):
        assert not use_triton(x, "gmm")
    assert not use_plain()
    with kernels("plain"):
        assert use_plain() and not use_triton(x, "gmm")


@pytest.mark.parametrize(("capability", "error", "expected"), [((8, 0), "", True), ((9, 0), "", True), ((7, 5), "", False),
                                                               ((8, 0), "ImportError", False)])
def test_gpu_tensors_use_triton_if_it_is_installed_and_the_gpu_is_new_enough(capability, error, expected, unset, monkeypatch):
    class OnGpu:
        is_cuda, device = True, torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(choice, "_triton_error", lambda: error)
    choice._serves.cache_clear()
    assert not use_triton(OnGpu(), "gmm")                                     # the kernel is not in WON
    monkeypatch.setattr(choice, "WON", frozenset({"gmm"}))
    assert not use_triton(OnGpu(), "color")
    try:
        assert use_triton(OnGpu(), "gmm") is expected
        with kernels("torch"):
            assert not use_triton(OnGpu(), "gmm")
    finally:
        choice._serves.cache_clear()


@installed
def test_triton_that_cannot_run_is_refused_in_one_sentence(unset, monkeypatch):
    q = torch.zeros(1, 1, 2, 3)
    monkeypatch.setattr(choice, "_interpreted", lambda: False)
    for call in (lambda: masked_attention(q, q, q), lambda: nearest(q[0, 0], q[0, 0])):
        with kernels("triton"), pytest.raises(ParameterError, match="needs a GPU, but a tensor is on 'cpu': set ADCORE_K"):
            call()


def test_an_unknown_choice_is_refused(unset, monkeypatch):
    with pytest.raises(ParameterError, match=r"unknown choice 'trition' for kernels \(did you mean 'triton'\?\)"), \
            kernels("trition"):
        pass
    monkeypatch.setenv(choice.KERNELS.variable, "fast")
    with pytest.raises(ParameterError, match="unknown choice 'fast' for ADCORE_KERNELS: use auto, torch, triton or plain"):
        use_triton(torch.zeros(1), "gmm")
