"""Data sets listed from their folders, and images and masks as tensors."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adcore.data import DATASETS, Dataset, Sample, View, find_dataset, load_dataset, read_images, read_masks
from adcore.data.ksdd2 import load_ksdd2
from adcore.data.manifest import load_manifest
from adcore.data.mini import make
from adcore.data.mtd import DEFECTS, load_mtd
from adcore.data.mvtec import load_mvtec
from adcore.data.mvtec_loco import load_mvtec_loco
from adcore.data.split import hold_out
from adcore.data.verify import PUBLISHED, dataset_folder, verify_dataset
from adcore.errors import DataError, ParameterError

pytestmark = pytest.mark.usefixtures("nothing_here")


def noise(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mvtec_category(root: Path, category: str, train: int = 2, size: tuple[int, int] = (20, 30)) -> None:
    """A category with `train` training images, one good test image, two scratched ones and one with a hole."""
    seeds = itertools.count(len(category) * 1000)  # no two images are the same
    for i in range(train):
        save(root / category / f"train/good/{i:03}.png", noise(*size, next(seeds)))
    save(root / category / "test/good/000.png", noise(*size, next(seeds)))
    mask = np.zeros(size, np.uint8)
    mask[3:6, 10:20] = 255
    for defect, count in (("scratch", 2), ("hole", 1)):
        for i in range(count):
            save(root / category / f"test/{defect}/{i:03}.png", noise(*size, next(seeds)))
            save(root / category / f"ground_truth/{defect}/{i:03}_mask.png", mask)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set `toy` of two categories in a folder of ADCORE_DATA."""
    for category in ("nut", "bolt"):
        mvtec_category(tmp_path / "toy", category)
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    return tmp_path / "toy"


def test_an_empty_list_of_categories_is_all_of_them_for_every_kind_of_data_set(toy, tmp_path):
    (tmp_path / "listed.csv").write_text("image_path,label\n" + "".join(
        f"toy/nut/{path.parent.parent.name}/{path.parent.name}/{path.name},{int(path.parent.name != 'good')}\n"
        for path in sorted((toy / "nut").glob("t*/*/*.png"))))
    for name in ("toy", tmp_path / "listed.csv", "digits"):
        everything, none_named = load_dataset(name), load_dataset(name, [])
        assert none_named.test == everything.test != () and none_named.categories == everything.categories != ()


def test_mvtec_s_layout_gives_normal_training_images_and_test_images_with_their_masks(toy):
    (toy / "nut/train/good/.hidden.png").write_text("")
    (toy / "nut/train/good/notes.txt").write_text("")
    (toy / "license.txt").write_text("")
    (toy / "not_a_category").mkdir()
    data = load_dataset("toy")
    assert data.name == "toy" and data.categories == ("bolt", "nut") and data.has_masks
    found = [(s.category, s.defect, s.label, s.path.relative_to(toy).as_posix(),
              s.mask_path and s.mask_path.relative_to(toy).as_posix()) for s in (*data.train, *data.test)]
    assert [one for one in found if one[0] == "nut"] == [
        ("nut", "good", 0, "nut/train/good/000.png", None), ("nut", "good", 0, "nut/train/good/001.png", None),
        ("nut", "good", 0, "nut/test/good/000.png", None),
        ("nut", "hole", 1, "nut/test/hole/000.png", "nut/ground_truth/hole/000_mask.png"),
        ("nut", "scratch", 1, "nut/test/scratch/000.png", "nut/ground_truth/scratch/000_mask.png"),
        ("nut", "scratch", 1, "nut/test/scratch/001.png", "nut/ground_truth/scratch/001_mask.png")]
    assert len(data.train) == 4 and len(data.test) == 8 and not any(s.label for s in data.train)


def test_categories_are_one_name_a_list_or_all(toy):
    assert load_dataset("toy", "bolt").categories == load_dataset("toy", ["bolt"]).categories == ("bolt",)
    assert load_dataset("toy", ["nut", "bolt"]).categories == ("nut", "bolt")
    assert load_dataset("toy", "all") == load_dataset("toy", None) == load_dataset("toy")
    assert load_dataset("toy").only("nut") == load_dataset("toy", "nut")


def test_a_normal_image_has_an_empty_mask_and_an_anomalous_one_without_mask_file_none(tmp_path):
    path = save(tmp_path / "x.png", noise(20, 30))
    mask = Sample(path, "nut", 0).mask
    assert mask is not None and mask.shape == (20, 30) and mask.dtype == bool and not mask.any()
    assert Sample(path, "nut", 1).mask is None
    (tmp_path / "y.png").write_text("no image")
    for broken in ("y.png", "z.png"):
        with pytest.raises(DataError, match=rf"^{tmp_path / broken} "):
            _ = Sample(tmp_path / broken, "nut", 0).mask


