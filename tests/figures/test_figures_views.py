"""Two views and lines between their positive pairs."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import ConnectionPatch, Rectangle

from adcore import figures
from adcore.errors import ParameterError

PICTURE, VIEW = np.zeros((3, 11, 21)), np.zeros((3, 8, 8))


def test_boxes_outline_the_pixels_that_a_view_shows_and_each_pair_has_a_line(style):
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = mask[3, 0] = True
    figure = figures.paired_views(PICTURE, (VIEW, VIEW), ((0, 0, 1, 1), (0.5, 0.2, 0.1, 0.4)), (2, 2), {"near": mask})
    image, left, right = figure.axes
    whole, part = (patch for patch in image.patches if isinstance(patch, Rectangle))
    assert (whole.get_xy(), whole.get_width(), whole.get_height()) == ((-0.5, -0.5), 21, 11)
    assert (*part.get_xy(), part.get_width(), part.get_height()) == pytest.approx((1.5, 1.5, 9, 3))
    assert (left.get_title(), right.get_title()) == ("view 1", "view 2, flipped")
    lines = [artist for artist in figure.artists if isinstance(artist, ConnectionPatch)]
    assert {(line.xy1, line.xy2) for line in lines} == {((1.5, 0.5), (0.5, 1.5)), ((1.5, 1.5), (0.5, 0.5))}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["near (2)"]
    plt.close(figure)


def test_pairs_of_another_grid_are_refused_in_one_sentence():
    with pytest.raises(ParameterError, match=r"pairs 'near' are \(4, 4\) for views of 3x3 positions"):
        figures.paired_views(PICTURE, (VIEW, VIEW), ((0, 0, 1, 1),) * 2, (3, 3), {"near": np.ones((4, 4), bool)})


def test_cells_are_drawn_from_the_first_center_to_the_border_in_rows_and_columns(style):
    figure = figures.cell_centers(np.zeros((3, 20, 30)), {"stage 3": {"static": (3.0, 8), "dynamic": (7.0, 8)}})
    (axes,) = figure.axes
    static, dynamic = axes.lines
    assert sorted(set(static.get_xdata())) == [3, 11, 19, 27] and sorted(set(static.get_ydata())) == [3, 11, 19]
    assert sorted(set(dynamic.get_xdata())) == [7, 15, 23] and sorted(set(dynamic.get_ydata())) == [7, 15]
    assert len(static.get_xdata()) == 12 and static.get_marker() != dynamic.get_marker()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["static", "dynamic"]
    plt.close(figure)
