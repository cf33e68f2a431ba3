"""The figure of six successful and two failed localizations: how they are chosen and drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adcore import figures
from adcore.data import View
from adcore.errors import ParameterError
from adcore.figures.localization import best_and_worst, paled


def made(count: int = 12, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    masks = [rng.random((8, 8)) < 0.3 for _ in range(count)]
    return masks, [mask * rng.random() + rng.normal(0, 0.5, (8, 8)) for mask in masks]


def test_images_are_ranked_by_their_own_auroc_best_first_and_worst_last():
    masks, maps = made()
    own = [roc_auc_score(mask.ravel(), scores.ravel()) for mask, scores in zip(masks, maps, strict=True)]
    order = list(np.argsort(own)[::-1])
    assert best_and_worst(masks, maps) == order[:6] + order[-2:]
    assert best_and_worst(masks, maps, 3, 0) == order[:3]


def test_no_image_appears_twice_and_normal_images_do_not_appear():
    masks, maps = made(7)
    masks[2] = np.zeros((8, 8), bool)
    chosen = best_and_worst(masks, maps)
    assert sorted(chosen) == [0, 1, 3, 4, 5, 6]
    masks, maps = made(7)
    assert sorted(best_and_worst(masks, maps)) == list(range(7))


def test_a_paled_image_is_gray_and_in_the_lighter_half():
    image = np.array([[[0.0, 0.0, 0.0], [0.9, 0.6, 0.0]]])
    assert paled(image)[0] == pytest.approx(np.array([[0.5] * 3, [0.75] * 3])) and image[0, 1, 0] == 0.9


def test_images_lie_above_their_maps_the_defect_is_outlined_in_both_and_a_category_has_one_color_scale(tiny, style):
    samples = list(tiny.test)
    maps = [np.random.default_rng(i).random((32, 32)) * (i + 1) for i in range(len(samples))]
    figure = figures.localizations({"cloth": (samples, maps), "felt": (samples, maps)}, View(32), best=2, worst=1)
    grid = np.array(figure.axes).reshape(4, 4)
    assert [[axes.get_visible() for axes in row] for row in grid] == [[True, True, False, True]] * 4
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["cloth", "map", "felt", "map"]
    assert (grid[0, 0].get_title(loc="left"), grid[0, 3].get_title(loc="left")) == ("best", "worst")
    low, high = np.percentile(np.stack(maps), (50, 99.5))
    masks = [np.zeros((32, 32)) if s.mask is None else View(32).mask(s.mask) for s in samples]
    order = best_and_worst(masks, maps, 2, 1)
    for row, place, i in [(row, place, i) for row in (1, 3) for place, i in zip((0, 1, 3), order, strict=True)]:
        assert len(grid[row, place].collections) == len(grid[row - 1, place].collections) == 1
        pale, heat = grid[row, place].images
        assert heat.get_clim() == (low, high) and (np.asarray(pale.get_array()) >= 0.5).all()
        assert (heat.get_array() == maps[i]).all()
        assert ((np.asarray(heat.get_alpha()) == 0) == (maps[i] <= low)).all()     # below the median the image stays visible
    plt.close(figure)


@pytest.mark.parametrize(("best", "worst", "titles"), [(0, 2, ["worst", ""]), (2, 0, ["best", ""])])
def test_successes_or_failures_may_be_left_out(tiny, style, best, worst, titles):
    samples = list(tiny.test)
    maps = [np.random.default_rng(i).random((32, 32)) for i in range(len(samples))]
    figure = figures.localizations({"cloth": (samples, maps)}, View(32), best=best, worst=worst)
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == titles and len(figure.axes) == 4
    plt.close(figure)


def test_bad_input_gets_one_sentence():
    masks, maps = made(3)
    with pytest.raises(ParameterError, match="2 masks for 3 maps"):
        best_and_worst(masks[:2], maps)
    with pytest.raises(ParameterError, match="no mask marks a pixel"):
        best_and_worst([np.zeros((8, 8), bool)], maps[:1])