def test_mtd_pairs_photographs_with_masks_of_the_same_name_and_sizes_may_vary(tmp_path):
    for i in range(10):
        save(tmp_path / f"MT_Free/Imgs/{i}.jpg", noise(20 + i, 30, i)[..., 0])
    for k, defect in enumerate(DEFECTS):
        save(tmp_path / f"MT_{defect}/Imgs/a.jpg", noise(25, 31 + k)[..., 0])
        save(tmp_path / f"MT_{defect}/Imgs/a.png", np.full((25, 31 + k), 255, np.uint8))
    data = load_mtd(tmp_path)
    assert data.categories == ("magnetic_tile",) and len(data.train) == 8
    assert [s.defect for s in data.test] == ["good"] * 2 + ["blowhole", "break", "crack", "fray", "uneven"]
    normal = [s.path for s in (*data.train, *data.test) if s.label == 0]
    assert sorted(normal) == sorted((tmp_path / "MT_Free/Imgs").iterdir())
    batch = torch.cat(list(read_images(data.test, View((16, 24)), batch_size=3)))
    assert batch.shape == (7, 3, 16, 24)
    assert [mask.float().mean() for mask in read_masks(data.test, View((16, 24)))] == [0, 0, 1, 1, 1, 1, 1]


def test_published_sets_with_soft_or_numbered_masks_mark_every_pixel_above_zero(tmp_path):
    soft = np.uint8([[0, 1, 9, 100, 255]])  # two pixels more than above half of the highest
    image = noise(1, 5)
    for kind in ("Free", *DEFECTS):
        for i in range(2):
            save(tmp_path / f"mtd/MT_{kind}/Imgs/{i}.jpg", image)
            save(tmp_path / f"mtd/MT_{kind}/Imgs/{i}.png", soft)
    for part in ("train", "test"):
        for number, mask in (("00000", soft * 0), ("00001", soft)):
            save(tmp_path / f"ksdd2/{part}/{number}.png", image)
            save(tmp_path / f"ksdd2/{part}/{number}_GT.png", mask)
    for name in ("train/good/0", "test/good/0", "test/structural_anomalies/0", "ground_truth/structural_anomalies/0/0"):
        save(tmp_path / f"loco/x/{name}.png", soft if "ground_truth" in name else image)
    save(tmp_path / "loco/x/ground_truth/structural_anomalies/0/1.png", soft)
    for data in (load_mtd(tmp_path / "mtd"), load_ksdd2(tmp_path / "ksdd2"), load_mvtec_loco(tmp_path / "loco")):
        assert {tuple(s.mask[0].tolist()) for s in data.test if s.label} == {(False, True, True, True, True)}, data.name


def test_the_same_761_of_mtd_s_952_normal_images_are_always_for_training():
    samples = [Sample(Path(f"{i}.jpg"), "magnetic_tile", 0) for i in range(952)]
    train, test = hold_out(samples, 0.8)
    assert len(train) == 761 and len(test) == 191 and hold_out(samples, 0.8) == (train, test)
    assert sorted([*train, *test], key=samples.index) == samples
    assert train == sorted(train, key=samples.index) and train != samples[:761]


@given(st.integers(0, 50), st.floats(0, 1))
def test_a_split_loses_nothing_and_keeps_the_order(n, fraction):
    samples = [Sample(Path(f"{i}"), "x", 0) for i in range(n)]
    parts = hold_out(samples, fraction)
    assert len(parts[0]) == int(n * fraction) and not set(parts[0]) & set(parts[1])
    for part in parts:
        assert part == [sample for sample in samples if sample in part]


def test_elpv_leaves_out_the_uncertain_cells_and_has_no_masks():
    package = pytest.importorskip("elpv_dataset")
    data = load_dataset("elpv")
    # Deitsch et al., Table 1: cells of probability 0 and, together, of 2/3 and 1.
    assert data.categories == ("mono", "poly") and not data.has_masks
    table = pd.read_csv(Path(package.__file__).parent / "data/labels.csv", sep=r"\s+", names=["path", "probability", "kind"])
    assert len(table) == 2624
    for kind, normal, anomalous in (("mono", 588, 56 + 313), ("poly", 920, 50 + 402)):
        part, cells = data.only(kind), table[table.kind == kind]
        assert (cells.probability == 0).sum() == normal and (cells.probability > 0.5).sum() == anomalous
        assert len(part.train) == int(0.8 * normal) and sum(s.label for s in part.test) == anomalous
        assert len(part.train) + len(part.test) == normal + anomalous
    assert {s.mask_path for s in data.test} == {None}
    assert read_masks(data.test[-2:], View(32)) == [None, None]
    assert data.test[0].image.size == (300, 300)
    assert all(s.path.is_file() for s in (*data.train, *data.test))


