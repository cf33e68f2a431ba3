"""scikit-learn's digits as ten classes, some of them normal."""

from __future__ import annotations

import gzip
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sklearn.datasets
import torch

from adcore import cli
from adcore.data import Dataset, PackedSample, Sample, View, load_dataset
from adcore.data.classes import SPLITS
from adcore.data.digits import digits_folder, load_digits, read_digits
from adcore.detector import Detector, Prediction
from adcore.errors import DataError
from adcore.experiments.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("nothing_here")

@pytest.mark.parametrize("normal", SPLITS)
def test_digits_are_those_of_scikit_learn_and_70_percent_of_each_class_are_for_training(normal):
    data, reference = load_dataset("digits", normal), sklearn.datasets.load_digits()
    counts = np.bincount(reference.target)
    assert len(reference.target) == 1797
    train = Counter(int(reference.target[number_of(s)]) for s in data.train)
    assert train == {k: counts[k] * 7 // 10 for k in map(int, normal)}
    normal_test = sum(counts[int(k)] - train[int(k)] for k in normal)
    anomalous = sum(counts[k] - counts[k] * 7 // 10 for k in range(10) if str(k) not in normal)
    assert Counter(s.label for s in data.test) == {0: normal_test, 1: min(anomalous, normal_test)}
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    for sample in (*data.train, *data.test):
        i = number_of(sample)
        assert sample.defect == ("good" if str(reference.target[i]) in normal else names[reference.target[i]])
        levels = np.asarray(sample.image)
        assert levels.shape == (8, 8, 3) and (levels.max(2) == levels.min(2)).all()
        assert np.abs(levels[..., 0] - reference.images[i] * 255 / 16).max() <= 0.5
    assert not {number_of(s) for s in data.train} & {number_of(s) for s in data.test}
    assert {s.label for s in data.train} == {0} and data == load_dataset("digits", normal)


def number_of(sample: Sample) -> int:
    assert isinstance(sample, PackedSample)
    return sample.index


def test_an_image_is_for_training_or_for_testing_in_every_split():
    sides = [{(s.index, part) for part, samples in (("train", data.train), ("test", data.test)) for s in samples}
             for data in (load_dataset("digits", normal) for normal in SPLITS)]
    assert len({index for index, part in set.union(*sides)}) == len(set.union(*sides))


def test_digits_are_verified_and_found_in_scikit_learn(capsys):
    assert cli.main(["data", "verify", "digits"]) == cli.main(["data", "path", "digits"]) == 0
    summary, folder = capsys.readouterr().out.splitlines()
    assert summary == "digits: 1 category, 628 training and 544 test images, 0 masks, all readable"
    assert folder == str(Path(sklearn.datasets.__file__).parent / "data") and (Path(folder) / "digits.csv.gz").is_file()


def test_the_error_without_scikit_learn_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("adcore.data.digits.importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^data set 'digits' comes in a Python package: pip install scikit-learn$"):
        load_dataset("digits")


@pytest.mark.parametrize("rows", ["1,2,3\n", "0," * 64 + "10\n", "17," + "0," * 63 + "1\n", "0.5," + "0," * 63 + "1\n"])
def test_a_file_of_other_numbers_is_not_digits(tmp_path, rows):
    (tmp_path / "digits.csv.gz").write_bytes(gzip.compress(rows.encode()))
    with pytest.raises(DataError, match=rf"^{tmp_path}/digits.csv.gz is not rows of 64 levels from 0 to 16 and a digit"):
        load_digits(tmp_path)


def test_digits_that_are_cut_off_are_named(tmp_path):
    folder = digits_folder()
    assert folder is not None
    whole = (folder / "digits.csv.gz").read_bytes()
    for raw in (whole[:len(whole) // 2], b"zero\n", gzip.compress(b"zero\n")):
        (tmp_path / "digits.csv.gz").write_bytes(raw)
        with pytest.raises(DataError, match=rf"^{tmp_path}/digits.csv.gz cannot be read as rows of numbers"):
            load_digits(tmp_path)

class Brightness(Detector):
    """A darker image is more anomalous."""

    view = View(8)

    def fit(self, samples, *, checkpoint=None, progress=None):
        return self

    def _predict(self, images: torch.Tensor) -> Prediction:
        maps = 1 - images.mean(1)
        return Prediction(maps.flatten(1).mean(1), maps)


def test_many_against_many_is_measured_per_image_and_each_image_has_its_own_name():
    data = load_dataset("digits", "02468")
    part = Dataset("digits", data.train, (*data.test[:9], *data.test[-9:]))
    rows, maps, measures = evaluate(Brightness(object()), part)
    assert rows.image.tolist() == [f"digits.csv.gz/{s.index:05}" for s in part.test] and rows.image.is_unique
    assert len(maps) == 12 and all(re.fullmatch(r"02468/digits\.csv\.gz/\d{5}", name) for name in maps)
    assert {one["metric"] for one in measures if one["value"] is not None} == {"image_auroc", "image_ap"}
    assert {one["category"] for one in measures} == {"02468"}
    assert {one["why"] for one in measures if one["value"] is None} == {"no masks"}


def test_a_pipe_in_place_of_the_digits_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "digits.csv.gz")
    with pytest.raises(DataError, match=r"cannot be read as rows of numbers \(.*it is no plain file"):
        read_digits(tmp_path / "digits.csv.gz")
