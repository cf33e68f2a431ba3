"""Lists of experiments of heckler2023, by counts; no data set is needed for them."""

from __future__ import annotations

from collections import Counter

import pytest

from adcore.papers import published
from adcore.papers.heckler2023.experiments import figure_2, figure_3, figure_4, figure_5
from adcore.papers.heckler2023.initializations import INITIALIZATIONS

pytestmark = pytest.mark.usefixtures("nothing_here")

PAPER = {"profile": "paper", "dataset": "mvtec_ad", "categories": []}
NETWORKS = ["resnet50", "wide_resnet50_2", "densenet201", "efficientnet_b5"]


def counted(experiments, name):
    return Counter(getattr(e.config(), name) for e in experiments)


def test_figure_2_has_15_categories_for_each_of_two_methods_four_networks_and_four_taps():
    experiments = figure_2(**PAPER, seeds=[0], methods=["asymst", "fastflow"], backbones=NETWORKS, image_size=256)
    assert len({e.key for e in experiments}) == len(experiments) == 15 * 2 * 4 * 4
    assert Counter(e.method for e in experiments) == {"asymst": 240, "fastflow": 240}
    # The published taps are covered: each named tap of Table 2 by both methods on all categories.
    printed = published("heckler2023.table_2")
    taps = printed[printed.column.str.startswith("layer")]["text"]
    assert counted(experiments, "taps") == Counter({(tap,): 2 * 15 * count for tap, count in Counter(taps).items()})


def test_figure_3_has_six_sizes_of_two_methods_and_two_networks():
    sizes = [128, 192, 256, 320, 384, 448]
    experiments = figure_3(**PAPER, seeds=[0], backbones=["wide_resnet50_2", "densenet201"], image_sizes=sizes)
    assert len({e.key for e in experiments}) == len(experiments) == 15 * 2 * 2 * 4 * 6
    assert set(counted(experiments, "image_size").values()) == {15 * 2 * 2 * 4}
    assert {e.config().crop for e in experiments if e.method == "patchcore"} == {None}


@pytest.mark.parametrize(("figure", "method"), [(figure_4, "asymst"), (figure_5, "patchcore")])
def test_figures_4_and_5_have_the_six_initializations_of_table_1_with_one_method_each(figure, method):
    experiments = figure(**PAPER, backbone="resnet50", pretrainings=list(INITIALIZATIONS), image_size=256)
    assert len({e.key for e in experiments}) == len(experiments) == 15 * 6 * 4
    assert {e.method for e in experiments} == {method}
    printed = published("heckler2023.table_1")
    assert counted(experiments, "weights") == {match["weights"]: 15 * 4 for match in printed["match"]}
    assert {e.config().backbone for e in experiments} == {match["backbone"] for match in printed["match"]}


def test_figures_4_and_5_share_the_methods_between_them():
    some = {"methods": ["fastflow", "patchcore"], "quick_settings": {"fastflow": {"steps": 2}, "patchcore": {"coreset": 9}}}
    assert {e.method for e in figure_4(**some)} == {"fastflow"} and {e.method for e in figure_5(**some)} == {"patchcore"}
    assert len(figure_4(**some)) == len(figure_5(**some)) == 2 * 2 * 4
    assert figure_5(methods=["asymst"]) == []


def test_quick_settings_count_in_the_quick_profile_alone_and_may_come_from_json():
    settings = {"asymst": {"kernels": [3, 5], "epochs": 1}}
    quick = figure_2(methods=["asymst"], seeds=[0], quick_settings=settings)
    assert counted(quick, "kernels") == {(3, 5): 7 * 4} and counted(quick, "epochs") == {1: 7 * 4}
    assert counted(figure_2(**PAPER, methods=["asymst"], seeds=[0], quick_settings=settings), "epochs") == {72: 15 * 4}