def test_elpv_without_its_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("adcore.data.elpv.importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^data set 'elpv' comes in a Python package: pip install 'adcore\[elpv\]'$"):
        load_dataset("elpv")


def test_joined_data_sets_are_one_with_masks_if_one_has_some(toy):
    mvtec_category(toy.parent / "other", "gear", train=3)
    both = load_dataset("toy+other")
    assert both.name == "toy+other" and both.categories == ("bolt", "nut", "gear") and both.has_masks
    assert both.train == load_dataset("toy").train + load_dataset("other").train
    assert load_dataset("toy+other", ["gear", "nut"]).categories == ("nut", "gear")
    blind = Dataset("blind", (), (Sample(Path("x.png"), "x", 1),))
    assert not blind.has_masks and (both + blind).name == "toy+other+blind" and (both + blind).has_masks
    with pytest.raises(ParameterError, match="unknown category 'screw' in data set 'toy\\+other'; it has bolt, nut, gear"):
        load_dataset("toy+other", ["screw"])
    with pytest.raises(ParameterError, match=r"unknown data set 'othr' \(did you mean 'other'\?\)"):
        load_dataset("toy+othr")


def test_only_mini_takes_numbers_of_images(toy, tmp_path):
    with pytest.raises(ParameterError, match=r"^data set 'toy' takes no option train, good; those are for 'mini'$"):
        load_dataset("toy", train=2, good=1)
    make("brick", tmp_path / "mini", train=2, good=1, defective=3)
    data = load_dataset("mini", ["brick"], root=tmp_path / "mini", train=1, good=1, defective=2)
    assert len(data.train) == 1 and [s.label for s in data.test] == [0, 1, 1]


