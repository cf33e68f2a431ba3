"""Experiments of the notebooks that belong to no paper, one function per notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adcore.experiments import Experiment, as_tuples, grid
from adcore.models import PatchCore, UniAD


def start_here(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick", "capsule", "gear"),
               seeds: Sequence[int] = (0,)) -> list[Experiment]:
    """`00_start_here`: PatchCore on each category, then one UniAD for all of them, each with every seed."""
    return [experiment for method in (PatchCore, UniAD)
            for experiment in grid(method, dataset=dataset, categories=categories, seeds=seeds, profile=profile)]


def your_own_data(*, profile: str = "quick", folder: str = "", categories: Sequence[str] = (),
                  methods: Sequence[str] = ("patchcore", "gde", "fastflow"), seeds: Sequence[int] = (0,),
                  settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[Experiment]:
    """`01_your_own_data`: some methods on a folder or csv file; on the brick of `mini` without one.

    settings  method -> its settings that differ from the profile's
    """
    if not folder:
        categories = categories or ("brick",)
    return [experiment for method in methods
            for experiment in grid(method, dataset=folder or "mini", categories=categories, seeds=seeds, profile=profile,
                                   **as_tuples((settings or {}).get(method, {})))]
