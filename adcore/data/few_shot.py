"""A few labeled anomalies to train on: which ones leave the test set (Pang et al., DevNet; Ding et al., DRA, CVPR 2022).

    general   known=""      n anomalies of any kind move to the training images; the test set keeps all others
    hard      known="scratch"  n anomalies of one kind move; the test set keeps the other kinds only, all of them unseen

Normal images stay where they are. Both papers' code draws with a fixed seed, so that every method and every run sees the
same anomalies.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from adcore.data.sample import Dataset, Sample
from adcore.errors import ParameterError, did_you_mean

DRAW_SEED = 42  # of the published code


def with_anomalies(dataset: Dataset, count: int, known: str = "", seed: int = DRAW_SEED) -> Dataset:
    """The same data set with `count` anomalies of each category moved from its test images to its training images.

    known  the kind of defect that they all are; its other images leave the test set, too. '' draws from all kinds.

    Raises:
        ParameterError: a kind that a category does not have; fewer anomalies than asked for; in the general setting, more
            than half of a category's anomalies; in the hard one, no other kind to test on.
    """
    train, test = list(dataset.train), []
    for category in dataset.categories:
        mine = [sample for sample in dataset.test if sample.category == category]
        drawn, kept = _draw(mine, category, count, known, seed)
        train += drawn
        test += kept
    return replace(dataset, train=tuple(train), test=tuple(test))


def _draw(test: list[Sample], category: str, count: int, known: str, seed: int) -> tuple[list[Sample], list[Sample]]:
    kinds = sorted({sample.defect for sample in test if sample.label})
    if known and known not in kinds:
        raise ParameterError(f"known='{known}' is no kind of defect in category '{category}'{did_you_mean(known, kinds)}; it "
                             f"has {', '.join(kinds) or 'none'}")
    if known and len(kinds) == 1:
        raise ParameterError(f"known='{known}' is the only kind of defect in category '{category}': none is left unseen")
    candidates = [sample for sample in test if sample.label and known in ("", sample.defect)]
    what = f"anomalies={count} of kind '{known}'" if known else f"anomalies={count}"
    most = len(candidates) if known else len(candidates) // 2
    if not 0 <= count <= most:
        limit = "all of which may be" if known else "of which half at most may be"
        raise ParameterError(f"{what} cannot be taken out of category '{category}': it has {len(candidates)} such test images, "
                             f"{limit} trained on")
    order = np.random.RandomState(seed).permutation(len(candidates))[:count]
    drawn = [candidates[i] for i in sorted(order)]
    away = {id(sample) for sample in (candidates if known else drawn)}
    return drawn, [sample for sample in test if id(sample) not in away]


def kinds_of_defect(dataset: Dataset) -> dict[str, int]:
    """How many kinds of defect the test images of each category show, what Table 1 of atacnet calls "No. of Anomalies"."""
    return {category: len({s.defect for s in dataset.test if s.category == category and s.label})
            for category in dataset.categories}
