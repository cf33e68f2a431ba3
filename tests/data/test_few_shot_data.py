"""Few labeled anomalies to train on, counted on paper and drawn by numpy; and how their images are equalized and resized."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from skimage import color
from support.tiny import texture, write_tiny

from adcore.data import Dataset, Sample, View, kinds_of_defect, load_dataset, with_anomalies
from adcore.errors import ParameterError
from adcore.experiments import Experiment


def samples(category: str, good: int, **defects: int) -> tuple[Sample, ...]:
    """Images that nobody reads: good ones, and so many of each kind of defect."""
    return tuple(Sample(Path(category, kind, f"{i:03}.png"), category, int(kind != "good"), kind)
                 for kind, count in (("good", good), *defects.items()) for i in range(count))


WOOD = Dataset("made", samples("wood", 5), samples("wood", 4, hole=6, scratch=8, stain=3))
TWO = WOOD + Dataset("made", samples("tile", 3), samples("tile", 2, crack=10, hole=4))


def defects(found: tuple[Sample, ...], category: str = "wood") -> list[str]:
    return [sample.defect for sample in found if sample.category == category]


# Which anomalies are trained on.

def test_in_the_general_setting_the_drawn_anomalies_leave_the_test_images_and_nothing_else_does():
    found = with_anomalies(WOOD, 7)
    drawn = found.train[len(WOOD.train):]
    assert found.train[:len(WOOD.train)] == WOOD.train and len(drawn) == len(set(drawn)) == 7
    assert all(sample.label for sample in drawn) and set(drawn) <= set(WOOD.test)
    assert found.test == tuple(sample for sample in WOOD.test if sample not in drawn)
    assert defects(found.test).count("good") == 4 and len(found.test) == 21 - 7
    assert (found.name, found.has_masks) == (WOOD.name, WOOD.has_masks)


def test_in_the_hard_setting_all_images_of_the_known_kind_leave_the_test_images():
    found = with_anomalies(WOOD, 3, "scratch")
    assert defects(found.train) == ["good"] * 5 + ["scratch"] * 3
    assert found.test == tuple(sample for sample in WOOD.test if sample.defect != "scratch") and len(found.test) == 21 - 8


@pytest.mark.parametrize(("known", "count"), [("", 8), ("scratch", 5)])
def test_the_draw_is_that_of_numpy_s_random_state_42_over_the_candidates_in_their_order(known, count):
    candidates = [sample for sample in WOOD.test if sample.label and known in ("", sample.defect)]
    by_hand = {candidates[i] for i in np.random.RandomState(42).permutation(len(candidates))[:count]}
    assert set(with_anomalies(WOOD, count, known).train) - set(WOOD.train) == by_hand
    assert by_hand != set(candidates[:count])


def test_every_draw_takes_the_same_anomalies_and_one_with_another_seed_others():
    first = with_anomalies(WOOD, 8)
    assert first == with_anomalies(WOOD, 8) == with_anomalies(WOOD, 8, seed=42)
    assert set(first.train) != set(with_anomalies(WOOD, 8, seed=43).train)


def test_fewer_anomalies_are_some_of_those_that_more_draw():
    assert set(with_anomalies(WOOD, 2).train) < set(with_anomalies(WOOD, 8).train)


def test_every_category_gives_as_many_anomalies_of_its_own():
    found = with_anomalies(TWO, 4, "hole")
    assert defects(found.train).count("hole") == defects(found.train, "tile").count("hole") == 4
    assert defects(found.test, "wood") == ["good"] * 4 + ["scratch"] * 8 + ["stain"] * 3
    assert defects(found.test, "tile") == ["good"] * 2 + ["crack"] * 10
    general = with_anomalies(TWO, 5)
    assert [len(defects(general.test, category)) for category in ("wood", "tile")] == [21 - 5, 16 - 5]
    # One category alone has the anomalies that it has among others.
    assert set(with_anomalies(WOOD, 5).train) == {sample for sample in general.train if sample.category == "wood"}


def test_no_anomaly_leaves_the_data_as_they_are_and_in_the_hard_setting_takes_the_known_kind_out():
    assert with_anomalies(WOOD, 0) == WOOD
    found = with_anomalies(WOOD, 0, "stain")
    assert found.train == WOOD.train and defects(found.test) == ["good"] * 4 + ["hole"] * 6 + ["scratch"] * 8


def test_half_of_the_anomalies_may_be_trained_on_and_of_a_known_kind_all():
    assert len(with_anomalies(WOOD, 17 // 2).train) == 5 + 8
    with pytest.raises(ParameterError, match=r"^anomalies=9 cannot be taken out of category 'wood': it has 17 such test "
                                             r"images, of which half at most may be trained on$"):
        with_anomalies(WOOD, 9)
    assert len(with_anomalies(WOOD, 3, "stain").train) == 5 + 3
    with pytest.raises(ParameterError, match=r"^anomalies=4 of kind 'stain' cannot be taken out of category 'wood': it has 3 "
                                             r"such test images, all of which may be trained on$"):
        with_anomalies(WOOD, 4, "stain")
    with pytest.raises(ParameterError, match=r"^anomalies=-1 cannot"):
        with_anomalies(WOOD, -1)


def test_a_category_with_fewer_anomalies_than_asked_for_is_named_though_another_has_enough():
    with pytest.raises(ParameterError, match=r"^anomalies=5 of kind 'hole' cannot be taken out of category 'tile': it has 4"):
        with_anomalies(TWO, 5, "hole")


def test_an_unknown_kind_is_refused_with_the_nearest_one_and_all_there_are():
    message = "known='scrach' is no kind of defect in category 'wood' (did you mean 'scratch'?); it has hole, scratch, stain"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        with_anomalies(WOOD, 1, "scrach")
    with pytest.raises(ParameterError, match=r"^known='scratch' is no kind of defect in category 'tile'.*; it has crack, hole"):
        with_anomalies(TWO, 1, "scratch")
    with pytest.raises(ParameterError, match=r"; it has none$"):
        with_anomalies(Dataset("made", WOOD.train, samples("wood", 2)), 0, "hole")
    with pytest.raises(ParameterError, match=r"^known='good' is no kind of defect"):
        with_anomalies(WOOD, 1, "good")


def test_the_only_kind_of_a_category_cannot_be_the_known_one(tiny):
    assert defects(with_anomalies(tiny, 1).test, "cloth") == ["blob"] * 2 + ["good"] * 3
    with pytest.raises(ParameterError, match=r"^known='blob' is the only kind of defect in category 'cloth': none is left"):
        with_anomalies(tiny, 1, "blob")


def test_kinds_of_defect_are_counted_category_by_category_and_good_is_none(tiny):
    assert kinds_of_defect(TWO) == {"wood": 3, "tile": 2} and kinds_of_defect(tiny) == {"cloth": 1}
    assert kinds_of_defect(Dataset("made", WOOD.train, samples("wood", 2))) == {"wood": 0}


# Experiments.

@pytest.fixture
def cloth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dataset:
    """A data set on disk with two kinds of defect, eight images each."""
    root = write_tiny(tmp_path / "cloths", side=8, blobs=8)
    for folder in ("test", "ground_truth"):
        shutil.copytree(root / "cloth" / folder / "blob", root / "cloth" / folder / "spot")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    return load_dataset("cloths")


@pytest.mark.parametrize("method", ["atacnet", "devnet", "dra"])
def test_the_data_of_an_experiment_are_split_by_its_settings(cloth, method):
    def data(**settings: object) -> Dataset:
        return Experiment(method, "cloths", "cloth", settings=tuple(sorted(settings.items()))).data()

    assert data(anomalies=4) == with_anomalies(cloth, 4) and data() == with_anomalies(cloth, 6)   # six in the quick profile
    assert data(anomalies=3, known="spot") == with_anomalies(cloth, 3, "spot")


def test_a_fixed_draw_is_the_same_for_every_seed_and_one_by_seed_follows_it(cloth):
    found = {(draw, seed): Experiment("atacnet", "cloths", "cloth", seed, settings=(("draw", draw),)).data()
             for draw in ("fixed", "by_seed") for seed in (0, 1)}
    assert found["fixed", 0] == found["fixed", 1] == with_anomalies(cloth, 6, seed=42)
    assert [found["by_seed", seed] for seed in (0, 1)] == [with_anomalies(cloth, 6, seed=seed) for seed in (0, 1)]
    assert set(found["by_seed", 0].train) != set(found["by_seed", 1].train) != set(found["fixed", 1].train)


# Equalized and resized.

@pytest.fixture(scope="module")
def image() -> Image.Image:
    """64 x 40 pixels of noise in muted colors, its right half dark."""
    pixels = texture(np.random.default_rng(3), 64)[:40].astype(float)
    pixels[:, 32:] *= 0.5
    return Image.fromarray(pixels.astype(np.uint8))


def seen(view: View, image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8"""
    return (view.image(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def test_a_bicubic_view_is_pil_s_bicubic_resize(image):
    assert np.array_equal(seen(View((17, 23), resample="bicubic"), image),
                          np.asarray(image.resize((23, 17), Image.Resampling.BICUBIC)))
    assert not np.array_equal(seen(View((17, 23), resample="bicubic"), image), seen(View((17, 23)), image))


def test_contrast_is_equalized_globally_as_pil_does_it_before_the_image_is_resized(image):
    before = ImageOps.equalize(image).resize((23, 17), Image.Resampling.BICUBIC)
    after = ImageOps.equalize(image.resize((23, 17), Image.Resampling.BICUBIC))
    found = seen(View((17, 23), resample="bicubic", contrast="global"), image)
    assert np.array_equal(found, np.asarray(before)) and not np.array_equal(found, np.asarray(after))


def test_global_contrast_reaches_from_black_to_white_in_every_channel(image):
    found = seen(View((40, 64), contrast="global"), image).reshape(-1, 3)
    assert np.array_equal(found.min(0), [0, 0, 0]) and np.array_equal(found.max(0), [255, 255, 255])
    assert np.asarray(image).max() < 230


def test_clahe_changes_the_lightness_and_keeps_the_colors(image):
    before, after = (color.rgb2lab(seen(View((40, 64), contrast=contrast), image)) for contrast in ("none", "clahe"))
    inside = (after[..., 0] > 10) & (after[..., 0] < 90)     # near black and white there is no room for a color
    assert inside.mean() > 0.6 and np.abs(after - before)[inside][:, 1:].max() < 2
    assert np.abs(after - before)[..., 0].mean() > 5
    # Its point is that a dark half becomes as rich as a light one.
    dark = slice(32, 64)
    assert after[:, dark, 0].std() > 1.5 * before[:, dark, 0].std()


@pytest.mark.parametrize("gray", [0, 90, 255])
def test_an_image_of_one_color_has_no_contrast_to_change(gray):
    flat = Image.new("RGB", (24, 16), (gray, gray, gray))
    for contrast in ("none", "global", "clahe"):
        assert (seen(View((16, 24), contrast=contrast), flat) == gray).all(), contrast


def test_an_unknown_contrast_is_refused_with_the_nearest_one():
    with pytest.raises(ParameterError, match=r"^unknown contrast 'glob' \(did you mean 'global'\?\): use none, global, clahe$"):
        View(224, contrast="glob")
    with pytest.raises(ParameterError, match=r"^unknown resample 'cubic' \(did you mean 'bicubic'\?\)"):
        View(224, resample="cubic")


def test_a_view_s_name_says_only_what_is_not_the_default():
    assert repr(View(224, resample="bilinear", contrast="none")) == "View(size=224, crop=None)"
    assert repr(View(224, contrast="clahe")) == "View(size=224, crop=None, contrast='clahe')"
    assert repr(View(9, 7, "bicubic", "global")) == "View(size=9, crop=7, resample='bicubic', contrast='global')"
