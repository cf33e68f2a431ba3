"""Fig. S1 of uniad2022: how the two attentions of a decoder layer are wired to their sources, drawn from `uniad.WIRINGS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch

from adcore.errors import ParameterError
from adcore.figures.style import COLORS, bare

SOURCES = {"Q": "learnable query embedding", "E": "encoder embedding", "P": "output of the previous layer"}
PAINT = {"Q": COLORS[0], "E": COLORS[2], "P": COLORS[4]}
RESULT = "R"                                     # result of the first attention
INPUTS = ("q", "k, v")                           # labels of the left and the right input of every attention
LOW, FIRST, SECOND, TOP = 0.0, 1.35, 2.7, 3.75   # lower edges of sources and attentions, tip of the output's arrow
TALL, HALF = 0.55, 0.38                          # height of a box, half the width of a source's box


def wiring_diagrams(wirings: Mapping[str, Sequence[tuple[str, str]]]) -> Figure:
    """One panel per wiring: sources at the bottom, the two attentions above them, data flowing upwards.

    wirings  letter -> two attentions, each (source of queries, source of keys and values); sources are Q, E, P of `SOURCES`
             and, in the second attention, R, the result of the first

    Queries enter an attention on the left, keys and values on the right. The sources are below the inputs in that order, so
    every arrow is straight and no two cross.

    Raises:
        ParameterError: a wiring of another form, or an unknown source.
    """
    for letter, wiring in wirings.items():
        _check(letter, wiring)
    columns = min(3, len(wirings))
    rows = -(-len(wirings) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(2.35 * columns, 2.8 * rows + 0.35), squeeze=False,
                                layout=ConstrainedLayoutEngine(hspace=0.08))
    for axes in grid.flat:
        bare(axes)
    for axes, (letter, wiring) in zip(grid.flat, wirings.items(), strict=False):
        axes.set(xlim=(-0.6, 2.6), ylim=(LOW - 0.05, TOP + 0.05), aspect="equal")
        axes.set_title(f"({letter})", fontweight="bold")
        _draw(axes, wiring)
    figure.supxlabel("      ".join(f"$\\bf{{{name}}}$ {words}" for name, words in SOURCES.items()), fontsize=8.5)
    return figure


def _check(letter: str, wiring: Sequence[tuple[str, str]]) -> None:
    plain = [name for pair in wiring for name in pair if name != RESULT]
    if len(wiring) != 2 or RESULT in wiring[0] or len(plain) != 3:
        raise ParameterError(f"wiring ({letter}) is {wiring!r}: it takes two attentions, each (query, key and value), and "
                             f"the second takes '{RESULT}' once")
    for name in plain:
        if name not in SOURCES:
            raise ParameterError(f"wiring ({letter}) has no source '{name}'; there are {', '.join(SOURCES)} and '{RESULT}'")


def _draw(axes: Axes, wiring: Sequence[tuple[str, str]]) -> None:
    first, second = wiring
    result_left = second[0] == RESULT
    other = second[1] if result_left else second[0]
    places = (*first, other) if result_left else (other, *first)                # the sources from left to right
    start = 0 if result_left else 1                                             # the first attention's left source
    middle, single = start + 0.5, 2 if result_left else 0                       # its output; the second attention's own source
    _sources(axes, places)
    _attention(axes, "attention 1", start, start + 1, FIRST)
    _attention(axes, "attention 2", min(middle, single), max(middle, single), SECOND)
    for x, text in zip((start, start + 1), INPUTS, strict=True):
        _arrow(axes, x, LOW + TALL, FIRST, text)
    _arrow(axes, middle, FIRST + TALL, SECOND, INPUTS[0 if result_left else 1])
    _arrow(axes, single, LOW + TALL, SECOND, INPUTS[1 if result_left else 0])
    _arrow(axes, (middle + single) / 2, SECOND + TALL, TOP)


def _sources(axes: Axes, places: Sequence[str]) -> None:
    """One box per source; a source of two neighboring inputs has one wide box below both."""
    x = 0
    while x < len(places):
        end = x
        while end + 1 < len(places) and places[end + 1] == places[x]:
            end += 1
        name = places[x]
        _box(axes, name, x - HALF, end + HALF, LOW, PAINT[name], 11)
        x = end + 1


def _attention(axes: Axes, text: str, left: float, right: float, low: float) -> None:
    _box(axes, text, left - HALF, right + HALF, low, "#555555", 9)


def _box(axes: Axes, text: str, left: float, right: float, low: float, color: str, size: float) -> None:
    pale = tuple(0.8 + 0.2 * part for part in to_rgb(color))
    axes.add_patch(FancyBboxPatch((left, low), right - left, TALL, boxstyle="round,pad=0,rounding_size=0.12",
                                  facecolor=pale, edgecolor=color, linewidth=1.3))
    axes.text((left + right) / 2, low + TALL / 2, text, ha="center", va="center", fontsize=size,
              fontweight="bold" if text in SOURCES else "normal")


def _arrow(axes: Axes, x: float, low: float, high: float, text: str = "") -> None:
    """A vertical arrow with its label beside the tip."""
    axes.annotate("", xy=(x, high), xytext=(x, low), arrowprops={"arrowstyle": "-|>", "color": "black", "linewidth": 1.2,
                                                                 "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11})
    if text:
        axes.text(x + 0.1, high - 0.3, text, ha="left", va="center", fontsize=8.5, style="italic")
