"""The interactive part of a notebook: sliders for a person, one static figure elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from matplotlib.figure import Figure

from adcore.interact import explore


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The values with which the figures that were shown were drawn."""
    monkeypatch.setattr("adcore.interact.show", lambda figure: values.append(figure.values))
    values: list[dict[str, Any]] = []
    return values


def draw(**values: Any) -> Figure:
    figure = Figure()
    figure.values = values
    return figure


CONTROLS = {"method": ["a", "b"], "epoch": (0, 10, 2), "alpha": (0.0, 1.0, 0.25)}
START = {"method": "a", "epoch": 4, "alpha": 0.5}             # the first of a list, the middle of a slider on one of its steps


def test_a_batch_run_shows_one_figure_with_the_start_values(drawn, monkeypatch, capsys):
    monkeypatch.setenv("ADCORE_PROGRESS", "0")
    explore(draw, **CONTROLS)
    assert drawn == [START] and capsys.readouterr().out == ""


@pytest.mark.parametrize("missing", ["ipywidgets", "IPython.display"])
def test_without_ipywidgets_the_figure_is_static_and_a_line_says_how_to_get_sliders(drawn, monkeypatch, capsys, missing):
    monkeypatch.setenv("ADCORE_PROGRESS", "1")
    monkeypatch.setitem(sys.modules, missing, None)           # import raises ModuleNotFoundError
    explore(draw, **CONTROLS)
    assert drawn == [START]
    assert capsys.readouterr().out == "the sliders need ipywidgets: pip install 'adcore[notebooks]'\n"


def test_a_person_gets_a_menu_and_sliders_with_the_same_start_values(drawn, monkeypatch):
    pytest.importorskip("ipywidgets")
    shown: list[Any] = []
    monkeypatch.setenv("ADCORE_PROGRESS", "1")
    monkeypatch.setattr("IPython.display.display", shown.append)
    explore(draw, **CONTROLS)
    controls = shown[0].children[0].children
    assert {one.description: one.value for one in controls} == START and drawn[0] == START
    controls[1].value = 6
    assert drawn[-1] == {**START, "epoch": 6}
