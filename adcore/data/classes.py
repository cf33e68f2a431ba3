"""Many classes against many others (You et al., NeurIPS 2022, supplement, Sec. B and C.4).

A data set of ten classes becomes one of anomaly detection: some classes are normal, together and without saying which is
which, the others are anomalous. UniAD takes five against five, so that normal and anomalous images both come from several
classes (many-versus-many); semantic anomaly detection takes nine against one (many-versus-one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adcore.data.sample import Dataset, Sample
from adcore.data.split import draw
from adcore.errors import DataError, ParameterError

SPLITS = ("01234", "56789", "02468", "13579")  # the normal classes of UniAD's four experiments


def many_versus_many(name: str, train: Sequence[Sample], test: Sequence[Sample], classes: Sequence[str],
                     normal: str) -> Dataset:
    """One pseudo-class out of a data set of ten; image level only.

    train, test  all images, each with its class's digit as category
    classes      what the ten digits stand for: the kinds of anomaly
    normal       digits of the normal classes, which also name the pseudo-class: '01234'

    Training images are those of the normal classes. Test images are all normal ones, then as many anomalous ones, drawn
    once with a fixed seed when there are more. Five against five of CIFAR-10 are all 10,000; when there are fewer
    anomalous than normal ones (nine against one), all are kept.

    Raises:
        ParameterError: `normal` is not some different digits, or leaves no class to be anomalous.
        DataError: no image to train on, or none of either kind to test.
    """
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
    return Dataset(name, tuple(fit), tuple(good + bad), has_masks=False)
