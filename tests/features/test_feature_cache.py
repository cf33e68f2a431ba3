"""The cache of features: computed once, complete or not at all, with a new entry for everything that changes them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import on_meta
from torch import Tensor

from adcore.data import Sample, View
from adcore.errors import DataError
from adcore.features import FeatureExtractor, cached_features, concatenate


@pytest.fixture(scope="module")
def resnet() -> FeatureExtractor:
    return FeatureExtractor("resnet18", (1, 2), "random")


class Counted:
    """Combines the maps of a batch, and counts the images."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.images = 0
        self.stop_after = stop_after

    def __call__(self, maps: list[Tensor]) -> Tensor:
        if self.stop_after is not None and self.images >= self.stop_after:
            raise KeyboardInterrupt
        self.images += len(maps[0])
        return concatenate(maps, (4, 6), align_corners=False)


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    made = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        made.append(Sample(path, "x", 0))
    return made


VIEW = View((32, 48))


def test_features_are_computed_once_and_equal_those_computed_directly(tmp_path, resnet, samples):
    counted = Counted()
    features = [cached_features(samples, VIEW, resnet, counted, "join", batch_size=2, folder=tmp_path / "c") for _ in range(3)]
    assert counted.images == 5 and features[0].shape == (5, 192, 4, 6) and features[0].dtype == torch.float32
    direct = torch.cat([Counted()(resnet(VIEW.image(sample.image)[None])) for sample in samples])
    for found in features:
        assert torch.allclose(found, direct, rtol=1e-4, atol=1e-5)
    (entry,), (described,) = (list((tmp_path / "c").glob(f"*.{ending}")) for ending in ("npy", "json"))
    about = json.loads(described.read_text())
    assert about.pop("digest") == hashlib.blake2b(entry.read_bytes()).hexdigest()[:32]
    assert about == {"features": resnet.key, "view": repr(VIEW), "what": "join", "images": 5, "entry": entry.name}
    assert described.stem == entry.stem and entry.stat().st_size == 128 + 4 * direct.numel()


def test_half_precision_takes_half_the_size_and_errs_by_less_than_a_thousandth(tmp_path, resnet, samples):
    whole, half = (cached_features(samples, VIEW, resnet, Counted(), "join", half=half, folder=tmp_path / "c")
                   for half in (False, True))
    assert half.dtype == torch.float16 and half.nbytes * 2 == whole.nbytes
    assert ((half.float() - whole).abs() <= 1e-3 * whole.abs() + 1e-7).all() and not torch.equal(half.float(), whole)


def test_everything_that_changes_the_features_makes_a_new_entry(tmp_path, resnet, samples):
    def seen(samples: list[Sample] = samples, view: View = VIEW, extractor: FeatureExtractor = resnet, name: str = "join",
             half: bool = False) -> int:
        counted = Counted()
        cached_features(samples, view, extractor, counted, name, half=half, folder=tmp_path / "c")
        return counted.images

    assert seen() == 5 and seen() == 0
    assert seen(samples[::-1]) == 5, "order"
    assert seen(samples[:4]) == 4
    assert seen(view=View((40, 56), (32, 48))) == 5
    assert seen(name="another") == 5 and seen(half=True) == 5 and seen() == 0
    assert seen(extractor=FeatureExtractor("resnet18", (2, 1), "random", seed=1)) == 5
    keys = {on_meta(*backbone).key for backbone in (("resnet18", (1, 2)), ("resnet18", (2, 1)), ("resnet34", (1, 2)))}
    assert len(keys) == 3 and resnet.key in keys
    Image.new("RGB", (50, 40), "red").save(samples[2].path)
    assert seen() == 5, "content"


def test_an_entry_depends_on_the_content_of_images_and_not_on_their_folder(tmp_path, resnet, samples):
    counted = Counted()
    cached_features(samples, VIEW, resnet, counted, "join", folder=tmp_path / "c")
    moved = []
    for sample in samples:
        moved.append(replace(sample, path=tmp_path / f"moved_{sample.path.name}"))
        sample.path.rename(moved[-1].path)
    cached_features(moved, VIEW, resnet, counted, "join", folder=tmp_path / "c")
    assert counted.images == 5
    with pytest.raises(DataError, match=r"0\.png is not there: restore the file"):
        cached_features(samples, VIEW, resnet, counted, "join", folder=tmp_path / "c")


def test_an_interrupted_computation_leaves_no_entry_and_the_next_run_starts_from_the_beginning(tmp_path, resnet, samples):
    with pytest.raises(KeyboardInterrupt):
        cached_features(samples, VIEW, resnet, Counted(stop_after=2), "join", batch_size=2, folder=tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []
    counted = Counted()
    cached_features(samples, VIEW, resnet, counted, "join", batch_size=2, folder=tmp_path / "c")
    assert counted.images == 5


@pytest.mark.parametrize("damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"x" + data[1:]],
                         ids=["truncated", "empty", "damaged header"])
def test_a_damaged_entry_gives_a_warning_and_is_computed_again(tmp_path, resnet, samples, damage):
    counted = Counted()
    whole = cached_features(samples, VIEW, resnet, counted, "join", folder=tmp_path / "c").clone()
    (path,) = (tmp_path / "c").glob("*.npy")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged or another entry: it is computed again"):
        again = cached_features(samples, VIEW, resnet, counted, "join", folder=tmp_path / "c")
    assert torch.equal(again, whole) and counted.images == 10
    cached_features(samples, VIEW, resnet, counted, "join", folder=tmp_path / "c")
    assert counted.images == 10


def test_an_empty_list_of_samples_is_refused(tmp_path, resnet):
    with pytest.raises(DataError, match="there are no images to compute features of"):
        cached_features([], VIEW, resnet, Counted(), "join", folder=tmp_path / "c")
