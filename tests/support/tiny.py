"""Helpers of the tests of detectors and experiments: a tiny data set in MVTec layout, one backbone, hand-made results."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from adcore.experiments import Experiment, Result
from adcore.experiments.provenance import fingerprint
from adcore.features import FeatureExtractor

# Building a backbone takes longer than most tests. It is frozen, so all detectors of a test run can use the same one.
shared_extractor = functools.lru_cache(FeatureExtractor)


def on_meta(backbone: str, taps: tuple[int | str, ...]) -> FeatureExtractor:
    """An extractor with shapes but without numbers: large networks are built in one second instead of ten."""
    with torch.device("meta"):
        return FeatureExtractor(backbone, taps, "random")


def texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise smoothed along rows, (side, side, 3) uint8."""
    noise = rng.normal(size=(side, side + 4))
    stripes = sum(noise[:, i:side + i] for i in range(5)) / 5
    return np.clip(120 + 40 * stripes[..., None] + np.array([8, 0, -8]), 0, 255).astype(np.uint8)


def write_tiny(root: Path, *, side: int = 64, train: int = 6, good: int = 3, blobs: int = 3,
               categories: tuple[str, ...] = ("cloth",)) -> Path:
    """Write a data set in MVTec layout: striped noise, with a dark blob and its exact mask on the defective images."""
    for number, category in enumerate(categories):
        rng = np.random.default_rng(number)
        for folder, count in (("train/good", train), ("test/good", good), ("test/blob", blobs)):
            (root / category / folder).mkdir(parents=True)
            for i in range(count):
                image = texture(rng, side)
                if folder == "test/blob":
                    mask = np.zeros((side, side), bool)
                    top, left = rng.integers(side // 8, side // 2, 2)
                    mask[top:top + side // 4, left:left + side // 4] = True
                    image[mask] = (20, 20, 90)
                    masks = root / category / "ground_truth" / "blob"
                    masks.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{i:03}_mask.png")
                Image.fromarray(image).save(root / category / folder / f"{i:03}.png")
    return root


def result(values: Mapping[tuple[str, str], float], *, method: str = "uniad", dataset: str = "mvtec_ad", category: str = "all",
           seed: int = 0, profile: str = "paper", code: str | None = None, **settings: Any) -> Result:
    """A result written by hand.

    values  (category, metric) -> fraction
    code    fingerprint of the code; None for that of the current code, '' for none, as in a result from the record
    """
    experiment = Experiment(method, dataset, category, seed, profile, tuple(sorted(settings.items())))
    measures = tuple({"category": where, "metric": metric, "value": value} for (where, metric), value in values.items())
    origin = {"code": fingerprint(method) if code is None else code or None, "commit": "abc", "seconds": 1.0, "peak_bytes": 10,
              "device": "cpu", "machine": "m", "data": "d", "weights": "w", "finished": "2020-01-01T00:00:00Z"}
    return Result(experiment, measures, origin)
