"""Saved scores and maps are those that the detector predicts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from support.tiny import write_tiny

from adcore.data import read_images
from adcore.experiments import fitted, grid, save_predictions
from adcore.experiments.spreadsheet import guarded

SMALL = {"backbone": "resnet18", "taps": (1,), "weights": "random", "image_size": 64, "crop": None, "coreset": 40.0}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    write_tiny(tmp_path / "data" / "own", categories=("NA", "felt"), train=3)
    experiments = grid("patchcore", dataset="own", **SMALL) + grid("brightness", dataset="own", image_size=16)
    save_predictions(experiments, tmp_path / "saved", device="cpu")
    return experiments, tmp_path / "saved"


def test_scores_and_maps_are_those_of_the_detector(saved):
    experiments, folder = saved
    scores = pd.read_csv(folder / "scores.csv", keep_default_na=False)
    assert len(scores) == 2 * 2 * 6 and set(scores.category) == {"NA", "felt"}
    experiment = next(one for one in experiments if (one.method, one.category) == ("patchcore", "NA"))
    samples, detector = experiment.data().test, fitted(experiment, device="cpu")
    prediction = detector.predict(next(read_images(samples, detector.view)))
    own = scores[(scores.method == "patchcore") & (scores.category == "NA")].set_index("image").score
    assert [own[sample.name] for sample in samples] == pytest.approx(prediction.score.tolist(), rel=1e-6)
    with np.load(folder / "patchcore/seed_0/maps.npz") as maps:
        assert len(maps.files) == 12
        for sample, one in zip(samples, prediction.map.numpy(), strict=True):
            np.testing.assert_allclose(maps[f"NA/{sample.name}"], one, rtol=2e-3)


def test_no_name_in_the_scores_is_a_formula_and_numbers_stay_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    write_tiny(tmp_path / "data" / "own", categories=("=1+1",), train=2)
    table = save_predictions(grid("brightness", dataset="own", image_size=16), tmp_path / "saved", device="cpu", out=tmp_path)
    written = pd.read_csv(tmp_path / "saved" / "scores.csv")
    assert set(written.category) == {"'=1+1"} and set(table.category) == {"=1+1"}
    assert written.score.tolist() == pytest.approx(table.score.tolist())
    assert guarded(pd.DataFrame({"score": [-0.5]})).score.tolist() == [-0.5]


def test_pictures_share_one_scale_and_a_method_without_maps_has_none(saved):
    _, folder = saved
    pictures = sorted((folder / "patchcore/seed_0/felt").rglob("*.png"))
    assert len(pictures) == 6 and not (folder / "brightness").exists()
    brightest = {path.parent.name: [] for path in pictures}
    for path in pictures:
        image = np.asarray(Image.open(path).convert("L"))
        assert image.shape == (64, 64)
        brightest[path.parent.name].append(int(image.max()))
    assert max(brightest["blob"]) > max(brightest["good"])        # with a scale of its own, each would reach the top
