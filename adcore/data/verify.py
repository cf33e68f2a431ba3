"""Is a data set here and complete? Every image and mask is read, every count compared."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adcore.data.registry import DATASETS, find_dataset, load_dataset
from adcore.data.sample import Dataset, Sample
from adcore.errors import DataError
from adcore.paths import cache_folder
from adcore.progress import progress_bar

# (training images, test images) of each category as published.
PUBLISHED = {source.name: source.counts for source in DATASETS.values() if source.counts}


def dataset_folder(name: str) -> Path:
    """The folder of a data set.

    >>> dataset_folder("digits").name  # scikit-learn's folder of data
    'data'

    Raises:
        DataError, ParameterError: the data set is not here, or unknown.
    """
    if name == "mini":
        load_dataset("mini")
        return cache_folder()
    folder = find_dataset(name)
    if folder is None:
        load_dataset(name)  # raises an error that names the way to get it
        raise DataError(f"data set '{name}' is not here")
    return folder


def verify_dataset(name: str, progress: bool | None = None) -> str:
    """Read every image and mask; a summary in one sentence.

    >>> verify_dataset("digits")
    'digits: 1 categories, 628 training and 544 test images, 0 masks, all readable'

    Raises:
        DataError: the first file that is missing, unreadable or of the wrong size, or a wrong count.
    """
    dataset = check_layout(name)
    samples = [*dataset.train, *dataset.test]
    with ThreadPoolExecutor(2) as pool, progress_bar(total=len(samples), desc=f"verify {name}", enabled=progress) as bar:
        empty = []
        for sample, marked in zip(samples, pool.map(_read, samples), strict=True):
            if sample.label == 1 and not marked:
                empty.append(str(sample.mask_path))
            bar.update()
    masks = sum(sample.mask_path is not None for sample in samples)
    # Published data sets have empty masks too (MTD has one): the image counts as anomalous, and none of its pixels does.
    warning = f"; {len(empty)} defective with a mask that marks no pixel: {', '.join(empty)}" if empty else ""
    return (f"{name}: {len(dataset.categories)} categories, {len(dataset.train)} training and {len(dataset.test)} test "
            f"images, {masks} masks, all readable{warning}")


def check_layout(name: str, root: Path | None = None) -> Dataset:
    """List a data set in `root`, or in the folder where it is found, and compare its counts with the published ones.

    Pixels are not read, except for the masks that mark KolektorSDD2's normal images; CIFAR-10's files are compared with
    their digests.

    Raises:
        DataError: a file that is missing, or a wrong count or digest.

    >>> len(check_layout("digits").train)
    628
    """
    source = DATASETS.get(name)
    if source and name != "mini":
        source.check(root or dataset_folder(name))
    dataset = load_dataset(name, root=root, **(source.whole if source else {}))
    train, test = (Counter(sample.category for sample in samples) for samples in (dataset.train, dataset.test))
    for category, expected in PUBLISHED.get(name, {}).items():
        found = train[category], test[category]
        if found != expected:
            raise DataError(f"{name}/{category} has {found[0]} training and {found[1]} test images, expected "
                            f"{expected[0]} and {expected[1]}: unpack the archive again")
    return dataset


def _read(sample: Sample) -> bool:
    """Read an image and its mask; False when the mask marks no pixel."""
    _ = sample.image
    mask = sample.mask
    return mask is None or bool(mask.any())
