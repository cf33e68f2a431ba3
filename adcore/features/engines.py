"""Engines that compute a frozen backbone on a CPU: torch or OpenVINO.

    ADCORE_ENGINE=openvino python ...        for a whole program
    with engine("openvino"): ...             for a block; overrides the environment variable

    torch      the network of its library, unchanged; the default
    openvino   the traced network, compiled for the processor: faster for EfficientNets. pip install 'adcore[fast]'

Features differ from torch's by float32 rounding. The default does not depend on the installed packages, so the numbers do not
either; results store the name of the engine. Networks that are trained, and networks on a GPU, always use torch.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, fx, nn

from adcore.errors import ParameterError
from adcore.switch import Switch

ENGINE = Switch("engine", "ADCORE_ENGINE", ("torch", "openvino"))

Compiled = Callable[[Tensor], list[Tensor]]
# For each network its last compilation, with the versions of the weights and the image size that it is for.
_compiled: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Compiled]] = weakref.WeakKeyDictionary()


def engine(choice: str) -> AbstractContextManager[None]:
    """Select the engine of frozen backbones within a block: 'torch' or 'openvino'.

    >>> with engine("torch"):
    ...     chosen_engine()
    'torch'

    Raises:
        ParameterError: an unknown engine.
    """
    return ENGINE.turned_to(choice)


def chosen_engine() -> str:
    """The selected engine: 'torch' or 'openvino'.

    >>> with engine("torch"):
    ...     chosen_engine()
    'torch'

    Raises:
        ParameterError: OpenVINO is selected and not installed, or ADCORE_ENGINE is set to an unknown engine.
    """
    choice = ENGINE()
    if choice == "openvino" and _openvino_error():
        raise ParameterError(f"the engine is set to OpenVINO, which cannot be imported here ({_openvino_error()}): "
                             f"pip install 'adcore[fast]', or set {ENGINE.variable}=torch")
    return choice


@torch.no_grad()
def compiled_maps(network: fx.GraphModule, nodes: Sequence[str], images: Tensor) -> list[Tensor]:
    """The maps at `nodes` of `network(images)`, which is a dictionary, in float32, computed by OpenVINO.

    network  in eval mode, on the CPU; compiled at its first call, and again if its weights have changed or if images have
             another height or width
    images   (B, 3, H, W) float32
    """
    weights = sum(tensor._version for tensor in (*network.parameters(), *network.buffers()))
    state = (weights, *images.shape[2:])                      # a trace treats values computed from the size as constants
    known = _compiled.get(network)
    if known is None or known[0] != state:
        known = _compiled[network] = state, _by_openvino(network, nodes, images)
    return known[1](images)


class _Listed(nn.Module):
    """The maps in a fixed order, because a traced network cannot return a dictionary."""

    def __init__(self, network: nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        self.network, self.nodes = network, nodes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.network(images)
        return tuple(found[node] for node in self.nodes)


@functools.lru_cache(maxsize=1)
def _core() -> Any:
    """OpenVINO's Core, one for the whole process.

    A Core gives its thread another stack for signal handlers, and takes its memory away when it is deleted. Of several Cores
    one may leave a stack without memory, and then the next signal, such as Ctrl-C, would crash the process.
    """
    import openvino
    return openvino.Core()


def _by_openvino(network: fx.GraphModule, nodes: Sequence[str], images: Tensor) -> Compiled:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    different = tuple(dict.fromkeys(nodes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # deprecated in favor of torch.export, which fixes the batch size
        traced = torch.jit.trace(_Listed(network, different).eval(), images, check_trace=False)
    # openvino.convert_model does the same, but sends usage statistics.
    decoder = TorchScriptPythonDecoder(traced)
    front = FrontEndManager().load_by_framework("pytorch")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = _core().compile_model(front.convert(front.load(decoder)), "CPU", settings)

    def maps(images: Tensor) -> list[Tensor]:
        found = dict(zip(different, compiled(images.contiguous().numpy()).values(), strict=True))
        return [torch.from_numpy(found[node].copy()) for node in nodes]     # the next call writes to the same memory
    return maps


@functools.lru_cache(maxsize=1)
def _openvino_error() -> str:
    """Why OpenVINO cannot be imported; '' if it can."""
    try:
        import openvino.frontend.pytorch  # noqa: F401
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
