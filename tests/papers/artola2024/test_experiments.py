"""Lists of experiments of artola2024, by counts; no data set is needed for them."""

from __future__ import annotations

import pytest

from adcore.papers.artola2024.experiments import figure_2, figure_2_models, outlier_filter_models, sensitivity_study

pytestmark = pytest.mark.usefixtures("nothing_here")

PAPER = {"profile": "paper", "dataset": "mvtec_ad", "categories": [], "seeds": [0, 1, 2]}


def setting(experiment, name):
    return getattr(experiment.config(), name)


def test_figure_2_has_each_of_15_categories_and_3_seeds_before_and_after_fine_tuning():
    experiments = figure_2(**PAPER)
    assert len(experiments) == len({e.key for e in experiments}) == 2 * 15 * 3
    assert {setting(e, "epochs") for e in experiments} == {0, 20}
    assert {setting(e, "backbone") for e in experiments} == {"wide_resnet50_2"}


def test_the_networks_that_are_looked_into_are_of_the_first_category_and_seed():
    before, after = figure_2_models(**PAPER)
    (free,) = outlier_filter_models(**PAPER)
    assert {(e.category, e.seed) for e in (before, after, free)} == {("bottle", 0)}
    assert [(setting(e, "epochs"), setting(e, "filter")) for e in (before, after, free)] == [(0, True), (20, True), (20, False)]
    assert {before.key, after.key} < {e.key for e in figure_2(**PAPER)}


def test_the_sensitivity_study_varies_one_setting_at_a_time_around_its_usual_value():
    varied = {"taps": [[2], [4]], "components": [2, 8], "gamma": [0.05, 0.3]}   # as they come from a JSON file
    trials = sensitivity_study(seeds=[5, 6], sensitivity=varied, sensitivity_epochs=3)
    assert list(trials) == [("taps", (2,)), ("taps", (3,)), ("taps", (4,)), ("components", 2), ("components", 4),
                            ("components", 8), ("gamma", 0.05), ("gamma", 0.3)]
    for (name, value), (experiment,) in trials.items():
        assert (experiment.category, experiment.seed, setting(experiment, name)) == ("gravel", 5, value)
        assert setting(experiment, "epochs") == 3
    # Three trials have the usual values, and are one experiment: 2 for Figure 2, then 8 - 2 others.
    assert len({e.key for e in figure_2(seeds=[5], sensitivity=varied)}) == 2 + 6
    assert len(figure_2()) == 2


def test_settings_override_the_profile_s_and_epochs_are_those_after_fine_tuning():
    settings = {"epochs": 6, "taps": [2], "dim": 8}
    experiments = [*figure_2(settings=settings), *figure_2_models(settings=settings), *outlier_filter_models(settings=settings)]
    assert [setting(e, "epochs") for e in experiments] == [0, 6, 0, 6, 6]
    assert {(setting(e, "taps"), setting(e, "dim")) for e in experiments} == {((2,), 8)}
