"""Experiments behind the figures of heckler2023: which trainings each exhibit asks for.

Every experiment uses one tap. Figure 1, the receptive fields and Tables 1 and 2 need no training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adcore.experiments import Experiment, as_tuples, grid
from adcore.papers.heckler2023.initializations import weights_of
from adcore.papers.heckler2023.layers import taps_of

Settings = Mapping[str, Mapping[str, Any]]  # method -> settings

QUICK_FASTFLOW = {"steps": 4, "epochs": 8}
QUICK_ASYMST = {"kernels": (3, 3), "teacher_hidden": 8, "student_hidden": 32, "student_blocks": 1, "epochs": 6, "lr": 2e-3}
QUICK_PATCHCORE = {"coreset": 500}
NO_CROP = {"patchcore": {"crop": None}}  # so that all methods see the whole image


def figure_2(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = (), seeds: Sequence[int] = (0, 1, 2),
             methods: Sequence[str] = ("patchcore",), backbones: Sequence[str] = ("efficientnet_lite0",), image_size: int = 96,
             quick_settings: Settings | None = None) -> list[Experiment]:
    """Figure 2, best layer: every method, backbone, tap, category and seed.

    methods         the paper's figure has AsymST and FastFlow
    quick_settings  method -> settings of the quick profile; None takes those of the notebook
    """
    quick = quick_settings or {"patchcore": QUICK_PATCHCORE, "fastflow": QUICK_FASTFLOW, "asymst": QUICK_ASYMST}
    return [experiment for method in methods for backbone in backbones
            for experiment in grid(method, dataset=dataset, categories=categories, seeds=seeds, profile=profile,
                                   backbone=backbone, taps=taps_of(backbone),
                                   **{"image_size": image_size, **NO_CROP.get(method, {}), **_quick(method, profile, quick)})]


def figure_3(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("button",),
             seeds: Sequence[int] = (0, 1, 2), methods: Sequence[str] = ("fastflow", "patchcore"),
             backbones: Sequence[str] = ("efficientnet_lite0",), image_sizes: Sequence[int] = (64, 96, 128),
             quick_settings: Settings | None = None) -> list[Experiment]:
    """Figure 3, image size: every method, backbone, tap, image size, category and seed."""
    quick = quick_settings or {"fastflow": QUICK_FASTFLOW, "patchcore": QUICK_PATCHCORE}
    return [experiment for method in methods for backbone in backbones
            for experiment in grid(method, dataset=dataset, categories=categories, seeds=seeds, profile=profile,
                                   backbone=backbone, taps=taps_of(backbone), image_size=list(image_sizes),
                                   **{**NO_CROP.get(method, {}), **_quick(method, profile, quick)})]


def figure_4(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("capsule", "brick"),
             seeds: Sequence[int] = (0,), methods: Sequence[str] = ("asymst", "patchcore"),
             backbone: str = "efficientnet_lite0", pretrainings: Sequence[str] = ("supervised", "random"),
             image_size: int = 96, quick_settings: Settings | None = None) -> list[Experiment]:
    """Figure 4, initializations of Table 1 with AsymST: every initialization, tap, category and seed.

    methods  those other than PatchCore are listed here, PatchCore by `figure_5`
    """
    return _initializations([method for method in methods if method != "patchcore"], profile, dataset, categories, seeds,
                            backbone, pretrainings, image_size, quick_settings)


def figure_5(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("capsule", "brick"),
             seeds: Sequence[int] = (0,), methods: Sequence[str] = ("asymst", "patchcore"),
             backbone: str = "efficientnet_lite0", pretrainings: Sequence[str] = ("supervised", "random"),
             image_size: int = 96, quick_settings: Settings | None = None) -> list[Experiment]:
    """Figure 5, initializations of Table 1 with PatchCore: every initialization, tap, category and seed."""
    return _initializations([method for method in methods if method == "patchcore"], profile, dataset, categories, seeds,
                            backbone, pretrainings, image_size, quick_settings)


def _initializations(methods: Sequence[str], profile: str, dataset: str, categories: Sequence[str], seeds: Sequence[int],
                     backbone: str, pretrainings: Sequence[str], image_size: int,
                     quick_settings: Settings | None) -> list[Experiment]:
    quick = quick_settings or {"asymst": QUICK_ASYMST, "patchcore": {"coreset": 1000}}
    weights = [weights_of(name, backbone) for name in pretrainings]
    return [experiment for method in methods
            for experiment in grid(method, dataset=dataset, categories=categories, seeds=seeds, profile=profile,
                                   backbone=backbone, weights=weights, taps=taps_of(backbone), image_size=image_size,
                                   **{**NO_CROP.get(method, {}), **_quick(method, profile, quick)})]


def _quick(method: str, profile: str, quick_settings: Settings) -> dict[str, Any]:
    return as_tuples(quick_settings[method]) if profile == "quick" else {}
