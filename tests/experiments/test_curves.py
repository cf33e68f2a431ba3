"""Training curves on record: written from stored results, and refused when they do not belong to the record."""

from __future__ import annotations

import json

import pytest
from support.tiny import result

from adcore.errors import StoreError
from adcore.experiments import Store, curves, record
from adcore.experiments.curves import recorded_losses, save_losses
from adcore.experiments.evaluation import scores_table
from adcore.experiments.store import Result


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    for module in (record, curves):
        monkeypatch.setattr(module, "repository", lambda: tmp_path)
    return tmp_path


def stored(root, method: str, seed: int, **origin) -> Result:
    made = result({("cloth", "image_auroc"): 0.5}, method=method, dataset="mini", category="cloth", seed=seed)
    made = Result(made.experiment, made.measures, {**made.provenance, "seconds": 11.0, **origin})
    Store(root).save(made, scores_table([]), {})
    return made


def test_curves_are_read_as_they_were_written_by_method_with_the_first_seed(checkout):
    runs = checkout / "runs"
    made = [stored(runs, "fastflow", 1, losses=[9.0, 8.0]), stored(runs, "fastflow", 0, losses=[2.0, 1.23456]),
            stored(runs, "asymst", 0, losses=[3.0])]
    record.export_results(to=checkout / "results" / "mine.csv", out=checkout / "runs")
    path = checkout / "results" / "mine_losses.json"
    assert save_losses([one.experiment for one in made], path, checkout / "runs") == f"{path}: 3 curves"
    assert recorded_losses("mine") == {"fastflow": [2.0, 1.2346], "asymst": [3.0]}
    assert len(path.read_text().splitlines()) == 3 + 2


def test_results_without_losses_are_refused_by_name_and_nothing_is_written(checkout):
    made = stored(checkout / "runs", "patchcore", 0)
    for one in (made.experiment, stored(checkout / "elsewhere", "fastflow", 0, losses=[1.0]).experiment):
        with pytest.raises(StoreError, match=f"no losses of '{one.title}' are stored"):
            save_losses([one], checkout / "mine_losses.json", checkout / "runs")
    assert not (checkout / "mine_losses.json").exists()


@pytest.mark.parametrize(("text", "sentence"), [
    (None, "FileNotFoundError"), ("{", "JSONDecodeError"), ('[{"method": "fastflow"}]', "KeyError"), ("[1]", "TypeError"),
    (json.dumps([{"method": "fastflow", "seed": 0, "key": "abc", "losses": [1]}]), "a curve of abc, which mine.csv does not")])
def test_a_file_without_curves_or_with_those_of_other_trainings_is_refused(checkout, text, sentence):
    stored(checkout / "runs", "fastflow", 0, losses=[1.0])
    record.export_results(to=checkout / "results" / "mine.csv", out=checkout / "runs")
    if text is not None:
        (checkout / "results" / "mine_losses.json").write_text(text)
    with pytest.raises(StoreError, match=rf"mine_losses\.json has .*{sentence}"):
        recorded_losses("mine")
