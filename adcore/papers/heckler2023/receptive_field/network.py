"""Helpers for arithmetic and gradient: cut a network at its nodes, and classify its layers."""

from __future__ import annotations

import copy
import difflib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import FrozenBatchNorm2d, SqueezeExcitation, StochasticDepth

from adcore.errors import ParameterError

Pair = tuple[int, int]
Box = tuple[int, int, int, int]


def detached_copy(model: nn.Module) -> nn.Module:
    """A copy of the modules that uses the same memory for its tensors and takes no gradient; the original does not change."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo.update({id(b): b.detach() for b in model.buffers()})
    return copy.deepcopy(model, memo)


def extract(model: nn.Module, taps: Sequence[str]) -> fx.GraphModule:
    """The graph of `model` up to `taps`, in eval mode; its output is a dictionary from tap to map.

    Raises:
        ParameterError: a tap that is not a node (the message lists similar names), or a network that cannot be traced.
    """
    create, list_nodes = create_feature_extractor, get_graph_node_names
    if any(type(part).__module__.startswith("timm.") for part in model.modules()):
        # timm knows which of its layers must not be traced; a network that was cut before may contain them too.
        from timm.models import create_feature_extractor as create
        from timm.models import get_graph_node_names as list_nodes
    name = type(model).__name__
    try:
        return create(model, {tap: tap for tap in taps}).eval()
    except fx.proxy.TraceError as error:
        raise ParameterError(f"cannot trace {name}: {error}") from error
    except ValueError:
        nodes = list_nodes(model)[1]
        names = {".".join(node.split(".")[:depth]) for node in nodes for depth in range(1, node.count(".") + 2)}
        for tap in set(taps) - names:
            close = difflib.get_close_matches(tap, sorted(names), n=4, cutoff=0.4) or nodes[:4]
            raise ParameterError(f"{name} has no node {tap!r}: the nearest are {', '.join(close)}") from None
        raise


def cut_at(extractor: fx.GraphModule, taps: Sequence[str]) -> fx.GraphModule:
    """The part of an extractor that some of its taps need, with the same modules."""
    graph = copy.deepcopy(extractor.graph)
    (output,) = (node for node in graph.nodes if node.op == "output")
    output.args = ({tap: output.args[0][tap] for tap in taps},)
    for node in reversed(list(graph.nodes)):           # fx keeps unused nodes that work in place
        if not node.users and node.op not in ("output", "placeholder"):
            graph.erase_node(node)
    return fx.GraphModule(extractor, graph)


def is_local(module: nn.Module) -> bool:
    """Whether a layer maps each position by itself, in eval mode and apart from normalization statistics."""
    local = (nn.Identity, nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.GroupNorm, nn.LayerNorm,
             FrozenBatchNorm2d, StochasticDepth)
    homes = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.drop")
    at_home = type(module).__module__.startswith(homes) and not isinstance(module, nn.MultiheadAttention)
    return isinstance(module, local) or at_home


def is_by_position(module: nn.Module) -> bool:
    """Whether a layer's output at a position depends only on its window, and not on a statistic of the whole map."""
    if isinstance(module, nn.Sequential):
        return all(is_by_position(child) for child in module)
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return not module.training and module.running_mean is not None
    statistic = (nn.GroupNorm, nn.LayerNorm, nn.Softmax, nn.Softmin, nn.LogSoftmax)
    windowed = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
    return isinstance(module, windowed) or (is_local(module) and not isinstance(module, statistic) and not is_gate(module))


def is_gate(module: nn.Module) -> bool:
    """Whether a layer is squeeze-and-excitation, of torchvision or timm."""
    timm_names = ("SEModule", "SqueezeExcite", "EffectiveSEModule")
    return isinstance(module, SqueezeExcitation) or type(module).__name__ in timm_names


def names_of(taps: Iterable[str]) -> list[str]:
    """The taps without repetition; a single name is one tap. Raises ParameterError for none, or for one inside another."""
    names = list(dict.fromkeys([taps] if isinstance(taps, str) else taps))
    if not names:
        raise ParameterError("no taps given: name at least one node")
    for outer, inner in itertools.permutations(names, 2):
        if inner.startswith(f"{outer}."):                # torchvision would silently return another node for one of them
            raise ParameterError(f"{outer!r} contains {inner!r}: name the node itself")
    return names


def pair(value: Any) -> Pair:
    """An int, or a sequence of one or two, as (vertical, horizontal)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return int(values[0]), int(values[-1])


def relative_side(box: Box, input_size: int | Pair) -> float:
    """The box's side divided by the input's, the larger of the two axes' ratios."""
    height, width = pair(input_size)
    return max((box[2] - box[0]) / height, (box[3] - box[1]) / width)
