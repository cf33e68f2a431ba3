"""Measured numbers of results/ and benchmarks/ in the report and in results/README.md."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure
from pytest import approx

from adcore.errors import AdcoreError, StoreError
from adcore.experiments import record as recording
from adcore.report import charts, pages, readme


def test_a_record_is_summarized_in_percent_over_seeds(checkout):
    (record,) = recording.records()
    table = recording.summarize(record.frame).set_index("method")
    # 90 and 92: mean 91, deviation sqrt(2); 80 and 84: mean 82, deviation 2 sqrt(2).
    uniad = table.loc["uniad", ["image AUROC", "pixel AUROC", "AUPRO", "seeds"]]
    assert tuple(uniad) == ("91.0 ± 1.4", "82.0 ± 2.8", "70.0 ± 0.0", "0, 1")
    assert tuple(table.loc["patchcore", ["image AUROC", "seconds", "peak GB", "commit"]]) == ("100.0", "10", "2.0", "abc")
    assert float(table.loc["uniad", "seconds"]) == approx(15)
    assert record.about == "real_images.csv: 3 experiments on mtd"


def test_a_record_is_selected_by_name_and_method(checkout):
    assert list(recording.on_record("real_images", method="patchcore")["method"]) == ["patchcore"]
    with pytest.raises(StoreError, match="results/ has no record 'real'; it has real_images"):
        recording.on_record("real")


def test_the_growth_chart_has_one_panel_per_computation_with_both_exponents(checkout, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "as_data", lambda figure: drawn.append(figure) or "data:")
    assert charts.growth_chart(pages.benchmarks_on_record("growth")) == "data:" and charts.growth_chart(None) is None
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    titles = ["gmm\ntime ~ points^1.25, counted 1", "nearest\ntime ~ points^0.75, counted 1"]
    assert [axes.get_title() for axes in panels] == titles
    assert [axes.get_ylabel() for axes in drawn[0].axes].count("peak MB") == 1         # nearest needs no memory of its own


def test_the_chart_of_whole_methods_has_a_panel_per_case_with_the_seconds_of_fit_and_test(checkout, monkeypatch):
    drawn = []
    monkeypatch.setattr(charts, "as_data", lambda figure: drawn.append(figure) or "data:")
    whole = pages.benchmarks_on_record("whole")
    assert charts.whole_chart(whole) == "data:" and charts.whole_chart(None) is None
    first, second = (axes for axes in drawn[0].axes if axes.get_title())
    assert (first.get_title(), second.get_title()) == ("patchcore bottle: 5.0 times faster", "fastflow grid: 5.0 times faster")
    assert [(bar.get_x(), bar.get_width()) for bar in first.patches] == [(0, 60), (0, 12), (60, 20), (12, 4)]
    assert [text.get_text() for text in first.texts] == [" 80 s, 3.5 GB", " 16 s, 2.0 GB"]


def test_the_table_of_measured_numbers_is_written_only_between_its_markers(checkout, monkeypatch):
    monkeypatch.setattr(readme, "heat_map_figure", Figure)
    monkeypatch.setattr(readme, "protocol_figure", Figure)
    path = checkout / "results" / "README.md"
    path.write_text(f"# adcore\n\nbefore \\1 \\g<0>\n{readme.BEGIN}\nstale\n{readme.END}\nafter | a | table |\n")
    readme.rewrite_readme()
    once = path.read_text()
    head, rest = once.split(readme.BEGIN)
    table, tail = rest.split(readme.END)
    assert head == "# adcore\n\nbefore \\1 \\g<0>\n" and tail == "\nafter | a | table |\n" and "stale" not in table
    lines = table.strip().splitlines()
    assert lines[0].startswith("| method | data set | category | image AUROC |") and set(lines[1]) <= set("|- ")
    assert len(lines) == 2 + 2 and "| uniad | mtd | tile | 91.0 ± 1.4 |" in table
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    readme.rewrite_readme()
    assert path.read_text() == once


@pytest.mark.parametrize("text", ["", readme.BEGIN, readme.END])
def test_a_page_without_the_markers_is_refused(text):
    with pytest.raises(AdcoreError, match=r"results/README\.md has no place for the measured numbers"):
        readme.rendered(text)
