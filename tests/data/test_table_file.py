"""Data sets listed in a csv file."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from PIL import Image
from support.tiny import write_tiny

from adcore.cli import main
from adcore.data import dataset_name, load_dataset, map_name
from adcore.data.verify import verify_dataset
from adcore.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("nothing_here")
GOOD = [[f"ok/{i}.png", "good"] for i in range(10)]
BAD = [[f"bad/{i}.png", "hole"] for i in range(3)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images ok/0.png ... ok/9.png and bad/0.png ... bad/2.png, and masks of the latter."""
    tiny = write_tiny(tmp_path / "tiny", side=16, train=0, good=10, blobs=3) / "cloth"
    for name, folder in (("ok", "test/good"), ("bad", "test/blob"), ("masks", "ground_truth/blob")):
        (tmp_path / name).mkdir()
        for i, path in enumerate(sorted((tiny / folder).iterdir())):
            path.rename(tmp_path / name / f"{i}.png")
    shutil.rmtree(tmp_path / "tiny")
    monkeypatch.setattr("adcore.data.registry._PLACES", {})
    monkeypatch.setattr("adcore.data.findings._told", set())
    return tmp_path


def table(folder: Path, *rows: list[object], name: str = "parts.csv", delimiter: str = ",", encoding: str = "utf-8") -> Path:
    with (folder / name).open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return folder / name


def test_without_a_split_a_fifth_of_the_normal_images_and_all_others_are_for_testing(here):
    data = load_dataset(str(table(here, ["image_path", "label"], *GOOD, *BAD)))
    assert (data.name, data.categories, len(data.train), len(data.test)) == ("parts", ("parts",), 8, 5)
    assert sorted(s.path for s in (*data.train, *data.test)) == sorted(here / row[0] for row in (*GOOD, *BAD))
    assert {s.label for s in data.train} == {0} and [s.defect for s in data.test] == ["hole"] * 3 + ["good"] * 2
    assert not data.has_masks and [s.mask for s in data.test if s.label] == [None] * 3


@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "utf-8-sig"), ("\t", "utf-8")])
def test_splits_masks_and_categories_are_read_from_their_columns(here, delimiter, encoding):
    rows = [[path, "0", "train" if i < 7 else "test", "", "NA"] for i, (path, _) in enumerate(GOOD)]
    rows += [[path, "1", "Test", f"masks/{i}.png", "NA"] for i, (path, _) in enumerate(BAD)]
    data = load_dataset(table(here, ["Path", "LABEL", "split", "mask", "category"], *rows, delimiter=delimiter,
                              encoding=encoding))
    assert data.categories == ("NA",) and len(data.train) == 7 and data.has_masks
    assert [(s.path.name, s.defect, s.mask_path and s.mask_path.relative_to(here).as_posix()) for s in data.test] == [
        ("7.png", "good", None), ("8.png", "good", None), ("9.png", "good", None), ("0.png", "defective", "masks/0.png"),
        ("1.png", "defective", "masks/1.png"), ("2.png", "defective", "masks/2.png")]
    assert verify_dataset(str(here / "parts.csv")) == "parts: 1 category, 7 training and 6 test images, 3 masks, all readable"


def test_a_normal_image_whose_mask_marks_pixels_is_named(here):
    rows = [[path, label, "masks/0.png" if path == "ok/3.png" else ""] for path, label in GOOD]
    path = table(here, ["image", "label", "mask"], *rows, *[[*row, f"masks/{i}.png"] for i, row in enumerate(BAD)])
    assert verify_dataset(path).splitlines()[1:] == ["- 1 normal image with a mask that marks pixels: masks/0.png"]


def test_tables_of_anomalib_and_visa_are_read(here, capsys):
    anomalib = [[i, path, "normal", 0, "", "train"] for i, (path, _) in enumerate(GOOD)]
    anomalib += [[i, path, "abnormal", 1, f"masks/{i}.png", "test"] for i, (path, _) in enumerate(BAD)]
    data = load_dataset(table(here, ["", "image_path", "label", "label_index", "mask_path", "split"], *anomalib))
    assert (len(data.train), len(data.test), {s.defect for s in data.test}) == (10, 3, {"defective"})
    assert capsys.readouterr().err.startswith("adcore: data set 'parts': no normal test images in 1 category: parts;")
    visa = [["candle", "train", "normal", path, ""] for path, _ in GOOD[:8]]
    visa += [["candle", "test", "normal", path, ""] for path, _ in GOOD[8:]]
    visa += [["candle", "test", "anomaly", path, f"masks/{i}.png"] for i, (path, _) in enumerate(BAD)]
    data = load_dataset(table(here, ["object", "split", "label", "image", "mask"], *visa))
    assert (data.categories, len(data.train), len(data.test), data.has_masks) == (("candle",), 8, 5, True)
    assert capsys.readouterr().err == ""


def test_kinds_of_defect_come_from_their_own_column_or_from_the_label(here):
    data = load_dataset(table(here, ["image", "label", "defect"], *[[*row, ""] for row in GOOD], ["bad/0.png", "1", "null"],
                              ["bad/1.png", "scratch", ""], ["bad/2.png", "NG", ""]))
    assert [s.defect for s in data.test if s.label] == ["null", "scratch", "defective"]
    data = load_dataset(table(here, ["image", "defect"], *GOOD, *BAD))
    assert [s.defect for s in data.test if s.label] == ["hole"] * 3


