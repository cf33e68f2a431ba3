"""Run experiments: fit, predict, measure, store. A stored result is not computed again."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from adcore.data import Dataset, Sample, map_name, read_images, read_masks
from adcore.detector import Detector
from adcore.distributed import barrier, is_rank_zero, run_on_rank_zero, world_size
from adcore.experiments.experiment import Experiment
from adcore.experiments.provenance import Meter, fingerprint, origin
from adcore.experiments.store import Result, Store
from adcore.experiments.table import ResultTable
from adcore.features import images_digest
from adcore.files import one_at_a_time
from adcore.memory import kept_memory
from adcore.metrics import image_scores, pixel_scores
from adcore.progress import progress_bar
from adcore.training import resolve_device

KEPT_MAPS = 12  # anomaly maps stored per category, for figures


def run(experiments: Iterable[Experiment], *, out: str | Path | None = None, device: str = "auto",
        progress: bool | None = None) -> ResultTable:
    """Run the experiments whose results are missing, and return the table of all of them.

    A stored result that was made by other code is computed again in the quick profile. In the paper profile, where that may
    take days, it is kept and listed in the table's `stale`.

    When another process runs the same experiment, this one waits for it. Under torchrun all ranks train together, rank 0
    evaluates and stores, and every rank returns the table.

    Raises:
        AdcoreError: data or weights are missing or broken, a setting is unknown, or the store cannot be written.
    """
    store, on = Store(out), resolve_device(device)
    experiments = list(dict.fromkeys(experiments))
    results = []
    with progress_bar(total=len(experiments), desc="experiments", enabled=progress) as bar:
        for experiment in experiments:
            bar.set_postfix_str(experiment.title)
            results.append(_result(experiment, store, on, progress))
            bar.update()
    return ResultTable(results, store)


def _result(experiment: Experiment, store: Store, device: torch.device, progress: bool | None) -> Result:
    known = run_on_rank_zero(partial(_known, experiment, store))
    if known is None:
        with _alone(store.folder(experiment), experiment):
            known = run_on_rank_zero(partial(_known, experiment, store))  # another process may have finished it in the meantime
            return run_one(experiment, store, device, progress) if known is None else known
    return known


def _known(experiment: Experiment, store: Store) -> Result | None:
    result = store.load(experiment)
    return None if result and experiment.profile == "quick" and not result.made_by_this_code else result


@contextlib.contextmanager
def _alone(path: Path, experiment: Experiment) -> Iterator[None]:
    """A block that only one run at a time enters for this path. Under torchrun, rank 0 holds the lock and the other ranks
    enter after it."""
    def waiting() -> None:
        print(f"adcore: another process runs '{experiment.title}': waiting for it", file=sys.stderr)

    lock = path.with_name(f"{path.name}.lock")
    with one_at_a_time(lock, waiting) if is_rank_zero() else contextlib.nullcontext():
        barrier()
        yield


def run_one(experiment: Experiment, store: Store, device: torch.device, progress: bool | None = None) -> Result:
    """Run one experiment and store its result. A killed run resumes from its last checkpoint.

    Raises:
        AdcoreError: see `run`.
    """
    start = origin(device, experiment.method)
    dataset = experiment.data()
    checkpoint = store.folder(experiment) / "checkpoint"
    with Meter(device) as fitting:
        detector = _fit(experiment, dataset, device, checkpoint, progress)
    return run_on_rank_zero(partial(_tested, detector, experiment, dataset, store, start, fitting, world_size(), progress))


def _tested(detector: Detector, experiment: Experiment, dataset: Dataset, store: Store, start: dict[str, Any],
            fitting: Meter, processes: int, progress: bool | None) -> Result:
    device, checkpoint = fitting.device, store.folder(experiment) / "checkpoint"
    with Meter(device) as testing:
        scores, maps, measures = evaluate(detector, dataset, progress)
    made = {**start, "seconds": round(fitting.seconds + testing.seconds, 2), "fit_seconds": round(fitting.seconds, 2),
            "test_seconds": round(testing.seconds, 2), "peak_bytes": max(fitting.peak_bytes, testing.peak_bytes),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "weights_digest": detector.weights_digest,
            "data": images_digest([*dataset.train, *dataset.test]), "train_images": len(dataset.train),
            "test_images": len(dataset.test), "processes": processes}
    result = Result(experiment, tuple(measures), made)
    store.save(result, scores, maps)
    for path in checkpoint.parent.glob("checkpoint*"):  # one per part of a training
        path.unlink(missing_ok=True)
    return result


def fitted(experiment: Experiment, *, out: str | Path | None = None, device: str = "auto",
           progress: bool | None = None) -> Detector:
    """The fitted method of an experiment. `run` keeps its numbers, this function keeps the model.

    The last checkpoint is kept in the store under the code's fingerprint, so that the next call needs no training. When another
    process fits the same model, this one waits for it.

    Raises:
        AdcoreError: see `run`.
    """
    kept = Store(out).folder(experiment) / f"fitted-{fingerprint(experiment.method)[:8]}"
    with _alone(kept, experiment):
        return _fit(experiment, experiment.data(), resolve_device(device), kept, progress)


@kept_memory()
def _fit(experiment: Experiment, dataset: Dataset, device: torch.device, checkpoint: Path, progress: bool | None) -> Detector:
    detector = experiment.detector(device)
    if detector.pretrains:
        detector.pretrain(experiment.pretraining_images(), progress=progress)
    return detector.fit(dataset.train, checkpoint=checkpoint, progress=progress)


@kept_memory()
def evaluate(detector: Detector, dataset: Dataset, progress: bool | None = None,
             batch_size: int = 16) -> tuple[pd.DataFrame, dict[str, np.ndarray], list[dict[str, Any]]]:
    """Score the test images. Returns (scores with one row per image, some maps, measures of each category).

    Metrics are computed per category at the size of the method's view. Pixel metrics pool all pixels of a category's test
    images, normal images included. The table averages over categories.
    """
    rows: list[dict[str, Any]] = []
    kept: dict[str, np.ndarray] = {}
    measures: list[dict[str, Any]] = []
    for category in dataset.categories:
        samples = [sample for sample in dataset.test if sample.category == category]
        scores, maps = predict_all(detector, samples, progress, batch_size)
        rows += [{"category": category, "defect": sample.defect, "label": sample.label, "score": float(score),
                  "image": sample.name}
                 for sample, score in zip(samples, scores, strict=True)]
        values: dict[str, float | None] = {}
        image = image_scores([sample.label for sample in samples], scores)
        values |= {"image_auroc": image.auroc, "image_ap": image.ap}
        if maps is not None and dataset.has_masks:
            masks = [mask.numpy() for mask in read_masks(samples, detector.view) if mask is not None]
            pixel = pixel_scores(masks, maps)
            values |= {"pixel_auroc": pixel.auroc, "pixel_ap": pixel.ap, "aupro": pixel.aupro}
        values |= detector.diagnose(samples)
        measures += [{"category": category, "metric": metric, "value": value} for metric, value in values.items()]
        if maps is not None:
            for i in np.unique(np.linspace(0, len(samples) - 1, KEPT_MAPS).round().astype(int)):
                kept[map_name(samples[i])] = maps[i].astype(np.float16)
    return pd.DataFrame(rows), kept, measures


@kept_memory()
def predict_all(detector: Detector, samples: list[Sample], progress: bool | None = None,
                batch_size: int = 16) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (n,) and maps (n, H, W), or None for a method without maps."""
    scores, maps = [], []
    with progress_bar(total=len(samples), desc="predict", enabled=progress) as bar:
        for images in read_images(samples, detector.view, batch_size):
            prediction = detector.predict(images)
            scores.append(prediction.score.float().cpu().numpy())
            if prediction.map is not None:
                maps.append(prediction.map.float().cpu().numpy())
            bar.update(len(images))
    return np.concatenate(scores), np.concatenate(maps) if maps else None
