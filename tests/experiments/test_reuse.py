"""A stored result, a fitted model and an interrupted training are used again only on the images, labels, masks and weights that
they were made with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support.tiny import write_tiny

from adcore import training
from adcore.errors import StoreError
from adcore.experiments import Experiment, Result, ResultTable, fitted, grid, run, runner

SMALL = {"backbone": "resnet18", "taps": (1,), "weights": "random", "image_size": 64, "crop": None, "coreset": 40.0}


@pytest.fixture
def own(tmp_path, monkeypatch) -> Path:
    """A data set `own` of two categories."""
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ADCORE_AGAIN", raising=False)
    return write_tiny(tmp_path / "data" / "own", categories=("cloth", "felt"), train=3)


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """Titles of the experiments that are run, not taken from the store."""
    titles: list[str] = []
    plain = runner.run_one

    def counted(experiment: Experiment, *more: object) -> object:
        titles.append(experiment.title)
        return plain(experiment, *more)

    monkeypatch.setattr(runner, "run_one", counted)
    return titles


def patchcore(profile: str = "quick", **settings: object) -> ResultTable:
    return run(grid("patchcore", dataset="own", categories="cloth", profile=profile, **{**SMALL, **settings}), device="cpu")


def values(table: ResultTable) -> dict[str, float]:
    return dict(zip(table.frame["metric"], table.frame["value"], strict=True))


def paint(path: Path, level: int) -> None:
    noise = np.random.default_rng(level).integers(0, 60, (64, 64, 3)) + level
    Image.fromarray(noise.astype(np.uint8)).save(path)


def mask(path: Path) -> None:
    marked = np.zeros((64, 64), np.uint8)
    marked[40:, :30] = 255
    Image.fromarray(marked).save(path)


CHANGES: dict[str, Callable[[Path], object]] = {
    "test images": lambda part: paint(part / "test/good/000.png", 150),
    "test images of an old time": lambda part: (paint(part / "test/good/000.png", 150),
                                                os.utime(part / "test/good/000.png", (0, 0))),
    "masks": lambda part: mask(part / "ground_truth/blob/000_mask.png"),
    "training images": lambda part: paint(part / "train/good/new.png", 5),
    "fewer training images": lambda part: (part / "train/good/000.png").unlink(),
    "labels": lambda part: shutil.move(part / "test/blob/000.png", part / "test/good/moved.png"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_after_a_change_of_the_data_the_same_command_gives_the_numbers_of_a_new_store(own, measured, change, monkeypatch):
    before = values(patchcore())
    change(own / "cloth")
    after = values(patchcore())
    assert len(measured) == 2
    monkeypatch.setenv("ADCORE_RUNS", str(own.parent / "other_runs"))
    assert after == values(patchcore()) and after != before


def test_another_category_a_copy_elsewhere_and_new_times_measure_nothing_again(own, measured, monkeypatch):
    before = values(patchcore())
    paint(own / "felt/test/good/000.png", 150)
    for path in (own / "cloth").rglob("*.png"):
        os.utime(path, (0, 0))
    assert values(patchcore()) == before
    shutil.copytree(own, own.parents[1] / "elsewhere" / "own")
    monkeypatch.setenv("ADCORE_DATA", str(own.parents[1] / "elsewhere"))
    assert values(patchcore()) == before and len(measured) == 1


def test_another_data_set_of_the_same_name_is_measured_anew(own, measured, monkeypatch):
    before = values(patchcore())
    other = write_tiny(own.parents[1] / "elsewhere" / "own", train=5)
    paint(other / "cloth/test/good/000.png", 150)
    monkeypatch.setenv("ADCORE_DATA", str(own.parents[1] / "elsewhere"))
    table = patchcore()
    assert len(measured) == 2 and table.results[0].provenance["train_images"] == 5 and values(table) != before


def test_another_checkpoint_at_the_same_path_is_measured_anew(own, tmp_path, measured):
    digests = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "net.pth")
        digests.append(patchcore(weights=str(tmp_path / "net.pth")).results[0].provenance["weights"])
    assert len(measured) == 2 and len(set(digests)) == 2


def test_the_paper_profile_names_what_has_changed_and_measures_only_when_asked_to(own, measured):
    before = patchcore("paper")
    mask(own / "cloth/ground_truth/blob/000_mask.png")
    paint(own / "cloth/train/good/000.png", 99)
    with pytest.raises(StoreError, match=r"patchcore own cloth seed 0 .* other masks and training images.*--again"):
        patchcore("paper")
    folder = before.store.folder(before.results[0].experiment)
    assert len(measured) == 1 and before.store.load(before.results[0].experiment) == before.results[0]
    after = run([before.results[0].experiment], device="cpu", again=True)
    assert len(measured) == 2 and values(after) != values(before)
    assert all((folder / f"{name}.replaced-1").is_file() for name in ("result.json", "scores.csv", "maps.npz"))
    assert values(patchcore("paper")) == values(after) and len(measured) == 2


def test_a_refusal_comes_before_any_experiment_is_run(own, measured):
    patchcore("paper")
    paint(own / "cloth/test/good/000.png", 99)
    experiments = grid("patchcore", dataset="own", categories=["felt", "cloth"], profile="paper", **SMALL)
    with pytest.raises(StoreError, match="other test images"):
        run(experiments, device="cpu")
    assert len(measured) == 1


def test_without_the_data_a_stored_result_is_used_and_marked(own, measured, monkeypatch):
    before = patchcore("paper")
    shutil.rmtree(own)
    table = run([before.results[0].experiment], device="cpu")
    assert values(table) == values(before) and len(measured) == 1
    assert table.unchecked == [before.results[0].experiment.title] and "not compared with today's data" in table.settings_line()
    assert before.unchecked == []


def test_a_fitted_model_is_kept_for_other_test_images_and_fitted_again_for_other_training_images(own, monkeypatch):
    settings = {"image_size": 64, "epochs": 2, "hidden": 16, "heads": 2, "ffn": 16, "neighbors": 1, "encoder_layers": 1,
                "decoder_layers": 1, "backbone": "resnet18", "weights": "random", "taps": (1,)}
    (experiment,) = grid("uniad", dataset="own", categories="cloth", **settings)
    epochs: list[int] = []
    plain = training._epoch
    monkeypatch.setattr(training, "_epoch", lambda *given: epochs.append(1) or plain(*given))
    first = fitted(experiment, device="cpu")
    paint(own / "cloth/test/good/000.png", 150)
    second = fitted(experiment, device="cpu")
    assert len(epochs) == 2 and all(map(torch.equal, first.network.parameters(), second.network.parameters()))
    paint(own / "cloth/train/good/000.png", 150)
    third = fitted(experiment, device="cpu")
    assert len(epochs) == 4 and not torch.equal(next(first.network.parameters()), next(third.network.parameters()))


def test_an_interrupted_training_does_not_go_on_with_other_images_and_says_so(own, monkeypatch, capsys):
    settings = {"image_size": 64, "epochs": 3, "hidden": 16, "heads": 2, "ffn": 16, "neighbors": 1, "encoder_layers": 1,
                "decoder_layers": 1, "backbone": "resnet18", "weights": "random", "taps": (1,)}
    experiments = grid("uniad", dataset="own", categories="cloth", **settings)
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    plain, epochs = training._epoch, []

    def killed(*given: object) -> float:
        epochs.append(1)
        if len(epochs) == 3:
            raise KeyboardInterrupt
        return plain(*given)

    monkeypatch.setattr(training, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        run(experiments, device="cpu")
    paint(own / "cloth/train/good/000.png", 150)
    assert "starts again" not in capsys.readouterr().err
    after = run(experiments, device="cpu")
    assert len(epochs) == 3 + 3                                    # all three epochs again
    assert "was interrupted with other code, images or weights: its training starts again" in capsys.readouterr().err
    assert values(after) == values(run(experiments, device="cpu", out=own.parent / "other_runs"))
    assert not list(after.store.folder(experiments[0]).glob("checkpoint*"))


def test_a_result_of_an_older_version_is_compared_by_the_digest_of_its_images(own, measured):
    made = patchcore("paper")
    (result,) = made.results
    older = Result(result.experiment, result.measures, {k: v for k, v in result.provenance.items() if k != "inputs"})
    made.store.save(older, made.scores()[["category", "defect", "label", "score", "image"]], made.maps())
    assert values(patchcore("paper")) == values(made) and len(measured) == 1
    paint(own / "cloth/test/good/000.png", 99)
    with pytest.raises(StoreError, match="was measured with other images: put them back"):
        patchcore("paper")
