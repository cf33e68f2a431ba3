"""Verdicts: which measurements count as reproduced, and which do not although their number agrees."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pytest import approx
from support.tiny import result

from adcore.errors import ParameterError
from adcore.experiments import ResultTable, Store, compare_values, comparison
from adcore.experiments.comparison import SHOWN, VERDICTS, compare_results, tolerance, verdict
from adcore.figures.tables import comparison_html
from adcore.papers import published
from adcore.report.card import stored_comparison

NAN = math.nan
S6 = "uniad2022.table_s6"          # one row per backbone: 'Effi-B4' is the default, printed 96.5 and 96.8


def table(*results: Any) -> ResultTable:
    return ResultTable(results, Store("/nowhere"))


def backbone_cell(metric: str = "image_auroc", backbone: str = "efficientnet_b4") -> pd.Series:
    cells = published(S6)
    return cells[(cells["match"].map(lambda match: match["backbone"]) == backbone) & (cells["metric"] == metric)].iloc[0]


def verdict_on_b4(*results: Any) -> tuple[str, str, float]:
    frame = compare_results(S6, table(*results)).frame
    cell = backbone_cell()
    row = frame[(frame["row"] == cell["row"]) & (frame["metric"] == "image_auroc")].iloc[0]
    return row["verdict"], row["why"], row["measured"]


# --- the rule -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("std", "unit", "printed", "allowed"), [
    (NAN, "%", "96.5", 0.5), (0.1, "%", "96.5", 0.5), (0.25, "%", "96.5", 0.5), (0.4, "%", "90.8", 0.8),
    (NAN, "fraction", "0.926", 0.005), (0.001, "fraction", "0.926", 0.005), (0.01, "fraction", "0.926", 0.02),
    (NAN, "G", "6.46", 0.005), (NAN, "M", "11.4", 0.05), (NAN, "", "256", 0.5), (NAN, "M", "19", 0.5),
    (NAN, "M", "19.0", 0.05)])
def test_the_tolerance_is_two_printed_deviations_half_a_point_or_half_a_unit_of_the_last_digit(std, unit, printed, allowed):
    assert tolerance(std, unit, printed) == approx(allowed)


@pytest.mark.parametrize(("measured", "word"), [
    (96.5, "reproduced"), (97.0, "reproduced"), (96.0, "reproduced"), (97.01, "higher"), (95.99, "lower"), (100, "higher"),
    (0, "lower")])
def test_the_limits_of_the_tolerance_are_included(measured, word):
    assert verdict(measured, 96.5, 0.5) == word


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 40))
def test_a_verdict_equals_the_comparison_in_exact_decimals(measured, value, allowed):
    exact = [Decimal(n) / 10 for n in (measured, value, allowed)]
    word = "reproduced" if abs(exact[0] - exact[1]) <= exact[2] else "higher" if exact[0] > exact[1] else "lower"
    assert verdict(measured / 10, value / 10, allowed / 10) == word


def test_an_empty_metric_is_no_number_and_a_mean_that_lacks_one_gets_no_verdict():
    none = result({("bottle", "image_auroc"): None})
    assert verdict_on_b4(none) == ("not run", "no result with these settings", None)
    some = result({("bottle", "image_auroc"): None, ("cable", "image_auroc"): 0.965})
    assert verdict_on_b4(some) == ("not run", "the printed mean is also over bottle", approx(96.5))


# --- measured results ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("measured", "word"), [
    (0.965, "reproduced"), (0.970, "reproduced"), (0.9599, "lower"), (0.9702, "higher")])
def test_a_run_with_the_papers_settings_and_data_is_judged_by_its_number(measured, word):
    assert backbone_cell()["value"] == 96.5
    assert verdict_on_b4(result({("screw", "image_auroc"): measured})) == (word, "", approx(100 * measured))


def test_the_mean_over_categories_and_seeds_is_judged():
    # Neither a category nor a seed is within half a point of 96.5; (0.93 + 0.99 + 0.94 + 1.00) / 4 is.
    results = [result({("a", "image_auroc"): a, ("b", "image_auroc"): b}, seed=seed)
               for seed, (a, b) in enumerate([(0.93, 0.99), (0.94, 1.0)])]
    assert verdict_on_b4(*results) == ("reproduced", "", approx(96.5))


def test_a_result_gives_a_number_only_to_the_cells_with_its_settings():
    made = result({("a", "image_auroc"): 0.9, ("a", "pixel_auroc"): 0.9}, backbone="resnet18")
    frame = compare_results(S6, table(made)).frame
    judged = frame[frame["verdict"] != "not run"]
    assert set(judged["row"]) == {backbone_cell(backbone="resnet18")["row"]} and len(judged) == 2
    assert set(frame[frame["verdict"] == "not run"]["why"]) == {"no result with these settings"}
    assert list(frame.columns) == SHOWN and len(frame) == len(published(S6))


REDUCED = {"epochs": 40, "hidden": 128, "image_size": 160, "nma": False, "jitter": False, "amp": True, "neighbors": 5}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(profile=st.sampled_from(["paper", "quick"]), dataset=st.sampled_from(["mvtec_ad", "mini", "mtd+mvtec_ad", "mvtec_512"]),
       category=st.sampled_from(["all", "screw", "screw+wood"]), changed=st.sets(st.sampled_from(sorted(REDUCED)), max_size=2),
       code=st.sampled_from([None, "older"]))
def test_nothing_is_reproduced_on_other_data_with_other_settings_with_some_categories_or_by_older_code(
        profile, dataset, category, changed, code):
    # The backbone is given, because the quick profile has another one: the result belongs to the cell of b4 in both profiles.
    made = result({("screw", "image_auroc"): 0.965}, profile=profile, dataset=dataset, category=category, code=code,
                  backbone="efficientnet_b4", **{name: REDUCED[name] for name in changed})
    word, why, measured = verdict_on_b4(made)
    as_printed = (profile, dataset, category, changed, code) == ("paper", "mvtec_ad", "all", set(), None)
    assert word == ("reproduced" if as_printed else "not run")
    assert measured == approx(96.5) and bool(why) is not as_printed


@pytest.mark.parametrize(("change", "why"), [
    ({"profile": "quick"}, "quick profile"), ({"dataset": "mini"}, "the paper's data is mvtec_ad, these results are on mini"),
    ({"epochs": 40, "nma": False}, "settings other than the paper's: epochs, nma"),
    ({"code": "old"}, "1 result made by older code"), ({"code": ""}, "1 result from the record"),
    ({"category": "screw"}, "one model for screw only, the paper's is for all categories")])
def test_the_reason_is_named(change, why):
    assert verdict_on_b4(result({("a", "image_auroc"): 0.965}, **{"backbone": "efficientnet_b4", **change}))[1] == why


CIFAR10 = "uniad2022.cifar10"       # one model per split, with its own settings
C4 = {"dataset": "cifar10", "score": "mean", "resize": "lanczos", "taps": (1, 2, 3, 4, 5), "batch_size": 128}
SPLITS = {"01234": 0.844, "56789": 0.796, "02468": 0.90, "13579": 0.891}


def on_cifar10(splits: list[str], **changed: Any) -> dict[str, tuple[str, str]]:
    made = [result({(split, "image_auroc"): SPLITS[split]}, category=split, **{**C4, **changed}) for split in splits]
    frame = compare_results(CIFAR10, table(*made)).frame
    return {column: (word, why) for column, word, why in zip(frame["column"], frame["verdict"], frame["why"], strict=True)}


def test_a_model_of_a_split_is_compared_with_the_cell_of_its_split_and_the_mean_needs_all_four():
    # (84.4 + 79.6 + 90.0 + 89.1) / 4 = 85.775, 0.7 below the printed 86.5.
    assert on_cifar10(list(SPLITS)) == {"{01234}": ("reproduced", ""), "{56789}": ("reproduced", ""), "{02468}": ("lower", ""),
                                        "{13579}": ("reproduced", ""), "Mean": ("lower", "")}


def test_a_printed_mean_is_not_judged_from_some_of_its_splits():
    found = on_cifar10(["01234", "13579"])
    assert found["{13579}"] == ("reproduced", "") and found["{56789}"] == ("not run", "no result with these settings")
    assert found["Mean"] == ("not run", "the printed mean is also over 02468, 56789")


@pytest.mark.parametrize(("changed", "why"), [
    ({"profile": "quick"}, "quick profile"), ({"score": "max"}, "no result with these settings"),
    ({"dataset": "digits"}, "no result with these settings"), ({"taps": (1, 2, 3, 4)}, "no result with these settings"),
    ({"epochs": 50}, "settings other than the paper's: epochs")])
def test_other_settings_than_the_papers_on_cifar10_reproduce_nothing(changed, why):
    assert on_cifar10(["01234"], **changed)["{01234}"] == ("not run", why)


def test_one_model_of_an_unpublished_split_prevents_every_verdict():
    made = [result({(split, "image_auroc"): 0.844}, category=split, **C4) for split in ("01234", "012345679")]
    frame = compare_results(CIFAR10, table(*made)).frame
    assert set(frame["verdict"]) == {"not run"}
    assert frame["why"].iloc[0] == "one model for 012345679 only, the paper's is for all categories"


def test_one_quick_result_prevents_the_verdict_on_its_cell():
    good, quick = (result({("a", "image_auroc"): 0.965}, profile=profile, seed=seed, backbone="efficientnet_b4")
                   for seed, profile in enumerate(["paper", "quick"]))
    assert verdict_on_b4(good, quick)[:2] == ("not run", "paper/quick profile")


def test_settings_equal_to_the_papers_do_not_prevent_a_reproduction():
    made = result({("a", "image_auroc"): 0.965}, backbone="efficientnet_b4", nma=True, epochs=1000, jitter_scale=20)
    assert verdict_on_b4(made)[0] == "reproduced"


# --- computed values ----------------------------------------------------------------------------------------------------

S7 = "uniad2022.table_s7"


def test_computed_values_are_judged_to_half_a_unit_of_the_last_printed_digit():
    found = compare_values(S7, {("Learnable Params(M)", "Ours"): 7.479296, ("Learnable Params(M)", "PaDiM"): 950.3551,
                                ("FLOPs(G)", "Ours"): 6.41, ("Sec. E.1", "image size"): "224 x 224",
                                ("Sec. E.1", "claim"): "none"}, reasons={("FLOPs(G)", "Ours"): "norms are not counted"})
    by_cell = found.frame.set_index(["row", "column"])
    assert by_cell.loc[("Learnable Params(M)", "Ours"), "verdict"] == "reproduced"
    assert by_cell.loc[("Learnable Params(M)", "PaDiM"), "verdict"] == "reproduced"          # 950.36
    assert tuple(by_cell.loc[("FLOPs(G)", "Ours"), ["verdict", "why"]]) == ("lower", "norms are not counted")
    assert by_cell.loc[("Sec. E.1", "image size"), "verdict"] == "reproduced"
    assert by_cell.loc[("Sec. E.1", "claim"), "verdict"] == "other"
    assert tuple(by_cell.loc[("FLOPs(G)", "US"), ["verdict", "why"]]) == ("not run", "not computed here")
    assert found.counts() == {"reproduced": 3, "higher": 0, "lower": 1, "other": 1, "departs": 0,
                              "not run": len(by_cell) - 5}
    assert sum(found.counts().values()) == len(published(S7))


def test_a_value_for_a_cell_that_was_never_printed_is_refused():
    for keywords in ({"values": {("FLOPs(G)", "Mine"): 1.0}}, {"values": {}, "reasons": {("FLOPs", "Ours"): "?"}}):
        with pytest.raises(ParameterError, match=r"uniad2022\.table_s7 has no cell \('FLOPs.*it has \[\("):
            compare_values(S7, **keywords)
    with pytest.raises(ParameterError, match=r"unknown exhibit 'uniad2022\.table_s8' \(did you mean"):
        compare_values("uniad2022.table_s8", {})


# --- storing and showing ------------------------------------------------------------------------------------------------

def test_a_stored_comparison_is_read_back_with_missing_numbers_as_none(tmp_path):
    made = compare_results(S6, table(result({("a", "image_auroc"): 0.965})))
    made.record(tmp_path)
    text = (tmp_path / "exhibits" / f"{S6}.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not valid JSON"))
    found = stored_comparison(S6, tmp_path)
    assert found["context"] == made.context and found["profile"] == made.profile
    back = pd.DataFrame(found["rows"], columns=SHOWN)
    pd.testing.assert_frame_equal(back.astype(object).where(back.notna(), None),
                                  made.frame.astype(object).where(made.frame.notna(), None), check_dtype=False)
    assert stored_comparison(S7, tmp_path) is None
    (tmp_path / "exhibits" / f"{S7}.json").write_text("{")
    assert stored_comparison(S7, tmp_path) is None


def test_a_comparison_of_computed_values_is_stored_in_the_given_folder(tmp_path):
    made = compare_values(S7, {("FLOPs(G)", "Ours"): 6.41}, context="on paper", root=tmp_path)
    assert stored_comparison(S7, tmp_path)["context"] == made.context and made.context.startswith("on paper · commit ")


def test_published_and_measured_numbers_are_labeled():
    made = compare_results(S6, table(result({("a", "image_auroc"): 0.965}, seed=4)))
    assert set(published(S6)["source"]) == {"published"}
    assert {"published", "measured", "verdict"} < set(made.frame.columns)
    page = made._repr_html_()
    assert "<th>published</th><th>measured</th>" in page and "96.5" in page and "<b>reproduced</b>" in page
    assert made.context == "measured: data set mvtec_ad · profile paper · seeds 4 · commit abc"
    assert made.context in page and made.context in repr(made)


def test_names_are_escaped_in_what_a_notebook_shows():
    attack = "<img src=x onerror=alert(1)>"
    one = result({(attack, "image_auroc"): 0.965}, dataset=attack, seed=4)
    for page in (table(one)._repr_html_(), compare_results(S6, table(one))._repr_html_(),
                 table(result({(attack, "image_auroc"): None}, dataset=attack))._repr_html_()):
        assert "<img" not in page and "&lt;img src=x" in page


def test_the_html_shows_every_verdict_as_a_word_and_missing_numbers_as_empty():
    rows = [{"row": "r", "column": "c", "metric": "m", "unit": "%", "published": 1.0, "measured": NAN, "std": None,
             "seeds": NAN, "verdict": word, "why": ""} for word in VERDICTS]
    page = comparison_html(pd.DataFrame(rows))
    assert all(f"<b>{word}</b>" in page for word in VERDICTS) and "nan" not in page.lower() and "None" not in page


def test_the_text_of_a_cell_is_escaped():
    row = {"row": "<script>x</script>", "column": "a & b", "metric": "m", "unit": "", "published": "<i>", "measured": "<b>",
           "std": None, "seeds": None, "verdict": "other", "why": "1 < 2"}
    page = comparison_html(pd.DataFrame([row]))
    assert "<script>" not in page and "<i>" not in page and "a &amp; b" in page and "1 &lt; 2" in page


def test_every_verdict_is_documented():
    assert all(word in comparison.__doc__ for word in VERDICTS)
