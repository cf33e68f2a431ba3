"""Data sets of one's own: folders that are half labelled or not quite in the layout, what is said of them, and their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.tiny import write_tiny

from adcore.cli import main
from adcore.data import Dataset, Sample, dataset_name, find_dataset, load_dataset, map_name, split_names
from adcore.data.findings import count
from adcore.data.mvtec import load_mvtec
from adcore.data.verify import dataset_folder, verify_dataset
from adcore.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("nothing_here")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in ADCORE_DATA; nothing was given as a path or told before."""
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    monkeypatch.setattr("adcore.data.registry._PLACES", {})
    monkeypatch.setattr("adcore.data.findings._told", set())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mine(here: Path) -> Path:
    """Two categories with 3 training, 2 good and 2 defective images each, 16 pixels wide."""
    return write_tiny(here / "mine", side=16, train=3, good=2, blobs=2, categories=("bolt", "nut"))


def picture(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng([7, seed]).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    return path


def findings(name: object) -> list[str]:
    """The lines of `adcore data verify` after the summary, without their dash."""
    return [line.removeprefix("- ") for line in verify_dataset(str(name)).splitlines()[1:]]


# --- masks --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("called", ["000_mask.png", "000.png", "000.PNG", "000_MASK.Png", "000.tif", "000_mask.bmp",
                                    "000.webp"])
def test_a_mask_is_found_by_its_image_s_stem(mine, called):
    masks = mine / "nut/ground_truth/blob"
    expected = load_dataset("mine", "nut").test[0].mask
    Image.open(masks / "000_mask.png").save(masks / "other.png")
    (masks / "000_mask.png").unlink()
    Image.open(masks / "other.png").convert("RGB").save(masks / called, lossless=True)
    (masks / "other.png").unlink()
    sample = load_dataset("mine", "nut").test[0]
    assert sample.defect == "blob" and sample.mask_path == masks / called
    assert np.array_equal(sample.mask, expected) and expected.sum() == 16


def test_masks_may_lie_beside_their_images_and_are_no_images(mine):
    for mask in (mine / "nut/ground_truth/blob").iterdir():
        mask.rename(mine / "nut/test/blob" / mask.name)
    data = load_dataset("mine", "nut")
    assert [(s.path.name, s.mask_path and s.mask_path.name) for s in data.test if s.label] == [
        ("000.png", "000_mask.png"), ("001.png", "001_mask.png")]
    assert findings("mine") == []


def test_two_masks_of_one_image_are_refused(mine):
    masks = mine / "nut/ground_truth/blob"
    shutil.copy(masks / "000_mask.png", masks / "000.png")
    with pytest.raises(DataError, match=r"blob/000\.png could have one of 2 masks, .*/000\.png and .*/000_mask\.png: keep one"):
        load_dataset("mine")


def test_a_mask_whose_stem_differs_by_case_alone_is_found(mine):
    (mine / "nut/test/blob/000.png").rename(mine / "nut/test/blob/IMG_0.JPG")
    mask = (mine / "nut/ground_truth/blob/000_mask.png").rename(mine / "nut/ground_truth/blob/img_0_mask.png")
    assert [s.mask_path for s in load_dataset("mine", "nut").test if s.path.stem == "IMG_0"] == [mask]


def test_stems_that_differ_by_case_have_their_own_masks(mine):
    for name in ("a", "A"):
        picture(mine / f"nut/test/dent/{name}.png")
        picture(mine / f"nut/ground_truth/dent/{name}_mask.png")
    found = [(s.path.stem, s.mask_path.stem) for s in load_dataset("mine", "nut").test if s.defect == "dent"]
    assert found == [("A", "A_mask"), ("a", "a_mask")]


