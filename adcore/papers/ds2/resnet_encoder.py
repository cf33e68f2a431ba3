"""ResNet-18 without pretrained weights, giving feature maps of several scales.

He et al. (DS2), supplement Sec. 3.1 (He et al. 2016) and the published code.

    map   channels   stride   at 224 pixels
    c2    64         4        56 x 56
    c3    128        8        28 x 28
    c4    256        16       14 x 14
    c5    512        32       7 x 7
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.models import resnet18

from adcore.errors import ParameterError

CHANNELS = {"c2": 64, "c3": 128, "c4": 256, "c5": 512}


class ResNetEncoder(nn.Module):
    """ResNet-18 without its classifier, initialized from torch's random state.

    Convolutions are drawn from N(0, 2 / (k^2 c_out)). Parameters have torchvision's names. Stages after the last requested map
    are not computed.

    zero_residual  True: each residual block ends in a batch norm with weight 0, so at first it returns its input, as in DS2's
                   code. False: all weights of batch norms are 1, torchvision's default

    Raises:
        ParameterError: a map that does not exist, or none.
    """

    def __init__(self, scales: Sequence[str] = ("c5",), *, zero_residual: bool = True) -> None:
        super().__init__()
        check_scales(scales)
        self.scales = tuple(scales)
        whole = resnet18(weights=None, zero_init_residual=zero_residual)
        self.conv1, self.bn1, self.relu, self.maxpool = whole.conv1, whole.bn1, whole.relu, whole.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = whole.layer1, whole.layer2, whole.layer3, whole.layer4

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), standardized -> the requested maps by name, finest first."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = {}
        for name, stage in zip(CHANNELS, (self.layer1, self.layer2, self.layer3, self.layer4), strict=True):
            x = stage(x)
            if name in self.scales:
                maps[name] = x
            if len(maps) == len(self.scales):
                break
        return maps


def check_scales(scales: Sequence[str]) -> None:
    """Check the names of maps.

    Raises:
        ParameterError: no name, an unknown one, or one twice.
    """
    if not scales or len(set(scales)) != len(scales) or not set(scales) <= set(CHANNELS):
        raise ParameterError(f"scales={tuple(scales)} must be some of {', '.join(CHANNELS)}, each once")
