"""Figures of color transport: their titles, labels, images and points."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adcore import figures

pytestmark = pytest.mark.usefixtures("style")


def test_each_method_has_a_row_with_source_target_and_transported_images_and_their_chroma():
    source, target = torch.rand(3, 6, 9), torch.full((3, 5, 4), 0.25)
    orange = torch.tensor([1.2, 0.5, -0.1])[:, None, None].expand(3, 6, 9)
    moved = {"diagonal": [source, orange], "MK": [source, target]}
    figure = figures.color_transport(source, target, moved, ["half", "all"])
    grid = np.array(figure.axes).reshape(2, 4)
    assert [axes.get_title() for axes in grid[0]] == ["source", "target", "half", "all"]
    assert [line[0].get_ylabel() for line in grid] == ["diagonal", "MK"]
    for line, last in zip(grid, (orange, target), strict=True):
        for axes, picture in zip(line, (source, target, source, last), strict=True):
            assert np.array_equal(axes.images[0].get_array(), picture.permute(1, 2, 0).clamp(0, 1).numpy())
    assert grid[0, 3].get_xlabel() == "chroma 1.300", "chroma is that of the image before clipping"
    assert [axes.get_xlabel() for axes in grid[:, 1]] == ["chroma 0.000"] * 2


def test_a_cloud_shows_pixels_of_its_image_in_their_colors_by_red_and_blue():
    image, gray = torch.rand(3, 20, 10, dtype=torch.float64), torch.linspace(-0.2, 0.8, 12).double().expand(3, 3, 12)
    figure = figures.color_clouds({"source": image, "target": gray}, points=50)
    rms = float((image[0] - image[2]).square().mean().sqrt())
    assert [axes.get_title() for axes in figure.axes] == [f"source\nRMS of R \u2212 B: {rms:.3f}",
                                                          "target\nRMS of R \u2212 B: 0.000"]
    for axes, picture, count in zip(figure.axes, (image, gray), (50, 36), strict=True):
        assert (axes.get_xlim(), axes.get_ylim()) == (figure.axes[0].get_xlim(),) * 2
        (scatter,) = axes.collections
        points, shades = np.asarray(scatter.get_offsets()), scatter.get_facecolors()[:, :3]
        assert points.shape == (count, 2) and np.allclose(shades[:, ::2], points.clip(0, 1))
        found = {tuple(point) for point in picture[::2].flatten(1).T.tolist()}
        assert {tuple(point) for point in points} <= found
        assert [list(line) for line in axes.lines[0].get_data()] == [[0, 1]] * 2, "the line of gray"
    assert figure.axes[0].get_xlim()[0] <= -0.2 + 1e-9
    assert figure.axes[0].get_aspect() == 1
