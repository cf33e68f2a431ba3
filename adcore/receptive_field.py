"""How much of the image a feature sees: by arithmetic, and by the gradient that reaches the input.

Heckler, König, Bergmann, "Exploring the Importance of Pretrained Feature Extractors for Unsupervised Anomaly Detection
and Localization", CVPR Workshops 2023, supplement Sec. 1 (receptive field estimation), Sec. 5 and Table 2 (taps).

    analytic    kernels, strides and dilations along the traced graph     -> Field, the largest area that can matter
    measure     gradient of one feature cell with respect to the image    -> ReceptiveField, the area that does matter
    linearised  the network with everything but its geometry removed      -> measured equals analytic

A tap is a node's name as in torchvision's feature extraction, 'layer1.2.relu_2'; a module's name means its last node.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import FrozenBatchNorm2d, SqueezeExcitation, StochasticDepth

from adcore.errors import ParameterError

_RESNET_50 = ("layer1.2.relu_2", "layer2.3.relu_2", "layer3.5.relu_2", "layer4.2.relu_2")
TABLE_2: dict[str, tuple[str, ...]] = {
    "resnet50": _RESNET_50,
    "wide_resnet50_2": _RESNET_50,
    "densenet201": tuple(f"features.denseblock{i}.cat" for i in (1, 2, 3, 4)),
    "efficientnet_b5": ("features.2.4.add", "features.3.4.add", "features.5.6.add", "features.6.8.add"),
}
"""The four taps of each architecture that the paper examines (Table 2), under torchvision's names, shallow to deep."""

