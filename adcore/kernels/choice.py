"""Backend selection: which code computes a kernel.

    ADCORE_KERNELS=torch python ...          for a whole program
    with kernels("torch"): ...               for a block; overrides the environment variable

    auto    Triton for the kernels in `WON`, on GPUs of compute capability 8 or more where triton is installed; else torch
    torch   the fast paths in torch (adcore/kernels/cpu), on any device
    triton  the Triton kernels, or an error that says why they cannot run. If TRITON_INTERPRET=1 is set before triton is
            imported, its interpreter runs them on the CPU: slowly, for tests
    plain   the plain torch code of the equations, at the head of each kernel's file: slow, and it needs more memory

The Triton kernels do not support all inputs (float64, dropout, more than one neighbor, ...; each kernel's `takes` decides).
Torch computes the others under every choice.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.switch import Switch

KERNELS = Switch("kernels", "ADCORE_KERNELS", ("auto", "torch", "triton", "plain"))
# Kernels that were faster than torch on a GPU (benchmarks/bench_kernels.py). None has been timed on a GPU yet.
WON: frozenset[str] = frozenset()
CAPABILITY = (8, 0)  # bfloat16 and TF32 products; on older GPUs 'auto' means torch


def kernels(choice: str) -> AbstractContextManager[None]:
    """Select the backend of all kernels within a block: 'auto', 'torch', 'triton' or 'plain'.

    >>> import torch
    >>> from adcore.kernels import nearest
    >>> with kernels("plain"):
    ...     distances, indices = nearest(torch.tensor([[0.0, 0.0]]), torch.tensor([[6.0, 8.0], [3.0, 4.0]]))
    >>> distances, indices
    (tensor([[5.]]), tensor([[1]]))

    Raises:
        ParameterError: an unknown choice.
    """
    return KERNELS.turned_to(choice)


def use_plain() -> bool:
    """Whether the plain code is selected.

    >>> with kernels("plain"):
    ...     use_plain()
    True

    Raises:
        ParameterError: ADCORE_KERNELS is set to an unknown choice.
    """
    return KERNELS() == "plain"


def use_triton(x: Tensor, kernel: str) -> bool:
    """Whether Triton is selected for a computation on `x`. The device of `x` matters, not its shape or dtype.

    kernel  'attention', 'nearest', 'kcenter', 'gmm' or 'color'

    >>> use_triton(torch.zeros(3), "gmm")       # a tensor on the CPU
    False

    Raises:
        ParameterError: Triton was asked for and cannot run, or ADCORE_KERNELS is set to an unknown choice.
    """
    choice = KERNELS()
    if choice == "auto":
        return x.is_cuda and kernel in WON and _serves(x.device)
    if choice != "triton":
        return False
    if _triton_error():
        raise ParameterError(f"the kernels are set to triton, which cannot be imported here ({_triton_error()}): install it, "
                             f"or set {KERNELS.variable}=auto")
    if not x.is_cuda and not _interpreted():
        raise ParameterError(f"the kernels are set to triton, which needs a GPU, but a tensor is on '{x.device}': set "
                             f"{KERNELS.variable}=auto, or set TRITON_INTERPRET=1 before triton is imported to run them slowly "
                             f"on the CPU")
    return True


@functools.lru_cache
def _serves(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= CAPABILITY and not _triton_error()


@functools.lru_cache(maxsize=1)
def _triton_error() -> str:
    """Why triton cannot be imported; '' if it can."""
    try:
        import triton.language  # noqa: F401
    except Exception as error:  # a broken installation raises more than ImportError, and torch must still work
        return f"{type(error).__name__}: {error}"
    return ""


def _interpreted() -> bool:
    from adcore.kernels.triton.launch import INTERPRETED
    return INTERPRETED
