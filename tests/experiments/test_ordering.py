"""Claims and rank correlations on results written by hand, against arithmetic on paper; and records that are read back."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from pytest import approx
from support.tiny import result

from adcore.errors import ParameterError, StoreError
from adcore.experiments import Claim, ResultTable, Store, check_claims, compare_results, rank_correlation, recorded
from adcore.experiments import record as record_module
from adcore.experiments.record import parse_settings
from adcore.papers import published
from adcore.report.charts import record_chart

S2 = "uniad2022.table_s2"
ROWS = {"w/o query": ("none", False, False), "1 query": ("one", False, False), "1 query + NMA": ("one", True, False),
        "layer-wise query": ("layerwise", False, False), "layer-wise query + FJ": ("layerwise", False, True)}


def table(values: dict[str, list[float]], root=None) -> ResultTable:
    """Results with the image AUROC of rows of Table S2, one number per seed."""
    results = []
    for name, per_seed in values.items():
        query, nma, jitter = ROWS[name]
        for seed, value in enumerate(per_seed):
            results.append(result({("all", "image_auroc"): value}, seed=seed, query=query, nma=nma, jitter=jitter))
    return ResultTable(results, Store(root))


def check(values: dict[str, list[float]], better: str, worse: str) -> tuple[str, float, float]:
    (row,) = check_claims(S2, [Claim("it is so", better, worse)], table(values), ["image_auroc"]).to_dict("records")
    return row["word"], row["measured"], row["published"]


def test_a_claim_agrees_when_the_measured_gain_has_the_published_sign():
    assert check({"1 query": [0.6, 0.61], "1 query + NMA": [0.7, 0.72]}, "1 query + NMA", "1 query") == ("agrees", 10.5, 8.5)
    assert check({"1 query": [0.7, 0.72], "1 query + NMA": [0.6, 0.61]}, "1 query + NMA", "1 query")[:2] == ("disagrees", -10.5)


def test_a_gain_is_paired_by_seed_and_decides_nothing_within_its_span():
    # 1 and 8 points: mean 4.5, span 7.
    assert check({"1 query": [0.60, 0.60], "1 query + NMA": [0.61, 0.68]}, "1 query + NMA", "1 query")[0] == "undecided"
    # 5 and 11 points: mean 8, span 6.
    assert check({"1 query": [0.60, 0.60], "1 query + NMA": [0.65, 0.71]}, "1 query + NMA", "1 query")[0] == "agrees"
    # The seeds differ by 20 points, but the gain is the same for both.
    assert check({"1 query": [0.60, 0.80], "1 query + NMA": [0.65, 0.85]}, "1 query + NMA", "1 query") == ("agrees", 5.0, 8.5)


@pytest.mark.parametrize(("gain", "word"), [(0.024, "undecided"), (0.026, "agrees"), (-0.024, "undecided"),
                                            (-0.026, "disagrees")])
def test_one_seed_is_held_against_the_widest_span_of_the_other_claims(gain, word):
    values = {"w/o query": [0.5, 0.5], "layer-wise query": [0.60, 0.61], "layer-wise query + FJ": [0.60, 0.625],
              "1 query": [0.6], "1 query + NMA": [0.6 + gain]}
    claims = [Claim("one", "1 query + NMA", "1 query"), Claim("a span of 1", "layer-wise query", "w/o query"),
              Claim("a span of 2.5", "layer-wise query + FJ", "w/o query")]
    found = check_claims(S2, claims, table(values), ["image_auroc"])
    assert found["word"].tolist()[0] == word and found["span"].fillna(-1).tolist() == [-1, 1.0, 2.5]


def test_one_seed_alone_decides_nothing():
    assert check({"1 query": [0.5], "1 query + NMA": [0.9]}, "1 query + NMA", "1 query")[:2] == ("undecided", 40.0)


def test_equal_printed_cells_have_no_order_to_agree_with():
    query = [result({("all", "pixel_auroc"): value}, query="layerwise", nma=nma, jitter=False)
             for value, nma in ((0.6, False), (0.9, True))]
    (row,) = check_claims(S2, [Claim("NMA helps", "layer-wise query + NMA", "layer-wise query")],
                          ResultTable(query, Store()), ["pixel_auroc"]).to_dict("records")
    assert (row["published"], row["measured"], row["word"]) == (0.0, 30.0, "printed equal")


def test_only_common_seeds_are_compared_and_without_any_the_claim_is_not_run():
    values = {"1 query": [0.6, 0.6], "1 query + NMA": [0.7, 0.7, 0.1]}
    assert check(values, "1 query + NMA", "1 query")[:2] == ("agrees", 10.0)
    word, measured, _ = check(values, "w/o query", "1 query")
    assert word == "not run" and math.isnan(measured)


def test_a_claim_about_an_unknown_cell_is_refused():
    with pytest.raises(ParameterError, match="has no cell 2 query with image_auroc; its rows are w/o query, 1 query"):
        check_claims(S2, [Claim("no", "2 query", "1 query")], table({"1 query": [0.5]}))


def test_the_rank_correlation_of_equal_reversed_and_swapped_orders_is_that_of_spearman():
    order = sorted(ROWS, key=lambda name: published(S2).query("row == @name and metric == 'image_auroc'")["value"].iloc[0])
    rising = {name: [0.5 + 0.01 * i] for i, name in enumerate(order)}
    falling = {name: [0.9 - 0.01 * i] for i, name in enumerate(order)}
    assert rank_correlation(S2, table(rising), "image_auroc") == (approx(1), 5)
    assert rank_correlation(S2, table(falling), "image_auroc") == (approx(-1), 5)
    swapped = {**rising, order[0]: rising[order[1]], order[1]: rising[order[0]]}
    assert rank_correlation(S2, table(swapped), "image_auroc")[0] == approx(1 - 6 * 2 / (5 * 24))    # Spearman: d = 1, 1
    few = rank_correlation(S2, table({"1 query": [0.5], "w/o query": [0.4]}), "image_auroc")
    assert math.isnan(few[0]) and few[1] == 2


def test_other_wirings_are_not_in_table_s2_and_the_vanilla_decoder_is_not_a_wiring_of_table_s3():
    wired = ResultTable([result({("all", "image_auroc"): 0.5}, wiring="b", nma=False, jitter=False)], Store())
    assert set(compare_results(S2, wired).frame["measured"].dropna()) == set()
    vanilla = ResultTable([result({("all", "image_auroc"): 0.5}, query="one", nma=False, jitter=False)], Store())
    frame = compare_results("uniad2022.table_s3", vanilla).frame
    assert frame[frame["measured"].notna()]["row"].tolist() == ["Vanilla"]


def test_a_value_without_training_is_compared_in_every_profile():
    quick = ResultTable([result({("all", "image_auroc"): 0.5}, profile="quick", backbone="resnet18")], Store())
    computed = {("Res-50", "Params"): 25.56, ("Eff-b2", "Params"): 9.11}
    frame = compare_results("uniad2022.table_s6", quick, computed).frame
    verdicts = frame.set_index(["row", "column"])["verdict"]
    assert verdicts["Res-50", "Params"] == "reproduced" and verdicts["Eff-b2", "Params"] == "lower"
    assert verdicts["Res-18", "Det."] == "not run"


def test_a_record_is_read_back_as_the_results_from_which_it_was_written(tmp_path, monkeypatch):
    made = table({"1 query": [0.6, 0.7], "w/o query": [0.4, 0.5]}, tmp_path)
    columns = record_module.COLUMNS
    (tmp_path / "results").mkdir()
    frame = made.frame.assign(weights="w", data="d", version=1).reindex(columns=columns)
    frame.to_csv(tmp_path / "results" / "rows.csv", index=False)
    monkeypatch.setattr(record_module, "repository", lambda: tmp_path)
    back = recorded("rows")
    assert [r.experiment for r in back.results] == [r.experiment for r in made.results]
    assert back.stale == [] and back.record == [r.experiment.title for r in made.results]
    assert back.summary().splitlines()[0].endswith("seeds 0, 1 · commit abc · 4 results from the record")
    assert back.value("image_auroc", query="one") == approx(made.value("image_auroc", query="one")) == approx(0.65)
    with pytest.raises(StoreError, match="has no record 'row'; it has rows"):
        recorded("row")


def test_settings_are_read_back_with_their_types():
    text = "backbone=efficientnet_lite0 dropout=0.0 epochs=40 nma=False taps=(1, 'layer2', 3) crop=None wiring=a"
    assert dict(parse_settings(text)) == {"backbone": "efficientnet_lite0", "dropout": 0.0, "epochs": 40, "nma": False,
                                          "taps": (1, "layer2", 3), "crop": None, "wiring": "a"}
    assert parse_settings("") == ()


def test_a_record_of_many_variants_lists_common_settings_once_and_has_no_chart():
    rows = [{"method": "uniad", "dataset": "mtd", "category": "tile", "profile": "paper", "metric": "image_auroc", "value": 0.5,
             "settings": f"epochs=40 taps=(1, 2) wiring={wiring}", "seed": 0, "seconds": 1.0, "peak_bytes": 1e9,
             "machine": "m", "commit": "c", "version": 1, "key": wiring} for wiring in "abcdefghijklm"]
    frame = pd.DataFrame(rows)
    html = record_module.Record("rows", "about", frame).html
    assert html.count("epochs=40") == html.count("taps=(1, 2)") == 1 and "all with epochs=40 taps=(1, 2)" in html
    assert all(f"wiring={wiring}<" in html for wiring in "abcdefghijklm")
    assert record_chart(frame) is None and record_chart(frame.head(3)) is not None
    single = record_module.Record("row", "about", frame.head(1)).html
    assert "epochs=40 taps=(1, 2) wiring=a" in single and "all with" not in single
    assert "all with" not in record_module.Record("plain", "about", frame.head(2).assign(settings="")).html
