"""Engines that compute a frozen backbone on a CPU: torch, torch with Winograd convolutions, or OpenVINO.

    ADCORE_ENGINE=winograd python ...        for a whole program
    with engine("openvino"): ...             for a block; overrides the environment variable

    torch      the network of its library, unchanged; the default
    winograd   batch norms are folded into the convolutions before them, and 3 x 3 convolutions use a quarter of the
               multiplications: the fastest for Wide ResNet-50 and similar networks. Such a layer needs four times the memory
               for its weights
    openvino   the traced network, compiled for the processor: the fastest for EfficientNets. pip install 'adcore[fast]'

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
from adcore.features.folded import folded
from adcore.switch import Switch

ENGINE = Switch("engine", "ADCORE_ENGINE", ("torch", "winograd", "openvino"))

Compiled = Callable[[Tensor], list[Tensor]]
# For each network its last compilation, with the engine, the versions of the weights and the image size that it is for.
_compiled: weakref.WeakKeyDictionary[nn.Module, tuple[tuple[Any, ...], Compiled]] = weakref.WeakKeyDictionary()


def engine(choice: str) -> AbstractContextManager[None]:
    """Select the engine of frozen backbones within a block: 'torch', 'winograd' or 'openvino'.

    >>> with engine("winograd"):
    ...     chosen_engine()
    'winograd'

    Raises:
        ParameterError: an unknown engine.
    """
    return ENGINE.turned_to(choice)


def chosen_engine() -> str:
    """The selected engine: 'torch', 'winograd' or 'openvino'.

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
def compiled_maps(choice: str, network: fx.GraphModule, nodes: Sequence[str], images: Tensor) -> list[Tensor]:
    """The maps at `nodes` of `network(images)`, which is a dictionary, in float32.

    choice   'winograd' or 'openvino'
    network  in eval mode, on the CPU; compiled at its first call, and again if its weights have changed or, with OpenVINO, if
             images have another height or width
    images   (B, 3, H, W) float32

    >>> from adcore.features import FeatureExtractor
    >>> extractor = FeatureExtractor("resnet18", (1, 2), "random")
    >>> [m.shape[1:] for m in compiled_maps("winograd", extractor.network, extractor.nodes, torch.zeros(1, 3, 64, 64))]
    [torch.Size([64, 16, 16]), torch.Size([128, 8, 8])]
    """
    weights = sum(tensor._version for tensor in (*network.parameters(), *network.buffers()))
    size = images.shape[2:] if choice == "openvino" else ()   # a trace treats values computed from the size as constants
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
