"""Features drawn without training: each cell of the grid becomes the patch of pixels whose own feature is nearest.

Not in the paper. A collage is sharper than a picture of the `FeatureDecoder` after a short training, but cut along the cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.errors import ParameterError
from adcore.papers.uniad2022.reconstruction import STRIDE


def collage(features: Tensor, known: Tensor, images: Tensor) -> Tensor:
    """Draw features with patches of known images.

    features  what to draw, (B, C, h, w)
    known     features of the images whose patches may be used, (n, C, h, w)
    images    those images, (n, 3, 16h, 16w)

    Returns (B, 3, 16h, 16w). If an anomalous image is among the known ones, its defect is drawn wherever the features have it.

    Raises:
        ParameterError: the sizes of `known` and `images` do not fit together.
    """
    check_sizes(known, images)
    cells = known.flatten(2).transpose(1, 2).flatten(0, 1).float()                              # (n * N, C)
    patches = F.unfold(images, STRIDE, stride=STRIDE).transpose(1, 2).flatten(0, 1)             # (n * N, 3 * 16 * 16)
    nearest = [torch.cdist(one.flatten(1).T.float(), cells).argmin(1) for one in features]      # (N,) each
    drawn = patches[torch.stack(nearest)].transpose(1, 2)                                       # (B, 3 * 16 * 16, N)
    h, w = features.shape[-2:]
    return F.fold(drawn, (STRIDE * h, STRIDE * w), STRIDE, stride=STRIDE)


def check_sizes(features: Tensor, images: Tensor) -> None:
    """Check that there is one image for each feature map, of 16 pixels per cell.

    Raises:
        ParameterError: another number or size of images.
    """
    n, (h, w) = len(features), features.shape[-2:]
    wanted = (n, 3, STRIDE * h, STRIDE * w)
    if tuple(images.shape) != wanted:
        raise ParameterError(f"features of {n} images on a {h}x{w} grid are drawn at {STRIDE} pixels per cell: images must be "
                             f"{wanted}, not {tuple(images.shape)}")
