"""The file in which a figure is shown: small, and with the figure's colors."""

from __future__ import annotations

import io

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
import pytest

from adcore.figures.style import picture

pytestmark = pytest.mark.usefixtures("style")


def drawn(pixels: np.ndarray | None = None) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(3, 2))
    axes.plot([0, 1, 2], [3, 1, 2], label="a line") if pixels is None else axes.imshow(pixels)
    return figure


def as_png(figure: plt.Figure) -> bytes:
    whole = io.BytesIO()
    figure.savefig(whole, format="png")
    return whole.getvalue()


def test_a_chart_is_a_png_of_at_most_256_colors_that_differ_from_its_own_by_less_than_a_level():
    figure = drawn()
    whole = as_png(figure)
    shown = picture(figure)
    few, own = (PIL.Image.open(io.BytesIO(data)) for data in (shown.data, whole))
    assert shown.format == few.format.lower() == "png" and few.mode == "P" and len(shown.data) < 0.7 * len(whole)
    assert np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(own.convert("RGB"), int)).mean() < 0.5
    assert not plt.fignum_exists(figure.number)


def test_a_picture_of_many_colors_keeps_them():
    pixels = np.random.default_rng(0).random((50, 50, 3))       # in blocks of some screen pixels, which suit a PNG best
    shown = picture(drawn(pixels))
    colors = np.asarray(PIL.Image.open(io.BytesIO(shown.data)).convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colors, axis=0)) > 2000


def test_a_smooth_picture_of_many_colors_is_a_jpeg():
    ramp = np.linspace(0, 1, 200)
    pixels = np.stack(np.broadcast_arrays(ramp[:, None], ramp, 0.5 + 0.5 * np.sin(40 * ramp * ramp[:, None])), axis=-1)
    assert picture(drawn(pixels)).format == "jpeg"
