"""Many images in one file: the file is read once, and each image has its own name."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adcore.data import PackedSample, Sample, View, map_name, read_images, read_masks
from adcore.data.cifar10 import read_batch
from adcore.data.packed import Pack, open_pack
from adcore.errors import DataError
from adcore.features import images_digest
from adcore.files import digest_text

pytestmark = pytest.mark.usefixtures("nothing_here")

READ: list[Path] = []


def read_array(path: Path) -> Pack:
    READ.append(path)
    time.sleep(0.03)  # so that threads meet here
    images = np.load(path)
    return Pack(images, np.zeros(len(images), int))


def packed(path: Path, images: np.ndarray) -> list[PackedSample]:
    np.save(path, images)
    return [PackedSample(path, "x", i % 2, index=i, reader=read_array) for i in range(len(images))]


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, dtype=np.uint8)


def test_a_file_is_read_once_and_again_when_it_has_changed(tmp_path):
    READ.clear()
    images = noise(40, 5, 6, 3)
    samples = packed(tmp_path / "a.npy", images)
    batches = torch.cat(list(read_images(samples, View((5, 6)), batch_size=4, workers=4)))
    assert np.array_equal((batches * 255).round().byte().permute(0, 2, 3, 1).numpy(), images) and len(READ) == 1
    packed(tmp_path / "a.npy", 255 - images)
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    assert np.array_equal(np.asarray(samples[7].image), 255 - images[7]) and len(READ) == 2


def test_no_more_than_eight_files_are_kept(tmp_path):
    samples = [packed(tmp_path / f"{i}.npy", noise(1, 2, 2))[0] for i in range(9)]
    for sample in samples:
        _ = sample.image
    READ.clear()
    _ = samples[8].image, samples[1].image, samples[0].image
    assert len(READ) == 1 and READ[0] == samples[0].path


def test_another_file_of_the_same_size_and_time_is_read_again(tmp_path):
    packed(tmp_path / "a.npy", noise(2, 4, 5))
    before, stat = open_pack(tmp_path / "a.npy", read_array).images, (tmp_path / "a.npy").stat()
    packed(tmp_path / "a.npy", 255 - noise(2, 4, 5))
    os.utime(tmp_path / "a.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))              # as `cp -p` does
    assert np.array_equal(open_pack(tmp_path / "a.npy", read_array).images, 255 - before)


def test_a_gray_packed_image_has_three_equal_channels(tmp_path):
    gray = noise(3, 4, 5)
    image = packed(tmp_path / "g.npy", gray)[1].image
    assert image.mode == "RGB" and np.array_equal(np.asarray(image), np.repeat(gray[1][..., None], 3, 2))


def test_a_missing_image_or_file_is_named(tmp_path):
    sample = packed(tmp_path / "a.npy", noise(2, 4, 5))[0]
    for index in (2, -1):
        with pytest.raises(DataError, match=rf"^{tmp_path}/a.npy has 2 images and none of number {index}: restore the file$"):
            _ = replace(sample, index=index).image
    sample.path.unlink()
    for ask in (lambda: sample.image, lambda: open_pack(sample.path, read_array), lambda: images_digest([sample])):
        with pytest.raises(DataError, match=rf"^{tmp_path}/a.npy is not there"):
            ask()


def test_packed_images_have_no_masks_and_asking_for_them_reads_no_file(tmp_path):
    samples = packed(tmp_path / "a.npy", noise(2, 4, 5))
    READ.clear()
    assert read_masks(samples, View(4)) == [None, None] and READ == []


def test_a_digest_changes_with_the_order_of_images_in_one_file_and_with_the_file(tmp_path):
    samples = packed(tmp_path / "a.npy", noise(12, 4, 5))
    first, second, *_, twelfth = samples
    digests = [images_digest(some) for some in ([first, second], [second, first], [first], [second], [first, twelfth], samples)]
    assert len(set(digests)) == 6 and images_digest([first, second]) == digests[0]
    packed(tmp_path / "a.npy", noise(12, 5, 4))
    os.utime(tmp_path / "a.npy", ns=(1, 1))
    assert images_digest([first, second]) != digests[0]


def test_the_digest_of_ordinary_images_is_that_of_their_files_contents_alone(tmp_path):
    samples = []
    for i, content in enumerate((b"one", b"two")):
        (tmp_path / str(i)).write_bytes(content)
        samples.append(Sample(tmp_path / str(i), "x", 0))
    lines = "\n".join(hashlib.blake2b(content).hexdigest()[:32] for content in (b"one", b"two"))
    assert images_digest(samples) == digest_text(lines) == hashlib.sha256(lines.encode()).hexdigest()[:16]


def test_the_name_of_a_map_is_category_folder_and_file_or_category_file_and_number():
    assert map_name(Sample(Path("/a/nut/test/scratch/004.png"), "nut", 1)) == "nut/scratch/004.png"
    sample = PackedSample(Path("/a/cifar-10-batches-py/test_batch"), "01234", 1, "dog", index=42, reader=read_batch)
    assert sample.name == "test_batch/00042" and map_name(sample) == "01234/test_batch/00042"
