"""Pictures of attention maps: frames counted pixel by pixel, maximum at the right place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adcore import figures
from adcore.figures.attention import activation_pairs, boxed, heated

pytestmark = pytest.mark.usefixtures("style")


def test_a_frame_is_drawn_inside_its_box_and_no_other_pixel_changes():
    picture = torch.full((3, 20, 30), 0.5)
    framed = boxed(picture, torch.tensor([4, 6, 14, 26]), width=2, color="#FF0000")
    red = (framed == np.array([1, 0, 0])[:, None, None]).all(0)
    assert red.sum() == 10 * 20 - 6 * 16 and red[4:14, 6:26].sum() == red.sum()
    assert (framed[:, ~red] == 0.5).all() and (picture == 0.5).all()
    assert red[4, 6] and red[13, 25] and not red[6, 8]


def test_a_frame_can_surround_the_whole_picture_or_one_pixel():
    whole = boxed(torch.zeros(3, 8, 8), (0, 0, 8, 8), width=1)
    assert (whole.sum(0) > 0).sum() == 28
    assert (boxed(torch.zeros(3, 8, 8), (3, 3, 4, 4)).sum(0) > 0).sum() == 1


def test_the_maximum_of_a_coarse_map_is_the_warmest_place_of_the_picture():
    where = torch.zeros(4, 6)
    where[1, 4] = 2.0
    warm = heated(torch.zeros(3, 40, 90), where)
    y, x = np.unravel_index(warm.sum(0).argmax(), (40, 90))
    assert warm.shape == (3, 40, 90) and 10 <= y < 20 and 60 <= x < 75
    assert heated(torch.rand(3, 8, 8), torch.ones(2, 2)).shape == (3, 8, 8)        # a constant map has range 0


def test_pairs_are_drawn_left_and_right_with_a_title_and_short_rows_leave_places_empty():
    red, blue = (np.stack([np.full((6, 6), r), np.zeros((6, 6)), np.full((6, 6), 1 - r)]) for r in (1.0, 0.0))
    mask = np.eye(6, dtype=bool)
    figure = activation_pairs({"A": [("cable", red, blue, mask), ("pill", blue, red, None)],
                               "G": [("cable good", red, blue, ~mask & mask)]}, ("Grad-CAM", "ATAC-Net"))
    grid = np.array(figure.axes).reshape(2, 4)
    assert [axes.get_title(loc="left") for axes in grid[0]] == ["cable", "", "pill", ""]
    assert [axes.get_visible() for axes in grid[1]] == [True, True, False, False]
    assert grid[0, 0].images[0].get_array()[0, 0].tolist() == [1, 0, 0]
    assert grid[0, 1].images[0].get_array()[0, 0].tolist() == [0, 0, 1]
    # The defect is outlined in both pictures of its pair, and nothing where there is no mask or an empty one.
    assert [[len(axes.collections) for axes in line] for line in grid] == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["A", "G"]
    assert [axes.get_xlabel() for axes in grid[1, :2]] == ["Grad-CAM", "ATAC-Net"]
    # The label of each column is below its last visible picture.
    assert [axes.get_xlabel() for axes in grid[0, 2:]] == ["Grad-CAM", "ATAC-Net"]


def test_they_are_exported_from_adcore_figures():
    assert figures.boxed is boxed and figures.heated is heated and figures.activation_pairs is activation_pairs
