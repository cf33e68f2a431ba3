"""Experiments of the notebooks that belong to no paper, one function per notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from adcore.errors import ParameterError
from adcore.experiments import Experiment, as_tuples, fitted, grid
from adcore.experiments.intervals import gather, recorded_scores, save_scores, with_earlier
from adcore.experiments.record import export_results, records
from adcore.files import atomic
from adcore.models import PatchCore, UniAD
from adcore.paths import repository

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


# In the quick profile the methods have their own quick settings, and an encoder learns from the tested category only: all seven
# categories would take a minute.
QUICK: Mapping[str, Mapping[str, Any]] = {"ds2": {"pretraining": "category"}, "cutpaste": {"pretraining": "category"}}

# What results/one_protocol.csv and results/fine_tuned_features.csv hold.
REAL_IMAGES: Mapping[str, Any] = {"profile": "open", "dataset": "mtd+mvtec_384+mvtec_512", "categories": (), "seeds": (0, 1, 2)}


def one_protocol(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick",),
                 seeds: Sequence[int] = (0,), methods: Sequence[str] = tuple(PROTOCOL),
                 settings: Mapping[str, Mapping[str, Any]] | None = None) -> list[Experiment]:
    """`02_one_protocol`: every method on every category with every seed, by `PROTOCOL`; in the quick profile by the methods'
    own quick settings and `QUICK`.

    settings  method -> its settings that differ from these
    """
    found = []
    for seed in seeds:      # all methods with the first seed, then all with the next: an interrupted run can be compared
        for method in methods:
            if method not in PROTOCOL:
                raise ParameterError(f"methods={list(methods)}: '{method}' is not compared; there are {', '.join(PROTOCOL)}")
            own = QUICK.get(method, {}) if profile == "quick" else PROTOCOL[method]
            own = {**own, **as_tuples((settings or {}).get(method, {}))}
            found += grid(method, dataset=dataset, categories=categories, seeds=[seed], profile=profile, **own)
    return found


def fine_tuned_features(*, profile: str = "open", dataset: str = "mini", categories: Sequence[str] = (),
                        seeds: Sequence[int] = (0,), methods: Sequence[str] = ("patchcore", "gde")) -> list[Experiment]:
    """Each method on ImageNet's features and on those that `contrastive` fine-tunes for the same category and seed.

    The setting `weights` of the latter is a file that `save_fine_tuned` writes. It has no folder, so the file must be in one of
    ADCORE_WEIGHTS when the experiments run.
    """
    common: dict[str, Any] = {"profile": profile, "dataset": dataset}
    return [experiment for tuning in one_protocol(**common, categories=categories, seeds=seeds, methods=["contrastive"])
            for method in methods for weights in ("default", _tuned_file(tuning))
            for experiment in one_protocol(**common, categories=[tuning.category], seeds=[tuning.seed], methods=[method],
                                           settings={method: {"weights": weights}})]


def save_fine_tuned(folder: Path, *, profile: str = "open", dataset: str = "mini", categories: Sequence[str] = (),
                    seeds: Sequence[int] = (0,), out: str | Path | None = None, device: str = "auto") -> list[Path]:
    """Fine-tune the features of each category and seed by `contrastive` and save each backbone as a file in the folder, which
    should be one of ADCORE_WEIGHTS. A file that is there is not made again. Returns the files.

    Raises:
        AdcoreError: see `run`.
    """
    paths = []
    for tuning in one_protocol(profile=profile, dataset=dataset, categories=categories, seeds=seeds, methods=["contrastive"]):
        paths.append(folder / _tuned_file(tuning))
        if not paths[-1].is_file():
            detector: Any = fitted(tuning, out=out, device=device)
            with atomic(paths[-1]) as temporary:
                torch.save(detector.network.extractor.network.state_dict(), temporary)
    return paths


def _tuned_file(tuning: Experiment) -> str:
    return f"contrastive-{tuning.category}-{tuning.seed}-{tuning.key[:8]}.pth"


def name_with_features(experiment: Experiment) -> str:
    """'patchcore', or 'patchcore, fine-tuned' on features of `save_fine_tuned`."""
    tuned = str(dict(experiment.settings).get("weights", "")).startswith("contrastive-")
    return f"{experiment.method}, fine-tuned" if tuned else experiment.method


def put_on_record(name: str, experiments: Sequence[Experiment], out: str | Path | None = None,
                  folder: Path | None = None) -> list[str]:
    """Write what is stored of the experiments to results/NAME.csv and their scores to results/NAME_scores.npz:

        python -c "from adcore.papers.experiments import *; print(put_on_record('one_protocol', one_protocol(**REAL_IMAGES)))"

    Experiments that are not stored keep what the files have of them, so that another machine can add its seeds. Returns a line
    about each file.

    Raises:
        StoreError: none of the experiments is stored, a category has other images than before, or a file cannot be written.
    """
    folder = folder or (repository() or Path.cwd()) / "results"
    scores, path = gather(experiments, out, name_with_features), folder / f"{name}_scores.npz"
    if path.is_file() and (folder / f"{name}.csv").is_file():
        names = {one.key: name_with_features(one) for one in experiments}
        rows = next(record.frame for record in records(folder) if record.name == name)
        kept = {(names[row.key], row.category, row.seed) for row in rows.itertuples() if row.key in names}
        scores = with_earlier(scores, recorded_scores(name, folder), kept)
    return [export_results(to=folder / f"{name}.csv", out=out, only=experiments), save_scores(scores, path)]


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