def test_defective_images_without_a_mask_are_counted_and_their_mask_is_unknown(mine, capsys):
    (mine / "nut/ground_truth/blob/001_mask.png").unlink()
    data = load_dataset("mine")
    assert [s.mask is None for s in data.test if s.label] == [False, False, False, True] and data.has_masks
    assert findings("mine") == ["1 of 4 defective test images without a mask: nut/test/blob/001.png"]
    for category in ("nut", "bolt"):
        shutil.rmtree(mine / category / "ground_truth")
    assert not load_dataset("mine").has_masks and findings("mine") == ["no masks, so that pixel metrics cannot be measured"]
    assert capsys.readouterr().err.splitlines() == [
        "adcore: data set 'mine': 1 of 4 defective test images without a mask: nut/test/blob/001.png; "
        "`adcore data verify mine` says more",
        "adcore: data set 'mine': no masks, so that pixel metrics cannot be measured; `adcore data verify mine` says more"]


# --- parts that are missing ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("removed", "counts", "said"), [
    ("test", (3, 0), ["no normal test images in 1 category: nut", "no defective test images in 1 category: nut"]),
    ("test/good", (3, 2), ["no normal test images in 1 category: nut"]),
    ("test/blob", (3, 2), ["no defective test images in 1 category: nut"]),
    ("train/good/000.png train/good/001.png train/good/002.png", (0, 4), ["no training images in 1 category: nut"]),
])
def test_a_category_without_some_part_is_listed_and_named(mine, removed, counts, said):
    for name in removed.split():
        path = mine / "nut" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(mine / "nut/ground_truth")
    data = load_dataset("mine")
    assert data.categories == ("bolt", "nut") or counts[0] == 0
    assert set(data.categories) == {"bolt", "nut"}
    assert (len(data.only("nut").train), len(data.only("nut").test)) == counts
    assert [line for line in findings("mine") if "mask" not in line] == said


def test_loading_says_once_and_only_once_what_is_missing(mine, capsys):
    shutil.rmtree(mine / "nut/test/good")
    for _ in range(2):
        load_dataset("mine")
    assert capsys.readouterr().err == ("adcore: data set 'mine': no normal test images in 1 category: nut; "
                                       "`adcore data verify mine` says more\n")


def test_a_folder_with_tests_but_without_train_good_is_named(mine, capsys):
    (mine / "nut/train/good").rename(mine / "nut/train/ok")
    assert load_dataset("mine").categories == ("bolt",)
    assert "1 folder without train/good left out: nut" in capsys.readouterr().err
    assert findings("mine") == ["1 folder without train/good left out: nut"]


def test_normal_test_images_that_are_not_in_good_are_pointed_out(mine):
    (mine / "nut/test/good").rename(mine / "nut/test/OK")
    assert "test/OK of 'nut' is read as a kind of defect: normal images belong into test/good" in findings("mine")


# --- files left out -----------------------------------------------------------------------------------------------------

def test_files_that_are_not_read_are_listed_and_mentioned_once(mine, capsys):
    left = ["bolt/train/good/batch2/0.png", "nut/ground_truth/blob/9_mask.png", "nut/more/0.jpg", "nut/test/blob/deep/0.png",
            "nut/test/stray.png", "nut/train/bad/0.png", "old/0.png"]
    for seed, name in enumerate(left):
        picture(mine / name, seed)
    (mine / "nut/test/blob/x.heic").write_text("")
    data = load_dataset("mine")
    assert (len(data.train), len(data.test)) == (6, 8)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "8 files left out" in error
    (line,) = findings("mine")
    assert line == ("8 files left out (in nested or other folders, of another kind, or masks without an image): "
                    "bolt/train/good/batch2/0.png, nut/ground_truth/blob/9_mask.png, nut/more/0.jpg and 5 more")
    load_dataset("mine", "bolt")
    assert "1 file left out" in capsys.readouterr().err


def test_a_name_with_control_characters_is_shown_harmless(mine, capsys):
    (mine / "nut/test/x\x1b[2J\n\u202e.heic").write_bytes(b"")
    load_dataset(str(mine))
    error = capsys.readouterr().err
    assert "x\\x1b[2J\\n\\u202e.heic" in error and "\x1b" not in error and error.count("\n") == 1
    assert "x\\x1b[2J\\n\\u202e.heic" in verify_dataset(str(mine))


