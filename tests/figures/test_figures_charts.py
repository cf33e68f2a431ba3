"""Charts, checked by their panels, labels, heights and axes, not by their pixels."""

from __future__ import annotations

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from pytest import approx

from adcore import figures
from adcore.papers.heckler2023.receptive_field import ReceptiveField

pytestmark = pytest.mark.usefixtures("style")

TABLE = {"plain": {"UniAD": 95.0, "transformer": 87.6, "MLP": 80.0}, "with_NMA": {"UniAD": 95.8, "MLP": 70.0}}


def bars(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """Series -> (center, height) of each bar."""
    return {container.get_label(): [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in container]
            for container in figure.axes[0].containers if container.patches}


def test_bars_have_the_heights_of_their_values_and_the_position_of_their_group():
    figure = figures.grouped_bars(TABLE, "image AUROC", title="Table S2")
    axes, drawn = figure.axes[0], bars(figure)
    assert list(drawn) == ["UniAD", "transformer", "MLP"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["plain", "with NMA"]
    assert (axes.get_ylabel(), axes.get_title(), axes.get_ylim()[0]) == ("image AUROC", "Table S2", 0)
    for name, found in drawn.items():
        assert [height for _, height in found] == approx([group.get(name, np.nan) for group in TABLE.values()], nan_ok=True)
        assert [round(x) for x, _ in found] == list(axes.get_xticks()) == [0, 1]
    edges = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(edges)), "bars overlap"


def test_each_series_has_its_own_color_and_hatch_and_one_entry_in_the_legend():
    figure = figures.grouped_bars(TABLE, "", published={"plain": {"UniAD": 96.5, "MLP": 81.0}})
    looks = [{(bar.get_facecolor(), bar.get_hatch()) for bar in container} for container in figure.axes[0].containers]
    assert [len(look) for look in looks] == [1, 1, 1]
    pairs = [next(iter(look)) for look in looks]
    assert len({color for color, _ in pairs}) == len({hatch for _, hatch in pairs}) == 3
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["MLP", "UniAD", "published", "transformer"]
    assert figure.axes[0].get_legend() is None


def test_published_values_are_black_lines_across_their_bars():
    printed = {"plain": {"UniAD": 96.5, "MLP": 79.0}, "with_NMA": {"MLP": 71.0}}
    figure = figures.grouped_bars(TABLE, "", published=printed)
    (ticks,) = (drawn for drawn in figure.axes[0].collections if isinstance(drawn, LineCollection))
    assert ticks.get_label() == "published" and ticks.get_colors().tolist() == [[0, 0, 0, 1]]
    found = {(round(line[:, 0].mean(), 6), line[0, 1]) for line in map(np.asarray, ticks.get_segments())
             if np.isfinite(line).all() and len(line)}
    places = {name: [x for x, _ in drawn] for name, drawn in bars(figure).items()}
    assert found == {(round(places[name][i], 6), value) for i, group in enumerate(printed.values())
                     for name, value in group.items()}
    assert not figures.grouped_bars(TABLE, "").axes[0].collections, "there are lines without published values"


def test_error_bars_have_the_length_of_their_errors():
    figure = figures.grouped_bars(TABLE, "", errors={"plain": {"UniAD": 2.0}, "with_NMA": {"MLP": 0.5}})
    spans = [line[:, 1] for drawn in figure.axes[0].collections for line in map(np.asarray, drawn.get_segments()) if len(line)]
    assert sorted((low, high) for low, high in spans if np.isfinite([low, high]).all()) == [(69.5, 70.5), (93.0, 97.0)]


def test_levels_are_lines_with_an_entry_in_the_legend_and_numbers_are_above_their_bars():
    figure = figures.grouped_bars(TABLE, "", levels={"chance": 50}, numbers="{:.0f}")
    axes, (legend,) = figure.axes[0], figure.legends
    (line,) = axes.lines
    assert set(line.get_ydata()) == {50} and "chance" in [text.get_text() for text in legend.get_texts()]
    heights = [height for drawn in bars(figure).values() for _, height in drawn]
    found = {text.xy[1]: text.get_text() for text in axes.texts if text.get_text()}
    assert found == {height: f"{height:.0f}" for height in heights if np.isfinite(height)}
    assert not figures.grouped_bars(TABLE, "").axes[0].texts


def test_labeled_points_have_their_positions_and_names_and_marked_ones_another_marker():
    figure = figures.labeled_points({"US": (9.55, 60.3), "ours": (7.48, 6.46)}, "parameters", "FLOPs", marked=["ours"])
    (axes,) = figure.axes
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] == [(9.55, 60.3), (7.48, 6.46)]
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("US", (9.55, 60.3)), ("ours", (7.48, 6.46))]
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()
    assert axes.get_xscale() == axes.get_yscale() == "log"
    plt.close(figure)


