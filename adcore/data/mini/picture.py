"""One finished image of `mini`, its exact mask, and the same image without its defect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from adcore.data.mini import button, capsule, chip, gear, photographs
from adcore.data.mini.shading import sensor
from adcore.data.mini.shapes import SIZE, Array
from adcore.data.mini.shot import Shot

Draw = Callable[[Shot, "str | None", int], Array]

RECIPES: dict[str, tuple[Draw, tuple[str, ...]]] = {
    **{name: (photographs.draw, tuple(texture.flaws)) for name, texture in photographs.TEXTURES.items()},
    "capsule": (capsule.draw, capsule.DEFECTS),
    "gear": (gear.draw, gear.DEFECTS),
    "chip": (chip.draw, chip.DEFECTS),
    "button": (button.draw, button.DEFECTS),
}
CATEGORIES = tuple(RECIPES)

VISIBLE = 5 / 255                 # a change of less than this in every channel cannot be seen in the sensor noise
AREA = (0.0018, 0.11)             # of a mask, as a fraction of the image


@dataclass(frozen=True)
class Picture:
    """`image` (SIZE, SIZE, 3) uint8; `mask` (SIZE, SIZE) bool, all False when `defect` is 'good'."""

    image: Array
    mask: Array
    defect: str


def defects(category: str) -> tuple[str, ...]:
    """The kinds of defect of a category.

    >>> defects("brick")
    ('crack', 'hole', 'stain', 'paint')
    """
    return RECIPES[category][1]


def defect_of(category: str, index: int) -> tuple[str, int]:
    """The kind of the defective image `index` and its number within the kind; the kinds follow each other in turn.

    >>> [defect_of("brick", index) for index in range(5)]
    [('crack', 0), ('hole', 0), ('stain', 0), ('paint', 0), ('crack', 1)]
    """
    kinds = defects(category)
    return kinds[index % len(kinds)], index // len(kinds)


def picture(shot: Shot) -> Picture:
    """Draw the image of a shot.

    The mask is where the defect changed any channel visibly, before sensor noise: it includes shadows of the defect, its
    small gaps are closed, and parts below 4 pixels are left out. Outside the mask the image equals `without_defect(shot)`.

    >>> made = picture(Shot("brick", "defective", 0))
    >>> made.image.shape, made.mask.shape, made.defect
    ((256, 256, 3), (256, 256), 'crack')
    """
    draw, _ = RECIPES[shot.category]
    clean = draw(shot, None, 0)
    if shot.split != "defective":
        return Picture(sensor(clean, shot), np.zeros((SIZE, SIZE), bool), "good")
    defect, _ = defect_of(shot.category, shot.index)
    for attempt in range(50):
        flawed = draw(shot, defect, attempt)
        mask = _changed(clean, flawed)
        if AREA[0] <= mask.mean() <= AREA[1]:     # else most of it is beside the object: draw another
            break
    else:
        raise AssertionError(f"{shot}: no {defect} of a visible size in 50 attempts")
    return Picture(sensor(np.where(mask[..., None], flawed, clean), shot), mask, defect)


def without_defect(shot: Shot) -> Array:
    """The image of a shot drawn without its defect, with the same sensor noise; (SIZE, SIZE, 3) uint8.

    >>> shot = Shot("brick", "defective", 0)
    >>> bool((without_defect(shot) == picture(shot).image).all())
    False
    """
    draw, _ = RECIPES[shot.category]
    return sensor(draw(shot, None, 0), shot)


def _changed(clean: Array, flawed: Array) -> Array:
    visible = np.abs(flawed - clean).max(2) > VISIBLE
    closed = visible | ndimage.binary_closing(visible, np.ones((3, 3), bool))
    parts, count = ndimage.label(closed, np.ones((3, 3), int))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    keep = sizes >= 4
    keep[0] = False
    mask: Array = keep[parts]
    return mask
