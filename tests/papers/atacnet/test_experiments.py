"""The lists of experiments behind ATAC-Net's exhibits: counts on paper, and the published cells that they cover."""

from __future__ import annotations

from typing import Any

import pytest

from adcore.data.verify import PUBLISHED
from adcore.errors import ParameterError
from adcore.experiments import Experiment
from adcore.grids import load_grid
from adcore.papers import published
from adcore.papers.atacnet.experiments import algorithm_2_models, figure_1_models, table_1, table_2

pytestmark = pytest.mark.usefixtures("nothing_here")  # no data set is needed to list experiments


def paper_parameters(notebook: str, *names: str) -> dict[str, Any]:
    """Some parameters of a notebook in the grid of the paper's own settings."""
    parameters = next(job.parameters for job in load_grid("paper") if job.notebook == notebook and "profile" in job.parameters)
    return {name: parameters[name] for name in ("profile", "dataset", *names)}


def values(experiment: Experiment) -> dict[str, Any]:
    return {"method": experiment.method, "category": experiment.category, **experiment.config().values()}


def counts(experiments: list[Experiment], matches: list[dict[str, Any]]) -> list[int]:
    """For each published cell, how many experiments have its settings."""
    known = [values(one) for one in experiments]
    return [sum(all(str(one[name]) == str(value) for name, value in match.items()) for one in known) for match in matches]


def test_table_1_has_four_steps_on_fifteen_categories_and_covers_every_published_auroc_once():
    experiments = table_1(**paper_parameters("atacnet/02_ablation", "categories"))
    assert len(experiments) == len(set(experiments)) == 4 * 15
    cells = published("atacnet.table_1").query("metric == 'image_auroc'")
    of_categories = [match for match in cells["match"] if match["category"] != "all"]
    assert counts(experiments, of_categories) == [1] * 60


def test_every_seed_repeats_table_1_and_the_grad_cam_step_can_be_added():
    some = table_1(categories=["brick", "gear"], seeds=[0, 1, 2], steps=["gradcam", "atacnet"])
    assert len(some) == 2 * 3 * 2 and {values(one)["step"] for one in some} == {"gradcam", "atacnet"}
    assert {one.seed for one in some} == {0, 1, 2} and {one.category for one in some} == {"brick", "gear"}


def test_quick_trainings_of_table_1_have_100_steps_and_settings_replace_them():
    (quick,), (paper,) = (table_1(profile=profile, categories=["brick"], steps=["atacnet"]) for profile in ("quick", "paper"))
    assert (values(quick)["epochs"], values(quick)["steps"]) == (5, 20)
    assert (values(paper)["epochs"], values(paper)["steps"]) == (50, 20) and "epochs" not in dict(paper.settings)
    (shorter,) = table_1(categories=["brick"], steps=["atacnet"], settings={"epochs": 1})
    assert (values(shorter)["epochs"], values(shorter)["steps"]) == (1, 20)


def test_table_2_has_nine_defect_types_with_two_counts_and_three_methods_and_covers_every_published_auroc_once():
    experiments = table_2(**paper_parameters("atacnet/03_unseen_anomalies", "known", "counts", "settings"))
    assert len(experiments) == len(set(experiments)) == 9 * 2 * 3
    of_types = [match for match in published("atacnet.table_2")["match"] if match["known"] != "all"]
    assert counts(experiments, of_types) == [1] * 54


def test_figure_1_has_a_grad_cam_and_an_attention_network_for_each_of_three_categories():
    experiments = figure_1_models(**paper_parameters("atacnet/04_gradcam_vs_attention", "examples"))
    assert [(values(one)["step"], one.category) for one in experiments] == [
        (step, category) for step in ("gradcam", "atacnet") for category in ("cable", "transistor", "pill")]


def test_algorithm_2_trains_one_atac_net_with_the_given_threshold():
    (experiment,) = algorithm_2_models(category="cable", dataset="mvtec_ad", profile="paper", seed=3, threshold=0.7)
    assert values(experiment)["step"] == "atacnet" and values(experiment)["threshold"] == 0.7
    assert (experiment.category, experiment.seed, experiment.dataset) == ("cable", 3, "mvtec_ad")


@pytest.mark.parametrize("listing", [algorithm_2_models, table_1, table_2, figure_1_models])
def test_settings_replace_those_of_the_profile_and_a_list_is_one_value(listing):
    plain, changed = listing(), listing(settings={"tuned": [3, 4], "epochs": 7})
    assert len(plain) == len(changed) and plain
    assert all(values(one)["tuned"] == (3, 4) and values(one)["epochs"] == 7 for one in changed)
    assert not any(values(one)["tuned"] == (3, 4) for one in plain)


def test_all_categories_of_a_data_set_that_is_not_here_are_listed():
    assert sorted({one.category for one in table_1(dataset="mvtec_ad", categories=[], profile="paper")}) == \
        sorted(PUBLISHED["mvtec_ad"])


def test_a_defect_type_that_a_category_does_not_have_is_refused_with_a_suggestion():
    with pytest.raises(ParameterError, match=r"^category 'brick' of data set 'mini' has no defect type 'pant' \(did you mean "
                                             r"'paint'\?\); it has crack, hole, paint, stain$"):
        figure_1_models(examples={"brick": "pant"})
