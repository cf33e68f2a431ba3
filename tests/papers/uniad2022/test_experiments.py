"""Lists of experiments of UniAD's exhibits: counted on paper, and compared with printed cells and with the notebooks."""

from __future__ import annotations

import inspect

import pandas as pd
import pytest

from adcore.experiments.comparison import matching
from adcore.experiments.store import Result
from adcore.notebook import find_notebook, read_parameters
from adcore.papers import exhibits, published
from adcore.papers.uniad2022 import experiments

LISTS = {name: function for name, function in vars(experiments).items()
         if inspect.isfunction(function) and function.__module__ == experiments.__name__ and not name.startswith("_")}
PAPER = {"profile": "paper", "dataset": "mvtec_ad", "categories": []}
CIFAR10 = {"profile": "paper", "dataset": "cifar10", "left_out": []}
EIGHT = [f"resnet{n}" for n in (18, 34, 50, 101)] + [f"efficientnet_b{n}" for n in (0, 2, 4, 6)]


def exhibit_of(name: str) -> str:
    return f"uniad2022.{name.removesuffix('_models')}"


@pytest.mark.parametrize("name", LISTS)
def test_a_list_is_named_by_an_exhibit_and_its_defaults_are_the_parameters_of_the_notebook(name):
    assert exhibit_of(name) in exhibits().index
    parameters = read_parameters(find_notebook(exhibits().loc[exhibit_of(name), "notebook"]))
    for parameter in inspect.signature(LISTS[name]).parameters.values():
        assert parameter.kind is parameter.KEYWORD_ONLY
        wanted, default = parameters[parameter.name], parameter.default
        if isinstance(wanted, dict):
            assert {key: tuple(value) if isinstance(value, list) else value for key, value in wanted.items()} == default
        else:
            assert wanted == (list(default) if isinstance(default, tuple) else default), parameter.name


@pytest.mark.parametrize(("name", "count"), [
    ("table_s2", 1 + 4),                # no query; one query, with and without mask and jitter
    ("table_s3", 1 + 6 + 3),            # vanilla; six wirings; three of them with mask and jitter
    ("table_s4", 3), ("table_s5", 2), ("table_s6", 3 + 1), ("table_s7", 1), ("cifar10", 4 + 10), ("figure_s2_models", 4)])
def test_a_list_has_one_experiment_for_each_printed_configuration_and_seed(name, count):
    assert len(LISTS[name](seeds=[0])) == count
    two = LISTS[name](seeds=[3, 5])
    assert len(two) == len({e.key for e in two}) == 2 * count and {e.seed for e in two} == {3, 5}
    assert {e.profile for e in two} == {"quick"}


@pytest.mark.parametrize("name", ["table_s5_models", "cifar10_models"])
def test_a_notebook_looks_into_models_of_the_first_seed_only_which_are_among_its_experiments(name):
    models, trained = LISTS[name](seeds=[3, 5]), LISTS[name.removesuffix("_models")](seeds=[3, 5])
    assert {e.seed for e in models} == {3} and {e.key for e in models} < {e.key for e in trained}


@pytest.mark.parametrize(("name", "count"), [
    ("table_s2", 18), ("table_s3", 20), ("table_s4", 6), ("table_s5", 4), ("table_s6", 16), ("cifar10", 5)])
def test_the_paper_profile_has_an_experiment_for_every_printed_number_and_no_other_settings(name, count):
    own = {"table_s2": {**PAPER, "queries": []}, "table_s6": {**PAPER, "backbones": EIGHT}, "cifar10": CIFAR10}
    listed = LISTS[name](**own.get(name, PAPER))
    frame = pd.DataFrame([row for e in listed for metric in ("image_auroc", "pixel_auroc")
                          for row in Result(e, ({"category": e.category, "metric": metric, "value": 0.5},), {}).rows()])
    cells = published(f"uniad2022.{name}").query("metric in ('image_auroc', 'pixel_auroc')")
    covered = [len(matching(frame, match, metric)) for match, metric in zip(cells["match"], cells["metric"], strict=True)]
    assert len(covered) == count and all(covered)
    matched = {name for match in cells["match"] for name in match} | {"weights"}        # the control of Table S6
    assert {name for e in listed for name, _ in e.settings} <= matched


def test_settings_that_come_as_lists_from_json_are_tuples_and_no_sweep():
    (one, *_) = LISTS["figure_s2_models"](quick_settings={"taps": [2, 3], "image_size": 64})
    assert one.config().taps == (2, 3)
    assert len(LISTS["table_s4"](quick_settings={"taps": [2, 3], "neighbors": 1, "image_size": 64})) == 3


def test_a_method_gets_only_the_quick_settings_that_it_has():
    by_method = {e.method: dict(e.settings) for e in LISTS["figure_s2_models"]()}
    assert "heads" not in by_method["mlp"] and "ffn" in by_method["mlp"]
    assert "ffn" not in by_method["cnn"] and by_method["uniad"]["neighbors"] == 3
