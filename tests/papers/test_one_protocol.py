"""The experiments of the notebooks that belong to no paper: one protocol, fine-tuned features, records."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adcore.errors import ParameterError
from adcore.experiments import grid, run
from adcore.experiments.intervals import recorded_scores
from adcore.experiments.record import records
from adcore.features import FeatureExtractor
from adcore.models import METHODS
from adcore.papers import experiments as listed
from adcore.papers.experiments import (
    PROTOCOL,
    fine_tuned_features,
    name_with_features,
    one_protocol,
    put_on_record,
    save_fine_tuned,
)

REAL = {"profile": "open", "dataset": "mini", "categories": ["brick", "gear"], "seeds": [0, 1]}


def test_every_method_is_compared_on_images_of_one_size_with_one_network_and_one_list_of_taps():
    experiments = one_protocol(**REAL)
    assert list(dict.fromkeys(one.method for one in experiments)) == list(PROTOCOL)
    assert set(PROTOCOL) == set(METHODS) - {"brightness"}
    configs = [one.config().values() for one in experiments]
    assert {config["image_size"] for config in configs} == {128}
    assert {config["backbone"] for config in configs if "backbone" in config} == {"efficientnet_lite0"}
    assert {tap for config in configs for tap in config.get("taps", (config.get("tap", 4),))} == {3, 4}
    assert {config["weights"] for config in configs if "weights" in config} == {"default"}


def test_a_method_runs_once_per_category_and_seed_and_a_pooled_one_once_per_seed():
    experiments = one_protocol(**REAL, methods=["uniad", "gde"], settings={"gde": {"tap": 3}})
    assert [(one.method, one.category, one.seed) for one in experiments] == [
        (method, category, seed) for seed in (0, 1) for method, category in
        (("uniad", "brick+gear"), ("gde", "brick"), ("gde", "gear"))]
    assert {one.config().tap for one in experiments if one.method == "gde"} == {3}
    with pytest.raises(ParameterError, match=r"methods=\['gde', 'padim'\]: 'padim' is not compared; there are patchcore, "):
        one_protocol(methods=["gde", "padim"])


def test_the_quick_profile_takes_the_methods_own_quick_settings_and_pretrains_on_one_category():
    for one in one_protocol():
        assert (one.profile, one.dataset, one.category) == ("quick", "mini", "brick")
        own = {**METHODS[one.method].quick, **({"pretraining": "category"} if METHODS[one.method].pretrains else {})}
        assert one.config() == METHODS[one.method].Config.make(own)


def test_each_detector_is_listed_on_untouched_features_and_on_a_file_of_its_own_for_each_category_and_seed():
    experiments = fine_tuned_features(**REAL)
    assert len(experiments) == 2 * 2 * 2 * 2
    files = {}
    for one in experiments:
        weights = one.config().weights
        assert one.config() == METHODS[one.method].Config.make({**METHODS[one.method].open, **PROTOCOL[one.method],
                                                                "weights": weights})
        assert name_with_features(one) == (one.method if weights == "default" else f"{one.method}, fine-tuned")
        if weights != "default":
            assert "/" not in weights and weights.startswith(f"contrastive-{one.category}-{one.seed}-")
            files.setdefault((one.category, one.seed), set()).add(weights)
    assert [len(names) for names in files.values()] == [1] * 4 and len(set().union(*files.values())) == 4


def test_fine_tuned_features_are_saved_and_used_and_put_on_record(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("adcore.experiments.experiment.load_dataset", lambda *_, **__: tiny)
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path / "weights"))
    short = {"contrastive": {"image_size": 64, "epochs": 1, "components": 2, "dim": 8, "lr": 1e-2}, "gde": {"image_size": 64}}
    monkeypatch.setattr(listed, "PROTOCOL", {name: {**PROTOCOL[name], **own} for name, own in short.items()})
    asked = {"profile": "open", "dataset": "tiny", "categories": ["cloth"]}
    (path,) = save_fine_tuned(tmp_path / "weights", **asked, out=tmp_path / "runs", device="cpu")
    before = path.stat().st_mtime_ns
    assert save_fine_tuned(tmp_path / "weights", **asked, out=tmp_path / "runs") == [path]
    assert path.stat().st_mtime_ns == before                                        # not made again

    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    (usual,), (tuned,) = (FeatureExtractor("efficientnet_lite0", (4,), weights)(image) for weights in ("default", path.name))
    assert not torch.allclose(usual, tuned, atol=1e-3)
    shallow = [FeatureExtractor("efficientnet_lite0", (2,), weights)(image)[0] for weights in ("default", path.name)]
    assert torch.equal(*shallow)                                                    # stages 3 and 4 are fine-tuned

    experiments = fine_tuned_features(**asked, methods=["gde"])
    run(experiments, out=tmp_path / "runs", device="cpu")
    lines = put_on_record("mine", experiments, tmp_path / "runs", tmp_path)
    assert lines[0].endswith("numbers of 2 experiments") and (tmp_path / "mine_scores.npz").is_file()
    text = (tmp_path / "mine.csv").read_text()
    assert f"weights={path.name}" in text and "weights=default" in text and str(tmp_path) not in text


def test_another_machine_adds_its_seeds_to_the_record(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("adcore.experiments.experiment.load_dataset", lambda *_, **__: tiny)
    first, second = (grid("gde", dataset="tiny", categories=["cloth"], seeds=[seed], backbone="efficientnet_lite0", tap=3,
                          image_size=64, patch=32, stride=16) for seed in (0, 1))
    for one, place in ((first, "here"), (second, "there")):
        run(one, out=tmp_path / place, device="cpu")
    put_on_record("mine", [*first, *second], tmp_path / "here", tmp_path)
    alone = recorded_scores("mine", tmp_path)["cloth"]
    put_on_record("mine", [*first, *second], tmp_path / "there", tmp_path)
    both = recorded_scores("mine", tmp_path)["cloth"]
    assert alone.seeds == (0,) and both.seeds == (0, 1) and np.array_equal(both.scores[:, 0], alone.scores[:, 0])
    rows = {record.name: record.frame for record in records(tmp_path)}["mine"]
    assert set(rows["seed"]) == {0, 1} and not np.isnan(both.scores).any()
    put_on_record("mine", second, tmp_path / "there", tmp_path)                 # what is no longer asked for is dropped
    rows = {record.name: record.frame for record in records(tmp_path)}["mine"]
    assert set(rows["seed"]) == {1} and recorded_scores("mine", tmp_path)["cloth"].seeds == (1,)
