"""Labels and scores that are not numbers are refused in a sentence."""

from __future__ import annotations

import numpy as np
import pytest

from adcore.errors import ParameterError
from adcore.metrics import auroc, image_scores, pixel_scores


@pytest.mark.parametrize(("labels", "found"), [([None, 1, 0], "None"), ([0, 1, float("nan")], "nan"), (["0", "1", "1"], "'0'"),
                                               ([0, 1, 2], "2"), ([0, 1, "good"], "'0'")])
def test_labels_other_than_0_and_1_are_named(labels, found):
    with pytest.raises(ParameterError, match=rf"^labels: found {found}, expected only 0 \(normal\) and 1 \(anomalous\)$"):
        auroc(labels, [0.1, 0.2, 0.3])


@pytest.mark.parametrize("labels", [[False, True, True], [0.0, 1.0, 1.0], np.array([0, 1, 1], object)])
def test_labels_may_be_of_any_type_that_equals_0_or_1(labels):
    assert auroc(labels, [0.1, 0.2, 0.3]) == 1.0


@pytest.mark.parametrize(("scores", "reason"), [([None, 0.2], "1 of 2 values are NaN"), (["a", "b"], "scores must be numbers")])
def test_scores_that_are_no_numbers_are_refused(scores, reason):
    with pytest.raises(ParameterError, match=reason):
        image_scores([0, 1], scores)
    with pytest.raises(ParameterError, match=r"map of image 0|scores must be numbers|image 0"):
        pixel_scores([np.array([[0, 1]])], [np.array([scores], object)])
