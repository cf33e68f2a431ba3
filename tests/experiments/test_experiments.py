"""Experiments from key to table: equal settings give one key, a result is computed once and stored completely."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from pytest import approx
from support.tiny import result, shared_extractor, write_tiny

import adcore
from adcore.data import View
from adcore.detector import Config, Detector, Prediction
from adcore.errors import ParameterError, StoreError
from adcore.experiments import (
    Experiment,
    Store,
    as_tuples,
    fitted,
    grid,
    load_results,
    provenance,
    run,
    runner,
    store,
)
from adcore.experiments.profiles import profile_settings
from adcore.experiments.record import export_results, records
from adcore.features import BACKBONES, images_digest
from adcore.models import METHODS, PatchCore, UniAD
from adcore.papers.heckler2023 import frozen
from adcore.papers.uniad2022 import reconstruction


@dataclass(frozen=True, kw_only=True)
class DarknessConfig(Config):
    image_size: int = 32
    power: float = 1.0
    bright: bool = False
    sizes: tuple[int, ...] = (1, 2)


class Darkness(Detector):
    """A method without training: dark pixels are anomalous."""

    name: ClassVar[str] = "darkness"
    paper: ClassVar[str] = "none"
    Config: ClassVar[type[Any]] = DarknessConfig
    quick: ClassVar[dict[str, Any]] = {"image_size": 16}
    fits: ClassVar[list[int]] = []

    @property
    def view(self) -> View:
        return View(self.config.image_size)

    def fit(self, samples, *, checkpoint=None, progress=None):
        self.fits.append(len(samples))
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text("a state")
        return self

    def _predict(self, images):
        plane = (1 - images.mean(1)) ** self.config.power
        return Prediction(plane.amax(dim=(1, 2)), plane)


@pytest.fixture
def fits(monkeypatch, tmp_path) -> list[int]:
    """Register the method above and a tiny data set; the list gets the number of images of each fit."""
    Darkness.fits.clear()
    monkeypatch.setitem(METHODS, "darkness", Darkness)
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    write_tiny(tmp_path / "data" / "tiny", categories=("cloth", "felt"), train=4)
    return Darkness.fits


ONE = {"method": "darkness", "dataset": "tiny", "category": "cloth"}


# --- keys ---------------------------------------------------------------------------------------------------------------

def test_keys_are_16_hexadecimal_digits_and_equal_in_another_process():
    experiments = [Experiment("uniad"), Experiment("patchcore", "mvtec_ad", "screw", 3, "paper", (("sigma", 2.0),)),
                   Experiment("uniad", settings=(("nma", False), ("taps", (1, 2))))]
    code = ("from adcore.experiments import Experiment as E; print(E('uniad').key, E('patchcore', 'mvtec_ad', 'screw', 3, "
            "'paper', (('sigma', 2.0),)).key, E('uniad', settings=(('taps', [1, 2]), ('nma', False))).key)")
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={"PYTHONHASHSEED": "17", "PATH": "", "HOME": "/nowhere"}, cwd=Path(adcore.__file__).parents[1])
    keys = [experiment.key for experiment in experiments]
    assert other.stdout.split() == keys
    assert len(set(keys)) == 3 and all(len(key) == 16 and int(key, 16) >= 0 for key in keys)


def test_every_field_and_setting_of_an_experiment_changes_its_key():
    base = Experiment("patchcore", "mvtec_ad", "screw", 0, "paper")
    others = [dataclasses.replace(base, **change) for change in (
        {"method": "uniad"}, {"dataset": "mtd"}, {"category": "wood"}, {"seed": 1}, {"profile": "quick"})]
    changed = {"backbone": "resnet18", "taps": (3,), "weights": "random", "image_size": 320, "crop": None, "embed_dim": 5,
               "coreset": 0.2, "projection": 64, "starts": 3, "neighbors": 2, "squared": False, "sigma": 1.5,
               "max_bank_bytes": 1}
    assert set(changed) == {field.name for field in dataclasses.fields(PatchCore.Config)}
    others += [dataclasses.replace(base, settings=((name, value),)) for name, value in changed.items()]
    assert len({experiment.key for experiment in [base, *others]}) == 1 + 5 + len(changed)


def test_the_version_of_a_method_changes_the_key(monkeypatch):
    before = Experiment("uniad").key
    monkeypatch.setattr(UniAD, "version", UniAD.version + 1)
    assert Experiment("uniad").key != before


def test_a_backbone_with_another_padding_changes_the_key(monkeypatch):
    experiment = Experiment("uniad", profile="paper")
    assert experiment.identity()["padded"] == 380 and "padded" not in Experiment("uniad").identity()
    before, b4 = experiment.key, BACKBONES["efficientnet_b4"]
    monkeypatch.setitem(BACKBONES, "efficientnet_b4", dataclasses.replace(b4, native=0))
    assert experiment.key != before


@pytest.mark.parametrize("settings", [
    (("nma", True),), (("taps", [1, 2, 3, 4]),), (("taps", (1, 2, 3, 4)), ("nma", True)),
    (("nma", True), ("taps", (1, 2, 3, 4))),
    (("jitter_scale", 20),), (("jitter_scale", 20.0),), (("epochs", 1000),)])
def test_settings_equal_to_the_defaults_do_not_change_the_key(settings):
    assert Experiment("uniad", profile="paper", settings=settings).key == Experiment("uniad", profile="paper").key
    quick = tuple(UniAD.quick.items())
    assert Experiment("uniad", settings=quick).key == Experiment("uniad").key != Experiment("uniad", profile="paper").key


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(ParameterError, match=r"unknown method 'unyad' \(did you mean 'uniad'\?\); there are uniad, mlp"):
        grid("unyad")
    with pytest.raises(ParameterError, match="unknown profile 'fast': use quick, open, paper"):
        grid(UniAD, profile="fast")
    with pytest.raises(ParameterError, match=r"UniADConfig has no setting 'epoch'; it has amp, backbone, .*, epochs"):
        grid(UniAD, epoch=3)
    with pytest.raises(ParameterError, match="unknown data set 'nowhere'"):
        grid(PatchCore, dataset="nowhere")


def test_the_quick_profile_only_changes_settings():
    paper, quick = Experiment("uniad", profile="paper").config(), Experiment("uniad", profile="quick").config()
    assert paper == UniAD.Config()
    assert quick == dataclasses.replace(paper, **UniAD.quick) and profile_settings(UniAD, "paper") == {}


# --- grids --------------------------------------------------------------------------------------------------------------

def test_a_list_from_the_command_line_is_one_value_and_not_a_sweep():
    settings = {"taps": [2, 3], "epochs": 1}
    (one,) = grid("patchcore", categories="brick", **as_tuples({"taps": [2, 3]}))
    assert one.config().taps == (2, 3) and as_tuples(settings) == {"taps": (2, 3), "epochs": 1}
    with pytest.raises(ParameterError, match="taps takes"):
        grid("patchcore", categories="brick", taps=[2, 3])                     # a sweep over two taps, which are not tuples


def test_a_grid_of_a_pooled_method_has_one_experiment_per_combination_and_seed():
    experiments = grid(UniAD, nma=[False, True], jitter=[False, True], lr=2e-3, seeds=[0, 1, 2])
    assert len(experiments) == 2 * 2 * 3 == len({experiment.key for experiment in experiments})
    assert {experiment.category for experiment in experiments} == {"all"}
    assert all(dict(experiment.settings)["lr"] == 2e-3 for experiment in experiments)


def test_a_method_with_one_model_per_category_gets_one_experiment_per_category(fits):
    experiments = grid("darkness", dataset="tiny", power=[1.0, 2.0], seeds=[0, 1])
    assert len(experiments) == 2 * 2 * 2
    assert [e.category for e in grid("darkness", dataset="tiny", categories="all")] == ["cloth", "felt"]
    assert [e.category for e in grid("darkness", dataset="tiny", categories=["felt"])] == ["felt"]
    assert [e.category for e in grid(UniAD, categories=["brick", "gear"])] == ["brick+gear"]
    assert [e.category for e in grid(UniAD, categories="all")] == ["all"]


def test_a_tuple_is_one_setting_and_a_list_of_tuples_is_a_sweep():
    assert len(grid(UniAD, taps=(1, 2))) == 1
    assert [dict(e.settings)["taps"] for e in grid(UniAD, taps=[(1, 2), (3,)])] == [(1, 2), (3,)]


def test_categories_joined_by_plus_are_loaded_together(fits):
    assert Experiment(**{**ONE, "category": "felt+cloth"}).data().categories == ("felt", "cloth")
    assert Experiment(**{**ONE, "category": "all"}).data().categories == ("cloth", "felt")


# --- running ------------------------------------------------------------------------------------------------------------

def test_a_second_run_computes_nothing_and_gives_the_same_table(fits):
    experiments = grid("darkness", dataset="tiny", power=[1.0, 2.0])
    first = run(experiments, device="cpu")
    assert fits == [4] * 4
    again = run([*experiments, *experiments], device="cpu")
    assert fits == [4] * 4
    pd.testing.assert_frame_equal(first.frame, again.frame)
    run(grid("darkness", dataset="tiny", power=3.0, categories=["cloth"]), device="cpu")
    assert fits == [4] * 5


def test_the_metrics_are_those_of_scikit_learn_on_the_stored_scores_and_the_maps(fits):
    from sklearn.metrics import roc_auc_score

    table = run([Experiment(**ONE)], device="cpu")
    scores = Store().scores(Experiment(**ONE))
    assert len(scores) == 6 and list(scores.columns) == ["category", "defect", "label", "score", "image"]
    assert table.value("image_auroc") == approx(roc_auc_score(scores["label"], scores["score"]))
    samples, view = Experiment(**ONE).data().test, View(16)
    planes = [1 - view.image(sample.image).mean(0).numpy() for sample in samples]
    masks = [view.mask(sample.mask).numpy() for sample in samples]
    assert table.value("pixel_auroc") == approx(roc_auc_score(np.ravel(masks), np.ravel(planes)))
    assert scores["score"].to_numpy() == approx([plane.max() for plane in planes], abs=1e-6)
    assert set(table.frame.metric) == {"image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro"}


def test_a_result_has_all_its_files_and_no_checkpoint(fits):
    experiment = Experiment(**ONE)
    run([experiment], device="cpu")
    folder = Store().folder(experiment)
    assert folder.parts[-2:] == ("darkness", experiment.key)
    assert sorted(path.name for path in folder.iterdir()) == ["maps.npz", "params.yaml", "result.json", "scores.csv"]
    written = yaml.safe_load((folder / "params.yaml").read_text())
    assert written["config"] == {"image_size": 16, "power": 1.0, "bright": False, "sizes": [1, 2]}
    assert written["seed"] == 0 and written["dataset"] == "tiny"
    maps = Store().maps(experiment)
    assert len(maps) == 6 and "cloth/blob/000.png" in maps and maps["cloth/blob/000.png"].shape == (16, 16)
    json.loads((folder / "result.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not valid JSON"))


def test_the_provenance_has_versions_code_data_weights_device_and_time(fits, monkeypatch):
    monkeypatch.setattr(frozen, "FeatureExtractor", shared_extractor)
    experiment = Experiment("patchcore", "tiny", "cloth", settings=(("image_size", 64), ("coreset", 50)))
    origin = run([experiment], device="cpu").results[0].provenance
    data = experiment.data()
    assert origin["versions"]["torch"] == torch.__version__ and origin["versions"]["adcore"] == adcore.__version__
    assert origin["commit"] == provenance.commit() and origin["code"] == provenance.fingerprint("patchcore")
    assert origin["device"] == "cpu" and origin["machine"]
    assert origin["data"] == images_digest([*data.train, *data.test])
    assert origin["weights"] == experiment.detector().weights_digest != ""
    assert (origin["train_images"], origin["test_images"]) == (4, 6)
    assert origin["seconds"] == approx(origin["fit_seconds"] + origin["test_seconds"], abs=0.02) and origin["seconds"] > 0
    assert 10**7 < origin["peak_bytes"] < 10**11 and origin["finished"].endswith("Z")


def test_a_result_with_weights_whose_checksum_is_not_known_says_so(fits, monkeypatch):
    monkeypatch.setattr(frozen, "FeatureExtractor", shared_extractor)
    monkeypatch.setattr("adcore.features.weights.unverified", lambda row: "unverified")
    table = run([Experiment("patchcore", "tiny", "cloth", settings=(("image_size", 64), ("coreset", 50)))], device="cpu")
    assert table.results[0].provenance["weights"].endswith(" (unverified)")
    assert set(table.frame["weights_digest"]) == {table.results[0].provenance["weights"]}


@pytest.mark.parametrize(("profile", "fitted"), [("quick", 2), ("paper", 1)])
def test_a_result_of_older_code_is_computed_again_in_quick_but_kept_and_marked_in_paper(fits, monkeypatch, profile, fitted):
    experiment = Experiment(**ONE, profile=profile)
    assert run([experiment], device="cpu").stale == []
    monkeypatch.setattr(store, "fingerprint", lambda method: "newer")
    monkeypatch.setattr("adcore.experiments.runner.origin",
                        lambda *known: {**provenance.origin(*known), "code": "newer"})
    table = run([experiment], device="cpu")
    assert len(fits) == fitted
    assert table.stale == ([] if profile == "quick" else [experiment.title])
    assert ("1 result made by older code" in table.summary()) is (profile == "paper")


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"digest": 1}', "value"])
def test_a_damaged_result_is_set_aside_and_computed_again(fits, capsys, damage):
    experiment = Experiment(**ONE)
    table = run([experiment], device="cpu")
    path = Store().folder(experiment) / "result.json"
    whole = path.read_text()
    path.write_text(re.sub(r'"value": [0-9.]+', '"value": 0.123', whole, count=1) if damage == "value" else damage)
    again = run([experiment], device="cpu")
    assert len(fits) == 2 and again.value("aupro") == table.value("aupro")
    assert path.with_name("result.json.corrupt-1").is_file() and Store().load(experiment) is not None
    message = capsys.readouterr().err
    assert f"{path} is damaged" in message and f"set it aside, '{experiment.title}' runs again" in message
    assert len(message.splitlines()) == 1


def test_a_damaged_result_is_left_out_of_the_table_with_a_message(fits, capsys):
    experiments = grid("darkness", dataset="tiny")
    run(experiments, device="cpu")
    (Store().folder(experiments[0]) / "result.json").write_text("{}")
    assert set(load_results()["category"]) == {"felt"}
    assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["=1+1", "+1", "-0.5", "@SUM(A1)", "\t=1", "'=1+1", "'quoted'"])
def test_a_name_that_a_spreadsheet_would_compute_is_exported_with_an_apostrophe_and_read_back_without(tmp_path, name):
    made = result({(name, "image_auroc"): 0.5}, dataset="digits", category=name, score="mean")
    Store(tmp_path).save(made, pd.DataFrame(), {})
    (tmp_path / "results").mkdir()
    export_results(to=tmp_path / "results" / "digits.csv", out=tmp_path)
    written = pd.read_csv(tmp_path / "results" / "digits.csv", dtype=str)
    assert written.category.tolist() == [name if name == "'quoted'" else f"'{name}"] and written.value.tolist() == ["0.500000"]
    assert [record.frame.category.tolist() for record in records(tmp_path / "results")] == [[name]]


@pytest.mark.parametrize("name", ["01234", "NA", "null", "1e5"])
def test_a_category_that_looks_like_a_number_or_a_missing_value_stays_text(tmp_path, name):
    made = result({(name, "image_auroc"): 0.5}, dataset="digits", category=name, score="mean")
    row = {"category": name, "defect": "good", "label": 0, "score": 1.0, "image": "a/0"}
    Store(tmp_path).save(made, pd.DataFrame([row]), {})
    assert Store(tmp_path).scores(made.experiment).category.tolist() == [name]
    (tmp_path / "results").mkdir()
    export_results(to=tmp_path / "results" / "digits.csv", out=tmp_path)
    assert [record.frame.category.tolist() for record in records(tmp_path / "results")] == [[name]]


@pytest.mark.parametrize("dies_in", ["write_text", "atomic", "sealed"])
def test_a_run_killed_while_it_stores_leaves_no_result_and_runs_again(fits, monkeypatch, dies_in):
    experiment = Experiment(**ONE)

    def dies(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, dies_in, dies)
        with pytest.raises(KeyboardInterrupt):
            run([experiment], device="cpu")
    folder = Store().folder(experiment)
    assert not (folder / "result.json").exists() and Store().load(experiment) is None
    assert list(folder.glob("checkpoint*"))          # the training is not lost
    run([experiment], device="cpu")
    assert len(fits) == 2 and not list(folder.glob("checkpoint*"))


def test_a_store_that_cannot_be_written_raises_one_sentence(fits, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write .*file.*--out, ADCORE_RUNS"):
        Store(tmp_path / "file").save(result({("all", "image_auroc"): 0.5}), pd.DataFrame(), {})


def test_load_results_returns_one_row_per_number(fits):
    run(grid("darkness", dataset="tiny", power=[1.0, 2.0]), device="cpu")
    frame = load_results()
    assert len(frame) == 2 * 2 * 5 and not frame.duplicated(["power", "category", "metric"]).any()
    assert {"method", "dataset", "category", "seed", "profile", "power", "metric", "value", "commit", "seconds", "key",
            "peak_bytes", "device", "weights_digest", "data"} <= set(frame.columns)
    assert frame["value"].between(0, 1).all() and set(frame["image_size"]) == {16}


def test_results_of_an_older_version_of_a_method_are_not_used(fits, monkeypatch, capsys):
    run([Experiment(**ONE)], device="cpu")
    monkeypatch.setattr(Darkness, "version", 2)
    assert load_results().empty and "older" in capsys.readouterr().err
    run([Experiment(**ONE)], device="cpu")
    assert len(fits) == 2 and len(load_results()) == 5


def test_an_export_contains_the_stored_numbers_in_a_fixed_order(fits, tmp_path):
    run(grid("darkness", dataset="tiny", seeds=[1, 0]), device="cpu")
    message = export_results(to=tmp_path / "out.csv")
    frame = pd.read_csv(tmp_path / "out.csv")
    assert message.endswith("out.csv: 20 numbers of 4 experiments") and len(frame) == 20
    assert frame[["category", "seed", "metric"]].equals(frame[["category", "seed", "metric"]].sort_values(
        ["category", "seed", "metric"], kind="stable"))
    stored = load_results().set_index(["category", "seed", "metric"])["value"]
    assert frame.set_index(["category", "seed", "metric"])["value"].to_dict() == approx(stored.to_dict(), abs=1e-6)
    with pytest.raises(StoreError, match="the store has no result with dataset=elsewhere and profile=any"):
        export_results(dataset="elsewhere")


def test_a_fitted_detector_gives_the_measured_numbers_and_is_fitted_once(fits, monkeypatch, tmp_path):
    monkeypatch.setattr(reconstruction, "FeatureExtractor", shared_extractor)
    experiment = Experiment("uniad", "tiny", "cloth", settings=tuple(sorted({
        "image_size": 64, "hidden": 16, "epochs": 2, "neighbors": 3, "heads": 2, "ffn": 16}.items())))
    table = run([experiment])
    detector = fitted(experiment)
    _, _, measures = runner.evaluate(detector, experiment.data())
    assert [m["value"] for m in measures] == approx(list(table.frame["value"]))
    monkeypatch.setattr(UniAD, "loss", None)      # a second training would call it
    assert torch.equal(fitted(experiment).network.expand.weight, detector.network.expand.weight)
