"""Is a data set in place and whole? Every image and mask is read, every count compared."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adcore.data.cifar10 import batches_folder
from adcore.data.manifest import entry
from adcore.data.registry import find_dataset, load_dataset
from adcore.data.sample import Dataset, Sample
from adcore.errors import DataError
from adcore.files import digest_file
from adcore.paths import cache_folder
from adcore.progress import progress_bar

# Training and test images of each category as MVTec AD is published (Bergmann et al., 2019).
MVTEC_AD_COUNTS = {
    "bottle": (209, 83), "cable": (224, 150), "capsule": (219, 132), "carpet": (280, 117), "grid": (264, 78),
    "hazelnut": (391, 110), "leather": (245, 124), "metal_nut": (220, 115), "pill": (267, 167), "screw": (320, 160),
    "tile": (230, 117), "toothbrush": (60, 42), "transistor": (213, 100), "wood": (247, 79), "zipper": (240, 151)}

# The same of the others, both kinds of anomalies of MVTec LOCO included. CIFAR-10 is held against digests instead.
#   mvtec_loco  what the archive with the manifest's checksum holds, as several public inventories of it count. The paper's
#               table has 354 training images of splicing_connectors, six fewer; all other numbers agree
#   ksdd2       2,331 training images, of which the 246 with a defect are not trained on; 1,004 test images
#   mtd         761 of 952 normal images for training (see `split.hold_out`), the other 191 and 392 defective ones for testing
PUBLISHED = {
    "mvtec_ad": MVTEC_AD_COUNTS,
    "mvtec_loco": {"breakfast_box": (351, 275), "juice_bottle": (335, 330), "pushpins": (372, 310), "screw_bag": (360, 341),
                   "splicing_connectors": (360, 312)},
    "ksdd2": {"ksdd2": (2085, 1004)},
    "mtd": {"magnetic_tile": (761, 583)},
}


def dataset_folder(name: str) -> Path:
    """Where a data set lies. Raises DataError or ParameterError when it is not here or unknown."""
    if name == "mini":
        load_dataset("mini")
        return cache_folder()
    folder = find_dataset(name)
    if folder is None:
        load_dataset(name)  # raises with the reason and the way to get it
        raise DataError(f"data set '{name}' is not here")
    return folder


def verify_dataset(name: str, progress: bool | None = None) -> str:
    """Read every image and mask; a summary in one sentence.

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
    return (f"{name}: {len(dataset.categories)} categories, {len(dataset.train)} training and {len(dataset.test)} test "
            f"images, {masks} masks, all readable" + _warning(empty))


def check_layout(name: str, root: Path | None = None) -> Dataset:
    """List a data set, in `root` or where it lies, and hold its counts against the published ones, CIFAR-10's batches against
    their digests. Pixels are not read, but for the masks that tell KolektorSDD2's normal images.

    Raises:
        DataError: a file that is missing, or a wrong count or digest.
    """
    if name == "cifar10":  # before any batch is unpickled
        _compare_digests(batches_folder(root or dataset_folder(name)))
    dataset = load_dataset(name, root=root, logical=True) if name == "mvtec_loco" else load_dataset(name, root=root)
    _compare_counts(name, dataset)
    return dataset


def _warning(empty: list[str]) -> str:
    """Published sets have such images too (MTD has one): they count as anomalous, and none of their pixels does."""
    return f"; {len(empty)} defective with a mask that marks no pixel: {', '.join(empty)}" if empty else ""


def _read(sample: Sample) -> bool:
    """Read an image and its mask; False when the mask marks no pixel."""
    _ = sample.image
    mask = sample.mask
    return mask is None or bool(mask.any())


def _compare_counts(name: str, dataset: Dataset) -> None:
    train, test = (Counter(sample.category for sample in samples) for samples in (dataset.train, dataset.test))
    for category, expected in PUBLISHED.get(name, {}).items():
        found = train[category], test[category]
        if found != expected:
            raise DataError(f"{name}/{category} has {found[0]} training and {found[1]} test images, expected "
                            f"{expected[0]} and {expected[1]}: unpack the archive again")


def _compare_digests(folder: Path) -> None:
    """Hold CIFAR-10's batches against the checksums that torchvision has of them, before any is unpickled."""
    from torchvision.datasets import CIFAR10  # slow to import
    for name, expected in CIFAR10.train_list + CIFAR10.test_list:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is not there: fetch CIFAR-10 again from {entry('cifar10').url}")
        found = digest_file(path, "md5")
        if found != expected:
            raise DataError(f"{path} is not CIFAR-10's: expected md5 {expected}, found {found}; fetch it again from "
                            f"{entry('cifar10').url}")
