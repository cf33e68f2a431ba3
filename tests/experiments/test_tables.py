"""Tables of results: means, deviations, gains and published numbers, against arithmetic on paper."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pytest import approx
from support.tiny import result

from adcore.errors import ParameterError
from adcore.experiments import ResultTable, Store, comparison


def table_of(*results: Any, root: Path | None = None) -> ResultTable:
    return ResultTable(results, Store(root))


@pytest.fixture
def ablation(tmp_path) -> ResultTable:
    """nma off and on, two seeds, two categories. On paper, image AUROC:

        nma    seed 0 (a, b)   mean    seed 1 (a, b)   mean    over seeds
        off    0.50, 0.70      0.60    0.60, 0.80      0.70    0.65, deviation 0.0707
        on     0.80, 0.90      0.85    0.90, 0.98      0.94    0.895, deviation 0.0636
    """
    values = {(False, 0): (0.5, 0.7), (False, 1): (0.6, 0.8), (True, 0): (0.8, 0.9), (True, 1): (0.9, 0.98)}
    return table_of(*(result({("a", "image_auroc"): a, ("b", "image_auroc"): b, ("a", "aupro"): 0.5, ("b", "aupro"): 0.25},
                             seed=seed, nma=nma) for (nma, seed), (a, b) in values.items()), root=tmp_path)


def test_mean_and_deviation_are_over_seeds_after_averaging_categories_in_percent(ablation):
    table = ablation.mean_std()
    off, on = table.loc[(False, "image_auroc")], table.loc[(True, "image_auroc")]
    assert (off["mean"], off["std"], off["seeds"]) == approx((65.0, 5 * math.sqrt(2), 2))
    assert (on["mean"], on["std"], on["seeds"]) == approx((89.5, 4.5 * math.sqrt(2), 2))
    assert table.loc[(True, "aupro")]["mean"] == approx(37.5) and len(table) == 4


def test_the_gain_of_a_switch_is_the_mean_of_paired_differences(ablation):
    # (0.30 + 0.20 + 0.30 + 0.18) / 4
    assert ablation.gain("nma") == approx(0.245)
    assert ablation.gain("nma", metric="aupro") == approx(0)


def test_the_gain_pairs_results_that_differ_only_in_the_switch(tmp_path):
    values = {(False, 1): 0.5, (True, 1): 0.6, (False, 2): 0.7, (True, 2): 0.9, (True, 3): 0.1}      # 3 has no partner
    table = table_of(*(result({("a", "image_auroc"): v}, nma=nma, encoder_layers=n) for (nma, n), v in values.items()))
    assert table.gain("nma") == approx((0.1 + 0.2) / 2)


def test_a_value_is_the_mean_over_categories_and_then_over_seeds(ablation):
    assert ablation.value("image_auroc", nma=True) == approx(0.895)
    assert ablation.value("image_auroc", nma=False, category="b") == approx(0.75)
    assert ablation.value("image_auroc", nma=False, seed=1) == approx(0.7)


def test_seeds_have_equal_weight_when_one_has_fewer_categories():
    table = table_of(result({("a", "image_auroc"): 0.2, ("b", "image_auroc"): 0.4}, seed=0),
                     result({("a", "image_auroc"): 0.9}, seed=1))
    assert table.value("image_auroc") == approx((0.3 + 0.9) / 2)


def test_the_table_by_category_has_one_column_per_setting(ablation):
    table = ablation.by_category()
    assert list(table.index) == ["a", "b"] and table.loc["b", True] == approx(94.0) and table.loc["a", False] == approx(55.0)


def test_the_swept_settings_are_those_that_differ(ablation):
    assert ablation.swept() == ["nma"]
    assert table_of(result({("a", "image_auroc"): 0.2}, nma=True)).swept() == []


def test_a_query_without_matching_results_is_refused(ablation):
    with pytest.raises(ParameterError, match="'jitter' is not both True and False in these results"):
        ablation.gain("jitter")
    with pytest.raises(ParameterError, match="results have no field 'nmaa'; they have"):
        ablation.value("image_auroc", nmaa=True)
    with pytest.raises(ParameterError, match=r"no result has metric=image_auroc with \{'seed': 7\}"):
        ablation.value("image_auroc", seed=7)


def test_where_selects_the_results_with_the_given_settings(ablation):
    kept = ablation.where(nma=True, seed=1)
    assert [r.experiment.seed for r in kept.results] == [1] and kept.value("image_auroc") == approx(0.94)
    assert len(ablation.where(nma=False).results) == 2 and len(ablation.results) == 4
    with pytest.raises(ParameterError, match=r"^results have no field 'nmaa'; they have .*nma,"):
        ablation.where(nmaa=True)
    with pytest.raises(ParameterError, match=r"^no result with \{'nma': True, 'seed': 7\}$"):
        ablation.where(nma=True, seed=7)


def test_the_column_weights_has_the_setting_and_not_the_digest_of_the_loaded_weights():
    table = table_of(result({("a", "image_auroc"): 0.2}, weights="random"), result({("a", "image_auroc"): 0.9}))
    assert list(table.frame.weights) == ["random", "default"]
    assert table.where(weights="default").value("image_auroc") == 0.9


def cells(*rows: dict[str, Any]) -> pd.DataFrame:
    """Published cells written by hand."""
    return pd.DataFrame([{"row": "r", "column": "c", "metric": "image_auroc", "value": 0.0, "std": math.nan, "text": "0.0",
                          "unit": "%", "match": {}, **row} for row in rows])


def test_against_averages_over_all_fields_that_match_does_not_name_and_stores_the_comparison(ablation, monkeypatch, tmp_path):
    printed = cells({"match": {"method": "uniad", "nma": True}, "value": 89.9, "text": "89.9"},
                    {"match": {"method": "uniad", "nma": True, "category": "all"}, "value": 90.1, "text": "90.1"},
                    {"match": {"nma": False, "category": "b"}, "value": 0.75, "text": "0.75", "unit": "fraction"},
                    {"match": {"nma": False, "wiring": "c"}, "value": 1.0}, {"metric": "pixel_auroc"})
    monkeypatch.setattr(comparison, "published", lambda exhibit: printed)
    frame = ablation.against("uniad2022.table_s2").frame
    assert list(frame["measured"][:3]) == approx([89.5, 89.5, 0.75])
    assert list(frame["std"][:3]) == approx([4.5 * math.sqrt(2), 4.5 * math.sqrt(2), 0.05 * math.sqrt(2)], abs=1e-4)
    assert list(frame["verdict"]) == ["reproduced", "lower", "reproduced", "not run", "not run"]
    assert list(frame["seeds"][:3]) == [2, 2, 2] and set(frame["why"][3:]) == {"no result with these settings"}
    recorded = json.loads((tmp_path / "exhibits" / "uniad2022.table_s2.json").read_text())
    assert [row["verdict"] for row in recorded["rows"]] == list(frame["verdict"])


def test_the_summary_counts_results_of_older_code_and_results_from_the_record():
    fresh, old = result({("a", "aupro"): 0.5}), result({("a", "aupro"): 0.5}, seed=1, code="older")
    on_record = [result({("a", "aupro"): 0.5}, seed=seed, code="") for seed in (2, 3)]
    on_record[1].provenance["commit"] = "def"
    for results, words in (([fresh], "seeds 0 · commit abc"),
                           ([fresh, old], "seeds 0, 1 · commit abc · 1 result made by older code"),
                           (on_record, "seeds 2, 3 · commit abc, def · 2 results from the record"),
                           ([old, on_record[0]], "seeds 1, 2 · commit abc · 1 result from the record, "
                                                 "1 result made by older code")):
        assert table_of(*results).summary().splitlines()[0] == f"data set mvtec_ad · profile paper · {words}"
    old.provenance["commit"] = ""
    assert "commit unknown ·" in table_of(old).summary()
