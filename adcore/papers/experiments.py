"""Experiments of the notebooks that belong to no paper, one function per notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adcore.errors import ParameterError
from adcore.experiments import Experiment, as_tuples, grid
from adcore.models import PatchCore, UniAD

# One protocol for all methods: the same images at 128 pixels and, where a method reads a pretrained network, the same stages of
# the same one. The trainings are cut to about a minute of one CPU core for each category and seed; they are not the papers'.
_FEATURES = {"backbone": "efficientnet_lite0", "image_size": 128}
_BOTH, _DEEPER = {**_FEATURES, "taps": (3, 4)}, {**_FEATURES, "taps": (4,)}
_RECONSTRUCTION = {**_BOTH, "hidden": 64, "batch_size": 8, "lr": 1e-3, "epochs": 60, "lr_drop": 48}
_LAYERS = {"encoder_layers": 2, "decoder_layers": 2, "ffn": 256, "dropout": 0.0}
_LABELED = {**_DEEPER, "tuned": (4,), "statistics": "weights", "normalize": "weights", "draw": "by_seed", "rotation": 0.0,
            "batch_size": 16, "epochs": 5, "steps": 20}
_DENSITY = {"image_size": 128, "stride": 8, "density_images": 350}
PROTOCOL: Mapping[str, Mapping[str, Any]] = {
    "patchcore": {**_BOTH, "crop": None, "embed_dim": 0},
    "fastflow": {**_BOTH, "epochs": 20, "batch_size": 8},
    "asymst": {**_DEEPER, "kernels": (3, 3, 3), "teacher_hidden": 16, "student_hidden": 64, "student_blocks": 2,
               "standardize": True, "epochs": 24, "lr": 1e-3},
    "uniad": {**_RECONSTRUCTION, **_LAYERS, "heads": 2, "neighbors": 5},
    "transformer": {**_RECONSTRUCTION, **_LAYERS, "heads": 2, "neighbors": 5},
    "cnn": _RECONSTRUCTION,
    "mlp": {**_RECONSTRUCTION, **_LAYERS},
    "gde": {**_DENSITY, "backbone": "efficientnet_lite0", "tap": 4},
    "ds2": {**_DENSITY, "pretraining_size": 256, "view_size": 96, "hidden": 1024, "batch_size": 32, "lr": 16.0, "epochs": 8,
            "warmup_epochs": 1, "decay_epochs": (5, 7)},
    "cutpaste": {**_DENSITY, "batch_size": 32, "epochs": 8, "steps": 33},
    "contrastive": {**_BOTH, "dim": 32, "components": 10, "cells": 512, "epochs": 6, "lr": 1e-3, "negatives": "photographs"},
    "atacnet": {**_LABELED, "smallest": 16},
    "devnet": _LABELED,
    "dra": _LABELED}


def one_protocol(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick", "gear"),
                 seeds: Sequence[int] = (0,), methods: Sequence[str] = tuple(PROTOCOL),
                 settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[Experiment]:
    """`02_one_protocol`: every method on every category with every seed, by `PROTOCOL`; in the quick profile by the methods'
    own quick settings.

    settings  method -> its settings that differ from these
    """
    found = []
    for seed in seeds:      # all methods with the first seed, then all with the next: an interrupted run can be compared
        for method in methods:
            if method not in PROTOCOL:
                raise ParameterError(f"methods={list(methods)}: '{method}' is not compared; there are {', '.join(PROTOCOL)}")
            own = {**({} if profile == "quick" else PROTOCOL[method]), **as_tuples((settings or {}).get(method, {}))}
            found += grid(method, dataset=dataset, categories=categories, seeds=[seed], profile=profile, **own)
    return found


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
