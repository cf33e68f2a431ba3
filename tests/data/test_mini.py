"""The embedded data set is deterministic, has exact masks and cannot be solved by brightness alone."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from adcore.data.mini import CATEGORIES, VERSION, load_mini, make, write
from adcore.data.mini.photographs import TEXTURES, colored, columns, corners
from adcore.data.mini.picture import defect_of, defects, picture, without_defect
from adcore.data.mini.shot import Shot
from adcore.errors import ParameterError

FEW = {"train": 3, "good": 2, "defective": 6}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One drawn and one photographed category, a few images each."""
    root = tmp_path_factory.mktemp("mini")
    for category in ("brick", "gear"):
        make(category, root, **FEW)
    return root


def test_drawing_twice_gives_the_same_bytes_and_fewer_images_are_the_first_ones(small: Path, tmp_path: Path) -> None:
    first = contents(small / "gear")
    assert contents(make("gear", tmp_path / "again", **FEW)) == first
    fewer = contents(make("gear", tmp_path / "fewer", train=2, good=1, defective=4))
    assert len(fewer) == 2 + 1 + 4 + 4 and fewer.items() < first.items()


def test_an_image_does_not_depend_on_images_drawn_before() -> None:
    alone = picture(Shot("grass", "defective", 5)).image
    picture(Shot("grass", "train", 0))
    picture(Shot("button", "good", 1))
    assert np.array_equal(picture(Shot("grass", "defective", 5)).image, alone)
    assert not np.array_equal(picture(Shot("grass", "defective", 1)).image, alone)


def test_files_are_in_mvtec_s_layout_and_have_256_pixels_with_masks_of_0_and_255(small: Path) -> None:
    for category in ("brick", "gear"):
        home = small / category
        assert len(list(home.glob("train/good/*.png"))) == 3 and len(list(home.glob("test/good/*.png"))) == 2
        kinds = [path.name for path in (home / "test").iterdir() if path.name != "good"]
        assert sorted(kinds) == sorted(defects(category)) and len(kinds) >= 3
        bad = [path for kind in kinds for path in (home / "test" / kind).iterdir()]
        assert len(bad) == 6
        for path in bad:
            mask = Image.open(home / "ground_truth" / path.parent.name / f"{path.stem}_mask.png")
            assert mask.size == (256, 256) and mask.mode == "L" and set(np.unique(np.asarray(mask))) == {0, 255}
        for path in home.glob("t*/*/*.png"):
            image = Image.open(path)
            assert image.size == (256, 256) and image.mode == "RGB"


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_defect_changes_the_pixels_of_its_mask_and_no_others(category: str) -> None:
    for index in range(len(defects(category))):
        shot = Shot(category, "defective", index)
        made, clean = picture(shot), without_defect(shot)
        assert made.defect == defects(category)[index] == defect_of(category, index)[0]
        assert made.mask.shape == (256, 256) and 0.0015 < made.mask.mean() < 0.12
        assert np.array_equal(made.image[~made.mask], clean[~made.mask])
        change = np.abs(made.image.astype(int) - clean).max(2)[made.mask]
        assert (change >= 4).mean() > 0.7, f"{made.defect}: most of the mask looks as before"


def test_masks_range_from_small_to_large() -> None:
    areas = [picture(Shot(category, "defective", index)).mask.mean()
             for category in ("brick", "gravel", "capsule") for index in range(6)]
    assert min(areas) < 0.008 and max(areas) > 0.025


def test_no_column_of_a_photograph_is_seen_in_training_and_in_test() -> None:
    for category in TEXTURES:
        assert columns(category, "good") == columns(category, "defective")
        seen = {split: np.concatenate([corners(Shot(category, split, i))[:, 0] for i in range(60)])
                for split in ("train", "good", "defective")}
        test = np.concatenate([seen["good"], seen["defective"]])
        assert min(seen["train"].min(), test.min()) >= 0 and max(seen["train"].max(), test.max()) <= 512
        assert seen["train"].max() <= test.min() or test.max() <= seen["train"].min()


