"""Anomaly detection from a data set of ten classes (You et al., NeurIPS 2022, supplement, Sec. B and C.4).

Some classes together are normal, and a method does not see which image is of which class; the other classes are anomalous.
UniAD takes five against five (many-versus-many); semantic anomaly detection takes nine against one (many-versus-one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adcore.data.sample import Dataset, Sample
from adcore.data.split import draw
from adcore.errors import DataError, ParameterError

SPLITS = ("01234", "56789", "02468", "13579")  # normal classes of UniAD's four experiments


def many_versus_many(name: str, train: Sequence[Sample], test: Sequence[Sample], classes: Sequence[str],
                     normal: str | Sequence[str] | None = None) -> Dataset:
    """A data set of one category, the normal classes together; labels for whole images only, no masks.

    train, test  all images, each with its class's digit as category
    classes      names of the ten classes, which become the kinds of defect
    normal       digits of the normal classes, which also name the category; '01234' by default

    Training images are those of the normal classes. Test images are all normal ones, then as many anomalous ones, drawn
    once with a fixed seed if there are more. If there are fewer anomalous than normal ones (nine against one), all are kept.
    Five against five of CIFAR-10 are all 10,000 test images.

    >>> from pathlib import Path
    >>> letters = [Sample(Path(f"{i}.png"), str(i % 10), 0) for i in range(20)]
    >>> data = many_versus_many("toy", letters, letters, "abcdefghij", normal="89")
    >>> data.categories, len(data.train), [sample.defect for sample in data.test[:4]], len(data.test)
    (('89',), 4, ['good', 'good', 'good', 'good'], 8)

    Raises:
        ParameterError: `normal` is several splits, not several different digits, or leaves no class to be anomalous.
        DataError: no image to train on, or no normal or no anomalous image to test on.
    """
    if normal is None or not isinstance(normal, str):
        splits = list(normal or SPLITS[:1])
        if len(splits) > 1:
            raise ParameterError(f"data set '{name}' cannot be split into normal classes {', '.join(splits)} at once: each "
                                 f"split is a data set of its own, name one")
        normal = splits[0]
    if not normal or set(normal) - set("0123456789") or len(set(normal)) < len(normal):
        raise ParameterError(f"normal classes '{normal}' of data set '{name}' are not some different digits: write them as in "
                             f"'{SPLITS[0]}'")
    if len(normal) == len(classes):
        raise ParameterError(f"normal classes '{normal}' of data set '{name}' leave none to be anomalous: name nine at most")
    fit = [replace(sample, category=normal) for sample in train if sample.category in normal]
    good = [replace(sample, category=normal) for sample in test if sample.category in normal]
    bad = [replace(sample, category=normal, label=1, defect=classes[int(sample.category)])
           for sample in test if sample.category not in normal]
    for samples, what in ((fit, "image to train on"), (good, "normal test image"), (bad, "anomalous test image")):
        if not samples:
            raise DataError(f"data set '{name}' with normal classes '{normal}' has no {what}: fetch or copy it again")
    bad, _ = draw(bad, min(len(bad), len(good)))
    return Dataset(name, tuple(fit), tuple(good + bad))
