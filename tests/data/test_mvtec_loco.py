"""MVTec LOCO listed from small folders in its layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adcore import cli
from adcore.data import View, load_dataset, read_masks, verify
from adcore.data.mvtec_loco import ManyMasksSample, load_mvtec_loco
from adcore.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("nothing_here")
SIZE = (14, 25)


def put(path: Path, pixels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(list(str(path).encode())).integers(0, 256, (*SIZE, 3), dtype=np.uint8)  # no two are the same
    Image.fromarray(noise if pixels is None else pixels).save(path)


def marked(row: int, level: int = 255) -> np.ndarray:
    """A mask of one row; the data set's files tell kinds of defect apart by their gray level."""
    mask = np.zeros(SIZE, np.uint8)
    mask[row] = level
    return mask


@pytest.fixture
def loco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two categories; the second structural anomaly has three masks, the logical one two."""
    root = tmp_path / "mvtec_loco_anomaly_detection"
    for category in ("screw_bag", "pushpins"):
        for name in ("train/good/000", "train/good/001", "validation/good/000", "test/good/000",
                     "test/structural_anomalies/000", "test/structural_anomalies/001", "test/logical_anomalies/000"):
            put(root / category / f"{name}.png")
        for name, row, level in (("structural_anomalies/000/000", 3, 255), ("structural_anomalies/001/000", 0, 1),
                                 ("structural_anomalies/001/001", 1, 240), ("structural_anomalies/001/002", 1, 255),
                                 ("logical_anomalies/000/000", 5, 7), ("logical_anomalies/000/001", 9, 8)):
            put(root / category / "ground_truth" / f"{name}.png", marked(row, level))
    (root / "license.txt").write_text("")
    (root / "screw_bag/defects_config.json").write_text("{}")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    return root


def rows(mask: np.ndarray | None) -> list[int]:
    assert mask is not None and mask.dtype == bool and mask.shape == SIZE
    assert set(mask.mean(1)) <= {0.0, 1.0}
    return np.flatnonzero(mask.any(1)).tolist()


def test_normal_and_structural_images_are_tested_and_validation_images_are_not_used(loco):
    data = load_dataset("mvtec_loco")
    assert data.name == "mvtec_loco" and data.categories == ("pushpins", "screw_bag") and data.has_masks
    assert [s.path.relative_to(loco).as_posix() for s in data.only("pushpins").train] == [
        "pushpins/train/good/000.png", "pushpins/train/good/001.png"]
    assert [(s.name, s.label, s.defect) for s in data.only("screw_bag").test] == [
        ("good/000.png", 0, "good"), ("structural_anomalies/000.png", 1, "structural_anomalies"),
        ("structural_anomalies/001.png", 1, "structural_anomalies")]


def test_a_mask_is_the_union_of_its_files_at_any_gray_level(loco):
    good, one, three = load_dataset("mvtec_loco", "pushpins").test
    assert rows(good.mask) == [] and rows(one.mask) == [3] and rows(three.mask) == [0, 1]
    assert [int(mask.sum()) for mask in read_masks([good, one, three], View(SIZE))] == [0, 25, 50]
    assert replace(three, mask_path=None).mask is None
    assert load_dataset("mvtec_loco", "pushpins").test == (good, one, three) and len({good, one, three}) == 3


def test_the_option_logical_adds_the_logical_anomalies(loco):
    data = load_mvtec_loco(loco, logical=True)
    assert [s.defect for s in data.only("pushpins").test] == ["good", "logical_anomalies", *["structural_anomalies"] * 2]
    assert rows(data.test[1].mask) == [5, 9] and data.train == load_mvtec_loco(loco).train


def test_it_is_verified_from_the_command_line_with_all_masks_and_counts(loco, capsys, monkeypatch):
    assert cli.main(["data", "verify", "mvtec_loco"]) == 2
    assert capsys.readouterr().err == ("adcore: mvtec_loco/breakfast_box has 0 training and 0 test images, expected 351 and "
                                       "275: unpack the archive again\n")
    monkeypatch.delitem(verify.PUBLISHED, "mvtec_loco")
    assert cli.main(["data", "verify", "mvtec_loco"]) == 0
    assert capsys.readouterr().out == "mvtec_loco: 2 categories, 4 training and 8 test images, 6 masks, all readable\n"
    third = loco / "screw_bag/ground_truth/structural_anomalies/001/002.png"
    put(third, marked(0)[:9])
    assert cli.main(["data", "verify", "mvtec_loco"]) == 2
    assert f"mask {third} is 9x25 but its image is 14x25" in capsys.readouterr().err


def test_categories_are_selected_by_name(loco):
    assert load_dataset("mvtec_loco", ["screw_bag"]).categories == ("screw_bag",)
    assert len(load_dataset("mvtec_loco", "all").test) == 6
    with pytest.raises(ParameterError, match=r"^unknown category 'nut' in data set 'mvtec_loco'; it has pushpins, screw_bag$"):
        load_dataset("mvtec_loco", "nut")


def complaint(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_mvtec_loco(root)
    return str(caught.value)


def test_an_image_without_masks_is_named_whether_the_folder_is_missing_or_empty(loco):
    folder = loco / "pushpins/ground_truth/structural_anomalies/000"
    (folder / "000.png").unlink()
    says = ("pushpins/test/structural_anomalies/000.png has no mask: expected "
            "pushpins/ground_truth/structural_anomalies/000/000.png")
    assert complaint(loco) == says
    folder.rmdir()
    assert complaint(loco) == says


@pytest.mark.parametrize("part", ["train/good", "test/good", "test/structural_anomalies"])
def test_a_folder_without_images_is_named(loco, part):
    for path in (loco / "screw_bag" / part).iterdir():
        path.unlink()
    assert complaint(loco) == f"screw_bag/{part} in {loco} holds no image: unpack MVTec LOCO there as published"


def test_an_empty_root_and_a_missing_data_set_are_named(loco, tmp_path, monkeypatch):
    assert complaint(tmp_path / "x") == (f"{tmp_path}/x holds no data set in MVTec LOCO's layout: expected "
                                         f"<category>/train/good/*.png below it")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "x"))
    with pytest.raises(DataError, match=rf"^data set 'mvtec_loco' is not here: fetch it from https://\S+ and unpack it to "
                                        rf"{tmp_path}/x/mvtec_loco.*, then run `adcore data verify mvtec_loco`$"):
        load_dataset("mvtec_loco")


def test_missing_logical_anomalies_matter_only_with_the_option_logical(loco):
    for path in (loco / "pushpins/test/logical_anomalies").iterdir():
        path.unlink()
    assert len(load_mvtec_loco(loco).test) == 6
    with pytest.raises(DataError, match=r"^pushpins/test/logical_anomalies in .* holds no image"):
        load_mvtec_loco(loco, logical=True)


def test_a_sample_whose_mask_is_one_file_has_that_mask(loco):
    path = loco / "pushpins/test/structural_anomalies/000.png"
    mask = loco / "pushpins/ground_truth/structural_anomalies/000/000.png"
    assert rows(ManyMasksSample(path, "pushpins", 1, "dent", mask).mask) == [3]
