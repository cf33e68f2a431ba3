"""DS2 and CutPaste as detectors: their encoders are pretrained once and kept in the cache."""

from __future__ import annotations

import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import result, write_tiny

from adcore.data import View, read_images
from adcore.data.mvtec import load_mvtec
from adcore.detector import Detector
from adcore.errors import AdcoreError, DataError, StoreError
from adcore.experiments import grid, run
from adcore.experiments.comparison import matching
from adcore.experiments.runner import fitted
from adcore.experiments.store import Store
from adcore.experiments.table import ResultTable
from adcore.features import FeatureExtractor
from adcore.models import METHODS
from adcore.papers.ds2 import cutpaste, ds2, encoder_cache
from adcore.papers.ds2.ds2 import DS2PretrainingConfig, pretrain
from adcore.papers.ds2.resnet_encoder import ResNetEncoder
from adcore.papers.ds2.views import standardized
from adcore.training import seeded

SMALL = {"image_size": 48, "stride": 16, "pretraining_size": 40}
OWN = {"ds2": {"view_size": 32, "hidden": 8, "dim": 8, "epochs": 2, "batch_size": 4, "warmup_epochs": 1, "lr": 16.0},
       "cutpaste": {"side": 32, "epochs": 2, "steps": 2, "batch_size": 4}}
