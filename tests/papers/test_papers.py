"""The transcribed numbers against themselves: printed means, repeated cells, counts, and facts of other libraries."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd
import pytest
import yaml
from pytest import approx

from adcore.errors import DataError, ParameterError
from adcore.papers import exhibits, papers, published
from adcore.papers.published import COLUMNS, TEXT, parse_match

ROOT = Path(__file__).resolve().parents[2]
PAPERS = ["heckler2023", "artola2024", "ds2", "atacnet", "uniad2022"]
NOTEBOOKS = {
    "heckler2023": ["01_receptive_field", "02_best_layer", "03_image_size", "04_pretraining"],
    "artola2024": ["01_color_transport", "02_contrastive_fine_tuning", "03_gradient_analysis"],
    "ds2": ["01_dense_pretraining", "02_ablations", "03_cutpaste", "04_transfer_datasets", "05_localization_maps"],
    "atacnet": ["01_attention_cropping", "02_ablation", "03_unseen_anomalies", "04_gradcam_vs_attention"],
    "uniad2022": ["01_architecture", "02_ablations", "03_query_decoder", "04_losses_and_backbones", "05_cifar10",
                  "06_reconstruction_maps"],
}
# Cells counted in the supplements by hand: (numbers, texts).
CELLS = {
    "heckler2023.table_1": (0, 6 * 2),            # initializations x (source, info)
    "heckler2023.table_2": (0, 4 * (4 + 1)),      # networks x (layers, description)
    "ds2.table_1b": (5 * 3, 0),
    "ds2.table_1c": (6 * 3, 0),
    "ds2.table_1d": (5 * 3, 0),
    "ds2.table_1e": (3 * 3, 0),
    "atacnet.table_1": (16 * 5, 0),               # categories and mean x (defect types, four steps)
    "atacnet.table_2": (11 * 6, 0),               # 5 + 4 kinds and two means x (two settings of three methods)
    "uniad2022.table_s1": (2 * 2, 2),
    "uniad2022.table_s2": (9 * 2, 0),
    "uniad2022.table_s3": ((1 + 6 + 3) * 2, 0),   # vanilla, six plain, three with NMA and FJ
    "uniad2022.table_s4": (3 * 2, 0),
    "uniad2022.table_s5": (2 * 2 + 2, 0),         # and the two drops in the text
    "uniad2022.table_s6": (8 * 3, 0),
    "uniad2022.table_s7": (2 * 8, 2),             # and the setting and the claim in the text
    "uniad2022.cifar10": (4 + 1, 0),              # splits and mean, in the README of the published code
}
DS2 = [f"ds2.table_1{letter}" for letter in "bcde"]
UNIAD_DEFAULT = {"image_auroc": 96.5, "pixel_auroc": 96.8}


def cells(exhibit: str, **wanted: object) -> pd.DataFrame:
    """Rows whose match has every wanted field."""
    table = published(exhibit)
    return table[[all(match.get(field) == value for field, value in wanted.items()) for match in table["match"]]]


def by_metric(exhibit: str, **wanted: object) -> dict[str, float]:
    found = cells(exhibit, **wanted)
    found = found[found["metric"].isin(["image_auroc", "pixel_auroc"])]
    assert found["metric"].is_unique and len(found), f"{exhibit} {wanted}: {found}"
    return dict(zip(found["metric"], found["value"], strict=True))


def printed_means() -> list[tuple[str, float, float, int, str]]:
    """(name, printed, mean of the printed rows, number of rows, note) of every mean in the ATAC-Net tables."""
    means = []
    for step in ("cutmix", "weighted_ce", "deviation", "atacnet"):
        column = cells("atacnet.table_1", step=step)
        total = column["row"] == "MVTec-AD"
        means.append((f"table_1 {step}", column[total]["value"].item(), column[~total]["value"].mean(),
                      int((~total).sum()), column[total]["note"].item()))
    for category in ("tile", "metal_nut"):
        for method in ("devnet", "dra", "atacnet"):
            for anomalies in (1, 10):
                column = cells("atacnet.table_2", category=category, method=method, anomalies=anomalies)
                total = column["row"].str.endswith("Mean")
                means.append((f"table_2 {category} {method} {anomalies}", column[total]["value"].item(),
                              column[~total]["value"].mean(), int((~total).sum()), column[total]["note"].item()))
    return means


def test_one_printed_mean_of_sixteen_is_impossible_and_says_so():
    means = printed_means()
    assert [rows for _, _, _, rows, _ in means] == [15] * 4 + [5] * 6 + [4] * 6
    # Rows and mean are each rounded to three decimals, so that a mean may be off by two halves of the last digit.
    wrong = [(name, printed, mean, note) for name, printed, mean, _, note in means if abs(printed - mean) > 0.001001]
    assert [name for name, *_ in wrong] == ["table_2 tile dra 10"]
    _, printed, mean, note = wrong[0]
    assert printed == 0.935 and mean == approx(0.9534)
    assert "misprint" in note and "0.9534" in note


def test_two_more_printed_means_are_cut_off_instead_of_rounded_and_say_so():
    close = [(name, printed, mean, note) for name, printed, mean, _, note in printed_means()
             if 0.000499 < abs(printed - mean) < 0.001001]
    assert [name for name, *_ in close] == ["table_1 cutmix", "table_2 metal_nut devnet 1"]
    for _, printed, mean, note in close:
        assert printed == math.floor(mean * 1000) / 1000 and "cut off" in note


def test_no_note_calls_a_right_number_a_misprint():
    misprints = [(exhibit, row["row"], row["column"]) for exhibit in CELLS for _, row in published(exhibit).iterrows()
                 if "misprint" in row["note"]]
    assert misprints == [("heckler2023.table_1", "random", "info"), ("atacnet.table_2", "Tile Mean", "Ten Anomaly DRA")]


@pytest.mark.parametrize("exhibit", DS2)
def test_ds2_all_is_ten_objects_and_five_textures(exhibit):
    table = published(exhibit).assign(group=lambda rows: [match["group"] for match in rows["match"]])
    wide = table.pivot(index="row", columns="group", values="value")
    assert len(wide) == {"b": 5, "c": 6, "d": 5, "e": 3}[exhibit[-1]]
    assert ((10 * wide["object"] + 5 * wide["texture"]) / 15 - wide["all"]).abs().max() <= 0.1 + 1e-9


def test_the_default_rows_of_ds2_are_the_same_in_all_four_ablations():
    defaults = {"ds2.table_1b": {"instance": "none"}, "ds2.table_1c": {"augmentation": "cj+gb"},
                "ds2.table_1d": {"batch_size": 256}, "ds2.table_1e": {"scales": "c4c5"}}
    for exhibit, wanted in defaults.items():
        row = cells(exhibit, **wanted)
        assert [match["group"] for match in row["match"]] == ["object", "texture", "all"]
        assert list(row["value"]) == [96.5, 90.8, 94.6] and list(row["std"]) == [0.1, 0.4, 0.1]
        assert row["row"].str.endswith("*").all() and row["note"].str.contains("choice used in DS2").all()
        assert published(exhibit)["row"].str.endswith("*").sum() == 3


def test_uniad_at_its_defaults_has_the_same_two_numbers_in_five_tables():
    assert by_metric("uniad2022.table_s2", query="layerwise", nma=True, jitter=True) == UNIAD_DEFAULT
    assert by_metric("uniad2022.table_s3", wiring="a", nma=True, jitter=True) == UNIAD_DEFAULT
    assert by_metric("uniad2022.table_s4", loss="mse") == UNIAD_DEFAULT
    assert by_metric("uniad2022.table_s5", train_backbone=False) == UNIAD_DEFAULT
    assert by_metric("uniad2022.table_s6", backbone="efficientnet_b4") == UNIAD_DEFAULT


def test_the_mean_on_cifar10_is_that_of_the_four_splits_and_every_cell_says_where_it_is_printed():
    table = published("uniad2022.cifar10").set_index("column")
    assert list(table.index) == ["{01234}", "{56789}", "{02468}", "{13579}", "Mean"]
    assert [f"{{{match['category']}}}" for match in table["match"]][:4] == list(table.index[:4])
    assert table["match"].iloc[4]["category"] == "all"
    assert table["value"].iloc[:4].mean() == approx(86.525) and table["value"].iloc[4] == 86.5
    assert table["note"].str.startswith("README of the published code").all()


def test_tables_s2_and_s3_of_uniad_agree_where_they_overlap():
    plain = {"nma": False, "jitter": False}
    assert by_metric("uniad2022.table_s3", query="one", **plain) == {"image_auroc": 87.6, "pixel_auroc": 92.8}
    assert by_metric("uniad2022.table_s2", query="one", **plain) == {"image_auroc": 87.6, "pixel_auroc": 92.8}
    assert (by_metric("uniad2022.table_s3", wiring="a", **plain)
            == by_metric("uniad2022.table_s2", query="layerwise", **plain))


def test_the_drops_printed_for_a_trained_backbone_are_the_differences_of_the_two_rows():
    table = published("uniad2022.table_s5").set_index(["row", "metric"])["value"]
    for metric, drop in (("image_auroc", -30.6), ("pixel_auroc", -31.3)):
        assert table["Training - Freezing", f"{metric}_gain"] == drop
        assert table["Training", metric] - table["Freezing", metric] == approx(drop)


def test_the_complexity_table_counts_linear_weights_for_uniad_and_covariances_for_padim():
    def printed(method: str) -> float:
        row = cells("uniad2022.table_s7", method=method)
        return row[row["metric"] == "learnable_params_m"]["value"].item()

    width, hidden, channels = 256, 1024, 272
    attention, feed_forward = 4 * width * width, 2 * width * hidden
    encoder, decoder = attention + feed_forward, 2 * attention + feed_forward
    assert printed("uniad") == round((4 * (encoder + decoder) + 2 * channels * width) / 1e6, 2)
    assert printed("padim") == round(56 * 56 * (550 + 550**2) / 1e6, 2)


def test_the_backbone_sizes_of_table_s6_are_those_of_torchvision_but_for_three_noted_ones():
    torchvision = pytest.importorskip("torchvision")
    table = published("uniad2022.table_s6")
    table = table[table["metric"] == "backbone_params_m"]
    strange = {}
    for _, row in table.iterrows():
        weights = torchvision.models.get_model_weights(row["match"]["backbone"])
        millions = weights.IMAGENET1K_V1.meta["num_params"] / 1e6
        decimals = len(row["text"].partition(".")[2])
        if abs(millions - row["value"]) > 0.5 * 10**-decimals:
            strange[row["row"]] = row["note"]
    assert list(strange) == ["Res-18", "Res-34", "Eff-b2"]
    assert all("usual" in note for note in strange.values())
    assert (table["note"] != "").sum() == 3


def test_the_best_cell_of_each_step_in_atacs_ablation_is_atac_net_but_for_one_noted_category():
    table = cells("atacnet.table_1", method="atacnet").assign(
        category=lambda rows: [match["category"] for match in rows["match"]])
    wide = table.pivot(index="category", columns="column", values="value")
    below = wide.index[wide["ATAC-Net"] < wide.max(axis=1)]
    assert list(below) == ["toothbrush"]
    assert table[(table["category"] == "toothbrush") & (table["column"] == "ATAC-Net")]["note"].item()


def test_atacs_number_of_anomalies_is_mvtecs_number_of_defect_types():
    defect_types = {"bottle": 3, "cable": 8, "capsule": 5, "carpet": 5, "grid": 5, "hazelnut": 4, "leather": 5,
                    "metal_nut": 4, "pill": 7, "screw": 5, "tile": 5, "toothbrush": 1, "transistor": 4, "wood": 5,
                    "zipper": 7}
    table = published("atacnet.table_1")
    counts = table[table["metric"] == "defect_types"]
    assert dict(zip([match["category"] for match in counts["match"]], counts["value"], strict=True)) == defect_types
    assert table[table["metric"] == "categories"]["value"].item() == len(defect_types)


@pytest.mark.parametrize("exhibit", CELLS)
def test_a_table_has_as_many_cells_as_counted_by_hand(exhibit):
    table = published(exhibit)
    words = table["metric"] == TEXT
    assert (int((~words).sum()), int(words.sum())) == CELLS[exhibit]


@pytest.mark.parametrize("exhibit", CELLS)
def test_a_table_is_tidy(exhibit):
    paper, name = exhibit.split(".")
    file = ROOT / "adcore" / "papers" / paper / "published" / f"{name}.csv"
    assert file.read_text(encoding="utf-8").splitlines()[0] == ",".join(COLUMNS)
    table = published(exhibit)
    assert list(table.columns) == [
        "row", "column", "metric", "value", "text", "std", "unit", "match", "note", "exhibit", "source"]
    assert (table["source"] == "published").all() and (table["exhibit"] == exhibit).all()
    assert not table.duplicated(["row", "column", "metric"]).any()
    words = table["metric"] == TEXT
    assert (table["value"].isna() == words).all()
    assert (table[~words]["text"].astype(float) == table[~words]["value"]).all()
    assert (table[["row", "column", "metric", "text"]] != "").all(axis=None)
    assert table["std"].notna().all() if exhibit in DS2 else table["std"].isna().all()
    keys = [(row["metric"], *sorted((field, str(value)) for field, value in row["match"].items()))
            for _, row in table.iterrows() if row["match"] and row["metric"] != TEXT]
    assert len(keys) == len(set(keys)), "two cells would take the same measured result"


@pytest.mark.parametrize("exhibit", CELLS)
def test_a_score_lies_between_chance_and_perfection(exhibit):
    table = published(exhibit)
    scores = table[table["metric"].isin(["image_auroc", "pixel_auroc"])]
    assert set(scores["unit"]) <= {"%", "fraction"}
    top = scores["unit"].map({"%": 100.0, "fraction": 1.0})
    assert (scores["value"].between(0.5 * top, top)).all()
    assert (scores["std"].fillna(0).between(0, 2)).all()
    rest = table[~table["metric"].isin(["image_auroc", "pixel_auroc", "image_auroc_gain", "pixel_auroc_gain", TEXT])]
    assert (rest["value"] > 0).all()


def test_a_cell_keeps_the_digits_that_were_printed():
    sizes = published("uniad2022.table_s6").query("metric == 'backbone_params_m'")["text"]
    assert list(sizes) == ["11.4", "21.5", "25.6", "44.5", "5.3", "9.2", "19", "43"]
    assert cells("atacnet.table_1", step="atacnet", category="leather")["text"].item() == "1.000"


def test_a_match_is_typed_field_by_field():
    assert parse_match("method=uniad;nma=true;jitter=false;anomalies=10;alpha=0.5;query=none;augmentation=cj+gb") == {
        "method": "uniad", "nma": True, "jitter": False, "anomalies": 10, "alpha": 0.5, "query": "none",
        "augmentation": "cj+gb"}
    assert parse_match("category='01234';seed=01234;taps=1,2,5;word='a';quote='") == {
        "category": "01234", "seed": 1234, "taps": (1, 2, 5), "word": "a", "quote": "'"}
    assert parse_match("") == {}
    for wrong in ("method", "method=", "=uniad", "method=a;method=b", "method=a;"):
        with pytest.raises(DataError, match=re.escape(wrong)):
            parse_match(wrong)


def test_every_table_has_its_numbers_but_the_one_that_only_the_main_paper_prints():
    files = {f"{file.parts[-3]}.{file.stem}" for file in (ROOT / "adcore" / "papers").glob("*/published/*.csv")}
    table = exhibits()
    assert files == set(CELLS)
    assert set(table.index[table["kind"] == "table"]) - files == {"ds2.table_1a"}
    assert files - set(table.index[table["kind"] == "table"]) == {"uniad2022.cifar10"}, "a protocol whose numbers are elsewhere"
    assert "main paper" in table.loc["ds2.table_1a", "note"]


def test_exhibits_are_in_order():
    table = exhibits()
    assert table.index.is_unique and len(table) == 47
    assert table.index.name == "id"
    assert list(table.columns) == ["paper", "number", "title", "caption", "kind", "code", "notebook", "needs_data",
                                   "needs_weights", "state", "deterministic", "note"]
    assert list(dict.fromkeys(table["paper"])) == PAPERS
    assert (table.index.str.partition(".").get_level_values(0) == table["paper"]).all()
    assert table["paper"].value_counts().to_dict() == {"uniad2022": 15, "ds2": 13, "heckler2023": 8, "atacnet": 7,
                                                       "artola2024": 4}
    assert set(table["kind"]) == {"table", "figure", "algorithm", "equations", "protocol"}
    assert not table.duplicated(["paper", "number"]).any()
    assert table["caption"].str.fullmatch(r"[A-Z].*\.").all()


def test_every_exhibit_has_a_notebook_of_the_plan_and_every_notebook_an_exhibit():
    planned = {f"{paper}/{name}" for paper, names in NOTEBOOKS.items() for name in names}
    table = exhibits()
    assert set(table["notebook"]) == planned
    assert (table["notebook"].str.partition("/")[0] == table["paper"]).all()


def test_what_exhibits_need_is_in_the_manifest():
    from adcore.data.manifest import load_manifest

    manifest = load_manifest()
    for column, kind in (("needs_data", "dataset"), ("needs_weights", "weights")):
        for exhibit, names in exhibits()[column].items():
            for name in names.split(";") if names else ():
                assert manifest[name].kind == kind, exhibit


def test_a_regenerated_exhibit_has_its_notebook():
    table = exhibits()
    assert set(table["state"]) <= {"regenerated", "planned"}
    regenerated = table[table["state"] == "regenerated"]
    assert set(regenerated.index) >= {"uniad2022.table_s1", "uniad2022.table_s7", "heckler2023.figure_1",
                                      "heckler2023.table_2"}
    built = {f"{file.parent.name}/{file.stem}" for file in (ROOT / "notebooks").glob("*/*.ipynb")}
    if not built:
        pytest.skip("no notebooks here")
    assert set(regenerated["notebook"]) <= built


def test_a_deterministic_exhibit_needs_no_data():
    table = exhibits()
    assert table["deterministic"].dtype == bool
    assert (table[table["deterministic"]]["needs_data"] == "").all()
    deterministic = set(table.index[table["deterministic"]])
    assert {"uniad2022.table_s1", "uniad2022.table_s7", "heckler2023.figure_1", "heckler2023.table_1",
            "heckler2023.table_2", "uniad2022.equations", "artola2024.equations", "atacnet.algorithm_1",
            "atacnet.algorithm_2"} <= deterministic


def test_an_unknown_exhibit_is_answered_with_the_nearest_one_and_the_list():
    with pytest.raises(ParameterError, match=r"'uniad2022.table_2' \(did you mean 'uniad2022.table_s2'\?\); .*ds2"):
        published("uniad2022.table_2")
    with pytest.raises(ParameterError, match=r"'ds2.figure_1' has no printed numbers; .*ds2\.table_1b"):
        published("ds2.figure_1")
    with pytest.raises(ParameterError, match="unknown exhibit"):
        published("../../secrets")


def test_five_papers_are_named_and_cited():
    table = papers()
    assert list(table.index) == PAPERS
    assert table.loc["uniad2022", "year"] == 2022
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0" and citation["authors"] == [{"name": "The adcore authors"}]
    references = citation["references"]
    assert [reference["title"] for reference in references] == list(table["title"])
    assert [reference["year"] for reference in references] == list(table["year"])
    assert [reference["url"] for reference in references] == list(table["url"])
    for reference, authors in zip(references, table["authors"], strict=True):
        assert "; ".join(f"{a['given-names']} {a['family-names']}" for a in reference["authors"]) == authors
