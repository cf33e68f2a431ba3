"""Score test images and measure how well the scores separate normal from anomalous.

What a data set does not let us measure stays empty with a reason: an AUROC needs both classes, pixel metrics need masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from adcore.data import Dataset, Sample, map_name, read_images
from adcore.data.transforms import masks_of
from adcore.detector import Detector
from adcore.files import on_disk
from adcore.memory import kept_memory
from adcore.metrics import image_scores, pixel_scores
from adcore.progress import progress_bar

KEPT_MAPS = 12  # anomaly maps stored per category, for figures
IMAGE_METRICS = ("image_auroc", "image_ap")
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "aupro")
NO_MASKS = "no masks"


def _image_gap(samples: Sequence[Sample]) -> str:
    """Why image metrics are undefined, '' if they are defined."""
    labels = {sample.label for sample in samples}
    if labels == {0, 1}:
        return ""
    return f"no {'normal' if 1 in labels else 'anomalous'} test image" if labels else "no test image"


def _mask_gap(samples: Sequence[Sample]) -> str:
    """How many anomalous images have no mask, '' if all have one or there are none."""
    anomalous = [sample for sample in samples if sample.label]
    without = sum(not sample.mask_files for sample in anomalous)
    if anomalous and without == len(anomalous):
        return NO_MASKS
    return f"{without} of {len(anomalous)} anomalous test images without a mask" if without else ""


@kept_memory()
def evaluate(detector: Detector, dataset: Dataset, progress: bool | None = None,
             batch_size: int = 16) -> tuple[pd.DataFrame, dict[str, np.ndarray], list[dict[str, Any]]]:
    """Score the test images. Returns (scores with one row per image, some maps, measures of each category).

    Metrics are computed per category at the size of the method's view. Pixel metrics pool all pixels of a category's test
    images, normal images included, anomalous images without a mask left out. The table averages over categories.

    A measure is a dictionary of category, metric, value and `why`: the reason why the value is None, or what it leaves out.
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
        measured = _image_measures(samples, scores)
        if maps is not None or not samples:
            measured |= _pixel_measures(detector, samples, maps)
        measured |= {name: (value, "") for name, value in (detector.diagnose(samples) if samples else {}).items()}
        measures += [{"category": category, "metric": metric, "value": value, "why": why}
                     for metric, (value, why) in measured.items()]
        if maps is not None:
            for i in np.unique(np.linspace(0, len(samples) - 1, KEPT_MAPS).round().astype(int)):
                kept[map_name(samples[i])] = maps[i].astype(np.float16)
    return scores_table(rows), kept, measures


def scores_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per test image; also with no row it has its columns."""
    return pd.DataFrame(rows, columns=["category", "defect", "label", "score", "image"])


def unmeasured(dataset: Dataset, why: str) -> list[dict[str, Any]]:
    """The measures of a data set on which nothing could be fitted: all metrics empty, for one reason."""
    return [{"category": category, "metric": metric, "value": None, "why": why}
            for category in dataset.categories for metric in (*IMAGE_METRICS, *PIXEL_METRICS)]


Measured = dict[str, tuple[float | None, str]]  # metric -> value and reason


def _image_measures(samples: Sequence[Sample], scores: np.ndarray) -> Measured:
    if why := _image_gap(samples):
        return dict.fromkeys(IMAGE_METRICS, (None, why))
    image = image_scores([sample.label for sample in samples], scores)
    return {"image_auroc": (image.auroc, ""), "image_ap": (image.ap, "")}


def _pixel_measures(detector: Detector, samples: Sequence[Sample], maps: np.ndarray | None) -> Measured:
    known: list[int] = []                                                       # samples whose mask is known

    def found() -> Iterator[np.ndarray]:
        for i, mask in enumerate(masks_of(samples, detector.view)):
            if mask is not None:
                known.append(i)
                yield mask[None].numpy()

    marked = on_disk(found())
    why = _mask_gap(samples)
    if not any(sample.label for sample in samples):
        why = _image_gap(samples)
    elif why != NO_MASKS and not any(mask.any() for mask in marked):
        why = f"no mask marks a pixel at {'x'.join(map(str, detector.view.shape))}"
    elif why != NO_MASKS and all(mask.all() for mask in marked):
        why = "the masks mark every pixel"
    elif why != NO_MASKS and maps is not None:
        pixel = pixel_scores(marked, [maps[i] for i in known])
        return {"pixel_auroc": (pixel.auroc, why), "pixel_ap": (pixel.ap, why), "aupro": (pixel.aupro, why)}
    return dict.fromkeys(PIXEL_METRICS, (None, why))


@kept_memory()
def predict_all(detector: Detector, samples: Sequence[Sample], progress: bool | None = None,
                batch_size: int = 16) -> tuple[np.ndarray, np.ndarray | None]:
    """Scores (n,) and maps (n, H, W) on disk, or None for a method without maps."""
    scores = np.zeros(len(samples), np.float32)
    done = 0

    def maps() -> Iterator[np.ndarray]:
        nonlocal done
        with progress_bar(total=len(samples), desc="predict", enabled=progress) as bar:
            for images in read_images(samples, detector.view, batch_size):
                prediction = detector.predict(images)
                scores[done:done + len(images)] = prediction.score.float().cpu().numpy()
                done += len(images)
                bar.update(len(images))
                if prediction.map is not None:
                    yield prediction.map.float().cpu().numpy()

    found = on_disk(maps())
    return scores, found if len(found) else None
