"""Receptive fields measured by the gradient at the input (supplement Sec. 1), and networks reduced to their geometry."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from adcore.errors import ParameterError
from adcore.memory import kept_memory
from adcore.papers.heckler2023.receptive_field.arithmetic import window
from adcore.papers.heckler2023.receptive_field.network import (
    Box,
    Pair,
    cut_at,
    detached_copy,
    extract,
    is_gate,
    is_local,
    names_of,
    pair,
    relative_side,
)


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """Measured receptive field of one tap's center cell.

    channels, stride  of the tap's map; the stride is the input's side divided by the map's, rounded
    size              longer side of the box, the estimated receptive field
    box               (top, left, bottom, right) in pixels, bottom and right excluded
    gradient          (H, W) float32, norm over colors before the threshold; its maximum is 1 if `measure` was relative
    clipped           the box reaches the ignored border, so the true field may be larger than this image can show
    """

    tap: str
    channels: int
    stride: int
    size: int
    box: Box
    gradient: npt.NDArray[np.float32]
    clipped: bool

    def relative(self, input_size: int | Pair) -> float:
        """Relative receptive field (RRF): the box's side divided by the input's, the larger of the two axes' ratios."""
        return relative_side(self.box, input_size)


@kept_memory()
def measure(
    model: nn.Module, taps: Iterable[str], size: int | Pair = 1024, *, threshold: float = 1e-2, border: int = 8,
    relative: bool = True, image: Tensor | None = None, dtype: torch.dtype = torch.float32,
) -> dict[str, ReceptiveField]:
    """Receptive fields measured by the paper's procedure (supplement Sec. 1).

    1. Gradient of the tap's center cell (mean over channels) with respect to an empty image.
    2. Norm of the gradient over the colors, for each pixel.
    3. Norms below the threshold become 0, and a border is ignored.
    4. Bounding box of the non-zero pixels; its longer side is the receptive field.

    The model is not changed: a copy in eval mode without gradients on its weights is measured. Where the analytic field shows
    that a part of the image determines the cell, the gradient is computed on that part and is 0 elsewhere. All other taps
    (gates, fields larger than the image) use one forward pass over the whole image.

    Args:
        size: side of the square image of zeros, or (H, W).
        threshold: smaller gradients become 0; the paper's 1e-2.
        border: pixels ignored along each edge. The paper gives no number; 8 is our choice.
        relative: divide by the largest gradient before the threshold is applied, because otherwise the threshold has no
            scale. The paper does not mention it; the code on which it builds does it.
        image: (1, C, H, W) instead of the zeros; needed for a network with random weights.
        dtype: float64 where deep products underflow (linearized DenseNet-201).

    Raises:
        ParameterError: a tap that does not exist or is not a (B, C, H, W) map, a gradient that is zero everywhere, or a size,
            threshold or border that leaves no pixel.
    """
    names = names_of(taps)
    height, width = pair(size) if image is None else (int(image.shape[-2]), int(image.shape[-1]))
    if min(height, width) <= 2 * border or border < 0 or threshold < 0:
        raise ParameterError(f"nothing to measure: size {(height, width)}, border {border}, threshold {threshold}; "
                             f"expected a size above twice the border and a threshold of 0 or more")
    extractor = extract(detached_copy(model), names)
    cuts = _cuts(extractor, names, (height, width))
    network = _frozen(extractor, dtype)
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    start = torch.zeros(1, 3, height, width) if image is None else image.detach()
    start = start.to(device, dtype, memory_format=torch.channels_last)
    alone = [[tap] for tap in names if cuts[tap].is_part]
    together = [tap for tap in names if not cuts[tap].is_part]
    norms: dict[str, Tensor] = {}
    for taps in [*alone, together] if together else alone:
        norms |= _norms(cut_at(network, taps), taps, cuts, start)
    return {tap: _read(tap, norms[tap], cuts[tap].shape, threshold, border, relative) for tap in names}


@dataclass(frozen=True)
class _Cut:
    """The part of the image from which a tap's center cell is computed; `shape` is the map's shape for the whole image."""

    shape: torch.Size
    box: Box
    cell: Pair
    is_part: bool


