"""Who runs a frozen backbone on a CPU: torch, or OpenVINO where it is asked for.

    pip install 'adcore[fast]'
    ADCORE_ENGINE=openvino python ...        for a whole program
    with engine("openvino"): ...             for a few lines, and stronger than the variable

OpenVINO compiles the traced network for the processor: layers are joined, layouts chosen, weights packed once. Features differ
from torch's by float32 rounding. It is never chosen by itself, because numbers would then depend on what happens to be
installed; results name the engine that made their features. Networks that are trained, and GPUs, stay with torch.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from adcore.errors import ParameterError
from adcore.switch import Switch

ENGINE = Switch("engine", "ADCORE_ENGINE", ("torch", "openvino"))

# For each network its last compilation, and the weights' state and the images' height and width for which it was made.
_compiled: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()


def engine(choice: str) -> AbstractContextManager[None]:
    """Within the block frozen backbones run as `choice` says: 'torch' or 'openvino'.

    Raises:
        ParameterError: another word.
    """
    return ENGINE.turned_to(choice)


def chosen_engine() -> str:
    """'torch' or 'openvino'.

    Raises:
        ParameterError: OpenVINO is asked for and not installed, or ADCORE_ENGINE holds an unknown word.
    """
    choice = ENGINE()
    if choice == "openvino" and _openvino_error():
        raise ParameterError(f"features are to be computed by OpenVINO, which cannot be imported here ({_openvino_error()}): "
                             f"pip install 'adcore[fast]', or set {ENGINE.variable}=torch")
    return choice


def compiled_maps(network: nn.Module, nodes: Sequence[str], images: Tensor) -> list[Tensor]:
    """The maps at `nodes` of `network(images)`, a dictionary, by OpenVINO in float32.

    network  in eval mode, on the CPU; compiled at its first call, and again for images of another height or width or after its
             weights have changed
    images   (B, 3, H, W) float32
    """
    weights = sum(tensor._version for tensor in (*network.parameters(), *network.buffers()))
    state = (weights, *images.shape[2:])     # a trace keeps TensorFlow's padding, which depends on the size, as a number
    known = _compiled.get(network)
    if known is None or known[0] != state:
        known = _compiled[network] = state, _compile(network, tuple(dict.fromkeys(nodes)), images)
    found = known[1](images.contiguous().numpy())
    maps = dict(zip(dict.fromkeys(nodes), found.values(), strict=True))
    return [torch.from_numpy(maps[node].copy()) for node in nodes]      # its next call writes into the same memory


class _Listed(nn.Module):
    """The maps in a fixed order: a traced network may not return a dictionary."""

    def __init__(self, network: nn.Module, nodes: Sequence[str]) -> None:
        super().__init__()
        self.network, self.nodes = network, nodes

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        found = self.network(images)
        return tuple(found[node] for node in self.nodes)


def _compile(network: nn.Module, nodes: Sequence[str], images: Tensor) -> Any:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")      # traces are deprecated in favour of torch.export, which fixes the batch's size
        traced = torch.jit.trace(_Listed(network, nodes).eval(), images, check_trace=False)
    # openvino.convert_model does the same and reports to its makers' usage statistics.
    decoder = TorchScriptPythonDecoder(traced)
    front = FrontEndManager().load_by_framework("pytorch")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino.Core().compile_model(front.convert(front.load(decoder)), "CPU", settings)


@functools.lru_cache(maxsize=1)
def _openvino_error() -> str:
    """Why OpenVINO cannot be imported; '' when it can."""
    try:
        import openvino.frontend.pytorch  # noqa: F401
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