Pair = tuple[int, int]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Field:
    """The input pixels that a tap's cells can see: cell (i, j) sees rows low[0] + i * jump[0] .. high[0] + i * jump[0],
    both included, and columns likewise. Negative or too large ones lie in the padding.
    """

    low: Pair = (0, 0)
    high: Pair = (0, 0)
    jump: Pair = (1, 1)

    @property
    def size(self) -> int:
        """Receptive field in pixels, the longer side."""
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
        """(top, left, bottom, right) of what `cell` sees, bottom and right excluded, padding included."""
        y, x = (cell[axis] * self.jump[axis] for axis in (0, 1))
        return self.low[0] + y, self.low[1] + x, self.high[0] + y + 1, self.high[1] + x + 1

    def relative(self, input_size: int | Pair) -> float:
        """Relative receptive field (RRF): the box's side over the input's, the larger of the two axes'."""
        return _relative(self.box((0, 0)), input_size)

    def through(self, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> Field:
        """The field after a convolution or pooling: it grows by (kernel - 1) * dilation jumps, then the jump grows."""
        low = [self.low[a] - padding[a] * self.jump[a] for a in (0, 1)]
        high = [self.high[a] + ((kernel[a] - 1) * dilation[a] - padding[a]) * self.jump[a] for a in (0, 1)]
        return Field(_pair(low), _pair(high), (self.jump[0] * stride[0], self.jump[1] * stride[1]))


def analytic(model: nn.Module | Sequence[nn.Module], taps: Iterable[str] | None = None) -> dict[str, Field]:
    """Receptive fields computed layer by layer along the network's traced graph.

    Where branches meet (add, cat) the larger reach counts. Squeeze-and-excitation and other gates (multiplication by a
    globally pooled value) are ignored: they see the whole image, yet only scale a feature. So are normalisation
    statistics.

    Args:
        model: a network that torch.fx can trace, or a list of layers, applied in order.
        taps: node names; may be left out for a list, whose taps are '0', '1', ...

    Raises:
        ParameterError: a tap that is not there, or a layer on the way whose geometry is unknown.
    """
    if not isinstance(model, nn.Module):
        taps = [str(i) for i in range(len(model))] if taps is None else taps
        model = nn.Sequential(*model)
    if taps is None:
        raise ParameterError("analytic needs the taps of a network, such as those of TABLE_2['wide_resnet50_2']")
    names = _names(taps)
    extractor = _extract(_twin(model), names)
    fields: dict[fx.Node, Field | None] = {}
    found: dict[str, fx.Node] = {}
    for node in extractor.graph.nodes:
        if node.op == "output":
            found = node.args[0]
        elif node.op == "placeholder":
            fields[node] = Field()
        elif node.op in ("call_module", "call_function", "call_method"):
            inputs = [fields[source] for source in node.all_input_nodes if source in fields]
            fields[node] = _follow(extractor, node, inputs)
    result = {}
    for tap in names:
        field = fields[found[tap]]
        if field is None:
            raise ParameterError(f"{tap!r} sees the whole image (global pooling): it has no receptive field")
        result[tap] = field
    return result


_GLOBAL = {"adaptive_avg_pool2d", "adaptive_max_pool2d", "mean"}
_LOCAL = {"add", "iadd", "sub", "mul", "imul", "truediv", "cat", "concat", "relu", "relu_", "silu", "sigmoid", "gelu",
          "hardswish", "hardtanh", "hardsigmoid", "leaky_relu", "dropout", "stochastic_depth", "contiguous", "clone"}


def _follow(extractor: fx.GraphModule, node: fx.Node, inputs: list[Field | None]) -> Field | None:
    """The field of `node` from those of its inputs; None for a value of the whole image, which may only scale."""
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
        kernel, stride = _pair(module.kernel_size), _pair(module.stride)
        dilation = _pair(getattr(module, "dilation", 1))
        spare = [dilation[a] * (kernel[a] - 1) for a in (0, 1)]
        if type(module).__name__.endswith("Same"):       # TensorFlow's rule, exact where the stride divides the input
            padding = _pair([max(spare[a] + 1 - stride[a], 0) // 2 for a in (0, 1)])
        elif isinstance(module.padding, str):
            padding = _pair([s // 2 for s in spare]) if module.padding == "same" else (0, 0)
        else:
            padding = _pair(module.padding)
        return field.through(kernel, stride, padding, dilation)
    if _is_local(module) or _is_gate(module):
        return field
    raise ParameterError(f"cannot follow layer {name!r} ({type(module).__name__}): its receptive field is unknown; "
                         f"use measure instead")


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """What one tap's centre cell was measured to see.

    box: (top, left, bottom, right) in pixels, bottom and right excluded.  size: its longer side.
    stride: the input's side over the map's, rounded.
    gradient: (H, W) float32, norm over colours, before clipping; its maximum is 1 where `measure` was relative.
    clipped: the box reaches the ignored border, so that the true field may be larger than what the input could show.
    """

    tap: str
    channels: int
    stride: int
    size: int
    box: Box
    gradient: npt.NDArray[np.float32]
    clipped: bool

    def relative(self, input_size: int | Pair) -> float:
        """Relative receptive field (RRF): the box's side over the input's, the larger of the two axes'."""
        return _relative(self.box, input_size)


def measure(
    model: nn.Module, taps: Iterable[str], size: int | Pair = 1024, *, threshold: float = 1e-2, border: int = 8,
    relative: bool = True, image: Tensor | None = None, dtype: torch.dtype = torch.float32,
) -> dict[str, ReceptiveField]:
    """Receptive fields measured as the paper does (supplement Sec. 1), in one forward pass and one backward pass a tap.

    The gradient of the centre cell of the tap's channel mean with respect to an empty image; its norm over the
    colours; values below the threshold become 0; a border is ignored; bounding box of what is left; longer side.
    The model itself is left as it is: a twin without gradients on its weights, in eval mode, does the work.

    Args:
        size: side of the square image of zeros, or (H, W).
        threshold: smaller gradients count as none. The paper's 1e-2.
        border: pixels ignored along each edge. The paper gives no number; 8 is our choice.
        relative: divide by the largest gradient before the threshold, which has no scale otherwise. The paper does not
            say; the code it builds on does.
        image: (1, C, H, W) in place of the zeros; a network fresh from its initialisation needs one.
        dtype: float64 where deep products underflow (linearised DenseNet-201).

    Raises:
        ParameterError: a tap that is not there or is no (B, C, H, W) map, a gradient that is zero everywhere, a size,
            threshold or border that leaves no pixel.
    """
    names = _names(taps)
    height, width = _pair(size) if image is None else (int(image.shape[-2]), int(image.shape[-1]))
    if min(height, width) <= 2 * border or border < 0 or threshold < 0:
        raise ParameterError(f"nothing to measure: size {(height, width)}, border {border}, threshold {threshold}; "
                             f"expected a size above twice the border and a threshold of 0 or more")
    network = _frozen(_extract(_twin(model), names), dtype)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    start = torch.zeros(1, 3, height, width) if image is None else image.detach()
    start = start.to(device, dtype, memory_format=torch.channels_last).requires_grad_()
    with torch.enable_grad():
        features = network(start)
        result = {}
        for tap in names:
            if features[tap].ndim != 4:
                raise ParameterError(f"{tap!r} is {tuple(features[tap].shape)}, expected a map (B, C, H, W)")
            y, x = ((n - 1) // 2 for n in features[tap].shape[2:])         # of two middle cells, the first
            centre = features[tap][0, :, y, x].mean()
            (gradient,) = torch.autograd.grad(centre, start, retain_graph=tap != names[-1])
            norm = torch.linalg.vector_norm(gradient[0].to(torch.promote_types(dtype, torch.float32)), dim=0)
            result[tap] = _read(tap, norm, features[tap].shape, threshold, border, relative)
    return result


def _read(tap: str, norm: Tensor, shape: torch.Size, threshold: float, border: int, relative: bool) -> ReceptiveField:
    """Threshold, border and bounding box of one gradient norm (H, W)."""
    height, width = norm.shape
    peak = float(norm.max())
    if not peak > 0 or not np.isfinite(peak):
        raise ParameterError(
            f"the gradient of {tap!r} is {'zero everywhere' if peak == 0 else 'not finite'}: on an empty image a "
            f"network without trained biases stays at 0, where a ReLU passes nothing; load trained weights, pass "
            f"image=torch.randn(1, 3, {height}, {width}), or measure linearised(model)")
    norm = norm / peak if relative else norm
    seen = (norm >= threshold) & (norm > 0)
    inner = torch.zeros_like(seen)
    inner[border:height - border, border:width - border] = True
    seen = (seen & inner).cpu()
    if not seen.any():
        raise ParameterError(f"no gradient of {tap!r} reaches {threshold} inside a border of {border} (the largest is "
                             f"{peak:.2g}): lower the threshold or measure relative to the largest")
    rows, columns = torch.where(seen.any(1))[0].tolist(), torch.where(seen.any(0))[0].tolist()
    top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    return ReceptiveField(
        tap=tap, channels=shape[1], stride=round(max(height / shape[2], width / shape[3])),
        size=max(bottom - top, right - left), box=(top, left, bottom, right),
        gradient=norm.float().cpu().numpy(),
        clipped=min(top, left) <= border or bottom >= height - border or right >= width - border)


def linearised(model: nn.Module) -> nn.Module:
    """A copy in which only the geometry is left: measured with threshold 0 it shows the analytic field.

    Activations, normalisation, dropout, stochastic depth and squeeze-and-excitation become identities, max pooling
    becomes average pooling (a maximum lets one pixel through, not its window), each convolution's weights become
    1 / fan_in and its biases 0, so that no two paths cancel. Activations called as functions stay as they are.

    Raises:
        ParameterError: a max pooling that average pooling cannot replace.
    """
    result = copy.deepcopy(model).eval()
    for name, module in list(result.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            if type(module) is not nn.MaxPool2d or _pair(module.dilation) != (1, 1):
                raise ParameterError(f"cannot linearise {name!r} ({module}): no average pooling has its geometry")
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode)
            result.set_submodule(name, pool)
        elif name and (_is_local(module) or _is_gate(module)):
            result.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return result


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the modules over the same memory, whose parameters take no gradient; the original never changes."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    memo.update({id(b): b.detach() for b in model.buffers()})
    return copy.deepcopy(model, memo)


def _extract(model: nn.Module, taps: Sequence[str]) -> fx.GraphModule:
    """The graph of `model` up to `taps`, in eval mode, returning a dictionary of them.

    Raises:
        ParameterError: a tap that is not a node, with the nearest names; a network that cannot be traced.
    """
    create, list_nodes = create_feature_extractor, get_graph_node_names
    if any(type(part).__module__.startswith("timm.") for part in model.modules()):
        # timm knows which of its layers must not be traced; they may also sit in a network that was cut before.
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


class _Affine(nn.Module):
    """A batch norm in eval mode, x * scale + shift: backward needs the scale alone, so that the input is not kept."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None and norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps) * (1 if norm.weight is None else norm.weight)
        shift = (0 if norm.bias is None else norm.bias) - norm.running_mean * scale
        self.register_buffer("scale", scale.detach()[:, None, None])
        self.register_buffer("shift", shift.detach()[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)


def _frozen(extractor: fx.GraphModule, dtype: torch.dtype) -> nn.Module:
    """The extractor as `measure` runs it: batch norms folded to keep less memory, channels last, nothing in place."""
    silent = []
    for name, module in list(extractor.named_modules()):
        if hasattr(module, "inplace"):
            module.inplace = False                       # an in-place layer behind a tap would change what was tapped
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and not module.weight.any():
            silent.append(name)
        if type(module) is nn.BatchNorm2d and module.running_mean is not None:
            extractor.set_submodule(name, _Affine(module))
    if silent:
        warnings.warn(f"{len(silent)} batch norms (the first is {silent[0]!r}) scale by zero: their branches pass "
                      f"nothing and the field comes out too small; load trained weights", stacklevel=3)
    return extractor.to(dtype).to(memory_format=torch.channels_last)      # on a CPU, depthwise layers run 4 times faster


def _is_local(module: nn.Module) -> bool:
    """Layers that work on each position by itself, in eval mode and apart from normalisation statistics."""
    local = (nn.Identity, nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd, nn.GroupNorm, nn.LayerNorm,
             FrozenBatchNorm2d, StochasticDepth)
    homes = ("torch.nn.modules.activation", "timm.layers.activations", "timm.layers.drop")
    at_home = type(module).__module__.startswith(homes) and not isinstance(module, nn.MultiheadAttention)
    return isinstance(module, local) or at_home


def _is_gate(module: nn.Module) -> bool:
    """Squeeze-and-excitation of torchvision and timm."""
    timm_names = ("SEModule", "SqueezeExcite", "EffectiveSEModule")
    return isinstance(module, SqueezeExcitation) or type(module).__name__ in timm_names


def _names(taps: Iterable[str]) -> list[str]:
    names = list(dict.fromkeys([taps] if isinstance(taps, str) else taps))
    if not names:
        raise ParameterError("no taps given: name at least one node")
    for outer, inner in itertools.permutations(names, 2):
        if inner.startswith(f"{outer}."):                # torchvision would give one of them another node, silently
            raise ParameterError(f"{outer!r} contains {inner!r}: name the node itself")
    return names


def _pair(value: Any) -> Pair:
    """An int, or a sequence of one or two, as (vertical, horizontal)."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return int(values[0]), int(values[-1])


def _relative(box: Box, input_size: int | Pair) -> float:
    height, width = _pair(input_size)
    return max((box[2] - box[0]) / height, (box[3] - box[1]) / width)
