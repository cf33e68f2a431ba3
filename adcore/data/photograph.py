"""Real photographs by name, from packages that adcore needs anyway, or any image file by its path.

    name         from           what it shows
    astronaut    scikit-image   Eileen Collins, orange suit and a flag
    chelsea      scikit-image   a cat
    coffee       scikit-image   a cup on a wooden table
    rocket       scikit-image   a launch at night
    china        scikit-learn   a palace on a lake
    flower       scikit-learn   a dahlia
    coins        scikit-image   coins, gray
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from adcore.data.registry import find_dataset
from adcore.data.sample import read_image
from adcore.errors import DataError, ParameterError, did_you_mean

PHOTOGRAPHS = {"astronaut": "skimage", "chelsea": "skimage", "coffee": "skimage", "rocket": "skimage", "china": "sklearn",
               "flower": "sklearn", "coins": "skimage"}
ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def photograph(name: str) -> Image.Image:
    """A photograph as RGB; a gray one has three equal channels.

    name  one of PHOTOGRAPHS; or the path of an image file; or the path of a folder, whose first image by name is read.
          A path may also begin with a data set's name: 'imagenet/val/n02391049', 'mvtec_ad/screw/train/good'

    Raises:
        ParameterError: neither a name nor a path; the message lists the names.
        DataError: a file that cannot be read, or a folder without images.

    >>> photograph("coffee").size
    (600, 400)
    """
    if name in PHOTOGRAPHS:
        return _packaged(name)
    for path in _places(name):
        if path.is_dir():
            images = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.is_file())
            if not images:
                raise DataError(f"{path} holds no image: name a file, or a folder with images")
            return read_image(images[0])
        if path.is_file():
            return read_image(path)
    raise ParameterError(f"there is no photograph '{name}'{did_you_mean(name, PHOTOGRAPHS)}: name an image file, or one of "
                         f"{', '.join(PHOTOGRAPHS)}")


def _places(name: str) -> list[Path]:
    path = Path(name)
    dataset = None if path.is_absolute() or not path.parts else find_dataset(path.parts[0])
    return [path] if dataset is None else [path, dataset.joinpath(*path.parts[1:])]


def _packaged(name: str) -> Image.Image:
    if PHOTOGRAPHS[name] == "sklearn":
        from sklearn.datasets import load_sample_image
        return Image.fromarray(load_sample_image(f"{name}.jpg"))
    import skimage.data  # here, because it is slow to import
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
