"""The few-shot split: a few labeled anomalies move from the test images to the training images.

Pang et al., DevNet, 2021; Ding et al., DRA, CVPR 2022.

    setting   known        training images                      test images
    general   ""           normal, n anomalies of any type      normal, all other anomalies
    hard      "scratch"    normal, n anomalies of one type      normal, anomalies of all other types (unseen)

ATAC-Net's Table 1 uses the general setting, Table 2 the hard one. The published code of DevNet and DRA draws the anomalies with
a fixed seed, so that every method and every run has the same ones.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from adcore.data import Dataset, Sample
from adcore.errors import ParameterError, did_you_mean

DRAW_SEED = 42  # of the published code


def with_anomalies(dataset: Dataset, count: int, known: str = "", seed: int = DRAW_SEED) -> Dataset:
    """The data set with `count` anomalies of each category moved from its test images to its training images.

    known  the defect type of these anomalies; its other images leave the test set, too. '' draws from all defect types

    Raises:
        ParameterError: the category has no such defect type, or has too few anomalies; in the general setting, `count` is more
            than half of the anomalies; in the hard setting, there is no other defect type to test on.
    """
    train, test = list(dataset.train), []
    for category in dataset.categories:
        of_category = [sample for sample in dataset.test if sample.category == category]
        drawn, kept = _draw(of_category, category, count, known, seed)
        train += drawn
        test += kept
    return replace(dataset, train=tuple(train), test=tuple(test))


def _draw(test: list[Sample], category: str, count: int, known: str, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Anomalies for training and the remaining test images of one category."""
    types = sorted({sample.defect for sample in test if sample.label})
    if known and known not in types:
        raise ParameterError(f"known='{known}' is not a defect type of category '{category}'{did_you_mean(known, types)}; it "
                             f"has {', '.join(types) or 'none'}")
    if known and len(types) == 1:
        raise ParameterError(f"known='{known}' is the only defect type of category '{category}': no other is left to test on")
    candidates = [sample for sample in test if sample.label and known in ("", sample.defect)]
    most = len(candidates) if known else len(candidates) // 2
    if not 0 <= count <= most:
        what = f"anomalies={count} of type '{known}'" if known else f"anomalies={count}"
        raise ParameterError(f"{what} cannot be taken from category '{category}': it has {len(candidates)} such test images, "
                             f"and at most {most} may be trained on")
    order = np.random.RandomState(seed).permutation(len(candidates))[:count]
    drawn = [candidates[i] for i in sorted(order)]
    removed = {id(sample) for sample in (candidates if known else drawn)}
    return drawn, [sample for sample in test if id(sample) not in removed]


def defect_types(dataset: Dataset) -> dict[str, int]:
    """Number of defect types among the test images of each category ("No. of Anomalies" in ATAC-Net's Table 1)."""
    return {category: len({s.defect for s in dataset.test if s.category == category and s.label})
            for category in dataset.categories}
