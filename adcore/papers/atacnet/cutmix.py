"""CutMix: anomalies made from normal images, in the two meanings of the word.

    in_image   a patch of the image, its colors jittered, elsewhere in the same image: what the code of DRA calls CutMix
    yun        a rectangle of another image, as in Yun et al. (ICCV 2019), whom atacnet cites: its share is drawn from a
               Beta distribution

Everything is drawn from torch's random state.
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
    """Each image with a patch of its own pasted elsewhere: (B, 3, H, W) in [0, 1] -> (B, 3, H, W).

    area    of the patch, a share of the image's, drawn evenly
    aspect  height by width, drawn evenly in the logarithm
    jitter  of the patch's brightness, contrast, saturation and hue
    """
    mixed, (h, w) = images.clone(), images.shape[-2:]
    recolor = ColorJitter(jitter, jitter, jitter, jitter)
    shares = torch.empty(len(images)).uniform_(*area)
    ratios = torch.empty(len(images)).uniform_(math.log(aspect[0]), math.log(aspect[1])).exp()
    for target, image, share, ratio in zip(mixed, images, shares.tolist(), ratios.tolist(), strict=True):
        height = min(h, max(1, round((share * h * w * ratio) ** 0.5)))
        width = min(w, max(1, round((share * h * w / ratio) ** 0.5)))
        (y, x), (to_y, to_x) = _corner(h - height, w - width), _corner(h - height, w - width)
        target[:, to_y:to_y + height, to_x:to_x + width] = recolor(image[:, y:y + height, x:x + width])
    return mixed


def yun(images: Tensor, others: Tensor, alpha: float = 1.0) -> Tensor:
    """Each image with a rectangle of another one: (B, C, H, W), (B, C, H, W) -> (B, C, H, W).

    The rectangle's sides are sqrt(1 - lambda) of the image's, lambda ~ Beta(alpha, alpha); its middle is drawn evenly and
    what lies outside is cut off, as in the paper. Labels are not mixed: a normal image with another's part is anomalous.
    """
    mixed, (h, w) = images.clone(), images.shape[-2:]
    kept = torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample((len(images),))
    for target, other, share in zip(mixed, others, kept.tolist(), strict=True):
        height, width = max(1, int(h * (1 - share) ** 0.5)), max(1, int(w * (1 - share) ** 0.5))
        y, x = _corner(h - 1, w - 1)
        rows, columns = slice(max(0, y - height // 2), y + (height + 1) // 2), slice(max(0, x - width // 2),
                                                                                      x + (width + 1) // 2)
        target[:, rows, columns] = other[:, rows, columns]
    return mixed


def _corner(most_y: int, most_x: int) -> tuple[int, int]:
    return int(torch.randint(most_y + 1, ())), int(torch.randint(most_x + 1, ()))


# Normal images and others like them, for the mix that needs two.
MIXES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"in_image": lambda images, others: in_image(images), "yun": yun}
