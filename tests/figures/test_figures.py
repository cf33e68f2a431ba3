"""Figures, by what is drawn on them: panels, labels, heights, arrows and color limits; never by their pixels."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from PIL import Image
from pytest import approx
from support.tiny import write_tiny

from adcore import figures
from adcore.data import Dataset, Sample, View
from adcore.errors import ParameterError

WIRINGS = {"a": (("Q", "E"), ("R", "P")), "b": (("Q", "P"), ("R", "E")), "c": (("Q", "E"), ("P", "R")),
           "d": (("Q", "P"), ("E", "R")), "e": (("P", "E"), ("Q", "R")), "f": (("E", "P"), ("Q", "R"))}
VANILLA = {"self": (("Q", "Q"), ("R", "E")), "first": (("E", "E"), ("R", "E")), "ends": (("E", "Q"), ("R", "E"))}


pytestmark = pytest.mark.usefixtures("style")


# --- wirings ------------------------------------------------------------------------------------------------------------

def boxes(axes: Axes) -> list[tuple[str, Bbox]]:
    """The text in each box, and where the box is."""
    words = [(text.get_text(), text.get_position()) for text in axes.texts]
    return [(next(word for word, (x, y) in words if word and patch.get_bbox().contains(x, y)), patch.get_bbox())
            for patch in axes.patches if isinstance(patch, FancyBboxPatch)]


def arrows(axes: Axes) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Tail and tip of each arrow."""
    return [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation)]


def labels(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {name: [text.get_position() for text in axes.texts if text.get_text() == name] for name in ("q", "k, v")}


def box_at(axes: Axes, point: tuple[float, float]) -> str:
    """The box on whose edge an arrow begins or ends."""
    return next((text for text, box in boxes(axes) if box.padded(1e-9).contains(*point)), "")


def wiring_drawn(axes: Axes) -> tuple[tuple[str, str], ...]:
    """Read a panel as a person would: follow each arrow from its box to its tip and take the label beside the tip."""
    found: dict[tuple[str, str], str] = {}
    places = [(name, place) for name, at in labels(axes).items() for place in at]
    for tail, tip in arrows(axes):
        end = box_at(axes, tip)
        if end:
            label = min(places, key=lambda place: np.hypot(place[1][0] - tip[0], place[1][1] - tip[1]))[0]
            assert (end, label) not in found
            found[end, label] = "R" if box_at(axes, tail) == "attention 1" else box_at(axes, tail)
    return tuple((found.pop((f"attention {n}", "q")), found.pop((f"attention {n}", "k, v"))) for n in (1, 2))


@pytest.mark.parametrize("wirings", [WIRINGS, VANILLA, dict(list(WIRINGS.items())[:4])])
def test_following_the_arrows_of_a_panel_gives_the_wiring_back(wirings):
    figure = figures.wiring_diagrams(wirings)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"({letter})" for letter in wirings]
    for axes, wiring in zip(panels, wirings.values(), strict=True):
        assert wiring_drawn(axes) == wiring


def test_each_panel_has_its_sources_below_two_attentions_and_one_arrow_out_at_the_top():
    figure = figures.wiring_diagrams(WIRINGS)
    assert {axes.get_subplotspec().get_topmost_subplotspec().get_geometry()[:2] for axes in figure.axes} == {(2, 3)}
    for axes in figure.axes:
        found = dict(boxes(axes))
        assert sorted(found) == ["E", "P", "Q", "attention 1", "attention 2"]
        assert max(found[name].y1 for name in "QEP") < found["attention 1"].y0
        assert found["attention 1"].y1 < found["attention 2"].y0
        (out,) = (tail for tail, tip in arrows(axes) if not box_at(axes, tip))
        assert box_at(axes, out) == "attention 2" and out[1] == approx(found["attention 2"].y1)


@pytest.mark.parametrize("letter", WIRINGS)
def test_no_arrow_crosses_a_box_another_arrow_or_a_label(letter):
    figure = figures.wiring_diagrams({letter: WIRINGS[letter]})
    figure.canvas.draw()
    (axes,) = figure.axes
    for tail, tip in arrows(axes):
        along = np.linspace(tail, tip, 201)[1:-1]
        for name, box in boxes(axes):
            assert not any(box.contains(x, y) for x, y in along), f"an arrow crosses {name}"
    rods = [text.arrow_patch.get_window_extent() for text in axes.texts if isinstance(text, Annotation)]
    words = [text.get_window_extent() for text in axes.texts if text.get_text()]
    squares = [patch.get_window_extent() for patch in axes.patches]
    assert (len(rods), len(words), len(squares)) == (5, 5 + 4, 5)
    for several in (rods, words, squares):
        assert not any(one.overlaps(other) for one, other in itertools.combinations(several, 2))
    assert not any(rod.overlaps(word) for rod in rods for word in words), "an arrow hides a label"
    inside = [[square.contains(*word.min) and square.contains(*word.max) for square in squares] for word in words]
    assert inside == [[square.overlaps(word) for square in squares] for word in words], "a label lies on the edge of a box"
    assert sum(map(sum, inside)) == 5