def test_hidden_and_system_files_and_notes_are_skipped_without_a_word(mine, capsys):
    for name in ("nut/test/.ipynb_checkpoints/0-checkpoint.png", "nut/test/@eaDir/0.png", "__MACOSX/nut/train/good/0.png",
                 "nut/train/good/._000.png", ".cache/0.png"):
        picture(mine / name)
    for name in ("nut/test/Thumbs.db", "nut/.DS_Store", "nut/train/good/notes.txt", "LICENSE", "readme.md",
                 "nut/test/desktop.ini"):
        (mine / name).write_text("")
    data = load_dataset("mine")
    assert (len(data.train), len(data.test), {s.defect for s in data.test}) == (6, 8, {"good", "blob"})
    assert findings("mine") == [] and capsys.readouterr().err == ""


def test_other_suffixes_that_pillow_reads_are_images(mine):
    for i, suffix in enumerate(("webp", "gif", "jp2", "JPG", "jfif", "ppm", "tga")):
        Image.open(mine / "nut/train/good/000.png").save(mine / f"nut/train/good/x{i}.{suffix}")
    assert len(load_dataset("mine", "nut").train) == 3 + 7
    assert verify_dataset("mine").startswith("mine: 2 categories, 13 training and 8 test images")


def test_a_broken_link_is_mentioned_when_loading_and_an_error_when_verifying(mine, capsys):
    (mine / "nut/train/good/zzz.png").symlink_to("/nowhere.png")
    assert len(load_dataset("mine").train) == 6
    assert "1 broken link left out: nut/train/good/zzz.png" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"nut/train/good/zzz\.png is a link to a file that is not there"):
        verify_dataset("mine")


def test_linked_folders_are_read_and_a_link_to_itself_ends(mine):
    (mine / "nut").rename(mine.parent / "elsewhere")
    (mine / "nut").symlink_to(mine.parent / "elsewhere")
    (mine / "nut/test/loop").symlink_to(mine)
    assert len(load_dataset("mine").train) == 6
    assert all("loop" in line for line in findings("mine"))


# --- what verifying says of images and masks ----------------------------------------------------------------------------

def test_training_images_among_the_test_images_and_repeated_test_images_are_named(mine):
    for i in range(2):
        shutil.copy(mine / f"nut/train/good/{i:03}.png", mine / f"nut/test/good/t{i}.png")
    shutil.copy(mine / "bolt/test/blob/000.png", mine / "bolt/test/good/again.png")
    assert findings("mine") == [
        "2 test images the same as training images: nut/test/good/t0.png = nut/train/good/000.png, nut/test/good/t1.png = "
        "nut/train/good/001.png",
        "1 test image the same as other test images: bolt/test/good/again.png = bolt/test/blob/000.png"]


def test_images_of_one_color_with_transparency_or_several_pages_are_named(mine):
    Image.new("RGB", (16, 16), (9, 9, 9)).save(mine / "nut/train/good/flat.png")
    image = Image.open(mine / "nut/train/good/000.png").convert("RGBA")
    image.putpixel((0, 0), (1, 2, 3, 0))
    image.save(mine / "nut/train/good/glass.png")
    image.save(mine / "nut/train/good/stack.tif", save_all=True, append_images=[image.rotate(90)])
    said = findings("mine")
    assert said[0] == "1 constant image (a single color): nut/train/good/flat.png"
    assert said[1] == "1 file with several images, of which the first is read: nut/train/good/stack.tif"
    assert said[2].startswith("2 images with transparent pixels, read as if opaque: nut/train/good/")


def test_masks_that_may_not_be_meant_as_read_are_named(mine):
    def draw(name: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels.astype(np.uint8)).save(mine / f"{name}_mask.png")

    inside = np.zeros((16, 16))
    inside[4:8, 4:8] = 1
    draw("nut/ground_truth/blob/000", 255 - 255 * inside)
    draw("nut/ground_truth/blob/001", inside * 2 + np.eye(16))
    ignored = inside.copy()
    ignored[:2] = 255
    draw("bolt/ground_truth/blob/000", ignored)
    draw("bolt/ground_truth/blob/001", inside * 250 + 100 * np.eye(16))
    picture(mine / "bolt/ground_truth/good/000_mask.png")
    assert findings("mine") == [
        "1 mask that marks over half of its image: inverted?: nut/ground_truth/blob/000_mask.png",
        "1 mask with class numbers: all but 0 are marked: nut/ground_truth/blob/001_mask.png",
        "1 mask with class numbers and 255, which is read as 'ignore' and not marked: bolt/ground_truth/blob/000_mask.png",
        "1 mask with more than two values: marked above half of the highest: bolt/ground_truth/blob/001_mask.png",
        "1 normal image with a mask that marks pixels: bolt/ground_truth/good/000_mask.png"]


