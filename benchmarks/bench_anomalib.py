"""Time whole methods beside anomalib's, the library that a user would pick: from image files to the last metric.

    pip install 'adcore[bench]'
    ADCORE_DATA=... python benchmarks/bench_anomalib.py --rounds 3

PatchCore (Wide ResNet-50, layers 2 and 3, 256 to 224 pixels; 1 and 10 per cent of the patches) and FastFlow (ResNet-18, three
layers, 256 pixels, 20 epochs) on categories of MVTec AD. Both sides read the same files, have the same weights and measure
image AUROC, pixel AUROC and AUPRO. The weights are random and drawn from one seed, so that nothing has to be downloaded: they
cost the same time as ImageNet's, and the scores are low on both sides. Each run is a process of its own with empty caches; the
two take turns. Medians go to whole.csv.

PatchCore has the settings that both have: patches of 1536 numbers, distances that are not squared, and the largest of them as
the score of the image (anomalib's default weights it by the nine nearest patches). anomalib's scores are measured as they are,
without its normalization by a validation set, which cuts off the extremes.

Both libraries start the coreset at random, adcore from a seed. How much that matters is in the column "five starts": the lowest
and the highest image AUROC of adcore with five seeds, on the same features (`--starts` measures this alone).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from side_by_side import DiffersError, kept, machine, status_of, write_rows

from adcore.experiments import Experiment, grid
from adcore.experiments.evaluation import evaluate
from adcore.experiments.provenance import Meter, commit
from adcore.features import FeatureExtractor

SCORES = ("image_auroc", "pixel_auroc", "aupro")
COLUMNS = ["case", "way", "seconds", "fit_s", "test_s", "peak_gb", "times faster", *SCORES, "rounds", "machine", "commit",
           "five starts"]
DATASET = "mvtec_384"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "patchcore {}, 1 %": ("patchcore", {"coreset": 0.01, "embed_dim": 0, "squared": False}),
    "patchcore {}, 10 %": ("patchcore", {"coreset": 0.1, "embed_dim": 0, "squared": False}),
    "fastflow {}, 20 epochs": ("fastflow", {"backbone": "resnet18", "epochs": 20}),
}
WAYS = ("anomalib", "adcore")


def experiment(case: str, category: str, epochs: int | None) -> Experiment:
    method, settings = CASES[case]
    settings = settings if epochs is None or "epochs" not in settings else {**settings, "epochs": epochs}
    (one,) = grid(method, dataset=DATASET, categories=[category], profile="paper", weights="random", **settings)
    return one


def by_adcore(one: Experiment) -> dict[str, float]:
    """Seconds, peak memory and scores of one run in this process."""
    dataset = one.data()
    with Meter(CPU) as fitting:
        detector = one.detector(CPU).fit(dataset.train, progress=False)
    with Meter(CPU) as testing:
        measures = evaluate(detector, dataset, progress=False)[2]
    return seconds_of(fitting, testing) | {m["metric"]: 100 * m["value"] for m in measures if m["metric"] in SCORES}


def by_start(one: Experiment) -> dict[str, float]:
    """The lowest and the highest image AUROC of one run in this process with five starts of the coreset."""
    dataset, found = one.data(), []
    detector = one.detector(CPU)
    for detector.seed in range(5):                                  # the weights have been drawn before, from seed 0
        measures = evaluate(detector.fit(dataset.train, progress=False), dataset, progress=False)[2]
        found += [100 * m["value"] for m in measures if m["metric"] == "image_auroc"]
    return {"low": min(found), "high": max(found)}


def by_anomalib(one: Experiment) -> dict[str, float]:
    """The same with anomalib's models, data module, engine and metrics."""
    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from anomalib.metrics import AUPRO, AUROC, Evaluator
    from anomalib.models import Fastflow, Patchcore
    config: Any = one.config()

    class Raw(AUROC):
        """Of the scores as they are: torchmetrics puts scores outside [0, 1] through a sigmoid, after which many are equal."""

        def update(self, batch: Any) -> None:
            scores, labels = (getattr(batch, name) for name in self.fields)
            super().update(SimpleNamespace(**dict(zip(self.fields, ((scores + 1) / 2**20, labels), strict=True))))

    pixels = {"fields": ["anomaly_map", "gt_mask"], "prefix": "pixel_"}
    metrics = [Raw(fields=["pred_score", "gt_label"], prefix="image_"), Raw(**pixels), AUPRO(**pixels)]
    parts = {"backbone": config.backbone, "pre_trained": False, "visualizer": False, "post_processor": False,
             "evaluator": Evaluator(test_metrics=metrics)}
    root = one.data().train[0].path.parents[3]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = MVTecAD(root=root, category=one.category, num_workers=0, val_split_mode="none")
        if one.method == "patchcore":
            model: Any = Patchcore(layers=[f"layer{tap}" for tap in config.taps], coreset_sampling_ratio=config.coreset,
                                   num_neighbors=config.neighbors,
                                   pre_processor=Patchcore.configure_pre_processor((256, 256), (224, 224)), **parts)
            epochs, extractor = 1, model.model.feature_extractor.feature_extractor
        else:
            model = Fastflow(pre_processor=Fastflow.configure_pre_processor((256, 256)), **parts)
            epochs, extractor = config.epochs, model.model.feature_extractor
        weights = FeatureExtractor(config.backbone, config.taps, "random").network.state_dict()
        found = extractor.load_state_dict(weights, strict=False)
        if len(found.missing_keys) > 2:
            raise DiffersError(f"anomalib's {config.backbone} has other tensors, such as {found.missing_keys[0]}")
        engine = Engine(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, enable_progress_bar=False,
                        enable_model_summary=False, limit_val_batches=0)
        with Meter(CPU) as fitting:
            engine.fit(model=model, datamodule=data)
        with Meter(CPU) as testing:
            (measured,) = engine.test(model=model, datamodule=data, verbose=False)
    scores = dict(zip(SCORES, ("image_Raw", "pixel_Raw", "pixel_AUPRO"), strict=True))
    return seconds_of(fitting, testing) | {ours: 100 * float(measured[theirs]) for ours, theirs in scores.items()}


