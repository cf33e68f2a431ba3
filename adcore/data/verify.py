"""Is a data set here and complete? Every image and mask is read, every count compared."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from adcore.ahead import ahead
from adcore.data.findings import Finding, broken_links, count, normal_masks, shown
from adcore.data.mvtec import category_folders
from adcore.data.pixels import decode, explain_mask, image_size, to_rgb
from adcore.data.registry import DATASETS, find_dataset, list_dataset, load_dataset
from adcore.data.sample import Dataset, Sample
from adcore.data.table_file import read_table
from adcore.digests import file_digests
from adcore.errors import DataError
from adcore.paths import cache_folder
from adcore.progress import progress_bar

# (training images, test images) of each category as published.
PUBLISHED = {source.name: source.counts for source in DATASETS.values() if source.counts}

# What a person should look at, by a short name: of one file and of several.
REMARKS = {
    "constant": ("constant image (a single color)", "constant images (a single color)"),
    "pages": ("file with several images, of which the first is read", "files with several images, of which the first is read"),
    "transparent": ("image with transparent pixels, read as if opaque", "images with transparent pixels, read as if opaque"),
    "empty": ("defective with a mask that marks no pixel", "defective with a mask that marks no pixel"),
    "inverted": ("mask that marks over half of its image: inverted?", "masks that mark over half of their image: inverted?"),
    "classes": ("mask with class numbers: all but 0 are marked", "masks with class numbers: all but 0 are marked"),
    "ignore": ("mask with class numbers and 255, which is read as 'ignore' and not marked",
               "masks with class numbers and 255, which is read as 'ignore' and not marked"),
    "half": ("mask with more than two values: marked above half of the highest",
             "masks with more than two values: marked above half of the highest"),
    "color": ("colored mask: all but black is marked", "colored masks: all but black is marked"),
    "alpha": ("mask in the alpha channel of its file", "masks in the alpha channel of their files")}


def dataset_folder(name: str | Path) -> Path:
    """The folder of a data set, or the csv file that lists it.

    name  see `adcore.data.registry`

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
        list_dataset(name)  # raises an error that names the way to get it
        raise DataError(f"data set '{name}' is not here")
    return folder


def verify_dataset(name: str | Path, progress: bool | None = None) -> str:
    """Read every image and mask. A summary in one sentence, then one line for each thing to look at: files left out, images
    that are twice there or of a single color, masks that may not be meant as they are read.

    name  see `adcore.data.registry`

    >>> verify_dataset("digits")
    'digits: 1 category, 628 training and 544 test images, 0 masks, all readable'

    Raises:
        DataError: the first file that is missing, unreadable or of the wrong size, or a wrong count.
    """
    dataset, findings = _checked(name)
    place = find_dataset(name) or Path()
    root = place.parent if place.is_file() else place
    for path in broken_links(place) if _own_folder(dataset, place) else ():
        raise DataError(f"{path} is a link to a file that is not there: restore the file or remove the link")
    samples = [*dataset.train, *dataset.test]
    remarks: dict[str, list[str]] = defaultdict(list)
    with progress_bar(total=len(samples), desc=f"verify {name}", enabled=progress) as bar:
        for found in ahead(_remarks, samples):
            for remark, path in found:
                remarks[remark].append(shown(path, root))
            bar.update()
    # Published data sets have empty masks too (MTD has four): the image counts as anomalous, and none of its pixels does.
    findings += [Finding(count(len(remarks[key]), *texts), tuple(remarks[key]))
                 for key, texts in REMARKS.items() if remarks[key]]
    findings += [*_marked_normal(place, root, dataset), *_twins(dataset, root)]
    masks = sum(sample.mask_path is not None for sample in samples)
    summary = (f"{dataset.name}: {count(len(dataset.categories), 'category', 'categories')}, {len(dataset.train)} training and "
               f"{len(dataset.test)} test images, {count(masks, 'mask')}, all readable")
    return "\n".join([summary, *(f"- {finding.line(3)}" for finding in findings)])


