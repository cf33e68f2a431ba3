"""Which categories lie still enough for a Gaussian at every position, and how many images a density is fitted to.

DS2's published evaluation; the supplement does not say it.

    aligned      objects that are photographed in one pose: each position has a Gaussian of its own
    not aligned  textures, objects that lie anywhere, surfaces: one Gaussian serves all positions
"""

from __future__ import annotations

TEXTURES = frozenset({"carpet", "grid", "leather", "tile", "wood"})             # of MVTec AD
OBJECTS = frozenset({"bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor",
                     "zipper"})
LOCO_ALIGNED = frozenset({"breakfast_box", "juice_bottle", "pushpins"})         # but not screw_bag, splicing_connectors
OURS_ALIGNED = frozenset({"chip"})  # of `mini`: its other objects turn or move by more than a patch

ALIGNED = OBJECTS | LOCO_ALIGNED | OURS_ALIGNED
ALIGNED_FOR_CUTPASTE = ALIGNED - {"hazelnut", "screw"}

FEW, MANY = 350, 1000
MANY_FOR = frozenset({"ksdd2", "magnetic_tile"})


def published_images(category: str) -> int:
    """Training images that DS2's evaluation draws for the density of a category."""
    return MANY if category in MANY_FOR else FEW