def _cuts(extractor: fx.GraphModule, names: list[str], size: Pair) -> dict[str, _Cut]:
    """The part of the image that each tap's center needs: the whole image if that is more than half of it."""
    with torch.no_grad():
        features = detached_copy(extractor).to("meta", torch.float32)(torch.empty(1, 3, *size, device="meta"))
    cuts = {}
    for tap in names:
        shape = features[tap].shape
        if len(shape) != 4:
            raise ParameterError(f"{tap!r} is {tuple(shape)}, expected a map (B, C, H, W)")
        center = ((shape[2] - 1) // 2, (shape[3] - 1) // 2)                 # the first of two middle cells
        box, cell = window(cut_at(extractor, [tap]), tap, center, size) or ((0, 0, *size), center)
        is_part = 2 * (box[2] - box[0]) * (box[3] - box[1]) <= size[0] * size[1]
        cuts[tap] = _Cut(shape, box, cell, True) if is_part else _Cut(shape, (0, 0, *size), center, False)
    return cuts


def _norms(network: nn.Module, taps: list[str], cuts: dict[str, _Cut], image: Tensor) -> dict[str, Tensor]:
    """Norm over colors (H, W) of the gradient of each tap's center, computed on one part of the image; 0 outside it."""
    top, left, bottom, right = cuts[taps[0]].box
    pixels = image[..., top:bottom, left:right].contiguous(memory_format=torch.channels_last).requires_grad_()
    norms = {}
    with torch.enable_grad():
        features = network(pixels)
        for tap in taps:
            y, x = cuts[tap].cell
            center = features[tap][0, :, y, x].mean()
            (gradient,) = torch.autograd.grad(center, pixels, retain_graph=tap != taps[-1])
            norm = torch.linalg.vector_norm(gradient[0].to(torch.promote_types(image.dtype, torch.float32)), dim=0)
            norms[tap] = norm.new_zeros(image.shape[-2:])
            norms[tap][top:bottom, left:right] = norm
    return norms


def _read(tap: str, norm: Tensor, shape: torch.Size, threshold: float, border: int, relative: bool) -> ReceptiveField:
    """Apply threshold and border to one gradient norm (H, W) and take the bounding box."""
    height, width = norm.shape
    peak = float(norm.max())
    if not peak > 0 or not np.isfinite(peak):
        raise ParameterError(
            f"the gradient of {tap!r} is {'zero everywhere' if peak == 0 else 'not finite'}: on an empty image a "
            f"network without trained biases gives 0, where a ReLU has no gradient; load trained weights, pass "
            f"image=torch.randn(1, 3, {height}, {width}), or measure linearized(model)")
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


class _Affine(nn.Module):
    """A batch norm in eval mode as x * scale + shift, whose backward pass does not need to store the input."""

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


def _frozen(extractor: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The extractor as `measure` runs it: batch norms as `_Affine` to save memory, channels last, nothing in place."""
    silent = []
    for name, module in list(extractor.named_modules()):
        if hasattr(module, "inplace"):
            module.inplace = False                       # an in-place layer after a tap would change the tapped map
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and not module.weight.any():
            silent.append(name)
        if type(module) is nn.BatchNorm2d and module.running_mean is not None:
            extractor.set_submodule(name, _Affine(module))
    if silent:
        warnings.warn(f"{len(silent)} batch norms (the first is {silent[0]!r}) scale by zero: their branches have no "
                      f"gradient and the field comes out too small; load trained weights", stacklevel=3)
    return extractor.to(dtype).to(memory_format=torch.channels_last)      # depthwise layers run 4 times faster on a CPU


def linearized(model: nn.Module) -> nn.Module:
    """A copy reduced to its geometry: measured with threshold 0, its field equals the analytic one.

    Activations, normalization, dropout, stochastic depth and squeeze-and-excitation become identities. Max pooling becomes
    average pooling, because a maximum passes the gradient to one pixel of its window only. Each convolution's weights become
    1 / fan_in and its biases 0, so that no two paths cancel. Activations called as functions do not change.

    Raises:
        ParameterError: a max pooling that average pooling cannot replace.
    """
    result = copy.deepcopy(model).eval()
    for name, module in list(result.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            if type(module) is not nn.MaxPool2d or pair(module.dilation) != (1, 1):
                raise ParameterError(f"cannot linearize {name!r} ({module}): no average pooling has its geometry")
            pool = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode)
            result.set_submodule(name, pool)
        elif name and (is_local(module) or is_gate(module)):
            result.set_submodule(name, nn.Identity())
        elif isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return result


def ungated(model: nn.Module) -> nn.Module:
    """A copy without squeeze-and-excitation: its features see only their analytic field."""
    result = copy.deepcopy(model).eval()
    for name, module in list(result.named_modules()):
        if name and is_gate(module):
            result.set_submodule(name, nn.Identity())
    return result