def test_names_of_samples_are_unique_and_hold_no_path_of_this_machine(here):
    for side in ("left", "right"):
        shutil.copytree(here / "bad", here / side / "bad")
    rows = [[str(here / f"{side}/bad/{i}.png"), "hole"] for side in ("left", "right") for i in range(3)]
    data = load_dataset(table(here, ["image", "label"], *GOOD, *rows))
    names = [map_name(s) for s in data.test]
    assert len(set(names)) == 8 and names[:2] == ["parts/left/bad/0.png", "parts/left/bad/1.png"]
    data = load_dataset(table(here / "ok", ["image", "label"], *[[f"{i}.png", int(i > 7)] for i in range(10)]))
    assert {s.name for s in (*data.train, *data.test)} == {f"ok/{i}.png" for i in range(10)}


def test_anomalous_training_images_are_left_out_and_named(here, capsys):
    data = load_dataset(table(here, ["image", "label", "split", "operator"], *[[*row, "train", "Eve"] for row in GOOD],
                              [*BAD[0], "train", "Eve"], [*BAD[1], "test", "Eve"]))
    assert len(data.train) == 10 and [s.path.name for s in data.test] == ["1.png"]
    assert "1 anomalous training image left out: bad/0.png; 1 column not used: operator" in capsys.readouterr().err


@pytest.mark.parametrize(("header", "row", "message"), [
    (["image", "label"], ["bad/0.png", None], r"line 12, column label: '' is no label: write 0 or good"),
    (["image", "label"], ["bad/0.png", "None"], r"line 12, column label: 'None' is no label"),
    (["image", "label"], ["bad/0.png", "nan"], r"line 12, column label: 'nan' is no label"),
    (["image", "label"], ["bad/0.png", -1], r"line 12, column label: label -1 is neither 0 \(normal\) nor 1"),
    (["image", "label"], ["bad/0.png", 0.5], r"line 12, column label: label 0\.5 is neither"),
    (["image", "label"], ["bad/9.png", 1], r"line 12, column image_path: bad/9\.png is not there, looked for below "),
    (["image", "label"], ["x" * 300, 1], r"line 12, column image_path: x+ is not there"),
    (["image", "label"], ["", 1], r"line 12, column image_path: no path"),
    (["image", "label"], ["ok/1.png", 1], r"line 12: .*ok/1\.png is listed before, in line 3"),
    (["image", "label"], ["bad/0.png"], r"line 12: 1 fields where the first row names 2 columns"),
    (["image", "label", "mask"], ["bad/0.png", 1, "masks/9.png"], r"line 12, column mask_path: masks/9\.png is not there"),
    (["image", "label", "split"], ["bad/0.png", 1, "val"], r"line 12, column split: 'val' is neither train nor test"),
    (["image", "label", "split"], ["bad/0.png", 1, ""], r"line 12, column split: '' is neither train nor test"),
    (["image", "label", "category"], ["bad/0.png", 1, ""], r"line 12, column category: no category"),
    (["image", "label", "defect"], ["bad/0.png", 1, "good"], r"line 12, column defect: the image is anomalous by its label 1"),
])
def test_a_row_that_is_not_in_order_is_named_with_line_and_column(here, header, row, message):
    third = {"mask": [""], "split": ["train"], "category": ["c"], "defect": [""]}.get(header[-1], [])
    good = [[*line, *third] for line in GOOD]
    with pytest.raises(DataError, match=rf"^{here}/parts\.csv, {message}"):
        load_dataset(table(here, header, *good, row))


@pytest.mark.parametrize(("rows", "message"), [
    ([], r" is empty: expected a row of column names"),
    ([["image", "label"]], r" lists no image"),
    ([["img", "label"], *GOOD], r", line 1: no column image_path.*; the columns are img, label"),
    ([["image", "labl"], *GOOD], r", line 1: no column label \(did you mean 'labl'\?\)"),
    ([["image", "label", "Image"], ["ok/0.png", 0, "ok/0.png"]], r", line 1: two columns are called image"),
    ([["image", "label"], *BAD], r" has no normal image to train on: list some with label good"),
])
def test_a_table_without_what_is_needed_is_refused(here, rows, message):
    with pytest.raises(DataError, match=rf"^{here}/parts\.csv{message}"):
        load_dataset(table(here, *rows))


def test_a_table_is_named_like_its_file_and_no_other_data_set(here, monkeypatch, capsys):
    path = table(here, ["image", "label"], *GOOD, *BAD)
    monkeypatch.chdir(here)
    assert dataset_name("parts.csv") == "parts" and load_dataset("parts", ["parts"]).name == "parts"
    with pytest.raises(ParameterError, match="unknown category 'x' in data set 'parts'; it has parts"):
        load_dataset(path, ["x"])
    assert main(["data", "path", str(path)]) == 0 and capsys.readouterr().out == f"{path}\n"
    with pytest.raises(DataError, match=r"^absent\.csv is not there, or is no folder or csv file: name one that is$"):
        load_dataset("absent.csv")
    with pytest.raises(DataError, match=r"mtd\.csv has the name of a data set that adcore knows: rename it$"):
        load_dataset(path.rename(here / "mtd.csv"))


def test_a_table_in_another_encoding_or_with_windows_paths_is_read_or_refused(here):
    data = load_dataset(table(here, ["image", "label"], *[[path.replace("/", "\\"), label] for path, label in (*GOOD, *BAD)]))
    assert len(data.train) + len(data.test) == 13
    (here / "parts.csv").write_bytes("image,label\nb\u00e4d.png,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"parts\.csv cannot be read as csv in UTF-8 \(.+\): save it again"):
        load_dataset(here / "parts.csv")


def test_a_table_joins_a_folder(here):
    write_tiny(here / "cloths", side=16, train=2, good=1, blobs=1)
    path = table(here, ["image", "label"], *GOOD, *BAD)
    assert load_dataset(f"{path}+{here / 'cloths'}").categories == ("parts", "cloth")
    assert Image.open(load_dataset(path).train[0].path).size == (16, 16)
