"""Files are read once: an image in a fit and in a test, a mask in a test. Maps stay on disk."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.tiny import write_tiny

from adcore.data import load_dataset, pixels
from adcore.experiments.evaluation import evaluate, predict_all
from adcore.models import METHODS

SMALL = {"patchcore": {"taps": (1, 2), "crop": None, "coreset": 40.0}, "fastflow": {"taps": (3,), "steps": 2, "epochs": 2},
         "uniad": {"taps": (2, 3), "hidden": 16, "heads": 2, "ffn": 16, "neighbors": 1, "epochs": 2}}


@pytest.mark.parametrize("name", SMALL)
def test_each_image_is_decoded_once_in_a_fit_and_in_a_test_and_each_mask_once(tmp_path, monkeypatch, name):
    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "cache"))
    dataset, read, decode = load_dataset(write_tiny(tmp_path / "own", categories=("cloth",))), Counter(), pixels.decode

    def counted(path: Path) -> pixels.Decoded:
        read[path] += 1
        return decode(path)

    monkeypatch.setattr(pixels, "decode", counted)
    method = METHODS[name]
    config = method.Config(**{**SMALL[name], "backbone": "resnet18", "weights": "random", "image_size": 64})
    detector = method(config).fit(dataset.train, progress=False)
    assert read == Counter(sample.path for sample in dataset.train)
    read.clear()
    monkeypatch.setattr(method, "diagnose", lambda self, samples: {})       # looks at a few images of its own choice again
    evaluate(detector, dataset, progress=False)
    assert read == Counter([*(sample.path for sample in dataset.test), *(file for s in dataset.test for file in s.mask_files)])
    scores, maps = predict_all(detector, dataset.test, False)
    assert isinstance(maps, np.memmap) and maps.shape == (len(scores), 64, 64)         # on disk
