"""A frozen network rewritten for inference: batch norms are folded into the convolutions before them, wide 3 x 3 convolutions
use Winograd's algorithm, and residual blocks add in place."""

from __future__ import annotations

import copy
import operator
from collections import Counter

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from adcore.kernels.cpu.winograd import WinogradConv2d, worth


@torch.no_grad()
def folded(network: fx.GraphModule) -> fx.GraphModule:
    """The same function up to float32 rounding, in eval mode. `network` is not changed; unchanged layers are shared with it.

    >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    >>> [type(layer).__name__ for layer in folded(fx.symbolic_trace(network)).children()]
    ['Conv2d']
    """
    found = fx.GraphModule(network, copy.deepcopy(network.graph))
    layers = dict(network.named_modules())
    calls = Counter(node.target for node in found.graph.nodes if node.op == "call_module")
    for node in list(found.graph.nodes):
        layer = layers.get(str(node.target)) if node.op == "call_module" else None
        if type(layer) is not nn.Conv2d or calls[node.target] > 1:
            continue
        norm = _norm_after(node, layers)
        weight, bias = layer.weight, layer.bias
        if norm is not None:
            after = layers[str(norm.target)]
            weight, bias = fuse_conv_bn_weights(weight, bias, after.running_mean, after.running_var, after.eps, after.weight,
                                                after.bias)
            norm.replace_all_uses_with(node)
            found.graph.erase_node(norm)
        if worth(layer):
            found.set_submodule(str(node.target), WinogradConv2d(weight, bias))
        elif norm is not None:
            found.set_submodule(str(node.target), _with(layer, weight, bias))
        for user in node.users if len(node.users) == 1 else ():
            if user.target is operator.add and user.args[0] is node:
                user.target = _added                   # the block's input is added to the output of its last convolution
    found.recompile()
    found.delete_all_unused_submodules()
    return found.eval()


def _added(made: torch.Tensor, other: torch.Tensor | float) -> torch.Tensor:
    """The sum, in the memory of `made` if it has the right shape and dtype."""
    fits = isinstance(other, torch.Tensor) and other.shape == made.shape and other.dtype == made.dtype
    return made.add_(other) if fits else made + other


def _norm_after(node: fx.Node, layers: dict[str, nn.Module]) -> fx.Node | None:
    """The batch norm that uses a layer's output, if nothing else uses it."""
    if len(node.users) != 1:
        return None
    (user,) = node.users
    layer = layers.get(str(user.target)) if user.op == "call_module" else None
    return user if type(layer) is nn.BatchNorm2d and layer.track_running_stats else None


def _with(layer: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    found = copy.copy(layer)                           # a shallow copy, since the parameters are replaced and not changed
    found._parameters = {"weight": nn.Parameter(weight, False), "bias": None if bias is None else nn.Parameter(bias, False)}
    return found
