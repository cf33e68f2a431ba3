"""Cells that depart: which results count, what is said of them, and how they go with the printed numbers."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from pytest import approx
from support.tiny import result

from adcore.experiments import ResultTable, Store, departing
from adcore.experiments.comparison import Comparison
from adcore.experiments.departures import agreement, departures, recorded_results, with_departures
from adcore.experiments.profiles import PROFILES, method_named, profile_settings
from adcore.models import METHODS
from adcore.papers import exhibits
from adcore.report.card import SCHEDULE, cells, count_exhibits

S2, S3, T1 = "uniad2022.table_s2", "uniad2022.table_s3", "atacnet.table_1"
OURS = ("Layer-wise query + NMA + FJ", "Det.")
COPY = "mvtec_384+mvtec_512"


def of_uniad(value: float = 0.9, *, categories: tuple[str, ...] = ("bottle", "grid", "screw"), dataset: str = COPY,
             profile: str = "open", **settings):
    """UniAD as in the paper, with image AUROCs value, value + 0.01, ... of the categories."""
    values = {(name, "image_auroc"): value + n / 100 for n, name in enumerate(categories)}
    return result(values, dataset=dataset, profile=profile, **settings)


def ours(*results, exhibit: str = S2):
    """The row of UniAD among the cells that depart, or None."""
    found = departures(exhibit, results)
    match = found[(found["metric"] == "image_auroc") & (found["published"] == 96.5)]
    return None if match.empty else match.iloc[-1]


def test_a_run_on_three_categories_departs_with_its_mean_and_all_that_differs():
    cell = ours(of_uniad())
    assert cell["verdict"] == "departs" and cell["measured"] == approx(91.0) and cell["seeds"] == 1
    assert cell["why"] == "3 of 15 categories; backbone efficientnet_lite0"
    assert bool(cell["schedule"]) and cell["source"] == "commit abc on m"
    short = ours(of_uniad(epochs=40, image_size=128, hidden=64))
    assert short["why"] == "3 of 15 categories; backbone efficientnet_lite0; 40 of 1000 epochs; hidden 64; 128 px"
    assert not short["schedule"]


def test_images_of_other_data_sets_enter_no_mean_but_are_named_where_a_model_was_trained_on_them():
    cell = ours(of_uniad(categories=("screw", "magnetic_tile"), dataset="mtd+mvtec_512"))
    assert cell["measured"] == approx(90.0)
    assert cell["why"].startswith("1 of 15 categories; trained with magnetic_tile too; ")
    for dataset in ("mini", "mtd", "own", "mvtec_loco", "digits"):
        assert ours(of_uniad(dataset=dataset)) is None, dataset


def test_the_mean_is_over_categories_within_a_seed_and_then_over_seeds():
    cell = ours(of_uniad(0.90, seed=0), of_uniad(0.94, seed=1))
    assert (cell["seeds"], cell["measured"], cell["std"]) == (2, approx(93.0), approx(100 * 0.04 / math.sqrt(2), abs=1e-3))


@pytest.mark.parametrize("setting", [{"wiring": "b"}, {"loss": "cosine"}, {"nma": False}, {"train_backbone": True}])
def test_another_method_of_the_papers_tables_is_not_shown_as_this_one(setting):
    assert ours(of_uniad(**setting)) is None
    assert ours(of_uniad(0.5, **setting), of_uniad(0.9))["measured"] == approx(91.0)


def test_the_papers_schedule_is_preferred_then_more_categories_then_a_longer_training():
    full, wide = of_uniad(0.5, categories=("screw",)), of_uniad(0.6, epochs=40)
    longer, one = of_uniad(0.7, epochs=400), of_uniad(0.8, categories=("screw",), epochs=900)
    assert ours(full, wide, longer, one)["measured"] == approx(50)
    assert ours(wide, longer, one)["measured"] == approx(71)
    assert ours(wide, one)["measured"] == approx(61)


def test_the_mean_over_objects_is_from_objects_only():
    made = result({("screw", "pixel_auroc"): 0.8, ("grid", "pixel_auroc"): 0.6}, method="ds2", dataset=COPY, profile="open",
                  epochs=8)
    found = departures("ds2.table_1e", [made]).set_index("column")
    assert list(found["measured"]) == [approx(80), approx(60), approx(70)]
    assert [why.split(";")[0] for why in found["why"]] == ["1 of 10 categories", "1 of 5 categories", "2 of 15 categories"]


def test_a_cell_of_one_category_is_compared_with_that_category():
    made = [result({(name, "image_auroc"): value}, method="atacnet", dataset=COPY, category=name, profile="open", step="cutmix")
            for name, value in (("bottle", 0.9), ("screw", 0.7))]
    found = departures(T1, made).set_index("row")
    assert found.loc["Screw", "measured"] == approx(0.7) and found.loc["Bottle", "measured"] == approx(0.9)
    assert found.loc["MVTec-AD", "measured"] == approx(0.8) and set(found["column"]) == {"CUT-MIX"}
    assert found.loc["Screw", "why"] == "backbone efficientnet_lite0"
    assert found.loc["MVTec-AD", "why"] == "2 of 15 categories; backbone efficientnet_lite0"
    unseen = result({("screw", "image_auroc"): 0.2}, method="atacnet", dataset=COPY, category="screw", profile="open",
                    step="cutmix", known="thread_side")
    assert departures(T1, [*made, unseen]).set_index("row").loc["Screw", "measured"] == approx(0.7)


def test_a_cell_with_a_verdict_keeps_it():
    frame = pd.DataFrame({"row": ["1 query", "1 query"], "column": ["Det.", "Loc."], "metric": ["image_auroc", "pixel_auroc"],
                          "unit": "%", "published": [87.6, 92.8], "measured": [87.0, None], "std": None, "seeds": [1, None],
                          "verdict": ["reproduced", "not run"], "why": ""})
    made = result({("screw", metric): 0.5 for metric in ("image_auroc", "pixel_auroc")}, dataset=COPY, profile="open",
                  query="one", nma=False, jitter=False)
    merged = with_departures(Comparison(S2, frame, "", ""), [made]).frame
    assert list(merged["verdict"]) == ["reproduced", "departs"] and list(merged["measured"]) == [87.0, approx(50.0)]


def test_a_notebook_on_real_images_shows_departures_and_one_on_mini_shows_none(tmp_path):
    real, drawn = (ResultTable([of_uniad(dataset=name)], Store(tmp_path)).against(S2).counts() for name in (COPY, "mini"))
    assert real["departs"] == 1 and drawn["departs"] == 0 and sum(real.values()) == sum(drawn.values()) == 18


def test_agreement_counts_pairs_apart_by_hand():
    # Rows a, b and columns x, y; the standard deviation of a cell of one seed is the largest, 2. Pairs in a row or a column:
    # ax-ay 60-59 and ax-bx 60-57 are not apart (2 x 2). ay-by 59-40 has the same order, bx-by 57-40 not: 50 < 90.
    frame = pd.DataFrame({"row": list("aabb"), "column": list("xyxy"), "metric": "image_auroc", "unit": "%",
                          "published": [80.0, 95.0, 50.0, 90.0], "measured": [60.0, 59.0, 57.0, 40.0],
                          "std": [1.0, None, 2.0, None], "like": "a"})
    row = agreement(pd.concat([frame, frame.iloc[:1].assign(like="b", measured=0.0)])).iloc[0]
    assert (row["cells"], row["pairs"], row["same"]) == (4, 2, 1)
    assert row["rank"] == approx(0, abs=1e-9) and row["mean"] == approx((-20 - 36 + 7 - 50) / 4)
    assert agreement(frame.assign(std=None)).iloc[0][["pairs", "same"]].tolist() == [None, None]
    assert agreement(frame.assign(std=0.1)).iloc[0]["pairs"] == 4        # ax-by and ay-bx share neither row nor column


# --- the open profile -------------------------------------------------------------------------------------------------------

ALLOWED = {"backbone", "taps", "tap", "negatives"}      # what cannot be had without a download, and what follows from it


@pytest.mark.parametrize("name", METHODS)
def test_the_open_profile_changes_nothing_but_what_needs_a_download(name):
    method = method_named(name)
    assert set(profile_settings(method, "open")) <= ALLOWED and "open" in PROFILES
    config = method.Config.make(profile_settings(method, "open"))
    if "backbone" in config.values():
        assert config.backbone == "efficientnet_lite0"


# --- the record -------------------------------------------------------------------------------------------------------------

def test_the_record_has_more_than_forty_cells_beside_printed_numbers(tmp_path):
    recorded = recorded_results()
    counts = {name: len(departures(name, recorded)) for name in exhibits().index if cells(name) is not None}
    card = count_exhibits(tmp_path)
    assert card.loc["all", "departs"] == sum(counts.values()) > 40
    assert card.loc["all", SCHEDULE] <= card.loc["all", "departs"]
    shown = departing(S2)
    assert shown.counts()["departs"] == counts[S2] and "not a reproduction" in shown._repr_html_()

