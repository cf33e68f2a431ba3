"""The figure of six successful and two failed localizations: how they are chosen and drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from adcore import figures
from adcore.data import View
from adcore.errors import ParameterError
from adcore.figures.localization import best_and_worst, marked


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


def test_the_defect_is_mixed_half_with_red():
    image, mask = np.full((2, 2, 3), 0.5), np.array([[True, False], [False, False]])
    assert marked(image, mask)[0, 0].tolist() == pytest.approx([0.75, 0.3, 0.3]) and (marked(image, mask)[1] == 0.5).all()
    assert (image == 0.5).all()


def test_rows_are_examples_and_a_category_has_one_color_scale(tiny, style):
    samples = list(tiny.test)
    maps = [np.random.default_rng(i).random((32, 32)) * (i + 1) for i in range(len(samples))]
    figure = figures.localizations({"cloth": (samples, maps), "felt": (samples, maps)}, View(32), best=2, worst=1)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == 3 * 3 * 2
    scales = {image.get_clim() for axes in shown for image in axes.images[1:]}
    assert scales == {tuple(np.percentile(np.stack(maps), (50, 99.5)))}
    assert [axes.texts[0].get_text() for axes in shown if axes.texts] == ["cloth", "felt"]
    above_failures = [axes for axes in figure.axes if axes.lines]
    assert len(above_failures) == 6 and {axes.get_subplotspec().rowspan.start for axes in above_failures} == {2}
    plt.close(figure)


def test_bad_input_gets_one_sentence():
    masks, maps = made(3)
    with pytest.raises(ParameterError, match="2 masks for 3 maps"):
        best_and_worst(masks[:2], maps)
    with pytest.raises(ParameterError, match="no mask marks a pixel"):
        best_and_worst([np.zeros((8, 8), bool)], maps[:1])
