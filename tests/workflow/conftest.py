"""Fixtures of the tests marked `gpu`, which compare a GPU with the CPU: `pytest -m gpu tests/workflow`.

Without a GPU they are skipped. ADCORE_GPU_TESTS=cpu runs them on the CPU instead, which tries the tests and not the code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def chip() -> Iterator[torch.device]:
    """The GPU, with all digits of float32 in its convolutions and products."""
    on_cpu = os.environ.get("ADCORE_GPU_TESTS") == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield torch.device("cpu" if on_cpu else "cuda")
