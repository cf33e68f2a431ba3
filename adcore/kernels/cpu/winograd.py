"""3 x 3 convolution of stride 1 with a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3), Lavin and Gray, CVPR 2016.

    Y = A^T [ sum_c (G g_c G^T) * (B^T d_c B) ] A          for each tile of 4 x 4 outputs, from its 6 x 6 inputs d

    paper   code       shape              meaning
    d       d          (36, tiles, C)     input tiles, overlapping by two, after the transform B^T d B
    U       factors    (36, C, K)         G g G^T of the weights g, computed once per layer
    M       m          (36, tiles, K)     36 matrix products instead of the convolution
    Y       y          (16, tiles, K)     output tiles

The plain code is `F.conv2d(x, weight, bias, padding=1)`. The transforms lose about one digit in float32, and save time from
about a hundred channels on (`WORTH`). With stride 2 they would save only 63 of 144 products, so torch computes such layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WORTH = 96                   # channels, input and output; with 64 the transforms take more time than they save
BLOCK_BYTES = 16 * 2**20      # of transformed tiles in a block

_B_T = torch.tensor([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                     [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]], dtype=torch.float64)
_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64)
_G /= torch.tensor([24, 24, 24, 24, 24, 24], dtype=torch.float64)[:, None]
_A_T = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64)


def winograd_factors(weight: Tensor) -> Tensor:
    """U of a convolution's weights: (K, C, 3, 3) -> (36, C, K).

    >>> winograd_factors(torch.zeros(8, 3, 3, 3)).shape
    torch.Size([36, 3, 8])
    """
    return torch.einsum("ai,bj,kcij->abck", _G, _G, weight.double()).flatten(0, 1).to(weight.dtype).contiguous()


@torch.no_grad()
def winograd(x: Tensor, factors: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, weight, bias, padding=1)` from `winograd_factors(weight)`: (B, C, H, W) -> (B, K, H, W), channels last.

    Not differentiable. Images, factors and bias have one dtype and one device.

    >>> x, weight = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 3, 3)
    >>> winograd(x, winograd_factors(weight)).round().int()[0, 0, 0]
    tensor([4, 6, 6, 4], dtype=torch.int32)
    """
    (images, channels, height, width), out_channels = x.shape, factors.shape[2]
    rows, columns = -(-height // 4), -(-width // 4)
    into, back = _B_T.to(factors), _A_T.to(factors)
    padded = x.new_zeros(images, 4 * rows + 2, 4 * columns + 2, channels)
    padded[:, 1:height + 1, 1:width + 1] = x.permute(0, 2, 3, 1)
    image, row, column, channel = padded.stride()
    tiles = padded.as_strided((6, 6, images, rows, columns, channels), (row, column, image, 4 * row, 4 * column, channel))
    out = x.new_empty(images, 4 * rows, 4 * columns, out_channels)
    shift = x.new_zeros(out_channels) if bias is None else bias
    step = max(1, BLOCK_BYTES // max(1, 36 * rows * columns * max(channels, out_channels) * x.element_size()))
    for start in range(0, images, step):
        block, some = slice(start, start + step), min(step, images - start)
        count = some * rows * columns
        d = _both_ways(into, tiles[:, :, block].reshape(6, 6, count * channels))
        m = torch.bmm(d.view(36, count, channels), factors)
        y = _both_ways(back, m.view(6, 6, count * out_channels)).view(4, 4, some, rows, columns, out_channels)
        torch.add(y.permute(2, 3, 0, 4, 1, 5), shift, out=out[block].view(some, rows, 4, columns, 4, out_channels))
    return out[:, :height, :width].permute(0, 3, 1, 2)


def _both_ways(matrix: Tensor, x: Tensor) -> Tensor:
    """A transform of rows, then of columns: (a, 6), (6, 6, n) -> (a, a, n)."""
    return torch.matmul(matrix, torch.mm(matrix, x.flatten(1)).unflatten(1, x.shape[1:]))


def worth(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that `winograd` computes in less time.

    >>> worth(nn.Conv2d(128, 128, 3, padding=1)), worth(nn.Conv2d(128, 128, 1))
    (True, False)
    """
    return (isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.groups == 1
            and layer.dilation == (1, 1) and layer.padding in ((1, 1), "same") and layer.padding_mode == "zeros"
            and min(layer.in_channels, layer.out_channels) >= WORTH)


class WinogradConv2d(nn.Module):
    """A frozen convolution for which `worth` is True, computed by `winograd`."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.factors: Tensor
        self.bias: Tensor | None
        self.register_buffer("factors", winograd_factors(weight.detach()))
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        return winograd(x, self.factors, self.bias)
