"""The few-shot split, counted on paper and drawn a second time with numpy."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.tiny import write_tiny

from adcore.data import Dataset, Sample, load_dataset
from adcore.errors import ParameterError
from adcore.experiments import Experiment
from adcore.papers.atacnet.few_shot_split import defect_types, with_anomalies


def samples(category: str, good: int, **defects: int) -> tuple[Sample, ...]:
    """Samples without image files: `good` normal ones, and the given number of each defect type."""
    return tuple(Sample(Path(category, kind, f"{i:03}.png"), category, int(kind != "good"), kind)
                 for kind, count in (("good", good), *defects.items()) for i in range(count))


WOOD = Dataset("made", samples("wood", 5), samples("wood", 4, hole=6, scratch=8, stain=3))
TWO = WOOD + Dataset("made", samples("tile", 3), samples("tile", 2, crack=10, hole=4))


def defects(found: tuple[Sample, ...], category: str = "wood") -> list[str]:
    return [sample.defect for sample in found if sample.category == category]


# Choice of the training anomalies.

def test_in_the_general_setting_only_the_drawn_anomalies_leave_the_test_images():
    found = with_anomalies(WOOD, 7)
    drawn = found.train[len(WOOD.train):]
    assert found.train[:len(WOOD.train)] == WOOD.train and len(drawn) == len(set(drawn)) == 7
    assert all(sample.label for sample in drawn) and set(drawn) <= set(WOOD.test)
    assert found.test == tuple(sample for sample in WOOD.test if sample not in drawn)
    assert defects(found.test).count("good") == 4 and len(found.test) == 21 - 7
    assert (found.name, found.has_masks) == (WOOD.name, WOOD.has_masks)


def test_in_the_hard_setting_all_images_of_the_known_type_leave_the_test_images():
    found = with_anomalies(WOOD, 3, "scratch")
    assert defects(found.train) == ["good"] * 5 + ["scratch"] * 3
    assert found.test == tuple(sample for sample in WOOD.test if sample.defect != "scratch") and len(found.test) == 21 - 8


@pytest.mark.parametrize(("known", "count"), [("", 8), ("scratch", 5)])
def test_anomalies_are_drawn_by_numpy_s_random_state_42_from_the_candidates_in_their_order(known, count):
    candidates = [sample for sample in WOOD.test if sample.label and known in ("", sample.defect)]
    by_hand = {candidates[i] for i in np.random.RandomState(42).permutation(len(candidates))[:count]}
    assert set(with_anomalies(WOOD, count, known).train) - set(WOOD.train) == by_hand
    assert by_hand != set(candidates[:count])


def test_equal_seeds_draw_equal_anomalies_and_another_seed_draws_others():
    first = with_anomalies(WOOD, 8)
    assert first == with_anomalies(WOOD, 8) == with_anomalies(WOOD, 8, seed=42)
    assert set(first.train) != set(with_anomalies(WOOD, 8, seed=43).train)


def test_a_smaller_count_draws_a_subset_of_what_a_larger_count_draws():
    assert set(with_anomalies(WOOD, 2).train) < set(with_anomalies(WOOD, 8).train)


def test_each_category_gives_the_same_number_of_anomalies():
    found = with_anomalies(TWO, 4, "hole")
    assert defects(found.train).count("hole") == defects(found.train, "tile").count("hole") == 4
    assert defects(found.test, "wood") == ["good"] * 4 + ["scratch"] * 8 + ["stain"] * 3
    assert defects(found.test, "tile") == ["good"] * 2 + ["crack"] * 10
    general = with_anomalies(TWO, 5)
    assert [len(defects(general.test, category)) for category in ("wood", "tile")] == [21 - 5, 16 - 5]
    # The draw of a category does not depend on the other categories.
    assert set(with_anomalies(WOOD, 5).train) == {sample for sample in general.train if sample.category == "wood"}


def test_a_count_of_zero_changes_nothing_in_the_general_setting_and_removes_the_known_type_in_the_hard_one():
    assert with_anomalies(WOOD, 0) == WOOD
    found = with_anomalies(WOOD, 0, "stain")
    assert found.train == WOOD.train and defects(found.test) == ["good"] * 4 + ["hole"] * 6 + ["scratch"] * 8


def test_at_most_half_of_all_anomalies_or_all_of_the_known_type_may_be_trained_on():
    assert len(with_anomalies(WOOD, 17 // 2).train) == 5 + 8
    with pytest.raises(ParameterError, match=r"^anomalies=9 cannot be taken from category 'wood': it has 17 such test "
                                             r"images, and at most 8 may be trained on$"):
        with_anomalies(WOOD, 9)
    assert len(with_anomalies(WOOD, 3, "stain").train) == 5 + 3
    with pytest.raises(ParameterError, match=r"^anomalies=4 of type 'stain' cannot be taken from category 'wood': it has 3 "
                                             r"such test images, and at most 3 may be trained on$"):
        with_anomalies(WOOD, 4, "stain")
    with pytest.raises(ParameterError, match=r"^anomalies=-1 cannot"):
        with_anomalies(WOOD, -1)


def test_the_category_with_too_few_anomalies_is_named_even_if_another_has_enough():
    with pytest.raises(ParameterError, match=r"^anomalies=5 of type 'hole' cannot be taken from category 'tile': it has 4"):
        with_anomalies(TWO, 5, "hole")


def test_an_unknown_type_is_refused_with_the_nearest_name_and_the_list_of_types():
    message = "known='scrach' is not a defect type of category 'wood' (did you mean 'scratch'?); it has hole, scratch, stain"
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        with_anomalies(WOOD, 1, "scrach")
    with pytest.raises(ParameterError, match=r"^known='scratch' is not a defect type of category 'tile'.*; it has crack, hole"):
        with_anomalies(TWO, 1, "scratch")
    with pytest.raises(ParameterError, match=r"; it has none$"):
        with_anomalies(Dataset("made", WOOD.train, samples("wood", 2)), 0, "hole")
    with pytest.raises(ParameterError, match=r"^known='good' is not a defect type"):
        with_anomalies(WOOD, 1, "good")


def test_the_only_defect_type_of_a_category_cannot_be_the_known_one(tiny):
    assert defects(with_anomalies(tiny, 1).test, "cloth") == ["blob"] * 2 + ["good"] * 3
    with pytest.raises(ParameterError, match=r"^known='blob' is the only defect type of category 'cloth': no other is left"):
        with_anomalies(tiny, 1, "blob")


def test_defect_types_are_counted_per_category_without_the_normal_images(tiny):
    assert defect_types(TWO) == {"wood": 3, "tile": 2} and defect_types(tiny) == {"cloth": 1}
    assert defect_types(Dataset("made", WOOD.train, samples("wood", 2))) == {"wood": 0}


# Experiments.

@pytest.fixture
def cloth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Dataset:
    """A data set on disk with two defect types, eight images each."""
    root = write_tiny(tmp_path / "cloths", side=8, blobs=8)
    for folder in ("test", "ground_truth"):
        shutil.copytree(root / "cloth" / folder / "blob", root / "cloth" / folder / "spot")
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    return load_dataset("cloths")


@pytest.mark.parametrize("method", ["atacnet", "devnet", "dra"])
def test_the_settings_of_an_experiment_control_its_few_shot_split(cloth, method):
    def data(**settings: object) -> Dataset:
        return Experiment(method, "cloths", "cloth", settings=tuple(sorted(settings.items()))).data()

    assert data(anomalies=4) == with_anomalies(cloth, 4) and data() == with_anomalies(cloth, 6)   # 6 in the quick profile
    assert data(anomalies=3, known="spot") == with_anomalies(cloth, 3, "spot")


def test_a_fixed_draw_is_the_same_for_every_seed_and_a_draw_by_seed_is_not(cloth):
    found = {(draw, seed): Experiment("atacnet", "cloths", "cloth", seed, settings=(("draw", draw),)).data()
             for draw in ("fixed", "by_seed") for seed in (0, 1)}
    assert found["fixed", 0] == found["fixed", 1] == with_anomalies(cloth, 6, seed=42)
    assert [found["by_seed", seed] for seed in (0, 1)] == [with_anomalies(cloth, 6, seed=seed) for seed in (0, 1)]
    assert set(found["by_seed", 0].train) != set(found["by_seed", 1].train) != set(found["fixed", 1].train)
