"""CutMix augmentation: anomalies made from normal images (ATAC-Net's supplement, Sec. 2 and Algorithm 2, line 3).

The word has two meanings, and the supplement does not say which one it uses:

    in_image   a patch of the image, with jittered colors, is pasted elsewhere in the same image. The published code of DRA,
               a method that the paper compares with, calls this CutMix
    yun        a rectangle of another image is pasted, as in Yun et al., "CutMix", ICCV 2019, which the paper cites

All random numbers come from torch's global generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import ColorJitter

AREA = (0.02, 0.15)
ASPECT = (0.3, 1 / 0.3)


def in_image(images: Tensor, area: tuple[float, float] = AREA, aspect: tuple[float, float] = ASPECT,
             jitter: float = 0.1) -> Tensor:
    """CutMix inside one image: paste a patch of each image elsewhere in it. (B, 3, H, W) in [0, 1] -> (B, 3, H, W).

    area    of the patch, as a fraction of the image's area; uniform in this range
    aspect  height divided by width; its logarithm is uniform in this range
    jitter  strength of the changes in the patch's brightness, contrast, saturation and hue
    """
    mixed, (h, w) = images.clone(), images.shape[-2:]
    recolor = ColorJitter(jitter, jitter, jitter, jitter)
    areas = torch.empty(len(images)).uniform_(*area)
    ratios = torch.empty(len(images)).uniform_(math.log(aspect[0]), math.log(aspect[1])).exp()
    for target, image, fraction, ratio in zip(mixed, images, areas.tolist(), ratios.tolist(), strict=True):
        height = min(h, max(1, round((fraction * h * w * ratio) ** 0.5)))
        width = min(w, max(1, round((fraction * h * w / ratio) ** 0.5)))
        (y, x), (to_y, to_x) = _corner(h - height, w - width), _corner(h - height, w - width)
        target[:, to_y:to_y + height, to_x:to_x + width] = recolor(image[:, y:y + height, x:x + width])
    return mixed


def yun(images: Tensor, others: Tensor, alpha: float = 1.0) -> Tensor:
    """CutMix of Yun et al.: paste a rectangle of another image. (B, C, H, W), (B, C, H, W) -> (B, C, H, W).

    The sides of the rectangle are sqrt(1 - lambda) times those of the image, lambda ~ Beta(alpha, alpha). Its center is
    uniform over the image, and the rectangle is clipped at the border. Labels are not mixed: the result is an anomaly.
    """
    mixed, (h, w) = images.clone(), images.shape[-2:]
    lambdas = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((len(images),))
    for target, other, lam in zip(mixed, others, lambdas.tolist(), strict=True):
        height, width = max(1, int(h * (1 - lam) ** 0.5)), max(1, int(w * (1 - lam) ** 0.5))
        y, x = _corner(h - 1, w - 1)
        rows = slice(max(0, y - height // 2), y + (height + 1) // 2)
        columns = slice(max(0, x - width // 2), x + (width + 1) // 2)
        target[:, rows, columns] = other[:, rows, columns]
    return mixed


def _corner(most_y: int, most_x: int) -> tuple[int, int]:
    return int(torch.randint(most_y + 1, ())), int(torch.randint(most_x + 1, ()))


# name -> function of images and other images; `in_image` does not use the others
MIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"in_image": lambda images, others: in_image(images), "yun": yun}
