"""On a data set that lacks normal images, defects or masks, what is defined is measured and the rest is empty with a reason."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score
from support.tiny import write_tiny

from adcore.data import load_dataset, read_masks
from adcore.errors import ParameterError
from adcore.experiments import Experiment, ResultTable, fitted, grid, load_results, predict_all, run
from adcore.experiments.record import export_results

SMALL = {"backbone": "resnet18", "taps": (1,), "weights": "random", "image_size": 64, "crop": None, "coreset": 40.0}
IMAGE, PIXEL = {"image_auroc", "image_ap"}, {"pixel_auroc", "pixel_ap", "aupro"}


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    return write_tiny(tmp_path / "data" / "own", categories=("cloth", "felt"), train=3)


def measure(method: str = "patchcore", **settings: object) -> ResultTable:
    return run(grid(method, dataset="own", **{**SMALL, **settings}), device="cpu")


def empty(table: ResultTable, category: str) -> dict[str, str]:
    """Metric without a value -> reason."""
    frame = table.frame[(table.frame.category == category) & table.frame.value.isna()]
    return dict(zip(frame.metric, frame.why, strict=True))


def marks(folder: Path, *, whole: bool = False, pixel: bool = False) -> None:
    """Replace the masks of a folder: by empty ones, by full ones, or by ones that mark a single pixel."""
    for path in folder.glob("*_mask.png"):
        mask = np.full((64, 64), 255 * whole, np.uint8)
        mask[33, 33] = 255 * (whole or pixel)
        Image.fromarray(mask).save(path)


@pytest.mark.parametrize(("gone", "without", "reason"), [
    ("test/blob", IMAGE | PIXEL, "no anomalous test image"), ("test/good", IMAGE, "no normal test image"),
    ("test", IMAGE | PIXEL, "no test image"), ("train/good", IMAGE | PIXEL, "no training image")])
def test_a_category_that_lacks_images_is_empty_with_a_reason_and_the_others_go_on(own, capsys, gone, without, reason):
    for path in (own / "cloth" / gone).rglob("*.png"):
        path.unlink()
    table = measure()
    assert empty(table, "cloth") == dict.fromkeys(without, reason) and empty(table, "felt") == {}
    assert re.search(r"^adcore: data set 'own': .*no .* in 1 category: cloth", capsys.readouterr().err, re.MULTILINE)
    assert f"{reason} in cloth: image_auroc, image_ap" in table.settings_line() and f"{reason} in cloth" in table._repr_html_()
    stored = load_results()
    assert set(stored.loc[stored.value.isna(), "why"]) == {reason}
    felt = table.frame[(table.frame.category == "felt") & (table.frame.metric == "image_auroc")].value.item()
    assert table.value("image_auroc") == felt                      # the mean is over the categories that have a value


def test_pooled_methods_train_on_the_categories_that_have_images(own):
    for path in (own / "cloth" / "test").rglob("*.png"):
        path.unlink()
    settings = {"epochs": 1, "hidden": 16, "heads": 2, "ffn": 16, "neighbors": 1, "encoder_layers": 1, "decoder_layers": 1,
                "backbone": "resnet18", "weights": "random", "taps": (1,), "image_size": 64}
    table = run(grid("uniad", dataset="own", **settings), device="cpu")
    assert set(empty(table, "cloth").values()) == {"no test image"} and not IMAGE & set(empty(table, "felt"))


def test_masks_that_mark_nothing_leave_the_image_metrics(own):
    marks(own / "cloth/ground_truth/blob")
    assert set(empty(measure(), "cloth").values()) == {"no mask marks a pixel at 64x64"}


def test_masks_that_vanish_at_the_size_of_the_view_leave_the_image_metrics(own):
    marks(own / "cloth/ground_truth/blob", pixel=True)
    table = measure(image_size=32)                                 # keeps pixels 1, 3, 5, ... or 0, 2, 4, ...
    masks = [mask for mask in read_masks(load_dataset("own", ["cloth"]).test, fitted(table.results[0].experiment).view)
             if mask is not None]
    expected = PIXEL if not any(mask.any() for mask in masks) else set()
    assert set(empty(table, "cloth")) == expected


def test_masks_that_mark_everything_leave_the_image_metrics(own):
    marks(own / "cloth/ground_truth/blob", whole=True)
    shutil.rmtree(own / "cloth/test/good")
    assert empty(measure(), "cloth") == {**dict.fromkeys(IMAGE, "no normal test image"),
                                         **dict.fromkeys(PIXEL, "the masks mark every pixel")}


def test_without_masks_there_are_image_metrics_and_the_pixel_metrics_are_empty(own):
    for category in ("cloth", "felt"):
        shutil.rmtree(own / category / "ground_truth")
    table = measure()
    assert empty(table, "cloth") == empty(table, "felt") == dict.fromkeys(PIXEL, "no masks")
    assert table.settings_line().endswith("no masks: pixel_auroc, pixel_ap, aupro")      # in every category
    assert set(table.mean_std().reset_index().metric) == {"image_auroc"} and "pixel_auroc</th>" not in table._repr_html_()
    assert set(export_results().splitlines()[0].split(",")) >= {"metric", "value"} and "pixel_auroc" not in export_results()


def test_an_anomalous_image_without_a_mask_counts_for_images_and_not_for_pixels(own):
    (own / "cloth/ground_truth/blob/001_mask.png").unlink()
    table = measure()
    frame = table.frame[table.frame.category == "cloth"].set_index("metric")
    assert set(frame.loc[sorted(PIXEL), "why"]) == {"1 of 3 anomalous test images without a mask"}
    assert frame.loc["image_auroc", "why"] == ""
    samples = load_dataset("own", ["cloth"]).test
    detector = fitted(next(r.experiment for r in table.results if r.experiment.category == "cloth"), device="cpu")
    _, maps = predict_all(detector, samples)
    masks = read_masks(samples, detector.view)
    pairs = [(mask.numpy().ravel(), one.ravel()) for mask, one in zip(masks, maps, strict=True) if mask is not None]
    assert len(pairs) == len(samples) - 1
    by_sklearn = roc_auc_score(np.concatenate([mask for mask, _ in pairs]), np.concatenate([one for _, one in pairs]))
    assert frame.loc["pixel_auroc", "value"] == pytest.approx(by_sklearn, abs=1e-9)


def test_an_experiment_whose_images_do_not_serve_does_not_stop_the_others(own):
    shutil.rmtree(own / "cloth/test/blob")                         # DevNet learns from some of the anomalies
    settings = {"epochs": 1, "steps": 1, "anomalies": 1, "backbone": "resnet18", "weights": "random", "image_size": 64}
    with pytest.raises(ParameterError, match=r"it has 0 such test images.*devnet own cloth .*; 1 of 2 experiments are stored"):
        run(grid("devnet", dataset="own", categories=["cloth", "felt"], **settings), device="cpu")
    assert set(load_results().category) == {"felt"}


def test_categories_and_defects_called_na_or_by_a_number_stay_text(own):
    (own / "cloth").rename(own / "NA")
    (own / "felt").rename(own / "01")
    for category in ("NA", "01"):
        (own / category / "test/blob").rename(own / category / "test/null")
        (own / category / "ground_truth/blob").rename(own / category / "ground_truth/null")
    table = measure()
    scores = table.scores()
    assert set(scores.category) == {"NA", "01"} and set(scores.defect) == {"good", "null"}
    assert set(load_results().category) == {"NA", "01"} and list(table.by_category().index) == ["01", "NA"]


def test_plus_and_colon_in_the_names_of_folders_are_part_of_the_names(own):
    (own / "cloth").rename(own / "a+b")
    own.rename(own.with_name("x:y"))
    names = {text: {(sample.dataset, sample.category) for sample in Experiment(
        "ds2", "mini", "brick", settings=(("pretraining", text),)).pretraining_images()}
        for text in ("x:y", "x:y:felt", "x:y:a+b", "x:y:a+b+felt", "mini:gear+chip")}
    cloth, felt = ("x:y", "a+b"), ("x:y", "felt")
    assert names == {"x:y": {cloth, felt}, "x:y:felt": {felt}, "x:y:a+b": {cloth}, "x:y:a+b+felt": {cloth, felt},
                     "mini:gear+chip": {("mini", "gear"), ("mini", "chip")}}
