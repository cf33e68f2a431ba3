"""Experiments behind the tables and figures of ATAC-Net's supplement: which trainings each exhibit asks for.

The parameters are those of the notebook that shows the exhibit. `settings` replaces settings of the profile, by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from adcore.data import load_dataset
from adcore.errors import DataError, ParameterError, did_you_mean
from adcore.experiments import Experiment, as_tuples, grid

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
TABLE_1_STEPS = ("cutmix", "weighted_ce", "deviation", "atacnet")
FIGURE_1_STEPS = ("gradcam", "atacnet")  # the left and the right picture of each pair
KNOWN: Mapping[str, Sequence[str]] = MappingProxyType({"brick": ("crack", "stain")})
EXAMPLES: Mapping[str, str] = MappingProxyType({"brick": "paint"})
QUICK_TABLE_1 = {"epochs": 5, "steps": 20}  # the quick profile's 20 steps are too short for a gain by the second look


def algorithm_2_models(*, profile: str = "quick", dataset: str = "mini", category: str = "capsule", seed: int = 0,
                       settings: Mapping[str, Any] = NO_SETTINGS, threshold: float = 0.5) -> list[Experiment]:
    """Algorithm 2: ATAC-Net trained on one category. The network also draws the crops of Algorithm 1."""
    return grid("atacnet", dataset=dataset, categories=category, seeds=[seed], profile=profile, threshold=threshold,
                **as_tuples(settings))


def table_1(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick",),
            seeds: Sequence[int] = (0,), steps: Sequence[str] = TABLE_1_STEPS,
            settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """Table 1: the ablation study, one experiment per step, category and seed. Step "gradcam" has no column in the table.

    In the quick profile a training has 100 steps (`QUICK_TABLE_1`).
    """
    own = {**(QUICK_TABLE_1 if profile == "quick" else {}), **as_tuples(settings)}
    return grid("atacnet", dataset=dataset, categories=categories, seeds=seeds, profile=profile, step=list(steps), **own)


def table_2(*, profile: str = "quick", dataset: str = "mini", known: Mapping[str, Sequence[str]] = KNOWN,
            counts: Sequence[int] = (1, 3), seeds: Sequence[int] = (0,), methods: Sequence[str] = ("devnet", "dra", "atacnet"),
            settings: Mapping[str, Any] = MappingProxyType({"steps": 6})) -> list[Experiment]:
    """Table 2: training on one defect type, testing on the others. One experiment per method, defect type, count and seed.

    known   category -> defect types to train on, one per experiment
    counts  numbers of labeled anomalies to train on
    """
    return [experiment for method in methods for category, types in known.items()
            for experiment in grid(method, dataset=dataset, categories=category, seeds=seeds, profile=profile,
                                   known=list(types), anomalies=list(counts), **as_tuples(settings))]


def figure_1_models(*, profile: str = "quick", dataset: str = "mini", examples: Mapping[str, str] = EXAMPLES, seed: int = 0,
                    settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """Figure 1: the networks whose Grad-CAM (step four) and attention (step five) are compared, one of each per category.

    examples  category -> defect type of the image to show

    Raises:
        ParameterError: a defect type that the category does not have.
    """
    for category, defect in examples.items():
        with contextlib.suppress(DataError):  # a data set that is not on this machine
            kinds = {sample.defect for sample in load_dataset(dataset, [category]).test if sample.label}
            if defect not in kinds:
                raise ParameterError(f"category '{category}' of data set '{dataset}' has no defect type "
                                     f"'{defect}'{did_you_mean(defect, kinds)}; it has {', '.join(sorted(kinds)) or 'none'}")
    return [experiment for step in FIGURE_1_STEPS for category in examples
            for experiment in grid("atacnet", dataset=dataset, categories=category, seeds=[seed], profile=profile, step=step,
                                   **as_tuples(settings))]
