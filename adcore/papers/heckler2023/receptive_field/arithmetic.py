"""Receptive fields by arithmetic: kernels, strides and dilations along the traced graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import fx, nn

from adcore.errors import ParameterError
from adcore.papers.heckler2023.receptive_field.network import (
    Box,
    Pair,
    detached_copy,
    extract,
    is_by_position,
    is_gate,
    is_local,
    names_of,
    pair,
    relative_side,
)


@dataclass(frozen=True)
class Field:
    """Receptive field of each cell of a tap.

    Cell (i, j) sees rows low[0] + i * jump[0] to high[0] + i * jump[0], both included, and columns likewise. Indices outside
    the image are padding.
    """

    low: Pair = (0, 0)
    high: Pair = (0, 0)
    jump: Pair = (1, 1)

    @property
    def size(self) -> int:
        """Longer side of the receptive field in pixels."""
        return max(self.high[axis] - self.low[axis] + 1 for axis in (0, 1))

    @property
    def stride(self) -> int:
        """Input pixels from one cell to the next, along the longer jump."""
        return max(self.jump)

    @property
    def start(self) -> Pair:
        """First row and column that cell (0, 0) sees."""
        return self.low

    def box(self, cell: Pair) -> Box:
        """(top, left, bottom, right) of the field of `cell`, bottom and right excluded, padding included."""
        y, x = (cell[axis] * self.jump[axis] for axis in (0, 1))
        return self.low[0] + y, self.low[1] + x, self.high[0] + y + 1, self.high[1] + x + 1

    def relative(self, input_size: int | Pair) -> float:
        """Relative receptive field (RRF): the box's side divided by the input's, the larger of the two axes' ratios."""
        return relative_side(self.box((0, 0)), input_size)

    def through(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Field:
        """The field after a convolution or pooling: it grows by (kernel - 1) * dilation jumps, then the jump grows."""
        low = [self.low[a] - padding[a] * self.jump[a] for a in (0, 1)]
        high = [self.high[a] + ((kernel[a] - 1) * dilation[a] - padding[a]) * self.jump[a] for a in (0, 1)]
        return Field(pair(low), pair(high), (self.jump[0] * stride[0], self.jump[1] * stride[1]))


def analytic(model: nn.Module | Sequence[nn.Module], taps: Iterable[str] | None = None) -> dict[str, Field]:
    """Receptive fields computed layer by layer along the network's traced graph.

    Where branches meet (add, cat), the field is the box around their fields. Squeeze-and-excitation and other gates
    (multiplication by a globally pooled value) are ignored, although they see the whole image, because they only scale a
    feature. Normalization statistics are ignored too.

    Args:
        model: a network that torch.fx can trace, or a list of layers that are applied in order.
        taps: node names; optional for a list of layers, whose taps are '0', '1', ...

    Raises:
        ParameterError: a tap that does not exist, or a layer before it whose geometry is unknown.
    """
    if not isinstance(model, nn.Module):
        taps = [str(i) for i in range(len(model))] if taps is None else taps
        model = nn.Sequential(*model)
    if taps is None:
        raise ParameterError("analytic needs the taps of a network, such as those of TABLE_2['wide_resnet50_2']")
    names = names_of(taps)
    fields, tapped = _fields(extract(detached_copy(model), names))
    result = {}
    for tap in names:
        field = fields[tapped[tap]]
        if field is None:
            raise ParameterError(f"{tap!r} sees the whole image (global pooling): it has no receptive field")
        result[tap] = field
    return result


def window(extractor: fx.GraphModule, tap: str, cell: Pair, size: Pair) -> tuple[Box, Pair] | None:
    """The smallest part of an image of `size` (H, W) that gives `cell` of the tap the same value as the whole image.

    Returns the part's box and the cell's index in the part. The box begins and ends on multiples of the tap's stride, so that
    every layer keeps its grid. Returns None where the whole image is needed: a layer uses statistics of the map (gates, group
    norm, softmax) or has an unknown geometry, or the field reaches into the padding.

    Args:
        extractor: result of `extract`, cut at this tap alone.
    """
    try:
        fields, tapped = _fields(extractor)
    except ParameterError:
        return None
    field = fields[tapped[tap]]
    modules = [extractor.get_submodule(str(node.target)) for node in extractor.graph.nodes if node.op == "call_module"]
    if field is None or None in fields.values() or not all(is_by_position(module) for module in modules):
        return None
    jump, box = field.jump, field.box(cell)
    if min(box) < 0 or box[2] > size[0] or box[3] > size[1] or size[0] % jump[0] or size[1] % jump[1]:
        return None
    top, left = (box[axis] // jump[axis] * jump[axis] for axis in (0, 1))
    bottom, right = (-(-box[axis + 2] // jump[axis]) * jump[axis] for axis in (0, 1))
    return (top, left, bottom, right), (cell[0] - top // jump[0], cell[1] - left // jump[1])


def _fields(extractor: fx.GraphModule) -> tuple[dict[fx.Node, Field | None], dict[str, fx.Node]]:
    """The field of every node of the graph, and the nodes of the taps."""
    fields: dict[fx.Node, Field | None] = {}
    tapped: dict[str, fx.Node] = {}
    for node in extractor.graph.nodes:
        if node.op == "output":
            tapped = node.args[0]
        elif node.op == "placeholder":
            fields[node] = Field()
        elif node.op in ("call_module", "call_function", "call_method"):
            inputs = [fields[source] for source in node.all_input_nodes if source in fields]
            fields[node] = _follow(extractor, node, inputs)
    return fields, tapped


_GLOBAL = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "mean"}
_LOCAL = {"add", "iadd", "sub", "mul", "imul", "truediv", "cat", "concat", "relu", "relu_", "silu", "sigmoid", "gelu",
          "hardswish", "hardtanh", "hardsigmoid", "leaky_relu", "dropout", "stochastic_depth", "contiguous", "clone"}


def _follow(extractor: fx.GraphModule, node: fx.Node, inputs: list[Field | None]) -> Field | None:
    """The field of `node` from those of its inputs; None for a value of the whole image, which may only scale a feature."""
    if node.op == "call_module":
        return _through_module(extractor.get_submodule(str(node.target)), inputs[0], str(node.target))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    if name in _GLOBAL:
        return None
    known = [field for field in inputs if field is not None]
    if name not in _LOCAL or (known and len(known) < len(inputs) and name not in ("mul", "imul")):
        raise ParameterError(f"cannot follow {name!r} at node {node.name!r}: its receptive field is unknown; "
                             f"use measure instead")
    if not known:
        return None
    if len({field.jump for field in known}) > 1:
        raise ParameterError(f"node {node.name!r} joins branches of strides {sorted({f.stride for f in known})}")
    low = min(f.low[0] for f in known), min(f.low[1] for f in known)
    return Field(low, (max(f.high[0] for f in known), max(f.high[1] for f in known)), known[0].jump)


def _through_module(module: nn.Module, field: Field | None, name: str) -> Field | None:
    if isinstance(module, nn.Sequential):
        for child_name, child in module.named_children():
            field = _through_module(child, field, f"{name}.{child_name}")
        return field
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return None
    if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        if field is None:
            return None
        kernel, stride = pair(module.kernel_size), pair(module.stride)
        dilation = pair(getattr(module, "dilation", 1))
        spare = [dilation[a] * (kernel[a] - 1) for a in (0, 1)]
        if type(module).__name__.endswith("Same"):       # TensorFlow's rule, exact if the stride divides the input
            padding = pair([max(spare[a] + 1 - stride[a], 0) // 2 for a in (0, 1)])
        elif isinstance(module.padding, str):
            padding = pair([s // 2 for s in spare]) if module.padding == "same" else (0, 0)
        else:
            padding = pair(module.padding)
        return field.through(kernel, stride, padding, dilation)
    if is_local(module) or is_gate(module):
        return field
    raise ParameterError(f"cannot follow layer {name!r} ({type(module).__name__}): its receptive field is unknown; "
                         f"use measure instead")
