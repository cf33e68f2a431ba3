"""The interactive part of a notebook: sliders for a person, one static figure elsewhere; and progress bars."""

from __future__ import annotations

import sys
from typing import Any

import nbformat
import pytest
from matplotlib.figure import Figure
from support.notebooks import write_notebook

from adcore.interact import explore

VIEW = "application/vnd.jupyter.widget-view+json"


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


def test_a_person_gets_a_menu_and_sliders_that_replace_the_picture(monkeypatch):
    widgets = pytest.importorskip("ipywidgets")
    shown: list[tuple[str, Any]] = []
    boxes: list[Any] = []
    box = widgets.HBox
    monkeypatch.setenv("ADCORE_PROGRESS", "1")
    monkeypatch.setattr("adcore.interact.picture", lambda figure: figure.values)
    monkeypatch.setattr("ipywidgets.HBox", lambda children: boxes.append(box(children)) or boxes[0])
    monkeypatch.setattr("IPython.display.display", lambda one, raw: shown.append(("display", one)))
    monkeypatch.setattr("IPython.display.DisplayHandle.display", lambda self, one: shown.append((self.display_id, one)))
    monkeypatch.setattr("IPython.display.DisplayHandle.update", lambda self, one: shown.append((self.display_id, one)))
    explore(draw, **CONTROLS)
    (_, note), (_, controls), (place, picture) = shown
    assert "by its controls: method, epoch, alpha." in note["text/html"] and VIEW in controls and picture == START
    assert {one.description: one.value for one in boxes[0].children} == START
    boxes[0].children[1].value = 6
    assert shown[3:] == [(place, {**START, "epoch": 6})]


def test_plain_papermill_keeps_the_picture_beside_the_controls_and_nothing_of_progress_bars(tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    import papermill

    from adcore.executor import ThisPython
    monkeypatch.delenv("ADCORE_PROGRESS")
    path = write_notebook(
        tmp_path / "toy.ipynb", "profile = 'quick'",
        "from adcore.progress import progress_bar\nfor _ in progress_bar(iterable=range(2), desc='outer'):\n"
        "    for _ in progress_bar(iterable=range(3), desc='inner', mininterval=0):\n        pass",
        "from matplotlib.figure import Figure\nfrom adcore.interact import explore\n"
        "explore(lambda tap: Figure(figsize=(1, tap)), tap=[2, 1])")
    papermill.execute_notebook(str(path), str(tmp_path / "run.ipynb"), kernel_name="python3", progress_bar=False,
                               kernel_manager_class=ThisPython)
    bars, controls = ([output.data for output in cell.outputs] for cell in nbformat.read(tmp_path / "run.ipynb", 4).cells[-2:])
    assert bars == [{"text/plain": ""}] * 2                   # the second inner bar takes the place of the first
    note, view, picture = controls
    assert note.keys() == {"text/html", "text/plain"} and VIEW in view and view["text/plain"] == ""
    assert picture.keys() & {"image/png", "image/jpeg"} and VIEW not in picture