def seconds_of(fitting: Meter, testing: Meter) -> dict[str, float]:
    return {"seconds": fitting.seconds + testing.seconds, "fit_s": fitting.seconds, "test_s": testing.seconds,
            "peak_gb": max(fitting.peak_bytes, testing.peak_bytes) / 2**30}


CPU = torch.device("cpu")
RUNS = {"anomalib": by_anomalib, "adcore": by_adcore, "starts": by_start}


def alone(case: str, category: str, way: str, epochs: int | None) -> dict[str, float]:
    """One run in a separate process, with empty caches.

    Raises:
        DiffersError: the run failed; the message ends with its last line.
    """
    words = [sys.executable, __file__, "--case", case, "--category", category, "--way", way]
    words += [] if epochs is None else ["--epochs", str(epochs)]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "ADCORE_CACHE": cache})
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise DiffersError(f"{case.format(category)}, {way}: {said[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows(name: str, runs: dict[str, list[dict[str, float]]]) -> list[list[str]]:
    """One row of the csv per way, with medians."""
    middle = {way: {key: statistics.median(run[key] for run in found) for key in found[0]} for way, found in runs.items()}
    return [[name, way, *(f"{one[key]:.1f}" for key in ("seconds", "fit_s", "test_s")), f"{one['peak_gb']:.2f}",
             f"{middle[WAYS[0]]['seconds'] / one['seconds']:.1f}", *(f"{one[score]:.2f}" for score in SCORES),
             str(len(runs[way])), machine(), commit(), ""] for way, one in middle.items()]


def with_starts(path: Path, name: str, found: dict[str, float]) -> list[list[str]]:
    """All rows of the csv; adcore's row of the case has the scores of five starts."""
    span = f"{found['low']:.1f} to {found['high']:.1f}"
    return [[*row[:-1], span] if row[:2] == [name, "adcore"] else row for row in kept(path, [], COLUMNS)]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="only these; the csv keeps the rows of the others")
    parser.add_argument("--categories", nargs="+", default=["bottle", "grid"])
    parser.add_argument("--epochs", type=int, help="fewer epochs of FastFlow, for a try")
    parser.add_argument("--starts", action="store_true", help="only the scores of five starts, into the rows that are there")
    parser.add_argument("--case", help="print one run of this case as JSON and end; with --category and --way")
    parser.add_argument("--category")
    parser.add_argument("--way", choices=RUNS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("whole.csv"))
    asked = parser.parse_args(words)
    if asked.case:
        one = experiment(asked.case, asked.category, asked.epochs)
        with contextlib.redirect_stdout(sys.stderr):       # anomalib prints
            found = RUNS[asked.way](one)
        print(json.dumps(found))
        return 0
    if not asked.starts and importlib.util.find_spec("anomalib") is None:
        print("this benchmark needs anomalib: pip install 'adcore[bench]'", file=sys.stderr)
        return 2
    for case, category in itertools.product(asked.cases, asked.categories):
        name = case.format(category)
        if asked.starts:
            rows_now = with_starts(asked.out, name, alone(case, category, "starts", asked.epochs))
        else:
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _, way in itertools.product(range(asked.rounds), WAYS):
                runs[way].append(alone(case, category, way, asked.epochs))
                print(f"{name}, {way}: {', '.join(f'{key} {value:.2f}' for key, value in runs[way][-1].items())}", flush=True)
            rows_now = [*kept(asked.out, [name], COLUMNS), *rows(name, runs)]
        write_rows(asked.out, COLUMNS, rows_now)
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
