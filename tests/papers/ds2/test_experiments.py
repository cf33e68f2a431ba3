"""Lists of DS2's experiments: counts on paper, and the printed cells that they cover. No data set is needed for them."""

from __future__ import annotations

from typing import Any

import pytest

from adcore.experiments import Experiment
from adcore.grids import load_grid
from adcore.papers import published
from adcore.papers.ds2 import experiments as listed
from adcore.papers.ds2.localization import OBJECTS, TEXTURES

pytestmark = pytest.mark.usefixtures("nothing_here")

PAPER = {"profile": "paper", "dataset": "mvtec_ad", "categories": [], "pretraining": "dataset", "seeds": [0, 1, 2]}
QUICK = {"dataset": "mvtec_ad", "categories": ["bottle"]}  # a listed data set: 'mini' would be drawn first
GROUPS = {"object": OBJECTS, "texture": TEXTURES, "all": OBJECTS | TEXTURES}


def of_grid(notebook: str, *names: str) -> dict[str, Any]:
    """Some parameters of a notebook in the grid of the paper's own settings."""
    job = next(job for job in load_grid("paper") if job.notebook == notebook and "profile" in job.parameters)
    return {name: job.parameters[name] for name in names}


def value(experiment: Experiment, name: str) -> Any:
    return getattr(experiment.config(), name)


def distinct(experiments: list[Experiment]) -> int:
    return len({experiment.key for experiment in experiments})


def table_1(letter: str, **parameters: Any) -> list[Experiment]:
    """What the plan lists: the experiments of all rows."""
    return [e for row in getattr(listed, f"table_1{letter}")(**parameters).values() for e in row]


@pytest.mark.parametrize(("letter", "rows"), [("a", 5), ("b", 5), ("c", 6), ("d", 5), ("e", 3)])
def test_table_1_has_one_experiment_per_row_category_and_seed(letter, rows):
    experiments = table_1(letter, **PAPER)
    assert len(experiments) == distinct(experiments) == rows * 15 * 3
    assert {value(e, "epochs") for e in experiments} == {400} and {value(e, "pretraining") for e in experiments} == {"dataset"}


@pytest.mark.parametrize("letter", ["b", "c", "d", "e"])
def test_every_printed_cell_of_table_1_is_covered_by_its_categories_and_seeds(letter):
    experiments = table_1(letter, **PAPER)
    for match in published(f"ds2.table_1{letter}")["match"]:
        wanted = {name: text for name, text in match.items() if name not in ("method", "group")}
        (name, text), = wanted.items()
        found = [e for e in experiments if "".join(map(str, setting if isinstance(setting := value(e, name), tuple)
                                                       else [setting])) == str(text)]
        assert {e.method for e in found} == {match["method"]}
        assert {e.category for e in found} >= GROUPS[match["group"]] and len(found) == 15 * 3


def test_the_rows_chosen_in_the_paper_are_one_training_in_all_five_ablations():
    chosen = {"a": "both", "b": "none", "c": "cj+gb", "d": "256", "e": "c4c5"}
    keys = [{e.key for e in listed.table_1(letter, **PAPER)[row]} for letter, row in chosen.items()]
    assert all(other == keys[0] for other in keys) and len(keys[0]) == 15 * 3
    rows = 5 + 5 + 6 + 5 + 3 - 4                          # distinct trainings of one seed on all images
    everything = [e for letter in "abcde" for e in table_1(letter, **PAPER)]
    assert distinct(everything) == rows * 15 * 3


def test_only_the_ablations_asked_for_are_listed():
    asked = {letter: len(table_1(letter, ablations=["a", "d"], **QUICK)) for letter in "abcde"}
    assert asked == {"a": 3, "b": 0, "c": 0, "d": 3, "e": 0}


def test_the_quick_profile_has_short_trainings_with_batches_that_forty_images_fill():
    experiments = [e for letter in "abcde" for e in table_1(letter, **QUICK)]
    assert {value(e, "epochs") for e in experiments} == {3} and max(value(e, "batch_size") for e in experiments) == 16
    assert {value(e, "epochs") for e in table_1("b", settings={"epochs": 2, "decay_epochs": [1]}, **QUICK)} == {2}


def test_sections_2_and_3_compare_with_encoders_that_are_not_pretrained_by_them():
    dense, pasted = listed.pretraining(**PAPER), listed.cutpaste(**PAPER)
    assert [e.method for e in dense] == ["ds2"] * 45 + ["gde"] * 90
    assert [e.method for e in pasted] == ["cutpaste"] * 45 + ["gde"] * 45
    assert {(value(e, "backbone"), value(e, "weights")) for e in dense[45:]} == {
        ("resnet18", "random"), ("efficientnet_lite0", "default")}
    assert {e.key for e in pasted[45:]} < {e.key for e in dense}
    for models, experiments in ((listed.pretraining_models, dense), (listed.cutpaste_models, pasted)):
        (model,) = models(**PAPER)
        assert model.key == experiments[0].key and (model.category, model.seed) == ("bottle", 0)


def test_settings_of_the_localization_apply_to_the_baselines_and_those_of_the_pretraining_do_not():
    settings = {"image_size": 64, "decay_epochs": [2], "epochs": 3}
    for experiments in (listed.pretraining(settings=settings, **QUICK), listed.transfer_datasets(settings=settings, **QUICK)):
        assert {value(e, "image_size") for e in experiments} == {64}
        assert {value(e, "decay_epochs") for e in experiments if e.method == "ds2"} == {(2,)}


def test_transfer_has_one_experiment_per_source_and_one_with_random_weights():
    experiments = listed.transfer_datasets(**of_grid("ds2/04_transfer_datasets", "profile", "dataset", "sources"),
                                           categories=["magnetic_tile"], seeds=range(5))
    assert len(experiments) == distinct(experiments) == (4 + 1) * 5
    assert {value(e, "pretraining") for e in experiments if e.method == "ds2"} == {"mvtec_ad", "mvtec_loco", "ksdd2", "mtd"}


def test_figures_1_to_5_draw_one_detector_per_category_of_mvtec_ad():
    parameters = of_grid("ds2/05_localization_maps", "profile", "dataset", "categories", "pretraining")
    for number in range(1, 6):
        experiments = getattr(listed, f"figure_{number}_models")(**parameters)
        assert {e.category for e in experiments} == OBJECTS | TEXTURES and len(experiments) == 15
    (frozen,) = listed.figure_1_models(method="gde", seed=2, **QUICK)
    assert (frozen.method, frozen.seed) == ("gde", 2)
