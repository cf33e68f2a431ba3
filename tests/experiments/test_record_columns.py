"""The columns of results/*.csv that older files do not have, and the costs that are computed from them."""

from __future__ import annotations

import pandas as pd
import pytest
from pytest import approx
from support.tiny import result

from adcore.errors import StoreError
from adcore.experiments import Store
from adcore.experiments import record as recording
from adcore.experiments.evaluation import scores_table
from adcore.experiments.store import Result

LATER = ["fit_seconds", "test_seconds", "test_images"]


def stored(root, method: str, category: str, seed: int, *categories: str, **origin) -> Result:
    """A result in a store: image AUROC and AUPRO of its categories."""
    made = result({(one, metric): 0.5 for one in categories or (category,) for metric in ("image_auroc", "aupro")},
                  method=method, dataset="mini", category=category, seed=seed)
    made = Result(made.experiment, made.measures, {**made.provenance, "seconds": 11.0, "peak_bytes": 2e9, **origin})
    Store(root).save(made, scores_table([]), {})
    return made


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "repository", lambda: tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path


def test_seconds_of_fit_and_test_and_the_number_of_images_are_exported_and_read_again(checkout):
    stored(checkout / "runs", "patchcore", "cloth", 0, fit_seconds=10.0, test_seconds=1.0, test_images=40)
    stored(checkout / "runs", "gde", "cloth", 0)         # a result from before these were kept
    recording.export_results(to=checkout / "results" / "mine.csv", out=checkout / "runs")
    frame = recording.recorded("mine").frame.set_index("method")
    assert [set(frame.loc["patchcore", column]) for column in LATER] == [{10.0}, {1.0}, {40}]
    assert frame.loc["gde", LATER].isna().all(axis=None) and set(frame["seconds"]) == {11.0}


def test_a_file_without_the_later_columns_is_read_with_empty_ones_and_one_with_words_in_them_is_refused(checkout):
    path = checkout / "results" / "mine.csv"
    stored(checkout / "runs", "patchcore", "cloth", 0, fit_seconds=10.0, test_seconds=1.0, test_images=40)
    recording.export_results(to=path, out=checkout / "runs")
    new = pd.read_csv(path)
    new.drop(columns=LATER).to_csv(path, index=False)
    frame = recording.recorded("mine").frame
    assert len(frame) == 2 and frame[LATER].isna().all(axis=None)
    assert recording.on_record("mine")["seconds"].item() == "11"
    new.astype({"test_images": str}).assign(test_images="many").to_csv(path, index=False)
    with pytest.raises(StoreError, match="has words in 'test_images': export it again"):
        recording.recorded("mine")


def test_only_the_named_experiments_are_exported(checkout):
    first, _ = (stored(checkout / "runs", method, "cloth", 0) for method in ("patchcore", "gde"))
    other = result({("cloth", "image_auroc"): 0.5}, method="ds2", dataset="mini", category="cloth").experiment
    text = recording.export_results(out=checkout / "runs", only=[first.experiment, other])
    assert {line.partition(",")[0] for line in text.splitlines()[1:]} == {"patchcore"}
    with pytest.raises(StoreError, match="the store has no result"):
        recording.export_results(out=checkout / "runs", only=[other])


def test_costs_add_the_categories_of_a_seed_and_count_a_pooled_training_once(checkout):
    root = checkout / "runs"
    made = [stored(root, "patchcore", category, seed, fit_seconds=fit, test_seconds=2.0, test_images=images, peak_bytes=peak)
            for category, seed, fit, images, peak in (("cloth", 0, 10.0, 40, 1e9), ("wool", 0, 30.0, 60, 3e9),
                                                      ("cloth", 1, 20.0, 40, 1e9), ("wool", 1, 40.0, 60, 1e9),
                                                      ("cloth", 2, 999.0, 40, 9e9))]      # wool is missing
    made.append(stored(root, "uniad", "all", 0, "cloth", "wool", fit_seconds=100.0, test_seconds=5.0, test_images=100))
    recording.export_results(to=checkout / "results" / "mine.csv", out=root)
    table = recording.costs(recording.recorded("mine").frame)
    # PatchCore: (10 + 30 + 20 + 40) / 2; 4 s for 100 images; peaks of 3 and 1 GB.
    assert tuple(table.loc["patchcore", ["fit_seconds", "milliseconds", "peak_gb"]]) == approx((50, 40, 2))
    assert tuple(table.loc["uniad", ["fit_seconds", "milliseconds", "peak_gb"]]) == approx((100, 50, 2))
