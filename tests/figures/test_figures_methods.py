"""Figures that compare methods, checked by their rows, numbers and labels."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest
from matplotlib.text import Annotation
from pytest import approx

from adcore import figures
from adcore.figures.style import COLORS, MARKERS

pytestmark = pytest.mark.usefixtures("style")

TABLE = pd.DataFrame([
    {"category": "grid", "method": "gde", "auroc": 70.0, "low": 60.0, "high": 80.0, "seeds": (68.0, 72.0)},
    {"category": "grid", "method": "devnet", "auroc": 90.0, "low": 85.0, "high": 95.0, "seeds": (90.0,)},
    {"category": "magnetic_tile", "method": "gde", "auroc": 75.0, "low": 74.0, "high": 76.0, "seeds": (75.0,)}])


def test_methods_are_sorted_by_their_means_and_each_has_its_interval_its_seeds_and_its_marker():
    figure = figures.method_intervals(TABLE, "image AUROC, %", ["devnet"], "with labels")
    grid, tile = figure.axes
    assert [text.get_text() for text in grid.get_yticklabels()] == ["devnet", "gde"]
    assert (grid.get_title(), tile.get_title(), grid.get_xlabel()) == ("grid", "magnetic tile", "image AUROC, %")
    drawn = [(list(line.get_xdata()), set(line.get_ydata()), line.get_marker(), line.get_color()) for line in grid.lines]
    assert ([60.0, 80.0], {1}, "None", COLORS[0]) in drawn and ([68.0, 72.0], {1}, "|", "black") in drawn
    assert ([70.0], {1}, MARKERS[0], COLORS[0]) in drawn and ([90.0], {0}, MARKERS[1], COLORS[1]) in drawn
    assert len(tile.lines) == 2             # devnet was not measured there; one seed is the point itself
    legend = [text.get_text() for text in figure.legends[0].texts]
    assert legend == ["normal images only", "with labels", "95 % of the draws", "one seed"]
    assert grid.get_ylim()[0] > grid.get_ylim()[1]                              # the best is at the top


def test_a_legend_names_no_marker_that_is_not_drawn():
    figure = figures.method_intervals(TABLE[TABLE.category == "magnetic_tile"], "%", ["devnet"], "with labels")
    assert [text.get_text() for text in figure.legends[0].texts] == ["normal images only", "95 % of the draws"]


def boxes(figure) -> list:
    renderer = figure.canvas.get_renderer()
    return [[label.get_window_extent(renderer) for label in axes.texts if isinstance(label, Annotation) and label.get_text()]
            for axes in figure.axes]


def test_names_of_close_points_cover_neither_each_other_nor_a_point_and_stay_inside():
    close = {f"method {i}": (100.0 + 10 * i, 80.0 + 0.3 * (i % 3)) for i in range(9)}
    figure = figures.accuracy_and_cost({"seconds": close, "milliseconds": {"method 0": (20.0, 80.0), "method 1": (60.0, 90.0)}},
                                       "%", ["method 1"], "with labels")
    assert [len(found) for found in boxes(figure)] == [9, 2]
    axes = figure.axes[0]
    points = axes.transData.transform(list(close.values()))
    frame = axes.get_window_extent()
    for a, b in itertools.combinations(boxes(figure)[0], 2):
        assert not a.overlaps(b)
    for box in boxes(figure)[0]:
        assert not any(box.contains(*point) for point in points)
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert {line.get_marker() for line in axes.lines if line.get_color() == COLORS[1]} == {MARKERS[1]}
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "seconds") and figure.get_size_inches()[0] * 100 < 1100


def test_a_lonely_point_has_its_name_right_beside_it():
    figure = figures.accuracy_and_cost({"seconds": {"gde": (10.0, 80.0), "ds2": (1000.0, 90.0)}}, "%")
    (label,) = (text for text in figure.axes[0].texts if text.get_text() == "gde")
    assert label.xyann == (7, 0) and label.xy == approx((10.0, 80.0))