KINDS = tuple(OWN)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A data set of two categories, whose folder ADCORE_DATA names."""
    root = write_tiny(tmp_path_factory.mktemp("data") / "two", categories=("cloth", "felt"))
    return load_mvtec(root, "two")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, two):
    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ADCORE_DATA", str(two.train[0].path.parents[4]))
    return tmp_path / "cache" / "encoders"


def detector(kind: str, seed: int = 0, **changes: object) -> Detector:
    return METHODS[kind](METHODS[kind].Config(**{**SMALL, **OWN[kind], **changes}), seed=seed)


@pytest.fixture
def trainings(monkeypatch):
    """Number of images of each training. Nothing is trained: weights are drawn from all that decides an encoder."""
    seen: list[int] = []

    def draw(config: object, images: torch.Tensor, *rest: object, seed: int, **named: object) -> SimpleNamespace:
        seen.append(len(images))
        with seeded(zlib.crc32(repr((config, images.shape, seed)).encode())):
            return SimpleNamespace(encoder=ResNetEncoder(zero_residual=False), losses=[0.5, 0.25])

    monkeypatch.setattr(ds2, "pretrain", draw)
    monkeypatch.setattr(cutpaste, "pretrain_cutpaste", draw)
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_encoder_is_trained_once_for_all_categories(two, kind, trainings):
    for category in two.categories:
        one = detector(kind)
        one.pretrain(two.train)
        part = two.only(category)
        prediction = one.fit(part.train).predict(torch.cat(list(read_images(part.test, one.view))))
        assert prediction.map.shape == (6, 48, 48) and bool(torch.isfinite(prediction.map).all())
        own = one.diagnose(part.test)
        assert own["pretraining_loss"] == one.losses[-1] and 0 < own["sameness"] <= 1
    assert trainings == [12]
    assert one.losses == [0.5, 0.25]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_of_the_localization_reuse_an_encoder_and_settings_of_the_pretraining_do_not(two, kind, trainings):
    digests = []
    for change in ({}, {"stride": 8}, {"layout": "aligned"}, {"official_preprocessing": True}, {"epochs": 1}, {"seed": 1},
                   {"pretraining_size": 48}):
        one = detector(kind, **change)
        one.pretrain(two.train)
        digests.append(one.weights_digest)
    other = detector(kind)
    other.pretrain(two.train[:8])
    assert trainings == [12] * 4 + [8] and len(set(digests[:4])) == 1
    assert len({*digests, other.weights_digest}) == 5


def test_ds2_trains_as_pretrain_does_on_the_images_as_uint8(two):
    one = detector("ds2", seed=4)
    one.pretrain(two.train[:8])
    images = torch.cat([(batch * 255).round().byte() for batch in read_images(two.train[:8], View(40))])
    by_hand = pretrain(DS2PretrainingConfig(**OWN["ds2"]), images, seed=4, progress=False)
    for name, value in by_hand.encoder.state_dict().items():
        assert torch.equal(one.encoder.network.state_dict()[name], value), name
    assert one.losses == by_hand.losses


def test_an_encoder_s_file_is_a_resnet_18_that_a_feature_extractor_loads(two, trainings, own_cache):
    one = detector("ds2")
    one.pretrain(two.train)
    (path,) = own_cache.glob("*.pth")
    images = torch.rand(2, 3, 64, 64)
    extractor = FeatureExtractor("resnet18", (4,), str(path))
    assert torch.allclose(extractor(images)[0], one.encoder(standardized(images)), atol=1e-5)
    assert extractor.digest == one.weights_digest != ""


def test_other_code_trains_another_encoder(two, trainings, own_cache, monkeypatch):
    for digest in ("a", "b"):
        monkeypatch.setattr(encoder_cache, "paper_digest", lambda paper, digest=digest: digest)
        detector("ds2").pretrain(two.train)
    assert len(list(own_cache.glob("*.pth"))) == 2


def test_the_key_covers_the_code_of_the_paper_s_folder(two, trainings, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(encoder_cache, "paper_digest", lambda paper: seen.append(paper) or "a")
    detector("ds2").pretrain(two.train)
    assert set(seen) == {"ds2"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_pretraining_resumes_to_the_same_weights(two, kind, own_cache, monkeypatch):
    few = two.train[:4]
    whole = detector(kind)
    whole.pretrain(few)
    shutil.rmtree(own_cache)
    from adcore import training
    epoch, calls = training._epoch, []

    def power_cut(*arguments, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return epoch(*arguments, **named)

    monkeypatch.setattr(training, "_epoch", power_cut)
    save = training._save
    monkeypatch.setattr(training.time, "monotonic", iter(range(0, 10**6, 100)).__next__)   # each epoch is saved
    with pytest.raises(KeyboardInterrupt):
        detector(kind).pretrain(few)
    assert not list(own_cache.glob("*.pth")) and len(list(own_cache.glob("*.training"))) == 1
    monkeypatch.setattr(training, "_epoch", epoch)
    monkeypatch.setattr(training, "_save", save)
    again = detector(kind)
    again.pretrain(few)
    for name, value in whole.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], value), name
    assert not list(own_cache.glob("*.training"))


def test_a_longer_training_resumes_from_one_that_stopped_early(two, own_cache, monkeypatch):
    few = two.train[:4]
    from adcore import training
    epoch, ran = training._epoch, []
    monkeypatch.setattr(training, "_epoch", lambda *arguments: ran.append(1) or epoch(*arguments))
    uninterrupted = detector("ds2", epochs=3)
    uninterrupted.pretrain(few)
    shutil.rmtree(own_cache)
    ran.clear()
    for stop, expected in ((2, 2), (1, 1), (0, 1)):                      # the second is shorter and trains from scratch
        one = detector("ds2", epochs=3, stop_after=stop)
        one.pretrain(few)
        assert len(ran) == expected, stop
        ran.clear()
    for name, value in uninterrupted.encoder.state_dict().items():
        assert torch.equal(one.encoder.state_dict()[name], value), name


def test_two_threads_that_want_the_same_encoder_train_it_once(two, trainings):
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda one: one.pretrain(two.train), [detector("cutpaste") for _ in range(2)]))  # and raises
    assert trainings == [12]


def test_the_numbers_of_the_images_categories_reach_the_pretraining(two, monkeypatch):
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(ds2, "pretrain", lambda config, images, categories, **rest: seen.append(categories) or pretrain(
        config, images[:4], **rest))
    shuffled = (two.train[0], two.train[6], two.train[7], two.train[1])
    detector("ds2", epochs=1).pretrain(shuffled)
    assert [sample.category for sample in shuffled] == ["cloth", "felt", "felt", "cloth"] and seen[0].tolist() == [0, 1, 1, 0]


def test_other_categories_of_the_same_images_have_another_encoder(two):
    training = encoder_cache.EncoderTraining("ds2", {}, 40, 0)
    renamed = [replace(sample, category="thing") for sample in two.train]
    assert training.key(two.train) == training.key(two.train) != training.key(renamed)
    assert training.key(two.train) != replace(training, resample="bicubic").key(two.train)


@pytest.mark.parametrize(("kind", "name", "resample"), [("ds2", "pretrain", "bilinear"),
                                                        ("cutpaste", "pretrain_cutpaste", "bicubic")])
def test_images_of_the_pretraining_are_resized_bilinearly_for_ds2_and_bicubically_for_cutpaste(two, monkeypatch, kind, name,
                                                                                              resample):
    seen: list[torch.Tensor] = []

    def stop(config: object, images: torch.Tensor, *rest: object, **named: object) -> None:
        seen.append(images)
        raise KeyboardInterrupt

    monkeypatch.setattr({"ds2": ds2, "cutpaste": cutpaste}[kind], name, stop)
    with pytest.raises(KeyboardInterrupt):
        detector(kind).pretrain(two.train)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    by_hand = [np.asarray(sample.image.resize((40, 40), filters[resample])) for sample in two.train]
    assert np.array_equal(seen[0].permute(0, 2, 3, 1).numpy(), np.stack(by_hand)) and two.train[0].image.size != (40, 40)


def test_official_preprocessing_is_bgr_without_standardization_and_resized_by_opencv_s_rule():
    assert detector("ds2", official_preprocessing=True).view == View((48, 48), resample="opencv")
    assert detector("ds2", official_masks=True).view == View((48, 48), whole_masks=True)
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(detector("ds2", official_preprocessing=True).prepared(images), images[:, [2, 1, 0]])
    assert torch.equal(detector("ds2").prepared(images), standardized(images))


@pytest.mark.parametrize(("pretraining", "expected"), [("dataset", 12), ("category", 6), ("two:felt", 6), ("two", 12)])
def test_the_setting_pretraining_selects_the_images_of_the_pretraining(pretraining, expected, trainings, tmp_path):
    experiments = grid("cutpaste", dataset="two", categories=["cloth"], pretraining=pretraining, **SMALL, **OWN["cutpaste"])
    table = run(experiments, out=tmp_path / "runs")
    assert trainings == [expected]
    assert table.value("pixel_auroc") == table.value("pixel_auroc") and table.results[0].provenance["weights"]
    if pretraining == "two:felt":
        assert {sample.category for sample in experiments[0].pretraining_images()} == {"felt"}


def test_a_fitted_detector_and_a_result_share_the_encoder(trainings, tmp_path):
    (one,) = grid("cutpaste", dataset="two", categories=["felt"], **SMALL, **OWN["cutpaste"])
    kept = fitted(one, out=tmp_path / "runs", device="cpu")
    table = run([one], out=tmp_path / "runs", device="cpu")
    assert trainings == [12] and kept.weights_digest == table.results[0].provenance["weights"]


def test_methods_without_pretraining_are_given_no_images():
    (one,) = grid("patchcore", dataset="two", categories=["felt"])
    assert one.pretraining_images() == ()


def test_bad_input_gets_one_sentence(two, tmp_path):
    with pytest.raises(DataError, match="on normal images, and there is none"):
        detector("ds2").pretrain([])
    with pytest.raises(DataError, match=r"and blob/000.png is anomalous"):
        detector("ds2").pretrain([*two.train, next(sample for sample in two.test if sample.label)])
    with pytest.raises(AdcoreError, match="call pretrain before fit"):
        _ = detector("ds2").encoder
    broken = write_tiny(tmp_path / "broken")
    (broken / "cloth" / "train" / "good" / "001.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"001.png cannot be read as an image"):
        detector("ds2").pretrain(load_mvtec(broken, "broken").train)
    assert not list((tmp_path / "cache" / "encoders").glob("*.pth"))


def test_printed_means_are_over_the_objects_or_the_textures_of_mvtec_ad(tmp_path):
    values = {("bottle", "pixel_auroc"): 0.9, ("screw", "pixel_auroc"): 0.8, ("carpet", "pixel_auroc"): 0.5}
    table = ResultTable([result({cell: value}, method="ds2", category=cell[0], scales=("c4", "c5"))
                         for cell, value in values.items()], Store(tmp_path))
    found = {group: matching(table.frame, {"method": "ds2", "scales": "c4c5", "group": group}, "pixel_auroc").value.mean()
             for group in ("object", "texture", "all")}
    assert found == pytest.approx({"object": 0.85, "texture": 0.5, "all": 2.2 / 3})
    assert matching(table.frame, {"scales": "c5"}, "pixel_auroc").empty


def test_a_cache_that_cannot_be_written_is_named(two, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, where a folder should be")
    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(StoreError, match=r"cannot write .*cache.encoders.*ADCORE_CACHE"):
        detector("ds2").pretrain(two.train)
