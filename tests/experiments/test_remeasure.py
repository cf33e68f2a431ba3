"""Numbers on record whose method has changed since are marked, and measured again by one command."""

from __future__ import annotations

import pandas as pd
import pytest

from adcore import cli
from adcore.experiments import record as recording
from adcore.experiments import remeasure as again
from adcore.experiments import run
from adcore.experiments.experiment import Experiment
from adcore.papers.heckler2023.brightness import Brightness


@pytest.fixture
def checkout(tmp_path, monkeypatch, tiny):
    """A checkout whose results/light.csv has two seeds of a method, measured by the version before today's."""
    for module in (recording, again):
        monkeypatch.setattr(module, "repository", lambda: tmp_path)
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr("adcore.experiments.experiment.load_dataset", lambda *_, **__: tiny)
    run([Experiment("brightness", "tiny", tiny.categories[0], seed) for seed in (0, 1)], out=tmp_path / "runs")
    recording.export_results(to=tmp_path / "results" / "light.csv", out=tmp_path / "runs")
    monkeypatch.setattr(Brightness, "version", Brightness.version + 1)
    return tmp_path


def rows(checkout):
    return pd.read_csv(checkout / "results" / "light.csv")


def test_an_exported_row_has_the_version_of_its_method(checkout):
    assert set(rows(checkout)["version"]) == {Brightness.version - 1}


def test_a_row_of_an_older_version_is_marked_in_the_report_and_in_a_notebook_s_table(checkout):
    (shown,) = recording.on_record("light")["commit"]
    assert shown.endswith(" (older code)")
    assert "2 results from the record, 2 results made by older code" in recording.recorded("light").settings_line()


def test_rows_of_today_s_version_are_not_marked(checkout, monkeypatch):
    monkeypatch.setattr(Brightness, "version", Brightness.version - 1)
    assert "older" not in recording.on_record("light")["commit"].item()
    assert "older" not in recording.recorded("light").settings_line()


def test_one_command_measures_the_chosen_rows_again_and_keeps_the_others(checkout, capsys):
    before = rows(checkout)
    before["value"] = 0.123                              # so that a kept row can be told from a new one
    before.to_csv(checkout / "results" / "light.csv", index=False)
    assert cli.main(["remeasure", "light", "--only", "seed=1", "--device", "cpu"]) == 0
    assert "light.csv: 1 of 2 experiments measured again" in capsys.readouterr().out
    after = rows(checkout)
    assert len(after) == len(before) and list(after.columns) == list(before.columns)
    kept, new = after[after.seed == 0], after[after.seed == 1]
    assert set(kept["value"]) == {0.123} and set(kept["version"]) == {Brightness.version - 1}
    assert 0.123 not in set(new["value"]) and set(new["version"]) == {Brightness.version}
    assert set(new["key"]).isdisjoint(before["key"])
    assert cli.main(["remeasure", "light"]) == 0         # the other seed
    assert "older" not in recording.on_record("light")["commit"].item()


@pytest.mark.parametrize(("words", "message"), [
    (["dark"], "results/ has no record 'dark'; it has light"),
    (["light", "--only", "color=red"], "a record has no column 'color'; it has method, dataset,"),
    (["light", "--only", "seed=7"], "results/light.csv has no row with seed=7"),
    (["light", "--only", "seed"], "'seed' is not name=value")])
def test_a_wrong_choice_is_one_sentence(checkout, capsys, words, message):
    before = (checkout / "results" / "light.csv").read_text()
    assert cli.main(["remeasure", *words]) == 2
    assert message in capsys.readouterr().err
    assert (checkout / "results" / "light.csv").read_text() == before
