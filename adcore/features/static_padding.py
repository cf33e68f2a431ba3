"""Padding of UniAD's EfficientNets: computed once from the network's native image size, whatever the image.

UniAD's published code takes its backbones from the package EfficientNet-PyTorch. There, "same" padding of a strided
convolution is computed for a square image of the native side (224 for b0, 260 for b2, 380 for b4, 528 for b6) and then kept.
timm's networks of the same architecture compute it from the image that they get. At 224 pixels the two differ in b2, b4 and b6:
the same weights give other features, from stage 3 on in b2 and b4 and at stage 5 in b6, and their cells lie elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.models import register_notrace_module
from torch import Tensor, nn


def same_padding(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after a side of so many pixels, so that a convolution gives ceil(side / stride) cells.

    >>> same_padding(380, 3, 2), same_padding(95, 3, 2)
    ((0, 1), (1, 1))
    """
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


@register_notrace_module
class StaticConv2d(nn.Conv2d):
    """A convolution that adds the same zeros to any image: `pads` to the left, the right, above and below."""

    pads: tuple[int, int, int, int]

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.pads)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def pad_statically(network: nn.Module, side: int) -> nn.Module:
    """Replace timm's dynamic padding by that of a square image of the native side, in place. Weights and names are kept.

    network  its strided convolutions are used in the order of `modules()`, as in EfficientNets
    """
    dynamic = [(name, module) for name, module in network.named_modules() if isinstance(module, Conv2dSame)]
    for name, conv in dynamic:
        kernel, stride = conv.kernel_size[0], conv.stride[0]
        before, after = same_padding(side, kernel, stride)
        static = StaticConv2d(conv.in_channels, conv.out_channels, kernel, stride, before, groups=conv.groups,
                              bias=conv.bias is not None)
        static.weight, static.bias, static.pads = conv.weight, conv.bias, (before, after, before, after)
        network.set_submodule(name, static)
        side = -(-side // stride)
    return network


def first_centers(strided: Iterable[tuple[int, int]], side: int) -> list[float]:
    """Where the first cell lies after each strided convolution: the middle, in pixels, of the image part that it sees.

    Cell i lies i * (product of the strides) further. Convolutions of stride 1 pad both sides equally and move nothing.

    strided  kernel and stride of each strided convolution, in order
    side     of the square image that the padding is computed for

    >>> first_centers([(3, 2), (3, 2), (5, 2)], 224), first_centers([(3, 2), (3, 2), (5, 2)], 380)
    ([1.0, 3.0, 7.0], [1.0, 3.0, 3.0])
    """
    center, jump, found = 0.0, 1, []
    for kernel, stride in strided:
        before, _ = same_padding(side, kernel, stride)
        center += jump * ((kernel - 1) / 2 - before)
        jump, side = jump * stride, -(-side // stride)
        found.append(center)
    return found
