"""Experiments of the notebooks that belong to no paper, one function per notebook."""

from __future__ import annotations

from collections.abc import Sequence

from adcore.experiments import Experiment, grid
from adcore.models import PatchCore, UniAD


def start_here(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick", "capsule", "gear"),
               seeds: Sequence[int] = (0,)) -> list[Experiment]:
    """`00_start_here`: PatchCore on each category, then one UniAD for all of them, each with every seed."""
    return [experiment for method in (PatchCore, UniAD)
            for experiment in grid(method, dataset=dataset, categories=categories, seeds=seeds, profile=profile)]
