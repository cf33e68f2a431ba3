"""Who runs a frozen backbone on a CPU: torch as it is, torch with Winograd's convolutions, or OpenVINO.

    ADCORE_ENGINE=winograd python ...        for a whole program
    with engine("openvino"): ...             for a few lines, and stronger than the variable

    torch      the network as its library wrote it
    winograd   batch norms folded into the convolutions before them, and those of 3 x 3 with a quarter of the multiplications:
               the fastest for Wide ResNet-50 and its like. Factors take four times the memory of such a layer's weights
    openvino   the traced network compiled for the processor: layers joined, layouts chosen, weights packed once. The fastest
               for EfficientNets. pip install 'adcore[fast]'

Features differ from torch's by float32 rounding. No other engine is chosen by itself, because numbers would then depend on what
happens to be installed; results name the engine that made their features. Networks that are trained, and GPUs, stay with torch.
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
from adcore.features.folded import folded
from adcore.switch import Switch

ENGINE = Switch("engine", "ADCORE_ENGINE", ("torch", "winograd", "openvino"))

Compiled = Callable[[Tensor], list[Tensor]]
# For each network its last compilation, and the engine, the weights' state and the images' size for which it was made.
_compiled: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Compiled]] = weakref.WeakKeyDictionary()


def engine(choice: str) -> AbstractContextManager[None]:
    """Within the block frozen backbones run as `choice` says: 'torch', 'winograd' or 'openvino'.

    Raises:
        ParameterError: another word.
    """
    return ENGINE.turned_to(choice)


def chosen_engine() -> str:
    """'torch', 'winograd' or 'openvino'.

    Raises:
        ParameterError: OpenVINO is asked for and not installed, or ADCORE_ENGINE holds an unknown word.
    """
    choice = ENGINE()
    if choice == "openvino" and _openvino_error():
        raise ParameterError(f"features are to be computed by OpenVINO, which cannot be imported here ({_openvino_error()}): "
                             f"pip install 'adcore[fast]', or set {ENGINE.variable}=torch")
    return choice


@torch.no_grad()
def compiled_maps(choice: str, network: fx.GraphModule, nodes: Sequence[str], images: Tensor) -> list[Tensor]:
    """The maps at `nodes` of `network(images)`, a dictionary, in float32.

    choice   'winograd' or 'openvino'
    network  in eval mode, on the CPU; compiled at its first call, and again after its weights have changed and, by OpenVINO,
             for images of another height or width
    images   (B, 3, H, W) float32
    """
    weights = sum(tensor._version for tensor in (*network.parameters(), *network.buffers()))
    size = images.shape[2:] if choice == "openvino" else ()   # a trace keeps what a layer computed from it, such as padding
    state = (choice, weights, *size)
    known = _compiled.get(network)
    if known is None or known[0] != state:
        compiled = _by_openvino if choice == "openvino" else _by_winograd
        known = _compiled[network] = state, compiled(network, nodes, images)
    return known[1](images)


def _by_winograd(network: fx.GraphModule, nodes: Sequence[str], images: Tensor) -> Compiled:
    light = folded(network)

    def maps(images: Tensor) -> list[Tensor]:
        found = light(images.contiguous(memory_format=torch.channels_last))
        return [found[node] for node in nodes]
    return maps


class _Listed(nn.Module):
    """The maps in a fixed order: a traced network may not return a dictionary."""

    def __init__(self, network: nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        self.network, self.nodes = network, nodes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.network(images)
        return tuple(found[node] for node in self.nodes)


def _by_openvino(network: fx.GraphModule, nodes: Sequence[str], images: Tensor) -> Compiled:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    different = tuple(dict.fromkeys(nodes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")      # traces are deprecated in favor of torch.export, which fixes the batch's size
        traced = torch.jit.trace(_Listed(network, different).eval(), images, check_trace=False)
    # openvino.convert_model does the same and reports to its makers' usage statistics.
    decoder = TorchScriptPythonDecoder(traced)
    front = FrontEndManager().load_by_framework("pytorch")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(front.convert(front.load(decoder)), "CPU", settings)

    def maps(images: Tensor) -> list[Tensor]:
        found = dict(zip(different, compiled(images.contiguous().numpy()).values(), strict=True))
        return [torch.from_numpy(found[node].copy()) for node in nodes]     # its next call writes into the same memory
    return maps


@functools.lru_cache(maxsize=1)
def _openvino_error() -> str:
    """Why OpenVINO cannot be imported; '' when it can."""
    try:
        import openvino.frontend.pytorch  # noqa: F401
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