def test_a_data_set_is_found_under_each_of_its_names_in_the_first_folder_that_has_it(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    assert len(DATASETS["mvtec_ad"].folders) == 3
    for called in DATASETS["mvtec_ad"].folders:
        (tmp_path / "b" / called).mkdir(parents=True)
        assert find_dataset("mvtec_ad") == tmp_path / "b" / called
        (tmp_path / "b" / called).rmdir()
    for folder in ("b", "a"):
        mvtec_category(tmp_path / folder / "toy", "nut")
        assert find_dataset("toy") == tmp_path / folder / "toy"
    assert find_dataset("mini") is None and find_dataset("nowhere") is None


def test_every_data_set_known_by_name_is_in_the_manifest():
    assert {name for name in DATASETS if load_manifest()[name].kind == "dataset"} == set(DATASETS)


def test_the_error_for_a_missing_data_set_names_address_folder_and_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset("mvtec_ad")
    assert str(caught.value).startswith(f"data set 'mvtec_ad' is not here: fetch it from {load_manifest()['mvtec_ad'].url}")
    assert str(tmp_path / "mvtec_ad") in str(caught.value)
    assert str(caught.value).endswith("then run `adcore data verify mvtec_ad`")
    with pytest.raises(DataError, match="'mvtec_ad' is not here"):
        dataset_folder("mvtec_ad")


def test_verifying_reads_every_image_and_mask_and_returns_a_summary(toy):
    assert verify_dataset("toy") == "toy: 2 categories, 4 training and 8 test images, 6 masks, all readable"
    assert dataset_folder("toy") == toy
    save(toy / "nut/ground_truth/hole/000_mask.png", np.zeros((20, 30), np.uint8))
    assert verify_dataset("toy").splitlines() == [
        "toy: 2 categories, 4 training and 8 test images, 6 masks, all readable",
        "- 1 defective with a mask that marks no pixel: nut/ground_truth/hole/000_mask.png"]


def test_mvtec_ad_is_compared_with_its_published_counts(toy, monkeypatch):
    # Bergmann et al.: 3,629 training and 1,725 test images; methods.md 0.1 counts them by category.
    counts = PUBLISHED["mvtec_ad"].values()
    assert sum(train for train, _ in counts) == 3629 and sum(test for _, test in counts) == 1725 and len(counts) == 15
    toy.rename(toy.parent / "mvtec")
    (toy.parent / "mvtec/nut").rename(toy.parent / "mvtec/bottle")
    with pytest.raises(DataError, match=r"^mvtec_ad/bottle has 2 training and 4 test images, expected 209 and 83"):
        verify_dataset("mvtec_ad")


sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 5))
def test_an_image_is_pillow_s_bilinear_resize_divided_by_255(before, after, seed):
    image = Image.fromarray(noise(*before, seed))
    seen = View(after).image(image)
    assert seen.shape == (3, *after) and seen.dtype == torch.float32 and seen.is_contiguous()
    expected = np.asarray(image.resize(after[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal((seen * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    if min(after) > 1:  # torch 2.15's own answer for a single column is wrong
        pixels = torch.tensor(noise(*before, seed)).permute(2, 0, 1)[None] / 255
        other = F.interpolate(pixels, after, mode="bilinear", antialias=True)[0]
        assert (seen - other).abs().max() < 1.6 / 255  # Pillow rounds after each direction


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, st.integers(0, 5))
def test_each_pixel_of_a_resized_mask_is_the_old_pixel_at_its_center(before, after, seed):
    mask = noise(*before, seed)[..., 0] > 127
    seen = View(after).mask(mask)
    middles = [(np.arange(new) * 2 + 1) * old for old, new in zip(before, after, strict=True)]  # in 1/(2 new) old pixels
    rows, columns = (middle // (2 * new) for middle, new in zip(middles, after, strict=True))
    # A middle that falls between two old pixels belongs to either.
    sure = np.ix_(*((middle % (2 * new) > 0) for middle, new in zip(middles, after, strict=True)))
    assert seen.dtype == torch.bool and seen.shape == after
    assert np.array_equal(seen.numpy()[sure], mask[rows][:, columns][sure])


@given(sizes, sizes)
def test_a_crop_is_the_center_of_the_image(size, less):
    size = (size[0] + 40, size[1] + 40)
    image, mask = Image.fromarray(noise(*size)), noise(*size)[..., 0] > 127
    whole, view = View(size), View(size, (size[0] - less[0], size[1] - less[1]))
    assert view.shape == (size[0] - less[0], size[1] - less[1]) == view.image(image).shape[1:] == view.mask(mask).shape
    top, left = less[0] // 2, less[1] // 2  # half a pixel is rounded down
    middle = np.s_[..., top:size[0] - less[0] + top, left:size[1] - less[1] + left]
    assert torch.equal(view.image(image), whole.image(image)[middle])
    assert torch.equal(view.mask(mask), whole.mask(mask)[middle])


def test_a_number_is_the_side_of_a_square_and_an_impossible_size_is_refused():
    assert View(7).shape == (7, 7) == View((9, 11), 7).shape
    with pytest.raises(ParameterError, match=r"^crop 9x40 is larger than the resized image 20x30$"):
        View((20, 30), (9, 40)).image(Image.new("RGB", (5, 5)))
    with pytest.raises(ParameterError, match=r"image size \(0, 5\) is not a height and width of at least one pixel"):
        View((0, 5)).image(Image.new("RGB", (5, 5)))


@pytest.mark.parametrize(("batch_size", "shapes"), [(1, [1] * 11), (3, [3, 3, 3, 2]), (4, [4, 4, 3]), (11, [11]), (50, [11])])
def test_batches_keep_the_order_and_the_last_one_may_be_smaller(tmp_path, batch_size, shapes):
    samples = [Sample(save(tmp_path / f"{i}.png", noise(9 + i, 12, i)), "x", 0) for i in range(11)]
    view = View((8, 6))
    batches = list(read_images(samples, view, batch_size))
    assert [len(batch) for batch in batches] == shapes
    assert torch.equal(torch.cat(batches), torch.stack([view.image(sample.image) for sample in samples]))
    assert list(read_images([], view)) == []


def test_masks_are_read_in_the_samples_order(toy):
    data = load_mvtec(toy, "toy")
    masks = read_masks(data.test, View((10, 15)))
    assert [mask is not None and bool(mask.any()) for mask in masks] == [s.label == 1 for s in data.test]
    assert all(mask is not None and mask.shape == (10, 15) for mask in masks)


def test_a_lanczos_view_is_pillow_s_lanczos_resize(tmp_path):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    seen = {how: (View(224, resample=how).image(image) * 255).round().byte().permute(1, 2, 0).numpy()
            for how in ("bilinear", "lanczos")}
    for how, filter_ in (("bilinear", Image.Resampling.BILINEAR), ("lanczos", Image.Resampling.LANCZOS)):
        assert np.array_equal(seen[how], np.asarray(image.resize((224, 224), filter_)))
    assert not np.array_equal(seen["bilinear"], seen["lanczos"])
    mask = np.random.default_rng(2).random((9, 9)) > 0.5
    assert torch.equal(View(20, resample="lanczos").mask(mask), View(20).mask(mask))


def test_the_repr_of_a_view_names_lanczos_and_leaves_out_the_default():
    assert repr(View(224)) == "View(size=224, crop=None)" and repr(View((16, 24), 8)) == "View(size=(16, 24), crop=8)"
    assert repr(View(224, resample="lanczos")) == "View(size=224, crop=None, resample='lanczos')"
    assert View(224) == View(224, resample="bilinear") != View(224, resample="lanczos")
    with pytest.raises(ParameterError, match=r"^unknown resample 'lancsoz' \(did you mean 'lanczos'\?\): use bilinear, bic"):
        View(224, resample="lancsoz")
