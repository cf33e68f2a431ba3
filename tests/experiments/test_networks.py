"""Trained networks that come with the checkout: written by one command, and refused when they do not fit."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from adcore.errors import ParameterError, WeightsError
from adcore.experiments import Experiment, networks
from adcore.experiments.networks import NETWORKS, train_networks, trained
from adcore.paths import repository

SMALL = Experiment("mlp", "mini", "capsule", settings=(("epochs", 2), ("hidden", 16)))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one network, trained for two epochs."""
    monkeypatch.setattr(networks, "NETWORKS", {"mlp": SMALL})
    list(train_networks(out=tmp_path / "runs", device="cpu", progress=False, folder=tmp_path))
    return tmp_path


def test_a_trained_network_gives_the_numbers_beside_it(small: Path) -> None:
    detector, result = trained("mlp", device="cpu", folder=small)
    fresh = SMALL.detector("cpu")
    assert len(detector.losses) == 2
    assert not torch.equal(next(detector.network.parameters()), next(fresh.network.parameters()))
    scores = torch.cat([detector.predict(images).score for images in _test_images(detector)])
    labels = torch.tensor([sample.label for sample in SMALL.data().test])
    wins = (scores[labels == 1][:, None] > scores[labels == 0][None]).double()
    ties = (scores[labels == 1][:, None] == scores[labels == 0][None]).double()
    (auroc,) = (one["value"] for one in result.measures if one["metric"] == "image_auroc")
    assert float((wins + ties / 2).mean()) == pytest.approx(auroc, abs=1e-6)


def test_the_overview_has_the_numbers_in_percent_and_the_minutes(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "trained", partial(trained, folder=small))
    (row,) = networks.overview(["mlp"]).to_dict("records")
    _, result = trained("mlp", folder=small)
    (auroc,) = (one["value"] for one in result.measures if one["metric"] == "image_auroc")
    assert row["image AUROC"] == 100 * auroc and row["epochs"] == 2 and row["first loss"] > row["last loss"]
    assert row["minutes"] == result.provenance["seconds"] / 60


def _test_images(detector):
    from adcore.data import read_images
    return read_images(SMALL.data().test, detector.view)


def test_only_tensors_that_training_changed_are_in_the_file_and_in_half_precision(small: Path) -> None:
    from safetensors.torch import load_file
    stored = load_file(small / "mlp.safetensors")
    whole = SMALL.detector("cpu").network.state_dict()
    assert set(stored) <= set(whole)
    assert all(tensor.dtype == torch.float16 for tensor in stored.values() if tensor.is_floating_point())
    assert not any(torch.equal(tensor.float(), whole[name].half().float()) for name, tensor in stored.items())


@pytest.mark.parametrize("damage, sentence", [
    (lambda folder: (folder / "mlp.safetensors").unlink(), "cannot be read"),
    (lambda folder: (folder / "mlp.json").write_text("{}"), "damaged"),
    (lambda folder: (folder / "mlp.safetensors").write_bytes(b"other"), "damaged"),
])
def test_a_missing_or_damaged_file_is_refused_with_the_command(small: Path, damage, sentence: str) -> None:
    damage(small)
    with pytest.raises(WeightsError, match=f"{sentence}.*adcore checkpoints mlp"):
        trained("mlp", folder=small)


def test_a_network_of_another_version_of_its_method_is_refused(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adcore.models import MLP
    monkeypatch.setattr(MLP, "version", MLP.version + 1)
    with pytest.raises(WeightsError, match="another version of mlp"):
        trained("mlp", folder=small)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ParameterError, match="did you mean 'uniad'"):
        trained("unaid")


@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_of_the_checkout_loads_and_its_training_is_the_one_listed(name: str) -> None:
    detector, result = trained(name, device="cpu")
    assert result.experiment == NETWORKS[name]
    assert len(detector.losses) == detector.config.epochs
    assert result.provenance["commit"] and "+" not in result.provenance["commit"]


def test_the_networks_of_the_checkout_are_below_ten_megabytes_together() -> None:
    root = repository()
    assert root is not None
    files = list((root / "results" / "checkpoints").iterdir())
    assert {path.stem for path in files} == set(NETWORKS)
    assert sum(path.stat().st_size for path in files) < 10e6
    assert all(json.loads(path.read_text())["provenance"]["seconds"] > 0 for path in files if path.suffix == ".json")
