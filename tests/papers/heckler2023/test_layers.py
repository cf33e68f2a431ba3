"""Comparison of layers: tables by tap and counts of the best, compared with counts by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd
import pytest
from pytest import approx
from support.tiny import on_meta

from adcore.errors import ParameterError
from adcore.papers.heckler2023.layers import STRIDES, best_counts, best_place, by_tap, taps_of

VALUES = {  # (backbone, category, seed) -> AUROC at each of the four taps
    ("efficientnet_lite0", "screw", 0): (0.5, 0.9, 0.6, 0.4), ("efficientnet_lite0", "screw", 1): (0.7, 0.7, 0.6, 0.4),
    ("efficientnet_lite0", "tile", 0): (0.3, 0.4, 0.8, 0.8), ("resnet50", "screw", 0): (0.1, 0.2, 0.3, 0.4),
    ("resnet50", "tile", 0): (0.4, 0.3, 0.2, 0.1)}


@pytest.fixture
def table():
    rows = [{"method": "fastflow", "backbone": backbone, "category": category, "seed": seed, "metric": "image_auroc",
             "taps": taps, "value": value}
            for (backbone, category, seed), values in VALUES.items()
            for taps, value in zip(taps_of(backbone), values, strict=True)]
    return SimpleNamespace(frame=pd.DataFrame(rows).sample(frac=1, random_state=3))  # in any order


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_b4", "resnet18", "resnet50",
                                      "wide_resnet50_2", "densenet201", "efficientnet_b5"])
def test_the_taps_compared_have_strides_4_8_16_and_32(backbone):
    taps = taps_of(backbone)
    assert on_meta(backbone, tuple(tap for tap, in taps)).strides == STRIDES


def test_a_network_without_numbered_stages_has_no_taps_to_compare():
    with pytest.raises(ParameterError, match=r"^backbone 'torchvision:vgg11' has no numbered stages"):
        taps_of("torchvision:vgg11")


def test_a_table_by_tap_has_means_over_seeds_in_per_cent_from_shallow_to_deep(table):
    wide = by_tap(table, "image_auroc")
    assert list(wide.columns) == ["stride 4", "stride 8", "stride 16", "stride 32"]
    assert wide.loc["fastflow", "efficientnet_lite0", "screw"].tolist() == approx([60, 80, 60, 40])
    assert wide.loc["fastflow", "resnet50", "tile"].tolist() == approx([40, 30, 20, 10])
    assert by_tap(table, "image_auroc", ["backbone"]).loc["resnet50"].tolist() == approx([25, 25, 25, 25])


def test_the_best_layer_of_each_object_is_counted_and_ties_count_in_parts(table):
    counts = best_counts(by_tap(table, "image_auroc"))
    assert counts.loc["fastflow", "efficientnet_lite0"].tolist() == [0, 1, 0.5, 0.5]
    assert counts.loc["fastflow", "resnet50"].tolist() == [1, 0, 0, 1]
    assert counts.sum(axis=1).tolist() == [2, 2]


def test_the_best_place_of_a_row_is_its_largest_value_and_among_equals_the_shallowest(table):
    places = best_place(by_tap(table, "image_auroc"))
    assert places["fastflow", "efficientnet_lite0", "screw"] == 1 and places["fastflow", "efficientnet_lite0", "tile"] == 2
    assert places["fastflow", "resnet50", "screw"] == 3 and places["fastflow", "resnet50", "tile"] == 0
    gap = pd.DataFrame({"stride 4": [float("nan")], "stride 8": [50.0], "stride 16": [70.0]})
    assert best_place(gap).tolist() == [2]


def test_results_that_cannot_be_compared_by_layer_are_refused(table):
    with pytest.raises(ParameterError, match=r"^these results have no metric 'aupro'; they have image_auroc$"):
        by_tap(table, "aupro")
    for taps, complaint in (((2, 3), r"one tap at a time, not \(2, 3\)$"), ((1,), r"^tap 1 is none of the four")):
        row = table.frame.iloc[:1].assign(taps=[taps], backbone="efficientnet_lite0")
        with pytest.raises(ParameterError, match=complaint):
            by_tap(SimpleNamespace(frame=row), "image_auroc")