def test_a_line_below_the_panels_says_what_the_sources_are():
    line = figures.wiring_diagrams(WIRINGS).get_supxlabel()
    for words in ("Q}$ learnable query embedding", "E}$ encoder embedding", "P}$ output of the previous layer"):
        assert words in line


@pytest.mark.parametrize(("wiring", "message"), [
    ((("Q", "X"), ("R", "P")), r"^wiring \(x\) has no source 'X'; there are Q, E, P and 'R'$"),
    ((("Q", "R"), ("E", "P")), r"the second takes 'R' once$"), ((("Q", "E"), ("R", "R")), r"the second takes 'R' once$"),
    ((("Q", "E"), ("Q", "P")), r"the second takes 'R' once$"), ((("Q", "E"),), r"it takes two attentions")])
def test_a_wiring_that_cannot_be_drawn_is_refused(wiring, message):
    with pytest.raises(ParameterError, match=message):
        figures.wiring_diagrams({"x": wiring})


# --- bars ---------------------------------------------------------------------------------------------------------------

TABLE = {"plain": {"UniAD": 95.0, "transformer": 87.6, "MLP": 80.0}, "with_NMA": {"UniAD": 95.8, "MLP": 70.0}}


def bars(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """Series -> (middle, height) of each bar."""
    return {container.get_label(): [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in container]
            for container in figure.axes[0].containers if container.patches}


def test_bars_are_as_high_as_their_values_and_stand_at_their_group():
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


def test_each_series_has_a_color_and_a_hatch_of_its_own_and_one_entry_in_the_legend():
    figure = figures.grouped_bars(TABLE, "", published={"plain": {"UniAD": 96.5, "MLP": 81.0}})
    looks = [{(bar.get_facecolor(), bar.get_hatch()) for bar in container} for container in figure.axes[0].containers]
    assert [len(look) for look in looks] == [1, 1, 1]
    pairs = [next(iter(look)) for look in looks]
    assert len({color for color, _ in pairs}) == len({hatch for _, hatch in pairs}) == 3
    (legend,) = figure.legends
    assert sorted(text.get_text() for text in legend.get_texts()) == ["MLP", "UniAD", "published", "transformer"]
    assert figure.axes[0].get_legend() is None


def test_published_values_are_black_ticks_over_their_own_bars():
    printed = {"plain": {"UniAD": 96.5, "MLP": 79.0}, "with_NMA": {"MLP": 71.0}}
    figure = figures.grouped_bars(TABLE, "", published=printed)
    (ticks,) = (drawn for drawn in figure.axes[0].collections if isinstance(drawn, LineCollection))
    assert ticks.get_label() == "published" and ticks.get_colors().tolist() == [[0, 0, 0, 1]]
    found = {(round(line[:, 0].mean(), 6), line[0, 1]) for line in map(np.asarray, ticks.get_segments())
             if np.isfinite(line).all() and len(line)}
    places = {name: [x for x, _ in drawn] for name, drawn in bars(figure).items()}
    assert found == {(round(places[name][i], 6), value) for i, group in enumerate(printed.values())
                     for name, value in group.items()}
    assert not figures.grouped_bars(TABLE, "").axes[0].collections, "no ticks without published values"


def test_error_bars_reach_as_far_as_their_errors():
    figure = figures.grouped_bars(TABLE, "", errors={"plain": {"UniAD": 2.0}, "with_NMA": {"MLP": 0.5}})
    spans = [line[:, 1] for drawn in figure.axes[0].collections for line in map(np.asarray, drawn.get_segments()) if len(line)]
    assert sorted((low, high) for low, high in spans if np.isfinite([low, high]).all()) == [(69.5, 70.5), (93.0, 97.0)]


# --- pictures -----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """A normal and a defective image of two categories."""
    root: Path = write_tiny(tmp_path_factory.mktemp("tiny"), categories=("cloth", "felt"))
    return [Sample(root / name / "test" / folder / "000.png", name, int(folder == "blob"), folder,
                   root / name / "ground_truth" / "blob" / "000_mask.png" if folder == "blob" else None)
            for name in ("cloth", "felt") for folder in ("good", "blob")]


VIEW = View((48, 64))


def columns_of(samples: list[Sample]) -> dict[str, list[np.ndarray]]:
    rng = np.random.default_rng(0)
    return {"rebuilt": [rng.random((3, 48, 64)) for _ in samples],
            "ground truth": [VIEW.mask(np.eye(64, dtype=bool)).numpy() for _ in samples],
            "map": [rng.random((3, 4)) * 10**row for row, _ in enumerate(samples)]}


def contours(axes: Axes) -> int:
    return sum(type(drawn).__name__ == "QuadContourSet" for drawn in axes.collections)


def test_reconstructions_have_a_row_a_sample_and_a_titled_column_a_picture(samples):
    pictures = columns_of(samples)
    figure = figures.reconstructions(samples, pictures, VIEW)
    grid = np.array(figure.axes).reshape(4, 4)
    assert [axes.get_title() for axes in grid[0]] == ["input", "rebuilt", "ground truth", "map"]
    assert [line[0].get_ylabel() for line in grid] == ["cloth\ngood", "cloth\nblob", "felt\ngood", "felt\nblob"]
    for row, (line, sample) in enumerate(zip(grid, samples, strict=True)):
        shown = [axes.images[0].get_array() for axes in line]
        assert np.array_equal(shown[0], VIEW.image(sample.image).permute(1, 2, 0).numpy())
        assert np.array_equal(shown[1], pictures["rebuilt"][row].transpose(1, 2, 0))
        assert np.array_equal(shown[2], pictures["ground truth"][row]) and line[2].images[0].get_cmap().name == "gray"
        assert np.array_equal(shown[3], pictures["map"][row]) and line[3].images[0].get_cmap().name == figures.HEAT
        assert tuple(line[3].images[0].get_extent()) == (-0.5, 63.5, 47.5, -0.5), "the map covers what the image does"


def test_maps_of_one_category_share_their_colors_and_those_of_two_do_not(samples):
    pictures = columns_of(samples)
    for figure in (figures.reconstructions(samples, pictures, VIEW),
                   figures.heat_maps(samples, {"map": pictures["map"]}, VIEW)):
        limits = [axes.images[0].get_clim() for axes in figure.axes if axes.images[0].get_cmap().name == figures.HEAT
                  and axes.images[0].get_array().shape == (3, 4)]
        for kin, pair in ((pictures["map"][:2], limits[:2]), (pictures["map"][2:], limits[2:])):
            assert pair == [approx((np.percentile(kin, 1), np.max(kin)))] * 2


def test_defects_are_outlined_on_the_input_and_the_map_unless_told_otherwise(samples):
    for masks, expected in ((True, [[0, 0, 0, 0], [1, 0, 0, 1]] * 2), (False, [[0, 0, 0, 0]] * 4)):
        figure = figures.reconstructions(samples, columns_of(samples), VIEW, masks=masks)
        assert [[contours(axes) for axes in line] for line in np.array(figure.axes).reshape(4, 4)] == expected
    marked = figures.reconstructions(samples, columns_of(samples), VIEW).axes[4]
    red, green, blue, _ = marked.collections[0].get_edgecolor()[0]
    assert red > 0.9 and green < 0.3 and blue < 0.3


def test_framed_pictures_stand_in_rows_and_say_by_color_and_by_dashes_what_is_anomalous():
    picture = np.zeros((8, 8))
    figure = figures.framed({"half": [(picture, "one", 0), None, (picture, "two", 1)], "all": [(picture, "three", 0)]})
    (axes,) = figure.axes
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [(frame.get_linestyle(), to_hex(frame.get_edgecolor()).upper()) for frame in frames] == [
        ("-", figures.COLORS[0]), ("--", figures.COLORS[1]), ("-", figures.COLORS[0])]
    assert [text.get_text() for text in axes.texts] == ["one", "two", "three"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["half", "all"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["normal", "anomalous"]
    for frame, image, text in zip(frames, axes.images, axes.texts, strict=True):
        left, right, bottom, top = image.get_extent()
        assert (left, top, right, bottom) == approx(frame.get_bbox().extents), "a frame goes around its picture"
        assert left < text.get_position()[0] < right and text.get_position()[1] < top, "y grows downwards"
    gap, shift = frames[1].get_x() - frames[0].get_x(), frames[2].get_y() - frames[0].get_y()
    assert gap == approx(1.5) and shift > frames[0].get_height() + 0.2, "room for the titles of the row below"


def painted(root: Path, masked: dict[str, list[range]]) -> Dataset:
    """One category on disk: kind of defect -> the masked pixels of each of its images, 64 x 64, counted row by row."""
    made = []
    for kind, images in masked.items():
        for i, where in enumerate(images):
            for name, pixels in ((f"{kind}{i}.png", np.zeros(4096)), (f"{kind}{i}_mask.png", np.isin(range(4096), where))):
                Image.fromarray((pixels.reshape(64, 64) * 255).astype(np.uint8)).save(root / name)
            made.append(Sample(root / f"{kind}{i}.png", "cloth", int(kind != "good"), kind,
                               root / f"{kind}{i}_mask.png" if where else None))
    return Dataset("tiny", (), tuple(made))


def test_the_largest_defects_are_one_a_kind_and_come_in_the_order_of_their_size(tmp_path):
    dataset = painted(tmp_path, {"good": [range(0)], "dent": [range(100), range(300), range(200)],
                                 "dust": [range(250), range(240)], "pit": [range(40), range(64)], "torn": [range(0)]})
    assert [sample.path.stem for sample in figures.largest_defects(dataset, View(64), 2)] == ["dent1", "dust0"]
    assert [sample.path.stem for sample in figures.largest_defects(dataset, View(64), 9)] == ["dent1", "dust0", "pit1"]
    both = dataset + Dataset("", (), tuple(replace(sample, category="felt") for sample in dataset.test))
    found = figures.largest_defects(both, View(64), 1)
    assert [(sample.category, sample.path.stem) for sample in found] == [("cloth", "dent1"), ("felt", "dent1")]
    # What counts is what the view shows: the middle 32 x 32 begin at row 16, below the first 1024 pixels.
    far = painted(tmp_path, {"dent": [range(1000)], "dust": [range(2048, 2148)]})
    assert [sample.path.stem for sample in figures.largest_defects(far, View(64, crop=32), 1)] == ["dust0"]


def test_an_overlay_is_half_the_image_and_half_the_heat_colors_from_the_maps_minimum_to_its_maximum():
    image, errors = np.random.default_rng(0).random((3, 2, 3)), np.array([[2.0, 3.0, 4.0], [6.0, 2.0, 10.0]])
    drawn = figures.overlay(image, errors)
    assert drawn.shape == (3, 2, 3)
    for y, x in np.ndindex(2, 3):
        heat = plt.get_cmap(figures.HEAT)((errors[y, x] - 2) / 8)
        assert drawn[:, y, x] == approx([(channel + color) / 2 for channel, color in zip(image[:, y, x], heat, strict=False)])
    assert figures.overlay(image, np.full((2, 3), 7.0)) == approx(figures.overlay(image, errors)[:, 0, 0, None, None]
                                                                  + (image - image[:, :1, :1]) / 2), "no error stands out"


def test_labeled_points_lie_where_their_numbers_are_with_their_names_and_the_marked_one_looks_different():
    figure = figures.labeled_points({"US": (9.55, 60.3), "ours": (7.48, 6.46)}, "parameters", "FLOPs", marked=["ours"])
    (axes,) = figure.axes
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines] == [(9.55, 60.3), (7.48, 6.46)]
    assert [(text.get_text(), text.xy) for text in axes.texts] == [("US", (9.55, 60.3)), ("ours", (7.48, 6.46))]
    assert axes.lines[0].get_marker() != axes.lines[1].get_marker()
    assert axes.get_xscale() == axes.get_yscale() == "log"
    plt.close(figure)


def test_panels_share_a_scale_and_a_legend_and_each_line_keeps_its_marker():
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


def test_bars_of_counts_stand_in_the_columns_order_around_their_group_on_one_scale_of_whole_numbers():
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


def test_histograms_of_probabilities_count_every_value_once_on_one_logarithmic_scale():
    values = {"before": np.r_[np.zeros(100), 0.51, 1.0], "after": np.linspace(0, 1, 30), "more": np.zeros((2, 3))}
    figure = figures.probability_histograms(values, "probability", "cells")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [sum(bar.get_height() for bar in axes.patches) for axes in shown] == [102, 30, 6]
    first = [bar.get_height() for bar in shown[0].patches]
    assert len(first) == 40 and (first[0], first[20], first[39]) == (100, 1, 1)
    assert {axes.get_yscale() for axes in shown} == {"log"} and len({axes.get_ylim() for axes in shown}) == 1


def test_intervals_are_means_with_a_deviation_to_either_side_first_row_on_top(style):
    figure = figures.intervals({"a": (94.6, 0.1), "b": (93.0, float("nan"))}, "%")
    (axes,) = figure.axes
    points, bars = [c.lines[0] for c in axes.containers], [c.lines[2] for c in axes.containers]
    assert [tuple(point.get_xydata()[0]) for point in points] == [(94.6, 0), (93.0, 1)] and axes.yaxis_inverted()
    assert bars[0][0].get_segments()[0][:, 0].tolist() == pytest.approx([94.5, 94.7]) and not bars[1]
    plt.close(figure)