# --- paths and names ----------------------------------------------------------------------------------------------------

def test_a_path_is_a_data_set_named_like_its_folder(here, mine, tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(here / "nothing"))
    for path in (str(mine), f"{mine}/", "./mine", "mine", "mine/../mine", "mine/nut/.."):
        data = load_dataset(path)
        assert (data.name, data.categories) == ("mine", ("bolt", "nut")) and {s.dataset for s in data.test} == {"mine"}
        assert find_dataset(path) == dataset_folder(path) == mine
        assert verify_dataset(path) == "mine: 2 categories, 6 training and 8 test images, 4 masks, all readable"
    assert load_dataset(mine) == data and dataset_name(mine) == "mine"


def test_a_folder_that_is_one_category_is_a_data_set(mine, monkeypatch):
    data = load_dataset(str(mine / "nut"))
    assert (data.name, data.categories, len(data.train), len(data.test)) == ("nut", ("nut",), 3, 4)
    monkeypatch.chdir(mine / "nut")
    assert load_dataset(".") == data


def test_a_path_is_known_by_its_short_name_once_it_was_named(mine, monkeypatch, capsys):
    monkeypatch.delenv("ADCORE_DATA")
    monkeypatch.chdir("/")
    assert dataset_name(str(mine)) == "mine"
    assert load_dataset("mine", ["nut"]).train[0].path == mine / "nut/train/good/000.png"
    other = shutil.copytree(mine, mine.parent / "copy" / "mine")
    assert dataset_name(other) == "mine" and find_dataset("mine") == other
    assert capsys.readouterr().err == f"adcore: data set 'mine' now is {other}, no longer {mine}\n"


def test_a_folder_called_like_a_known_data_set_is_that_one(here, mine):
    for name in ("mvtec_ad", "mvtec"):
        folder = shutil.copytree(mine, here / "elsewhere" / name)
        assert dataset_name(folder) == load_dataset(folder).name == "mvtec_ad"
    (folder / "nut/ground_truth/blob/000_mask.png").unlink()
    with pytest.raises(DataError, match="has no mask: expected"):  # published, so it must be complete
        load_dataset(folder)
    folder = shutil.copytree(mine, here / "elsewhere" / "digits")
    with pytest.raises(DataError, match="elsewhere/digits has the name of a data set that adcore knows: rename it"):
        load_dataset(folder)


