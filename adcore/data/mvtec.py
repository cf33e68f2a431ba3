"""Folders in the layout of MVTec AD (Bergmann et al., CVPR 2019).

    <root>/<category>/train/good/*.png
    <root>/<category>/test/<defect>/*.png                      defect 'good' is normal
    <root>/<category>/ground_truth/<defect>/<stem>_mask.png

MVTec AD itself must be complete. In a data set of one's own, images may have any of the suffixes below; masks may be called
like their image, with or without `_mask`, and may lie beside it; masks, test images or training images may be missing; and
<root> may itself be the only category. `adcore.data.findings` says what is missing and which files are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from adcore.data.sample import Dataset, Sample
from adcore.data.source import Source
from adcore.errors import DataError, ParameterError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2", ".avif", ".pgm", ".ppm",
                  ".pbm", ".pnm", ".tga")
# Files and folders of operating systems and of archive programs; names that begin with a dot belong to them too.
SYSTEM = {"__MACOSX", "__pycache__", "@eaDir", "Thumbs.db", "desktop.ini", "$RECYCLE.BIN", "lost+found",
          "System Volume Information"}


def is_hidden(path: Path) -> bool:
    """True for files and folders that do not belong to a data set, such as .ipynb_checkpoints and Thumbs.db."""
    return path.name.startswith(".") or path.name in SYSTEM


def list_images(folder: Path) -> list[Path]:
    """Image files in a folder, sorted by name; an empty list when the folder is not there.

    >>> from adcore.data import load_dataset
    >>> folder = load_dataset("mini", ["brick"]).train[0].path.parent
    >>> [path.name for path in list_images(folder)[:3]]
    ['000.png', '001.png', '002.png']
    """
    return [path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()]


def category_folders(root: Path) -> dict[str, Path]:
    """Folders below `root` that have a folder train/good, by name; or `root` alone if it is the one that has it.

    >>> from adcore.data import load_dataset
    >>> root = load_dataset("mini", ["brick"]).train[0].path.parents[3]
    >>> category_folders(root / "brick") == {"brick": root / "brick"}
    True
    """
    found = {folder.name: folder for folder in _entries(root) if (folder / "train" / "good").is_dir()}
    return found or ({root.absolute().name: root} if (root / "train" / "good").is_dir() else {})


def load_mvtec(root: Path, name: str, categories: Sequence[str] | None = None, *, strict: bool = False) -> Dataset:
    """List the images of a data set in MVTec layout. Pixels are read later, image by image.

    name    of the data set, for the result and for messages
    strict  whether a missing image or mask is an error

    Raises:
        ParameterError: an unknown category; the message lists those that are there.
        DataError: no category, no image, several masks of one image; and if `strict`, a category without training or test
            images, a defective image without mask.

    >>> from adcore.data import load_dataset
    >>> root = load_dataset("mini", ["brick"]).train[0].path.parents[3]
    >>> load_mvtec(root, "my own data", ["brick"]).categories
    ('brick',)
    """
    root = Path(root)
    folders = category_folders(root)
    if not folders:
        raise DataError(f"{root} holds no data set in MVTec layout: expected <category>/train/good/*.png below it, "
                        f"found {_found(root)}")
    for category in categories or ():
        if category not in folders:
            raise ParameterError(f"unknown category '{category}' in data set '{name}'; it has {', '.join(folders)}")
    train: list[Sample] = []
    test: list[Sample] = []
    for category in categories or folders:
        folder, before = folders[category], len(test)
        normal, _ = images_and_masks(folder / "train" / "good")
        if strict and not normal:
            raise DataError(f"{(folder / 'train' / 'good').relative_to(root)} in {root} holds no image: a category needs at "
                            f"least one to train on")
        train += [Sample(path, category, 0) for path in normal]
        for kind in sorted(entry for entry in _entries(folder / "test") if entry.is_dir()):
            images, beside = images_and_masks(kind)
            if kind.name == "good":
                test += [Sample(path, category, 0) for path in images]
                continue
            masks = Masks([*list_images(folder / "ground_truth" / kind.name), *beside])
            for path in images:
                mask = masks.of(path)
                if strict and mask is None:
                    expected = folder / "ground_truth" / kind.name / f"{path.stem}_mask.png"
                    raise DataError(f"{path.relative_to(root)} has no mask: expected {expected.relative_to(root)}")
                test.append(Sample(path, category, 1, kind.name, mask))
        if strict and len(test) == before:
            raise DataError(f"category '{category}' has no test images: expected {folder / 'test'}/<defect>/*.png")
    if not train and not test:
        raise DataError(f"{root} has folders in MVTec layout but no image in {', '.join(categories or folders)}: put normal "
                        f"images into <category>/train/good")
    return Dataset(name, tuple(train), tuple(test))


def images_and_masks(folder: Path) -> tuple[list[Path], list[Path]]:
    """The images in a folder, and the masks beside them: x_mask.png is the mask of x.jpg, not an image."""
    paths = list_images(folder)
    stems = {path.stem for path in paths}
    masks = [path for path in paths if _plain_stem(path) != path.stem and _plain_stem(path) in stems]
    return sorted(set(paths) - set(masks)), masks


class Masks:
    """Finds the mask of an image among mask files: the same stem, `_mask` or not, any suffix, preferably the same case.

    >>> masks = Masks([Path("ground_truth/hole/000_mask.PNG")])
    >>> masks.of(Path("test/hole/000.jpg")).name, masks.of(Path("test/hole/001.jpg"))
    ('000_mask.PNG', None)
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._exact: dict[str, list[Path]] = {}
        self._folded: dict[str, list[Path]] = {}
        for path in paths:
            for stem in {path.stem, _plain_stem(path)}:
                self._exact.setdefault(stem, []).append(path)
                self._folded.setdefault(stem.casefold(), []).append(path)

    def of(self, image: Path) -> Path | None:
        """The image's mask, None without one. Raises DataError when several files could be it."""
        found = self._exact.get(image.stem) or self._folded.get(image.stem.casefold()) or []
        if len(found) > 1:
            raise DataError(f"{image} could have one of {len(found)} masks, {' and '.join(map(str, found))}: keep one of them")
        return found[0] if found else None


def _plain_stem(path: Path) -> str:
    """The stem without `_mask` at its end."""
    return path.stem[:-5] if path.stem.lower().endswith("_mask") else path.stem


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not is_hidden(path)) if folder.is_dir() else []


def _found(root: Path) -> str:
    """What a folder that is not in the layout holds, and where the layout may be instead."""
    entries = _entries(root)
    inside = next((entry for entry in entries if entry.is_dir() and category_folders(entry)), None)
    if inside is not None:
        return f"it in {inside}: name that folder"
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "") if names else "nothing"


def _load_mvtec_ad(root: Path, categories: Sequence[str] | None = None) -> Dataset:
    return load_mvtec(root, "mvtec_ad", categories, strict=True)


SOURCE = Source("mvtec_ad", _load_mvtec_ad, folders=("mvtec_ad", "mvtec_anomaly_detection", "mvtec"), counts={
    "bottle": (209, 83), "cable": (224, 150), "capsule": (219, 132), "carpet": (280, 117), "grid": (264, 78),
    "hazelnut": (391, 110), "leather": (245, 124), "metal_nut": (220, 115), "pill": (267, 167), "screw": (320, 160),
    "tile": (230, 117), "toothbrush": (60, 42), "transistor": (213, 100), "wood": (247, 79), "zipper": (240, 151)})