def test_painting_the_test_area_red_does_not_change_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = Shot("gravel", "train", 3), Shot("gravel", "good", 3)
    before = picture(train).image, picture(test).image
    low, high = columns("gravel", "good")
    red = colored("gravel").copy()
    red[:, low:high] = (1, 0, 0)
    monkeypatch.setattr("adcore.data.mini.photographs.colored", lambda category: red)
    assert np.array_equal(picture(train).image, before[0]) and not np.array_equal(picture(test).image, before[1])


def test_an_interrupted_make_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_late(shot: Shot, folder: Path) -> None:
        if shot.index == 2:
            raise KeyboardInterrupt
        real(shot, folder)

    real = write._write
    monkeypatch.setattr(write, "_write", fails_late)
    with contextlib.suppress(KeyboardInterrupt):
        make("brick", tmp_path, train=3, good=0, defective=0)
    assert list(tmp_path.iterdir()) == []


def test_a_category_that_another_process_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overtaken(shot: Shot, folder: Path) -> None:
        (tmp_path / "brick").mkdir(exist_ok=True)
        (tmp_path / "brick" / "first").touch()

    monkeypatch.setattr(write, "_write", overtaken)
    assert make("brick", tmp_path, train=1, good=0, defective=0) == tmp_path / "brick"
    assert [path.name for path in tmp_path.rglob("*")] == ["brick", "first"]


def test_loading_takes_the_first_images_and_all_kinds_of_defect_in_turn(small: Path) -> None:
    data = load_mini(["gear", "brick"], small, train=2, good=1, defective=5)
    assert data.name == "mini" and data.categories == ("gear", "brick") and data.has_masks
    gear = data.only("gear")
    assert [s.path.name for s in gear.train] == ["000.png", "001.png"]
    assert [s.defect for s in gear.test] == ["good", *defects("gear")] and [s.label for s in gear.test] == [0] + [1] * 5
    for sample in data.test:
        assert sample.image.size == (256, 256)
        assert sample.mask is not None and sample.mask.any() == (sample.label == 1)


def test_asking_for_more_images_than_there_are_is_refused(small: Path) -> None:
    with pytest.raises(ParameterError, match="was made with fewer images"):
        load_mini(["gear"], small, train=4, good=1, defective=1)


def test_the_cache_holds_whole_categories_under_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, dict[str, int]]] = []

    def noted(category: str, folder: Path, **counts: int) -> Path:
        asked.append((folder, counts))
        return folder / category

    monkeypatch.setenv("ADCORE_CACHE", os.fspath(tmp_path))
    monkeypatch.setattr(write, "make", noted)
    load_mini(["gear"], train=0, good=0, defective=0)
    assert asked == [(tmp_path / f"mini-{VERSION}", {"train": 60, "good": 20, "defective": 30})]


def test_brightness_contrast_and_distance_to_the_mean_image_do_not_detect_defects() -> None:
    scores: dict[str, list[float]] = {}
    for category in ("grass", "capsule"):
        train, good, bad = (np.stack([picture(Shot(category, split, i)).image for i in range(count)]).astype(float)
                            for split, count in (("train", 10), ("good", 12), ("defective", 12)))
        far = np.abs(np.concatenate([good, bad]) - train.mean(0))
        both = np.concatenate([good, bad])
        for name, score in {"mean difference": far.mean((1, 2, 3)), "largest difference": far.max((1, 2, 3)),
                            "brightness": both.mean((1, 2, 3)), "contrast": both.std((1, 2, 3))}.items():
            scores.setdefault(name, []).append(roc_auc_score([0] * 12 + [1] * 12, score))
    for name, values in scores.items():
        assert min(values) > 0.25 and max(values) < 0.75, f"{name}: {values}"
        assert 0.38 < np.mean(values) < 0.62, f"{name}: {values}"


def test_normal_images_vary() -> None:
    brightness = [picture(Shot("capsule", "train", i)).image.mean() for i in range(6)]
    assert np.ptp(brightness) > 12
    middles = [ndimage.center_of_mass(picture(Shot("button", "train", i)).image[..., 2] < 60) for i in range(4)]
    assert np.ptp(np.array(middles), axis=0).min() > 6


def test_the_error_for_an_unknown_category_lists_the_known_ones() -> None:
    with pytest.raises(ParameterError, match="unknown category 'screw' in data set 'mini'; it has brick, grass"):
        load_mini(["screw"])
    with pytest.raises(ParameterError, match="unknown category 'screw'"):
        make("screw", Path("nowhere"))
