"""What a person should know about a data set of one's own: files left out, images without mask, categories without some part.

`load_dataset` prints this once in one line, `adcore data verify` line by line.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from adcore.data.mvtec import IMAGE_SUFFIXES, Masks, category_folders, images_and_masks, is_hidden, list_images
from adcore.data.sample import Dataset, Sample
from adcore.distributed import is_rank_zero
from adcore.errors import printable, tell

PARTS = ("train", "test", "ground_truth")
DOCUMENTS = {".txt", ".md", ".rst", ".pdf", ".html", ".log", ".ini", ""}  # a license or a note is no image left out
OTHER_IMAGES = {".heic", ".heif", ".npy", ".npz", ".dng", ".raw", ".exr", ".hdr", ".psd", ".svg", ".dcm", ".czi"}
NORMAL = {"normal", "ok", "nominal", "fine", "healthy", "goods"}          # likely names of what should be test/good
_told: set[tuple[str, str]] = set()


class Finding(NamedTuple):
    """A sentence and the files or names to which it applies."""

    text: str
    examples: tuple[str, ...] = ()

    def line(self, limit: int) -> str:
        """The sentence with at most `limit` examples.

        >>> Finding("3 files left out", ("a", "b", "c")).line(2)
        '3 files left out: a, b and 1 more'
        """
        more = len(self.examples) - limit
        shown = f"{self.text}: {', '.join(self.examples[:limit])}" if self.examples else self.text
        return printable(shown + (f" and {more} more" if more > 0 else ""))


def count(number: int, noun: str, plural: str = "") -> str:
    """'1 image', '2 images'.

    >>> count(1, "image"), count(2, "category", "categories")
    ('1 image', '2 categories')
    """
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def tell_once(name: str, place: str, findings: Sequence[Finding]) -> None:
    """Print the findings on stderr as one line, once per process."""
    text = "; ".join(finding.line(2) for finding in findings)
    if text and (name, text) not in _told and is_rank_zero():
        _told.add((name, text))
        tell(f"data set '{name}': {text}; `adcore data verify {place}` says more")


def folder_findings(root: Path, dataset: Dataset, categories: Sequence[str] | None = None) -> list[Finding]:
    """What is left out or missing in a data set that `load_mvtec` has listed. Pixels are not read.

    categories  those that were loaded, None for all
    """
    folders = category_folders(root)
    used = {path for sample in (*dataset.train, *dataset.test) for path in (sample.path, *sample.mask_files)}
    left: list[Path] = []
    for category in categories or folders:
        used.update(mask for _, mask in normal_masks(folders[category]))
        left += [path for path in _files(folders[category]) if path not in used and _belongs(path, folders[category])]
    incomplete = []
    if categories is None and root not in folders.values():
        for entry in sorted(root.iterdir()):
            if is_hidden(entry) or entry in folders.values():
                continue
            if (entry / "test").is_dir() or (entry / "train").is_dir():
                incomplete.append(entry.name)
            else:
                left += [path for path in (_files(entry) if entry.is_dir() else [entry]) if _is_image(path)]
    broken = [path for path in left if not path.exists()]
    whole = [path for path in left if path.exists()]
    return [*_listed(whole, root, "file", "left out (in nested or other folders, of another kind, or masks without an image)"),
            *_listed(broken, root, "broken link", "left out"),
            *([Finding(f"{count(len(incomplete), 'folder')} without train/good left out", tuple(incomplete))]
              if incomplete else []),
            *gaps(dataset, list(categories or folders), root),
            *[Finding(f"test/{sample.defect} of '{sample.category}' is read as a kind of defect: normal images belong into "
                      f"test/good") for sample in _firsts(dataset.test) if sample.defect.casefold() in {*NORMAL, "good"}
              and sample.defect != "good"]]


def gaps(dataset: Dataset, categories: Sequence[str], root: Path) -> list[Finding]:
    """Which categories have no training, normal test or defective test images, and which defective images have no mask."""
    parts = (("training images", {sample.category for sample in dataset.train}),
             ("normal test images", {sample.category for sample in dataset.test if sample.label == 0}),
             ("defective test images", {sample.category for sample in dataset.test if sample.label == 1}))
    found = []
    for what, having in parts:
        without = tuple(category for category in categories if category not in having)
        if without:
            found.append(Finding(f"no {what} in {count(len(without), 'category', 'categories')}", without))
    defective = [sample for sample in dataset.test if sample.label == 1]
    bare = [sample for sample in defective if not sample.mask_files]
    if bare and len(bare) == len(defective):
        found.append(Finding("no masks, so that pixel metrics cannot be measured"))
    elif bare:
        found.append(Finding(f"{len(bare)} of {len(defective)} defective test images without a mask",
                             tuple(shown(sample.path, root) for sample in bare)))
    return found


def normal_masks(category: Path) -> Iterator[tuple[Path, Path]]:
    """Normal images of a category's folder that have a mask nevertheless, with their masks."""
    for part in ("train", "test"):
        images, beside = images_and_masks(category / part / "good")
        masks = Masks([*list_images(category / "ground_truth" / "good"), *beside]) if part == "test" else Masks(beside)
        for image in images:
            mask = masks.of(image)
            if mask is not None:
                yield image, mask


def broken_links(root: Path) -> list[Path]:
    """Links to images or masks that are not there, anywhere below a folder."""
    return [path for path in _files(root) if _is_image(path) and path.is_symlink() and not path.exists()]


def shown(path: Path, root: Path) -> str:
    """A path as messages show it: below the data set's folder, else whole."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _listed(paths: Iterable[Path], root: Path, noun: str, text: str) -> list[Finding]:
    names = tuple(sorted(shown(path, root) for path in paths))
    return [Finding(f"{count(len(names), noun)} {text}", names)] if names else []


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder but hidden ones; folders that are links are followed, each once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        folders[:] = [] if real in seen else [name for name in folders if not is_hidden(Path(name))]
        if real not in seen:
            yield from (Path(parent, name) for name in names if not is_hidden(Path(name)))
        seen.add(real)


def _belongs(path: Path, category: Path) -> bool:
    """Whether a file that is not read looks as if it should be."""
    part = path.relative_to(category).parts[0]
    return path.suffix.lower() not in DOCUMENTS if part in PARTS else _is_image(path)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in {*IMAGE_SUFFIXES, *OTHER_IMAGES}


def _firsts(samples: Iterable[Sample]) -> list[Sample]:
    """The first sample of each kind of defect of each category."""
    return list({(sample.category, sample.defect): sample for sample in reversed(list(samples))}.values())[::-1]
