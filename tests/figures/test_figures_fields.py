"""Figures of vector fields: directions and widths of lines, marks, arrows and crosses."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.figure import Figure
from matplotlib.quiver import Quiver, QuiverKey
from pytest import approx

from adcore import figures
from adcore.errors import ParameterError

X, Y = np.linspace(-2, 2, 21), np.linspace(-1, 1, 11)
PLANE = np.stack(np.meshgrid(X, Y), -1)                               # (h, w, 2)
AWAY = PLANE * np.array([1.0, 3.0])                                  # away from the origin, stronger in y


pytestmark = pytest.mark.usefixtures("style")


def names(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_stream_lines_follow_the_field_and_are_thicker_where_it_is_stronger():
    axes = figures.vector_fields(X, Y, {"out": (AWAY, PLANE[..., 0], "x")}).axes[0]
    (lines,) = (c for c in axes.collections if isinstance(c, LineCollection))
    segments, widths = np.array(lines.get_segments()), np.asarray(lines.get_linewidths())
    middles, steps = segments.mean(1), segments[:, 1] - segments[:, 0]
    along = (steps * middles * np.array([1.0, 3.0])).sum(1)
    assert (along >= -1e-9).mean() > 0.98 and len(segments) > 100
    strength = np.hypot(middles[:, 0], 3 * middles[:, 1])
    assert np.corrcoef(strength, widths)[0, 1] > 0.98 and 1 < widths.max() < 3.5


def test_widths_have_one_scale_in_all_panels_and_faint_lines_are_not_drawn():
    beside = np.where(PLANE[..., :1] > 0, [1.0, 0.0], [0.002, 0.0])
    figure = figures.vector_fields(X, Y, {"strong": (4 * AWAY, PLANE[..., 0], "x"), "weak": (beside, PLANE[..., 0], "x")})
    lines = [next(c for c in axes.collections if isinstance(c, LineCollection)) for axes in figure.axes[:2]]
    strongest = 4 * np.linalg.norm(AWAY, axis=-1).max()
    assert np.max(lines[1].get_linewidths()) == approx(3 / strongest)
    assert np.array(lines[1].get_segments())[..., 0].min() > -0.3 < 0 < np.array(lines[1].get_segments())[..., 0].max()
    assert np.array(lines[0].get_segments())[..., 0].min() < -1


def test_the_bar_of_a_probability_runs_from_0_to_1_and_the_axes_are_named():
    figure = figures.vector_fields(X, Y, {"a": (AWAY, 0.2 + 0.1 * PLANE[..., 0], "P"), "b": (AWAY, PLANE[..., 0], "x")})
    panels, bars = figure.axes[:2], figure.axes[2:]
    assert [bar.get_xlim() for bar in bars] == [(0, 1), (-2, 2)]
    assert [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels] == [("$u_1$", "$u_2$"), ("$u_1$", "")]


def test_each_panel_has_a_title_a_shade_and_the_label_of_the_shade():
    figure = figures.vector_fields(X, Y, {"one": (AWAY, PLANE[..., 0], "across"), "two": (-AWAY, 5 * PLANE[..., 1], "up")})
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == ["one", "two"]
    for axes, shade in zip(panels, (PLANE[..., 0], 5 * PLANE[..., 1]), strict=True):
        (mesh,) = (c for c in axes.collections if isinstance(c, QuadMesh))
        np.testing.assert_array_equal(np.asarray(mesh.get_array()).reshape(11, 21), shade)
        assert mesh.get_cmap().name == "Greys" and mesh.get_clim()[1] > shade.max(), "lines must be visible on the darkest part"
        assert axes.get_aspect() == 1
    assert [axes.get_xlabel() for axes in figure.axes if axes not in panels] == ["across", "up"]


def test_the_boundary_and_the_marks_are_drawn_in_every_panel_and_listed_once():
    marks = {"mode": np.array([[0.5, 0.25], [-0.5, 0.0]]), "minimum": np.array([[0.0, -0.5]])}
    panels = dict.fromkeys("ab", (AWAY, PLANE[..., 0], "x"))
    figure = figures.vector_fields(X, Y, panels, PLANE[..., 0] - 1, marks)
    assert names(figure) == ["as likely normal as outlier", "mode", "minimum"]
    for axes in figure.axes[:2]:
        drawn = {line.get_label(): np.column_stack(line.get_data()) for line in axes.lines}
        for name, points in marks.items():
            np.testing.assert_array_equal(drawn[name], points)
        (border,) = (c for c in axes.collections if hasattr(c, "levels"))
        assert all(path.vertices[:, 0] == approx(1) for path in border.get_paths())


def test_a_boundary_outside_the_plane_is_not_in_the_legend():
    figure = figures.vector_fields(X, Y, {"a": (AWAY, PLANE[..., 0], "x")}, np.ones((11, 21)))
    assert not figure.legends


def test_a_field_of_zeros_and_a_constant_shade_can_be_drawn():
    figure = figures.vector_fields(X, Y, {"still": (0 * AWAY, np.zeros((11, 21)), "nothing")})
    figure.canvas.draw()


def test_a_field_that_does_not_fit_the_plane_is_refused():
    with pytest.raises(ParameterError, match=r"^field 'a' has vectors \(21, 11, 2\) and shade \(11, 21\): expected"):
        figures.vector_fields(X, Y, {"a": (AWAY.transpose(1, 0, 2), PLANE[..., 0], "x")})


def test_only_used_points_have_an_arrow_and_all_panels_have_one_scale():
    points, pushes = PLANE[::5, ::5].reshape(-1, 2), AWAY[::5, ::5].reshape(-1, 2)
    used = points[:, 0] > 0
    figure = figures.arrows(X, Y, PLANE[..., 0], {"all": (points, pushes, np.ones(len(points), bool)),
                                                  "some": (points, pushes / 2, used)}, PLANE[..., 0], "shade of x")
    quivers = [next(c for c in axes.collections if isinstance(c, Quiver)) for axes in figure.axes[:2]]
    assert quivers[0].scale == quivers[1].scale
    np.testing.assert_array_equal(quivers[1].XY, points[used])
    np.testing.assert_allclose(np.column_stack([quivers[1].U, quivers[1].V]), pushes[used] / 2)
    longest = np.linalg.norm(pushes, axis=1).max() / quivers[0].scale
    assert longest == approx(0.12 * 4)
    drawn = {line.get_label(): np.column_stack(line.get_data()) for line in figure.axes[1].lines}
    np.testing.assert_array_equal(drawn["removed by the filter"], points[~used])
    assert names(figure) == ["used", "removed by the filter", "as likely normal as outlier"]
    (key,) = (artist for artist in figure.axes[1].artists if isinstance(artist, QuiverKey))
    assert (key.U, key.label, key.Q) == (1, "length 1", quivers[1])
    assert [axes.get_xlabel() for axes in figure.axes] == ["$u_1$", "$u_1$", "shade of x", "shade of x"]


def test_a_batch_without_any_gradient_can_be_drawn():
    figure = figures.arrows(X, Y, PLANE[..., 0], {"none": (PLANE[0], AWAY[0], np.zeros(21, bool))})
    figure.canvas.draw()
