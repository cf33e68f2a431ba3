"""The brightness check: compared with arithmetic, and on images that differ only in brightness."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pytest import approx

from adcore.errors import AdcoreError
from adcore.experiments.evaluation import evaluate
from adcore.papers.heckler2023.brightness import Brightness


def test_the_score_is_the_distance_of_the_mean_from_the_training_images_mean(tiny):
    detector = Brightness().fit(tiny.train)
    small = [sample.image.resize((128, 128), Image.Resampling.BILINEAR) for sample in tiny.train]
    means = [float(np.asarray(image).mean() / 255) for image in small]
    assert detector.mean == approx(np.mean(means), abs=1e-6)
    images = torch.rand(3, 3, 128, 128)
    prediction = detector.predict(images)
    assert prediction.score.tolist() == approx([abs(float(image.mean()) - np.mean(means)) for image in images], abs=1e-6)
    assert prediction.map is None


def test_normal_images_that_are_darker_than_the_training_images_score_as_anomalies(tiny, tmp_path):
    dark, test = tmp_path / "dark.png", []
    for sample in tiny.test:
        if not sample.label:
            Image.fromarray((np.asarray(sample.image) * 0.4).astype(np.uint8)).save(dark.with_stem(f"dark{len(test)}"))
            sample = replace(sample, path=dark.with_stem(f"dark{len(test)}"))
        test.append(sample)
    detector = Brightness().fit(tiny.train)
    _, maps, measures = evaluate(detector, replace(tiny, test=test), progress=False)
    assert maps == {} and next(m["value"] for m in measures if m["metric"] == "image_auroc") == 0.0


def test_predict_before_fit_is_refused():
    with pytest.raises(AdcoreError, match=r"^Brightness has no mean yet: call fit before predict$"):
        Brightness().predict(torch.rand(1, 3, 8, 8))
