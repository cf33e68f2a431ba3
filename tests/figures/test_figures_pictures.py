"""Figures of images and anomaly maps, checked by their panels, titles, outlines and color limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from PIL import Image
from pytest import approx
from support.tiny import write_tiny

from adcore import figures
from adcore.data import Dataset, Sample, View

pytestmark = pytest.mark.usefixtures("style")


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> list[Sample]:
    """One normal and one defective image of two categories."""
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


def test_reconstructions_have_one_row_per_sample_and_one_titled_column_per_picture(samples):
    pictures = columns_of(samples)
    figure = figures.reconstructions(samples, pictures, VIEW)
    larger = figures.reconstructions(samples, pictures, VIEW, size=2.6)
    assert larger.get_size_inches() == pytest.approx(2 * figure.get_size_inches())
    grid = np.array(figure.axes).reshape(4, 4)
    assert [axes.get_title() for axes in grid[0]] == ["input", "rebuilt", "ground truth", "map"]
    assert [line[0].get_ylabel() for line in grid] == ["cloth\ngood", "cloth\nblob", "felt\ngood", "felt\nblob"]
    for row, (line, sample) in enumerate(zip(grid, samples, strict=True)):
        shown = [axes.images[0].get_array() for axes in line]
        assert np.array_equal(shown[0], VIEW.image(sample.image).permute(1, 2, 0).numpy())
        assert np.array_equal(shown[1], pictures["rebuilt"][row].transpose(1, 2, 0))
        assert np.array_equal(shown[2], pictures["ground truth"][row]) and line[2].images[0].get_cmap().name == "gray"
        assert np.array_equal(shown[3], pictures["map"][row]) and line[3].images[0].get_cmap().name == figures.HEAT
        assert tuple(line[3].images[0].get_extent()) == (-0.5, 63.5, 47.5, -0.5), "the map does not cover the image"


def test_only_maps_of_the_same_category_have_the_same_color_scale(samples):
    pictures = columns_of(samples)
    for figure in (figures.reconstructions(samples, pictures, VIEW),
                   figures.heat_maps(samples, {"map": pictures["map"]}, VIEW)):
        limits = [axes.images[0].get_clim() for axes in figure.axes if axes.images[0].get_cmap().name == figures.HEAT
                  and axes.images[0].get_array().shape == (3, 4)]
        for maps, pair in ((pictures["map"][:2], limits[:2]), (pictures["map"][2:], limits[2:])):
            assert pair == [approx((np.percentile(maps, 1), np.max(maps)))] * 2


def test_defects_are_outlined_on_the_input_and_the_map_unless_masks_is_false(samples):
    for masks, expected in ((True, [[0, 0, 0, 0], [1, 0, 0, 1]] * 2), (False, [[0, 0, 0, 0]] * 4)):
        figure = figures.reconstructions(samples, columns_of(samples), VIEW, masks=masks)
        assert [[contours(axes) for axes in line] for line in np.array(figure.axes).reshape(4, 4)] == expected
    marked = figures.reconstructions(samples, columns_of(samples), VIEW).axes[4]
    red, green, blue, _ = marked.collections[0].get_edgecolor()[0]
    assert red > 0.9 and green < 0.3 and blue < 0.3


def test_framed_pictures_are_in_rows_and_anomalous_ones_have_a_dashed_frame_in_another_color():
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
        assert (left, top, right, bottom) == approx(frame.get_bbox().extents), "a frame does not surround its picture"
        assert left < text.get_position()[0] < right and text.get_position()[1] < top, "y increases downward"
    gap, shift = frames[1].get_x() - frames[0].get_x(), frames[2].get_y() - frames[0].get_y()
    assert gap == approx(1.5) and shift > frames[0].get_height() + 0.2, "there is no room for the titles of the row below"


def painted(root: Path, masked: dict[str, list[range]]) -> Dataset:
    """Write a category of 64 x 64 images.

    masked  kind of defect -> the masked pixels of each image, numbered row by row
    """
    made = []
    for kind, images in masked.items():
        for i, where in enumerate(images):
            for name, pixels in ((f"{kind}{i}.png", np.zeros(4096)), (f"{kind}{i}_mask.png", np.isin(range(4096), where))):
                Image.fromarray((pixels.reshape(64, 64) * 255).astype(np.uint8)).save(root / name)
            made.append(Sample(root / f"{kind}{i}.png", "cloth", int(kind != "good"), kind,
                               root / f"{kind}{i}_mask.png" if where else None))
    return Dataset("tiny", (), tuple(made))


def test_the_largest_defects_are_one_per_kind_in_descending_order_of_size(tmp_path):
    dataset = painted(tmp_path, {"good": [range(0)], "dent": [range(100), range(300), range(200)],
                                 "dust": [range(250), range(240)], "pit": [range(40), range(64)], "torn": [range(0)]})
    assert [sample.path.stem for sample in figures.largest_defects(dataset, View(64), 2)] == ["dent1", "dust0"]
    assert [sample.path.stem for sample in figures.largest_defects(dataset, View(64), 9)] == ["dent1", "dust0", "pit1"]
    both = dataset + Dataset("", (), tuple(replace(sample, category="felt") for sample in dataset.test))
    found = figures.largest_defects(both, View(64), 1)
    assert [(sample.category, sample.path.stem) for sample in found] == [("cloth", "dent1"), ("felt", "dent1")]
    # Only pixels inside the view count: its central 32 x 32 pixels start at row 16, after the first 1024 pixels.
    far = painted(tmp_path, {"dent": [range(1000)], "dust": [range(2048, 2148)]})
    assert [sample.path.stem for sample in figures.largest_defects(far, View(64, crop=32), 1)] == ["dust0"]


def test_an_overlay_is_the_mean_of_the_image_and_the_heat_colors_scaled_to_the_map():
    image, errors = np.random.default_rng(0).random((3, 2, 3)), np.array([[2.0, 3.0, 4.0], [6.0, 2.0, 10.0]])
    drawn = figures.overlay(image, errors)
    assert drawn.shape == (3, 2, 3)
    for y, x in np.ndindex(2, 3):
        heat = plt.get_cmap(figures.HEAT)((errors[y, x] - 2) / 8)
        assert drawn[:, y, x] == approx([(channel + color) / 2 for channel, color in zip(image[:, y, x], heat, strict=False)])
    constant = figures.overlay(image, np.full((2, 3), 7.0))
    assert constant == approx(figures.overlay(image, errors)[:, 0, 0, None, None] + (image - image[:, :1, :1]) / 2)


def test_a_defective_image_without_a_mask_has_no_black_picture_as_its_mask(samples):
    bare = [samples[0], replace(samples[1], mask_path=None)]
    figure = figures.heat_maps(bare, {"map": columns_of(bare)["map"]}, VIEW)
    grid = np.array(figure.axes).reshape(3, 2)
    assert len(grid[1, 0].images) == 1 and not grid[1, 0].texts
    assert not grid[1, 1].images and [text.get_text() for text in grid[1, 1].texts] == ["no mask"]
    assert contours(grid[2, 1]) == 0


@pytest.mark.parametrize(("one_scale", "limits"), [(False, [(0, 1), (2, 8)]), (True, [(0, 8), (0, 8)])])
def test_maps_side_by_side_share_their_colors_only_when_asked(one_scale, limits):
    maps = {"small": np.array([[0.0, 1.0]]), "large": np.array([[2.0, 8.0]])}
    figure = figures.side_by_side({"image": np.full((3, 2, 2), 0.5), **maps}, one_scale=one_scale)
    drawn = {axes.get_title(): axes.images[0] for axes in figure.axes if axes.get_title()}
    assert [drawn[title].get_clim() for title in maps] == limits
