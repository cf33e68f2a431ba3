"""The numbers that `evaluate` gives and a result's seconds and memory, against libraries and a count by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from support.tiny import result, write_tiny

from adcore.data import View, load_dataset, read_images, read_masks
from adcore.detector import Config, Detector, Prediction
from adcore.experiments import Experiment, ResultTable, Store, evaluate, run, runner
from adcore.experiments.comparison import compare_results
from adcore.metrics import aupro
from adcore.models import METHODS
from adcore.papers import published


class Bluish(Detector):
    """Scores that separate the images imperfectly, so that no two metrics agree."""

    name: ClassVar[str] = "bluish"
    paper: ClassVar[str] = ""
    Config: ClassVar[type[Any]] = Config

    @property
    def view(self) -> View:
        return View(32)

    def fit(self, samples, *, checkpoint=None, progress=None):
        return self

    def _predict(self, images):
        maps = images[:, 2] - images[:, 0] + 0.3 * torch.sin(40 * images[:, 1])
        return Prediction(torch.sin(300 * images.mean((1, 2, 3))), maps)

    def diagnose(self, samples):
        return {"images": float(len(samples))}


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setitem(METHODS, "bluish", Bluish)
    write_tiny(tmp_path / "own", good=9, blobs=8, categories=("cloth", "felt"))


def test_every_metric_of_a_category_is_what_scikit_learn_and_our_own_loop_say(own):
    data, detector = load_dataset("own"), Bluish(object())
    scores, _, measures = evaluate(detector, data)
    for category in ("cloth", "felt"):
        samples = [sample for sample in data.test if sample.category == category]
        labels = [sample.label for sample in samples]
        prediction = detector.predict(next(read_images(samples, detector.view, batch_size=100)))
        masks = np.stack([mask.numpy() for mask in read_masks(samples, detector.view)])
        maps, image = prediction.map.numpy(), prediction.score.numpy()
        expected = {"image_auroc": roc_auc_score(labels, image), "image_ap": average_precision_score(labels, image),
                    "pixel_auroc": roc_auc_score(masks.ravel(), maps.ravel()),
                    "pixel_ap": average_precision_score(masks.ravel(), maps.ravel()), "aupro": aupro(masks, maps),
                    "images": 17.0}
        assert len({round(value, 4) for value in expected.values()}) == 6, "the metrics can be told apart"
        found = {one["metric"]: one["value"] for one in measures if one["category"] == category}
        assert found == pytest.approx(expected, abs=1e-6)
        rows = scores[scores.category == category]
        assert rows.label.tolist() == labels and rows.score.to_numpy() == pytest.approx(image, abs=1e-6)


def test_seconds_are_added_and_memory_is_the_larger_of_fitting_and_testing(own, monkeypatch):
    meters = iter([SimpleNamespace(seconds=2.0, peak_bytes=5), SimpleNamespace(seconds=1.5, peak_bytes=9),
                   SimpleNamespace(seconds=1.0, peak_bytes=7), SimpleNamespace(seconds=0.5, peak_bytes=3)])

    class Meter:
        def __init__(self, device: Any) -> None:
            self.device, measured = device, next(meters)
            self.seconds, self.peak_bytes = measured.seconds, measured.peak_bytes

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(runner, "Meter", Meter)
    found = [run([Experiment("bluish", "own", category)], device="cpu").results[0].provenance for category in ("cloth", "felt")]
    assert [(one["fit_seconds"], one["test_seconds"], one["seconds"], one["peak_bytes"]) for one in found] == [
        (2.0, 1.5, 3.5, 9), (1.0, 0.5, 1.5, 7)]


def test_the_deviation_over_seeds_divides_by_one_less_than_their_number():
    cells = published("uniad2022.table_s6")
    cell = cells[cells["unit"] == "%"].iloc[0]
    settings = {name: value for name, value in cell["match"].items() if name != "category"}
    results = [result({("bottle", cell["metric"]): value}, seed=seed, **settings)
               for seed, value in enumerate((0.90, 0.93, 0.99))]
    table = ResultTable(results, Store("/nowhere"))
    expected = np.std([90, 93, 99], ddof=1)                        # 4.58; divided by three it would be 3.74
    assert table.mean_std([cell["metric"]])["std"].item() == pytest.approx(expected)
    frame = compare_results("uniad2022.table_s6", table).frame
    row = frame[(frame["row"] == cell["row"]) & (frame["column"] == cell["column"])].iloc[0]
    assert (row["measured"], row["std"], row["seeds"]) == (94.0, pytest.approx(expected, abs=1e-4), 3)
