"""KolektorSDD2 listed from small folders in its layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcore import cli
from adcore.data import View, load_dataset, read_masks, verify
from adcore.data.ksdd2 import load_ksdd2
from adcore.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("nothing_here")
SIZE = (31, 12)


def put(root: Path, number: str, defect: int = 0, size: tuple[int, int] = SIZE) -> None:
    """An image, bright everywhere, and its mask, in which `defect` pixels are marked."""
    (root / number).parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(int(number[-5:])).integers(100, 256, (*SIZE, 3), dtype=np.uint8)  # no two are the same
    Image.fromarray(noise).save(root / f"{number}.png")
    mask = np.zeros(size, np.uint8)
    mask.flat[:defect] = 255
    Image.fromarray(mask).save(root / f"{number}_GT.png")


@pytest.fixture
def kolektor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "KolektorSDD2"
    for number, defect in (("train/10002", 0), ("train/10000", 0), ("train/10001", 9), ("test/20000", 0), ("test/20001", 1),
                           ("test/20002", 40)):
        put(root, number, defect)
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    return root


def test_training_images_are_those_with_a_black_mask_and_masks_are_not_listed_as_images(kolektor):
    data = load_dataset("ksdd2")
    assert data.name == "ksdd2" and data.categories == ("ksdd2",) and data.has_masks
    assert [s.path.relative_to(kolektor).as_posix() for s in data.train] == ["train/10000.png", "train/10002.png"]
    assert [(s.name, s.label, s.defect) for s in data.test] == [
        ("test/20000.png", 0, "good"), ("test/20001.png", 1, "defective"), ("test/20002.png", 1, "defective")]
    assert not any("GT" in s.path.name or s.label or s.mask_path for s in data.train)
    assert all(np.asarray(s.image).min() >= 100 for s in (*data.train, *data.test))


def test_masks_of_tested_images_have_the_pixels_that_were_marked(kolektor):
    masks = read_masks(load_dataset("ksdd2").test, View(SIZE))
    assert [None if mask is None else int(mask.sum()) for mask in masks] == [0, 1, 40]


def test_a_file_whose_name_is_no_number_is_ignored(kolektor):
    expected = load_ksdd2(kolektor)
    for name in ("train/10000_copy.png", "train/.10003.png", "train/notes.txt", "test/10000.txt", "test/20001_GT_copy.png"):
        (kolektor / name).write_text("no image")
    assert load_ksdd2(kolektor) == expected


def test_it_is_verified_from_the_command_line_with_its_counts(kolektor, capsys, monkeypatch):
    assert cli.main(["data", "verify", "ksdd2"]) == 2
    assert "ksdd2/ksdd2 has 2 training and 3 test images, expected 2085 and 1004" in capsys.readouterr().err
    monkeypatch.delitem(verify.PUBLISHED, "ksdd2")
    assert cli.main(["data", "verify", "ksdd2"]) == 0
    assert capsys.readouterr().out == "ksdd2: 1 category, 2 training and 3 test images, 2 masks, all readable\n"
    assert load_dataset("ksdd2", "ksdd2") == load_dataset("ksdd2", root=kolektor) == load_dataset("ksdd2")
    with pytest.raises(ParameterError, match=r"^unknown category 'tile' in data set 'ksdd2'; it has ksdd2$"):
        load_dataset("ksdd2", "tile")


def complaint(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_ksdd2(root)
    return str(caught.value)


@pytest.mark.parametrize("number", ["train/10001", "train/10002", "test/20000", "test/20002"])
def test_an_image_without_its_mask_is_named_normal_or_not(kolektor, number):
    (kolektor / f"{number}_GT.png").unlink()
    assert complaint(kolektor) == f"{number}.png has no mask: expected {number}_GT.png"


def test_a_mask_that_cannot_be_read_or_has_another_size_is_named(kolektor):
    put(kolektor, "test/20000", size=(12, 31))
    assert complaint(kolektor) == (f"mask {kolektor}/test/20000_GT.png is 12x31 but its image is 31x12: make them the same "
                                   f"height and width")
    (kolektor / "test/20000_GT.png").write_text("no image")
    assert complaint(kolektor).startswith(f"{kolektor}/test/20000_GT.png cannot be read as an image")


def test_folders_without_images_or_without_a_normal_one_are_named(kolektor, tmp_path):
    assert complaint(tmp_path / "x") == f"{tmp_path}/x/train holds no image NNNNN.png: put KolektorSDD2 there as published"
    for number in ("10000", "10002"):
        put(kolektor, f"train/{number}", 3)
    assert complaint(kolektor) == (f"{kolektor}/train holds no normal image: each has a mask that marks a pixel, and there is "
                                   f"none to train on")
    put(kolektor, "train/10000")
    (kolektor / "test").rename(kolektor / "tests")
    assert complaint(kolektor) == f"{kolektor}/test holds no image NNNNN.png: put KolektorSDD2 there as published"


def test_the_error_for_a_missing_data_set_names_address_and_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    with pytest.raises(DataError, match=rf"^data set 'ksdd2' is not here: fetch it from https://\S+ and unpack it to "
                                        rf"{tmp_path}/ksdd2.*, then run `adcore data verify ksdd2`$"):
        load_dataset("ksdd2")
