"""Features of an image's patches, each encoded as a separate image: the localization of DS2 and CutPaste.

    images (B, 3, H, W) -> windows (N, 3, p, p) -> encoder -> mean over the map -> unit length -> (B, N, D)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adcore.errors import ParameterError


def patch_grid(size: tuple[int, int], patch: int = 32, stride: int = 4) -> tuple[int, int]:
    """Rows and columns of patches in an image (H, W). Pixels right of and below the last patch are not used.

    >>> patch_grid((256, 256))
    (57, 57)

    Raises:
        ParameterError: an image smaller than a patch, or a stride below 1.
    """
    h, w = size
    if patch < 1 or stride < 1 or h < patch or w < patch:
        raise ParameterError(f"patches of {patch}x{patch} pixels with stride {stride} in an image of {h}x{w}: the patch must "
                             f"fit in the image, and the stride must be at least 1")
    return (h - patch) // stride + 1, (w - patch) // stride + 1


@torch.no_grad()
def patch_features(encoder: nn.Module, images: Tensor, patch: int = 32, stride: int = 4, *, batch: int = 1024) -> Tensor:
    """Features of unit length of all patches of images (B, 3, H, W), row by row from the top left: (B, N, D) (DS2's
    evaluation).

    encoder  (b, 3, p, p) -> (b, D, h, w), in eval mode, on the device of the images; its map is averaged
    batch    number of patches encoded at a time; changes speed and memory, not the result

    N = ((H - p) // stride + 1) * ((W - p) // stride + 1). The encoder processes B N p^2 pixels, about (p / stride)^2 times
    those of the images. In addition to the result (4 B N D bytes), at most `batch` patches and their activations are in memory.

    Overlapping patches could share their convolutions in one pass over the image, but not exactly: the border of a patch is
    padded with zeros, where the image has other pixels. With 32 pixels most outputs of a deep encoder depend on the border.

    >>> patch_features(nn.Conv2d(3, 5, 3).eval(), torch.rand(2, 3, 40, 32), patch=32, stride=4).shape
    torch.Size([2, 3, 5])

    Raises:
        ParameterError: an image smaller than a patch, an encoder in training mode or one that does not return a map.
    """
    if images.ndim != 4 or not len(images) or batch < 1:
        raise ParameterError(f"images {tuple(images.shape)} in batches of {batch} patches: expected (B, 3, H, W) with B at "
                             f"least 1, and batches of at least 1")
    if any(module.training for module in encoder.modules()):
        raise ParameterError("the encoder of patches is in training mode, where batch norms mix patches: call encoder.eval()")
    h, w = patch_grid((images.shape[2], images.shape[3]), patch, stride)
    windows = images.unfold(2, patch, stride).unfold(3, patch, stride).permute(0, 2, 3, 1, 4, 5)  # (B, h, w, 3, p, p), a view
    count = len(images) * h * w
    features = []
    for start in range(0, count, batch):
        number = torch.arange(start, min(start + batch, count), device=images.device)
        maps = encoder(windows[number // (h * w), number // w % h, number % w])                   # (b, D, h', w')
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            found = tuple(maps.shape) if isinstance(maps, Tensor) else type(maps).__name__
            raise ParameterError(f"the encoder of patches returned {found}: expected one map (b, D, h, w)")
        features.append(F.normalize(maps.mean((2, 3)), dim=1))
    return torch.cat(features).unflatten(0, (len(images), h * w))