def check_layout(name: str | Path, root: Path | None = None) -> Dataset:
    """List a data set in `root`, or in the folder where it is found, and compare its counts with the published ones.

    Pixels are not read, except for the masks that mark KolektorSDD2's normal images, and CIFAR-10's files.

    Raises:
        DataError: a file that is missing, or a wrong count or digest.

    >>> len(check_layout("digits").train)
    628
    """
    return _checked(name, root)[0]


def _checked(name: str | Path, root: Path | None = None) -> tuple[Dataset, list[Finding]]:
    source = DATASETS.get(str(name))
    dataset, findings = list_dataset(name, root=root, **(source.whole if source else {}))
    train, test = (Counter(sample.category for sample in samples) for samples in (dataset.train, dataset.test))
    for category, expected in PUBLISHED.get(dataset.name, {}).items():
        found = train[category], test[category]
        if found != expected:
            raise DataError(f"{dataset.name}/{category} has {found[0]} training and {found[1]} test images, expected "
                            f"{expected[0]} and {expected[1]}: unpack the archive again")
    return dataset, list(findings)


def _remarks(sample: Sample) -> list[tuple[str, Path]]:
    """Read an image and its masks: (key of `REMARKS`, file) for each thing to look at."""
    found = []
    if sample.place:
        image = sample.image
    else:
        decoded = decode(sample.path)
        image = to_rgb(decoded, sample.path)
        if decoded.several:
            found.append(("pages", sample.path))
        if decoded.image.has_transparency_data and np.asarray(decoded.image.convert("RGBA"))[..., 3].min() < 255:
            found.append(("transparent", sample.path))
    if all(low == high for low, high in image.getextrema()):  # type: ignore[misc]
        found.append(("constant", sample.path))
    if sample.label == 0 or not sample.mask_files:
        return found
    read = [explain_mask(path, (image.height, image.width), sample.nonzero) for path in sample.mask_files]
    found += [(rule, path) for path, (_, rule) in zip(sample.mask_files, read, strict=True) if rule]
    share = np.any([marked for marked, _ in read], axis=0).mean()
    if share == 0 or share > 0.5:
        found.append(("inverted" if share else "empty", sample.mask_files[0]))
    return found


def _own_folder(dataset: Dataset, place: Path) -> bool:
    return dataset.name not in DATASETS and place.is_dir() and place != Path()


def _marked_normal(place: Path, root: Path, dataset: Dataset) -> list[Finding]:
    """Normal images of a data set of one's own whose mask, which is not used, marks a pixel."""
    if place.is_file() and dataset.name not in DATASETS:
        pairs = [(row.path, row.mask) for row in read_table(place, dataset.name)[0] if row.label == 0 and row.mask is not None]
    elif _own_folder(dataset, place):
        pairs = [pair for folder in category_folders(place).values() for pair in normal_masks(folder)]
    else:
        return []
    marked = tuple(shown(mask, root) for image, mask in pairs if explain_mask(mask, image_size(image))[0].any())
    return [Finding(f"{count(len(marked), 'normal image')} with a mask that marks pixels", marked)] if marked else []


def _twins(dataset: Dataset, root: Path) -> list[Finding]:
    """Test images whose file is byte for byte the same as that of a training image or of another test image."""
    train, test = ([sample.path for sample in part if not sample.place] for part in (dataset.train, dataset.test))
    first: dict[str, Path] = {}
    trained: list[str] = []
    repeated: list[str] = []
    digests = _digests([*train, *test])
    for path in train:
        first.setdefault(digests.get(path, str(path)), path)
    known = set(first)
    for path in test:
        other = first.setdefault(digests.get(path, str(path)), path)
        if other != path:
            (trained if digests[path] in known else repeated).append(f"{shown(path, root)} = {shown(other, root)}")
    return [Finding(f"{count(len(names), 'test image')} the same as {what}", tuple(names))
            for names, what in ((trained, "training images"), (repeated, "other test images")) if names]


def _digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Digests of the files that have the size of another one: the others cannot be the same."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_size[path.stat().st_size].append(path)
    alike = [path for same in by_size.values() if len(same) > 1 for path in same]
    return dict(zip(alike, file_digests(alike), strict=True))
