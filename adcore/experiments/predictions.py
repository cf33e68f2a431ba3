"""Scores and anomaly maps of all test images as files, for work outside adcore."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd

from adcore.data import map_name
from adcore.experiments.evaluation import predict_all
from adcore.experiments.experiment import Experiment
from adcore.experiments.runner import fitted
from adcore.experiments.spreadsheet import guarded
from adcore.files import atomic, write_text


def save_predictions(experiments: Iterable[Experiment], to: str | Path, *, out: str | Path | None = None,
                     device: str = "auto", progress: bool | None = None) -> pd.DataFrame:
    """Score all test images of the experiments and write the scores and maps to a folder; returns the scores.

        scores.csv                                   method, seed, category, defect, label, score and name of each test image
        METHOD/seed_0/maps.npz                       the maps as numbers, by 'category/folder/file': (H, W) float16
        METHOD/seed_0/CATEGORY/FOLDER/FILE.png       the maps as pictures; one color scale per method, seed and category

    Maps have the size of the method's view. A model that `fitted` has kept is not trained again.

    out  the results store; None for the usual one

    Raises:
        AdcoreError: see `run`.
    """
    to = Path(to)
    rows: list[dict[str, object]] = []
    maps: dict[str, dict[str, np.ndarray]] = {}
    for experiment in experiments:
        detector, dataset = fitted(experiment, out=out, device=device, progress=progress), experiment.data()
        folder = f"{experiment.method}/seed_{experiment.seed}"
        for category in dataset.categories:
            samples = [sample for sample in dataset.test if sample.category == category]
            scores, found = predict_all(detector, samples, progress)
            rows += [{"method": experiment.method, "seed": experiment.seed, "category": category, "defect": sample.defect,
                      "label": sample.label, "score": float(score), "image": sample.name}
                     for sample, score in zip(samples, scores, strict=True)]
            if found is None:
                continue
            low, high = np.percentile(found, [1, 100])
            for sample, one in zip(samples, found, strict=True):
                maps.setdefault(folder, {})[map_name(sample)] = one.astype(np.float16)
                name = map_name(sample)
                with atomic(to / folder / (name if name.endswith(".png") else f"{name}.png")) as picture:
                    matplotlib.image.imsave(picture, one, vmin=low, vmax=high, cmap="inferno", format="png")
    for folder, named in maps.items():
        with atomic(to / folder / "maps.npz") as path:
            np.savez_compressed(path, **named)  # type: ignore[arg-type]
    table = pd.DataFrame(rows, columns=["method", "seed", "category", "defect", "label", "score", "image"])
    write_text(to / "scores.csv", guarded(table).to_csv(index=False))
    return table
