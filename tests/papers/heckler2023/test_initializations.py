"""Table 1 in code: the printed rows, their weights in the manifest and how their images are normalized."""

from __future__ import annotations

import pytest

from adcore.data.manifest import load_manifest
from adcore.errors import ParameterError, WeightsError
from adcore.features import FeatureExtractor
from adcore.papers import published
from adcore.papers.heckler2023.initializations import INITIALIZATIONS, find_initialization, weights_of


def test_table_1_has_the_printed_rows_and_each_has_weights_in_the_manifest(nothing_here):
    assert list(INITIALIZATIONS) == list(dict.fromkeys(published("heckler2023.table_1")["row"]))
    assert [row.name for row in INITIALIZATIONS.values() if row.labels] == ["supervised"]
    for row in INITIALIZATIONS.values():
        if row.weights != "random":
            assert load_manifest()[row.weights].kind == "weights"
            with pytest.raises(WeightsError, match=rf"^weights '{row.weights}' are not here: put \S+\.pth\S* .*from http"):
                FeatureExtractor("resnet50", (1,), row.weights)


def test_simclr_alone_is_not_normalized_by_imagenet_s_statistics():
    plain = {name for name, row in INITIALIZATIONS.items() if row.statistics == ((0, 0, 0), (1, 1, 1))}
    usual = {name for name, row in INITIALIZATIONS.items() if row.statistics[0] == (0.485, 0.456, 0.406)}
    assert plain == {"SimCLR"} and plain | usual == set(INITIALIZATIONS)


def test_an_unknown_initialization_is_answered_with_the_nearest_and_the_rows_of_table_1():
    with pytest.raises(ParameterError, match=r"^unknown initialization 'MoCov2' \(did you mean 'MoCo'\?\); Table 1 has MoCo"):
        find_initialization("MoCov2")


def test_another_backbone_has_its_own_checkpoint_or_random_weights():
    assert [weights_of(name) for name in ("SwAV", "random")] == ["swav_800ep", "random"]
    assert [weights_of(name, "efficientnet_lite0") for name in INITIALIZATIONS] == ["default"] * 5 + ["random"]
