"""Wiring diagrams: their arrows show the wiring, and nothing overlaps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox
from pytest import approx

from adcore import figures
from adcore.errors import ParameterError

pytestmark = pytest.mark.usefixtures("style")

WIRINGS = {"a": (("Q", "E"), ("R", "P")), "b": (("Q", "P"), ("R", "E")), "c": (("Q", "E"), ("P", "R")),
           "d": (("Q", "P"), ("E", "R")), "e": (("P", "E"), ("Q", "R")), "f": (("E", "P"), ("Q", "R"))}
VANILLA = {"self": (("Q", "Q"), ("R", "E")), "first": (("E", "E"), ("R", "E")), "ends": (("E", "Q"), ("R", "E"))}


def boxes(axes: Axes) -> list[tuple[str, Bbox]]:
    """The text and the bounding box of each box."""
    words = [(text.get_text(), text.get_position()) for text in axes.texts]
    return [(next(word for word, (x, y) in words if word and patch.get_bbox().contains(x, y)), patch.get_bbox())
            for patch in axes.patches if isinstance(patch, FancyBboxPatch)]


def arrows(axes: Axes) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """Tail and tip of each arrow."""
    return [(text.xyann, text.xy) for text in axes.texts if isinstance(text, Annotation)]


def labels(axes: Axes) -> dict[str, list[tuple[float, float]]]:
    return {name: [text.get_position() for text in axes.texts if text.get_text() == name] for name in ("q", "k, v")}


def box_at(axes: Axes, point: tuple[float, float]) -> str:
    """The text of the box on whose edge an arrow starts or ends; '' if there is none."""
    return next((text for text, box in boxes(axes) if box.padded(1e-9).contains(*point)), "")


def wiring_drawn(axes: Axes) -> tuple[tuple[str, str], ...]:
    """The wiring that a panel shows: each arrow leads from its box to its tip, with the label next to the tip."""
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
def test_the_arrows_of_a_panel_show_its_wiring(wirings):
    figure = figures.wiring_diagrams(wirings)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [f"({letter})" for letter in wirings]
    for axes, wiring in zip(panels, wirings.values(), strict=True):
        assert wiring_drawn(axes) == wiring


def test_each_panel_has_its_sources_below_two_attentions_and_one_output_at_the_top():
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
    assert not any(rod.overlaps(word) for rod in rods for word in words), "an arrow covers a label"
    inside = [[square.contains(*word.min) and square.contains(*word.max) for square in squares] for word in words]
    assert inside == [[square.overlaps(word) for square in squares] for word in words], "a label overlaps the edge of a box"
    assert sum(map(sum, inside)) == 5


def test_a_line_below_the_panels_explains_the_sources():
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