def test_a_folder_that_is_not_there_or_not_in_the_layout_is_refused_with_what_was_found(here, mine):
    with pytest.raises(DataError, match=r"^no/such is not there, or is no folder or csv file: name one that is$"):
        load_dataset("no/such")
    picture(here / "flat/0.png")
    (here / "flat/raw").mkdir()
    with pytest.raises(DataError, match=r"expected <category>/train/good/\*\.png below it, found 0\.png, raw/$"):
        load_dataset("flat")
    shutil.copytree(mine, here / "zip" / "mine")
    with pytest.raises(DataError, match=rf"found it in {here}/zip/mine: name that folder$"):
        load_dataset("zip")
    (here / "empty").mkdir()
    with pytest.raises(DataError, match=r"found nothing$"):
        load_dataset("./empty")
    (here / "bare/x/train/good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"in MVTec layout but no image in x: put normal images into <category>/train/good"):
        load_dataset("bare")


def test_the_command_line_takes_paths(mine, capsys):
    assert main(["data", "verify", str(mine)]) == 0 and main(["data", "path", "./mine/nut"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "mine: 2 categories, 6 training and 8 test images, 4 masks, all readable", str(mine / "nut")]


@pytest.mark.parametrize(("text", "known", "names"), [
    ("a+b+c", {"a+b", "c"}, ["a+b", "c"]), ("a+b", {"a", "b", "a+b"}, ["a+b"]), ("a+b", set(), ["a", "b"]), ("a", {"b"}, ["a"]),
    ("a+b+c", {"b+c"}, ["a", "b+c"]), ("a++b", {"a"}, ["a", "", "b"]),
])
def test_a_name_that_has_the_separator_is_tried_first(text, known, names):
    assert split_names(text, known) == names


def test_a_folder_with_a_plus_in_its_name_is_one_data_set(here, mine):
    for name in ("a", "b", "a+b"):
        shutil.copytree(mine / "nut", here / name / "nut")
    (here / "a+b/nut").rename(here / "a+b/gear")
    assert load_dataset("a+b").categories == load_dataset(str(here / "a+b")).categories == ("gear",)
    assert load_dataset("b+a").categories == ("b/nut", "a/nut")
    assert load_dataset(f"{here}/a+b+{here}/a").categories == ("gear", "nut")
    both = f"{here}/a+b+{here}/b"
    shutil.rmtree(here / "a+b")
    assert load_dataset("a+b").categories == ("a/nut", "b/nut")
    shutil.copytree(mine / "nut", here / "a+b" / "nut")
    assert dataset_name(both) == "a+b+b"


def test_categories_that_two_joined_sets_have_are_told_apart(here, mine):
    for name in ("s1", "s2", "s3"):
        shutil.copytree(mine / "nut", here / name / "nut")
    both = load_dataset("mine+s1")
    assert both.categories == ("bolt", "mine/nut", "s1/nut") and len(both.only("s1/nut").test) == 4
    assert load_dataset("mine+s1", ["s1/nut"]).only(None).categories == ("s1/nut",)
    assert len({map_name(sample) for sample in both.test}) == len(both.test) == 12
    assert load_dataset("mine+s1+s2").categories == ("bolt", "mine/nut", "s1/nut", "s2/nut")
    assert load_dataset("mine+s1+s2+s3").categories == ("bolt", "mine/nut", "s1/nut", "s2/nut", "s3/nut")
    with pytest.raises(ParameterError, match="unknown category 'nut' in data set 'mine\\+s1'; it has bolt, mine/nut, s1/nut"):
        load_dataset("mine+s1", ["nut"])


def test_categories_and_defects_called_na_null_or_1_stay_text(here):
    for name in ("NA", "null", "1"):
        write_tiny(here / "odd", side=16, train=1, good=1, blobs=1, categories=(name,))
        (here / "odd" / name / "test/blob").rename(here / "odd" / name / "test/nan")
    data = load_dataset("odd")
    assert data.categories == ("1", "NA", "null") and {s.defect for s in data.test} == {"good", "nan"}


def test_has_masks_is_true_when_any_anomalous_image_has_one():
    normal, bare, masked = (Sample(Path("x.png"), "x", 0), Sample(Path("x.png"), "x", 1),
                            Sample(Path("x.png"), "x", 1, mask_path=Path("m.png")))
    assert [Dataset("x", (), part).has_masks for part in ((), (normal,), (bare,), (bare, masked))] == [False] * 3 + [True]


@pytest.mark.parametrize("label", [None, 2, float("nan"), "good"])
def test_a_label_that_is_neither_0_nor_1_is_refused(label):
    with pytest.raises(DataError, match=r"^x\.png has label .+: 0 \(normal\) or 1 \(anomalous\) is expected$"):
        Dataset("x", (), (Sample(Path("x.png"), "x", label),))


def test_a_strict_reader_refuses_what_a_lenient_one_lists(mine):
    shutil.rmtree(mine / "nut/test")
    assert load_mvtec(mine, "mine").only("nut").test == ()
    with pytest.raises(DataError, match="category 'nut' has no test images"):
        load_mvtec(mine, "mine", strict=True)


def test_numbers_are_written_with_the_right_noun():
    assert (count(1, "file"), count(0, "file"), count(2, "category", "categories")) == ("1 file", "0 files", "2 categories")
