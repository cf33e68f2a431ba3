"""Writes `mini` to disk once and reads it back as a Dataset."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from adcore.data.mini.picture import CATEGORIES, defect_of, defects, picture, without_defect
from adcore.data.mini.shot import Shot
from adcore.data.sample import Dataset, Sample
from adcore.errors import ParameterError, StoreError
from adcore.files import private_folder
from adcore.paths import cache_room, check_owner
from adcore.progress import progress_bar

VERSION = "1"       # part of the cache folder's name; increase it when a pixel changes

TRAIN, GOOD, DEFECTIVE = 60, 20, 30


def make(category: str, folder: Path, *, train: int = TRAIN, good: int = GOOD, defective: int = DEFECTIVE,
         progress: bool | None = None) -> Path:
    """Write one category in MVTec's layout and return its folder, `<folder>/<category>`.

        train/good/NNN.png  test/good/NNN.png  test/<defect>/NNN.png  ground_truth/<defect>/NNN_mask.png

    Images are 256 x 256 RGB, masks 256 x 256 with 0 and 255. Defective images have the kinds of defect in turn.
    Image number i is the same for all counts. The folder appears when it is complete; an existing one is not changed.

    train, good, defective  how many images
    progress                whether to show a progress bar; None: in a terminal or notebook

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     home = make("brick", Path(folder), train=1, good=0, defective=1)
    ...     sorted(path.relative_to(home).as_posix() for path in home.rglob("*.png"))
    ['ground_truth/crack/000_mask.png', 'test/crack/000.png', 'train/good/000.png']

    Raises:
        ParameterError: unknown category, or a count below zero.
        StoreError: the folder cannot be written.
    """
    _check(category, train, good, defective)
    target = Path(folder) / category
    if target.is_dir():
        return target
    shots = [Shot(category, split, index) for split, count in (("train", train), ("good", good),
                                                               ("defective", defective)) for index in range(count)]
    try:
        with private_folder(target) as folder:
            if target.is_dir():
                return target  # another process made it while this one waited
            new = folder / category
            for part in ("train/good", "test/good", *(f"{part}/{kind}" for part in ("test", "ground_truth")
                                                      for kind in defects(category))):
                (new / part).mkdir(parents=True)
            # Threads, not processes: NumPy and Pillow release the GIL, and notebooks have no main module to import.
            with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, 8)) as pool:
                written = pool.map(lambda shot: _write(shot, new), shots)
                for _ in progress_bar(iterable=written, desc=f"making mini/{category}", total=len(shots), unit="image",
                                      enabled=progress):
                    pass
            new.rename(target)
    except OSError as error:
        if not target.is_dir():  # where no locks exist another process may have been faster, and its copy is the same
            raise StoreError(f"cannot write {target}: {error.strerror or error}; free the folder or name another one "
                             f"(ADCORE_CACHE)") from error
    return target


def load_mini(categories: Sequence[str] | str | None = None, root: Path | None = None, *, train: int = TRAIN,
              good: int = GOOD, defective: int = DEFECTIVE) -> Dataset:
    """The data set `mini`, drawn now if it is not there yet (all categories: half a minute).

    categories  all by default
    root        folder of the categories; by default `mini-<VERSION>` in adcore.paths.cache_folder()
    train, good, defective   how many images of each category, the first ones; the kinds of defect in turn

    >>> len(load_mini("brick", train=8, good=2, defective=4).test)
    6

    Raises:
        ParameterError: unknown category, or more images asked for than there are.
        StoreError: the folder cannot be written.
    """
    wanted = [categories] if isinstance(categories, str) else list(CATEGORIES if categories is None else categories)
    for category in wanted:
        _check(category, train, good, defective)
    folder = cache_room(f"mini-{VERSION}") if root is None else Path(root)
    check_owner(folder)
    train_samples: list[Sample] = []
    test_samples: list[Sample] = []
    for category in wanted:
        # A category is always drawn with all its images, so that a later request for more finds them.
        home = make(category, folder, train=max(train, TRAIN), good=max(good, GOOD),
                    defective=max(defective, DEFECTIVE))
        train_samples += [Sample(home / _name(Shot(category, "train", i)), category, 0) for i in range(train)]
        test_samples += [Sample(home / _name(Shot(category, "good", i)), category, 0) for i in range(good)]
        bad = [Shot(category, "defective", i) for i in range(defective)]
        bad.sort(key=lambda shot: (shot.index % len(defects(shot.category)), shot.index))
        test_samples += [Sample(home / _name(shot), category, 1, defect_of(category, shot.index)[0],
                                home / _mask_name(shot)) for shot in bad]
        for sample in (*train_samples, *test_samples):
            if sample.category == category and not sample.path.is_file():
                raise ParameterError(f"{home} does not hold {sample.path.relative_to(home)}: it was made with fewer "
                                     f"images; ask for fewer, or delete the folder to have it made again")
    return Dataset("mini", tuple(train_samples), tuple(test_samples))


def _check(category: str, *counts: int) -> None:
    if category not in CATEGORIES:
        raise ParameterError(f"unknown category '{category}' in data set 'mini'; it has {', '.join(CATEGORIES)}")
    if min(counts) < 0:
        raise ParameterError(f"mini/{category} cannot have {min(counts)} images: give train, good and defective as "
                             f"numbers from 0")


def _name(shot: Shot) -> Path:
    if shot.split == "defective":
        defect, number = defect_of(shot.category, shot.index)
        return Path("test", defect, f"{number:03}.png")
    return Path("train" if shot.split == "train" else "test", "good", f"{shot.index:03}.png")


def _mask_name(shot: Shot) -> Path:
    defect, number = defect_of(shot.category, shot.index)
    return Path("ground_truth", defect, f"{number:03}_mask.png")


def _write(shot: Shot, folder: Path) -> None:
    made = picture(shot)
    Image.fromarray(made.image).save(folder / _name(shot), compress_level=3)
    if shot.split == "defective":
        mask = Image.fromarray(made.mask.astype(np.uint8) * 255)
        mask.save(folder / _mask_name(shot), compress_level=3)


def is_mini(sample: Sample) -> bool:
    """True for a defective sample in a folder that `make` wrote: its image without the defect can be drawn.

    >>> from adcore.data import load_dataset
    >>> normal, defective = load_dataset("mini", ["brick"], train=0, good=1, defective=1).test
    >>> is_mini(normal), is_mini(defective)
    (False, True)
    """
    home = sample.path.parent.parent.parent
    return (sample.category in CATEGORIES and sample.defect in defects(sample.category) and sample.path.stem.isdigit()
            and home.name == sample.category and home.parent.name == f"mini-{VERSION}")


def clean_counterpart(sample: Sample) -> Image.Image:
    """The image of a defective sample of `mini` drawn without its defect. Outside the mask both images are equal.

    >>> import numpy as np
    >>> from adcore.data import load_dataset
    >>> defective, = load_dataset("mini", ["brick"], train=0, good=0, defective=1).test
    >>> changed = np.any(np.asarray(clean_counterpart(defective)) != np.asarray(defective.image), axis=2)
    >>> bool(changed[~defective.mask].any()), bool(changed[defective.mask].any())
    (False, True)

    Raises:
        ParameterError: not a defective sample of `mini`.
    """
    if not is_mini(sample):
        raise ParameterError(f"{sample.path} is not a defective image of mini: only those can be drawn without their defect")
    kinds = defects(sample.category)
    index = int(sample.path.stem) * len(kinds) + kinds.index(sample.defect)
    return Image.fromarray(_without_defect(sample.category, index))


@functools.lru_cache(maxsize=256)
def _without_defect(category: str, index: int) -> np.ndarray:
    return without_defect(Shot(category, "defective", index))  # cached: drawing takes 0.1 s, and an ablation asks often