def test_line_panels_have_one_y_axis_and_one_legend_and_each_line_has_one_marker():
    one = pd.DataFrame({"stride 4": [60.0, 70.0], "stride 8": [80.0, np.nan]}, index=[96, 192])
    other = pd.DataFrame({"stride 8": [50.0, 55.0, 45.0]}, index=["random", "SwAV", "MoCo"])
    figure = figures.line_panels({"FastFlow": one, "PatchCore": other, "AsymST": one}, "image side", "AUROC", columns=2)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == ["FastFlow", "PatchCore", "AsymST"] and len(figure.axes) == 4
    assert len({axes.get_ylim() for axes in shown}) == 1 and [bool(axes.get_ylabel()) for axes in shown] == [True, False, True]
    assert shown[0].lines[0].get_xdata().tolist() == [96, 192] and shown[1].lines[0].get_xdata().tolist() == [0, 1, 2]
    assert [label.get_text() for label in shown[1].get_xticklabels()] == ["random", "SwAV", "MoCo"]
    assert shown[0].lines[1].get_ydata()[0] == 80 and np.isnan(shown[0].lines[1].get_ydata()[1])
    first, second = shown[0].lines
    assert first.get_marker() != second.get_marker() == shown[1].lines[0].get_marker()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["stride 4", "stride 8"]


def test_bar_panels_have_bars_in_column_order_around_their_group_and_one_integer_axis():
    one = pd.DataFrame({"stride 4": [3.0, 1.0], "stride 8": [12.0, 0.5]}, index=["resnet50", "densenet_201"])
    figure = figures.bar_panels({"AsymST": one, "FastFlow": one.iloc[:1], "PatchCore": one / 2}, "objects")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 3 and len({axes.get_ylim() for axes in shown}) == 1
    bars = shown[0].patches
    assert [bar.get_height() for bar in bars] == [3, 1, 12, 0.5]
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert middles[0] < 0 < middles[2] < middles[1] < 1 < middles[3] and bars[0].get_hatch() != bars[2].get_hatch()
    assert [text.get_text() for text in shown[0].get_xticklabels()] == ["resnet50", "densenet 201"]
    figure.canvas.draw()
    assert all(float(text.get_text().replace("\N{MINUS SIGN}", "-")).is_integer() for text in shown[0].get_yticklabels())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["stride 4", "stride 8"]


def test_score_histograms_count_every_image_once_on_an_axis_with_whole_numbers():
    scores = pd.DataFrame({"category": ["gear"] * 7 + ["chip"] * 3, "label": [0, 0, 0, 0, 1, 1, 1, 0, 1, 1],
                           "score": [1, 1, 2, 3, 4, 5, 6, 0.1, 0.2, 0.3]})
    figure = figures.score_histograms(scores)
    figure.canvas.draw()
    for axes, count in zip(figure.axes, (7, 3), strict=True):
        assert sum(bar.get_height() for bar in axes.patches) == count
        shown = [float(text.get_text()) for text in axes.get_yticklabels() if text.get_text()]
        assert len(shown) >= 2 and all(value.is_integer() for value in shown)


def test_score_histograms_of_fractions_give_both_classes_the_same_area_and_the_legend_covers_no_panel():
    scores = pd.DataFrame({"category": ["a", "b", "c"] * 20, "label": [0] * 54 + [1] * 6, "score": np.arange(60.0)})
    figure = figures.score_histograms(scores, fractions=True, columns=2)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["a", "b", "c"]
    assert [axes.get_xlabel() for axes in panels] == ["", "image score", "image score"]
    for axes in panels:
        assert [sum(bar.get_height() for bar in drawn) for drawn in axes.containers] == approx([1, 1])
        assert axes.get_legend() is None
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["normal", "anomalous"]


def test_probability_histograms_count_every_value_once_on_one_logarithmic_axis():
    values = {"before": np.r_[np.zeros(100), 0.51, 1.0], "after": np.linspace(0, 1, 30), "more": np.zeros((2, 3))}
    figure = figures.probability_histograms(values, "probability", "cells")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [sum(bar.get_height() for bar in axes.patches) for axes in shown] == [102, 30, 6]
    first = [bar.get_height() for bar in shown[0].patches]
    assert len(first) == 40 and (first[0], first[20], first[39]) == (100, 1, 1)
    assert {axes.get_yscale() for axes in shown} == {"log"} and len({axes.get_ylim() for axes in shown}) == 1


def test_intervals_are_means_with_one_deviation_on_either_side_and_the_first_row_on_top(style):
    figure = figures.intervals({"a": (94.6, 0.1), "b": (93.0, float("nan"))}, "%")
    (axes,) = figure.axes
    points, bars = [c.lines[0] for c in axes.containers], [c.lines[2] for c in axes.containers]
    assert [tuple(point.get_xydata()[0]) for point in points] == [(94.6, 0), (93.0, 1)] and axes.yaxis_inverted()
    assert bars[0][0].get_segments()[0][:, 0].tolist() == pytest.approx([94.5, 94.7]) and not bars[1]
    plt.close(figure)


def test_strips_show_every_value_above_its_group_and_a_line_at_the_mean_of_several(style):
    figure = figures.strips({"good": {"a": [1, 3], "b": [5.0]}, "hole_1": {"b": [2, 4, 9]}}, "score")
    (axes,) = figure.axes
    points = [(round(float(x), 9), float(y)) for line in axes.lines for x, y in line.get_xydata()]
    assert points == [(-0.2, 1), (-0.2, 3), (0.2, 5), (1.2, 2), (1.2, 4), (1.2, 9)]
    assert [lines.get_segments()[0][0, 1] for lines in axes.collections] == [2, 5]    # none at a single value
    assert [label.get_text() for label in axes.get_xticklabels()] == ["good", "hole 1"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "mean"]
    single = figures.strips({"good": {"a": [1]}}, "score")
    assert not single.axes[0].collections and [text.get_text() for text in single.legends[0].get_texts()] == ["a"]
    plt.close("all")


def test_strips_of_named_values_have_one_marker_per_name_and_a_line_through_the_series_of_a_group(style):
    figure = figures.strips({"zoom": {"first": [1, 3], "final": [2, 5]}, "plain": {"final": [4, 6]}}, "AUROC", names=[7, 8])
    (axes,) = figure.axes
    joined = [line for line in axes.lines if line.get_linestyle() == "-"]
    assert [line.get_ydata().tolist() for line in joined] == [[1, 2], [3, 5]]
    points = {float(line.get_ydata()[0]): line.get_marker() for line in axes.lines if line not in joined}
    assert points[1] == points[2] == points[4] != points[3] == points[5] == points[6]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "final", "7", "8", "mean"]
    unnamed = figures.strips({"a": {"": [1, 2]}}, "AUROC", names=["seed 0", "seed 1"])
    assert [text.get_text() for text in unnamed.legends[0].get_texts()] == ["seed 0", "seed 1", "mean"]
    plt.close("all")


def spot(size: int, box: tuple[int, int, int, int]) -> ReceptiveField:
    gradient = np.zeros((size, size), np.float32)
    gradient[box[0]:box[2], box[1]:box[3]] = 0.25
    gradient[box[0], box[1]] = 1
    return ReceptiveField("tap", 3, 4, max(box[2] - box[0], box[3] - box[1]), box, gradient, False)


def test_a_receptive_field_is_drawn_in_pixels_with_its_box_and_a_small_one_is_enlarged():
    figure = figures.receptive_fields({"small": spot(80, (30, 40, 38, 50)), "large": spot(80, (20, 10, 60, 50))}, {"small": 12})
    small, large = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["small\nmeasured 10, analytic 12", "large\nmeasured 40"]
    for axes, (left, top, width, height) in ((small, (40, 30, 10, 8)), (large, (10, 20, 40, 40))):
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 80), (80, 0)) and list(axes.get_xticks()) == [0, 40, 80]
        assert axes.patches[0].get_bbox().bounds == (left, top, width, height)
        assert sorted(set(np.asarray(axes.images[0].get_array()).ravel().tolist())) == [0, 0.5, 1], "the root of the gradient"
    (inset,) = small.child_axes
    assert not large.child_axes
    assert (inset.get_xlim(), inset.get_ylim()) == ((37, 53), (41, 27))
    assert inset.patches[0].get_bbox().bounds == (40, 30, 10, 8)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["box around the gradients at or above the threshold"]


def test_a_level_of_a_line_chart_is_a_line_without_markers_across_it():
    (axes,) = figures.line_chart({"a": ([0, 1], [1, 3])}, "x", "y", levels={"threshold": 2.0}).axes
    level = next(line for line in axes.lines if line.get_label() == "threshold")
    assert list(level.get_ydata()) == [2, 2] and list(level.get_xdata()) == [0, 1] and level.get_marker() == "None"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "threshold"]
