"""Every reader, given damaged files, returns a result or raises one clear sentence: no other error, no hang, no wrong mask.

Valid files are damaged by flipped bytes, cuts, insertions and swapped parts: 150 damaged files per reader by default, 10,000
with ADCORE_FUZZ=10000 (`make test-fuzz`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support.tiny import result
from torch import nn

from adcore.data.ksdd2 import load_ksdd2
from adcore.data.manifest import load_manifest
from adcore.data.mvtec import load_mvtec
from adcore.data.sample import read_image, read_mask
from adcore.errors import AdcoreError
from adcore.experiments import Store, load_results
from adcore.experiments.record import COLUMNS, records
from adcore.experiments.store import body_of, sealed
from adcore.features.weights import read_checkpoint
from adcore.grids import load_grid
from adcore.models import METHODS
from adcore.papers import published
from adcore.training import Run, train

PUBLISHED = importlib.import_module("adcore.papers.published")  # the package has a function of that name
EXAMPLES = int(os.environ.get("ADCORE_FUZZ", 150))
CHECKOUT = Path(__file__).resolve().parents[2]
often = settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=EXAMPLES == 150, print_blob=False,
                 suppress_health_check=list(HealthCheck))
SIZE = (12, 17)


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of the files with one to four damages."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(content) - 1, 0)))
        how = draw(st.sampled_from(["flip", "cut", "insert", "swap", "drop"]))
        length = draw(st.integers(1, 40))
        if how == "flip" and content:
            content[at] ^= draw(st.integers(1, 255))
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = draw(st.binary(min_size=1, max_size=12))
        elif how == "swap":
            to = draw(st.integers(0, max(len(content) - 1, 0)))
            content[at:at + length], content[to:to + length] = content[to:to + length], content[at:at + length]
        else:
            del content[at:at + length]
    return bytes(content)


@contextlib.contextmanager
def in_time(seconds: int = 20) -> Iterator[None]:
    """Raise TimeoutError when the block takes too long."""
    def late(*_: object) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def read(reader: Callable[[Path], Any], content: bytes, name: str) -> Any:
    """The result of a reader on a file with this content; None after an AdcoreError of one sentence."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), in_time():
        warnings.simplefilter("ignore")
        path = Path(folder) / name
        path.write_bytes(content)
        try:
            return reader(path)
        except AdcoreError as error:
            assert str(error) and "\n" not in str(error), repr(error)
            return None


def encoded(pixels: np.ndarray, kind: str, mode: str | None = None) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


# --- images and masks ---------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
PHOTOGRAPH = RNG.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
MARKED = np.zeros(SIZE, np.uint8)
MARKED[3:9, 4:12] = 255
DARK = np.zeros((*SIZE, 3), np.uint8)
DARK[3:9, 4:12, 2] = 3                                      # a blue that rounds to black in gray
IMAGES = [encoded(PHOTOGRAPH, kind) for kind in ("PNG", "JPEG", "BMP", "GIF", "TIFF")]
IMAGES += [encoded(PHOTOGRAPH, "PNG", mode) for mode in ("L", "1", "P", "RGBA")]
MASKS = [encoded(MARKED, "PNG"), encoded(MARKED, "PNG", "1"), encoded(MARKED, "PNG", "P"), encoded(MARKED, "PNG", "RGBA"),
         encoded((MARKED > 0).astype(np.uint8), "PNG"), encoded((MARKED > 0).astype(np.uint16), "PNG"), encoded(DARK, "PNG"),
         encoded(MARKED, "PNG", "LA")]


@pytest.mark.parametrize("content", MASKS)
def test_a_mask_marks_the_pixels_above_zero_in_any_channel_of_every_format(content, tmp_path):
    (tmp_path / "mask.png").write_bytes(content)
    assert np.array_equal(read_mask(tmp_path / "mask.png", SIZE), MARKED > 0)


@given(damaged(IMAGES))
@often
def test_a_damaged_image_is_read_as_rgb_or_refused(content):
    image = read(read_image, content, "image.png")
    assert image is None or (image.mode == "RGB" and image.width * image.height > 0)


@given(damaged(MASKS))
@often
def test_a_damaged_mask_marks_pixels_or_is_refused(content):
    mask = read(lambda path: read_mask(path, SIZE), content, "mask.png")
    assert mask is None or mask.any()


# --- csv, yaml, json ----------------------------------------------------------------------------------------------------

MANIFEST = "".join((CHECKOUT / "data_manifest.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:4]).encode()
TABLE = CHECKOUT / "adcore" / "papers" / "uniad2022" / "published" / "table_s2.csv"
EXHIBIT = TABLE.read_bytes()[:900].rpartition(b"\n")[0] + b"\n"
MADE = result({("01234", "image_auroc"): 0.75, ("screw", "aupro"): None}, seed=3, nma=False)
RECORD = pd.DataFrame(MADE.rows()).assign(version=1)[COLUMNS].to_csv(index=False).encode()
GRID = b"""notebooks:
  - notebook: uniad2022/02_ablations
    parameters: {profile: quick, dataset: mini, seeds: [0, 1]}
    each: {seeds: [[0], [1]]}
  - notebook: ds2/03_cutpaste
"""


@given(damaged([MANIFEST]))
@often
def test_a_damaged_manifest_is_read_or_refused(content):
    entries = read(load_manifest, content, "data_manifest.csv")
    assert entries is None or all(name and entry.kind in ("dataset", "weights") for name, entry in entries.items())


@given(damaged([EXHIBIT]))
@often
def test_a_damaged_exhibit_is_read_or_refused(content):
    def reader(path: Path) -> pd.DataFrame:
        real = PUBLISHED._resource
        PUBLISHED._resource = lambda name: path if name.endswith("table_s2.csv") else real(name)
        try:
            return published("uniad2022.table_s2")
        finally:
            PUBLISHED._resource = real

    table = read(reader, content, "table.csv")
    assert table is None or table["value"].dtype == float


@given(damaged([RECORD]))
@often
def test_a_damaged_record_is_shown_or_refused(content):
    read(lambda path: [record.html for record in records(path.parent)], content, "record.csv")


@given(damaged([GRID]))
@often
def test_a_damaged_grid_is_read_or_refused(content):
    jobs = read(lambda path: load_grid(path.stem, path.parent), content, "grid.yaml")
    assert jobs is None or all(job.path.is_file() for job in jobs)


@given(damaged([sealed(body_of(MADE)).encode(), json.dumps(body_of(MADE)).encode()]))
@often
def test_a_damaged_result_is_missing_or_unchanged(content):
    def reader(path: Path) -> Any:
        store = Store(path.parent)
        folder = store.folder(MADE.experiment)
        folder.mkdir(parents=True)
        path.rename(folder / "result.json")
        load_results(path.parent)
        return store.load(MADE.experiment)

    loaded = read(reader, content, "x.json")
    assert loaded is None or loaded == MADE or b'"digest": "' not in content


values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                     lambda inner: st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), inner),
                     max_leaves=4)


@given(st.data())
@often
def test_any_value_of_a_setting_is_accepted_or_refused(data):
    method = METHODS[data.draw(st.sampled_from(sorted(METHODS)))]
    name = data.draw(st.sampled_from(sorted(method.Config().values())) | st.text(max_size=5))
    value = data.draw(values)
    with in_time(), contextlib.suppress(AdcoreError):
        json.dumps(method.Config.make({name: value}).values(), default=str)


# --- checkpoints --------------------------------------------------------------------------------------------------------

def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def trained(path: Path, epochs: int) -> list[float]:
    """The losses of a tiny training that continues from the checkpoint `path`."""
    torch.manual_seed(0)
    module = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(module.parameters(), 0.1)
    return train(module, lambda batch: module(batch).square().mean(), torch.ones(4, 2), optimizer,
                 torch.optim.lr_scheduler.StepLR(optimizer, 2), epochs=epochs, batch_size=4, seed=0,
                 run=Run(checkpoint=path, progress=False))


def started() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        trained(Path(folder) / "checkpoint", 2)
        return (Path(folder) / "checkpoint").read_bytes()


STARTED = started()
STATES = [saved(nn.Linear(3, 2).state_dict()), saved({"state_dict": {"module.a": torch.ones(3)}, "epoch": 3})]


@given(damaged(STATES))
@often
def test_a_damaged_weights_file_is_read_or_refused(content):
    state = read(read_checkpoint, content, "weights.pth")
    assert state is None or all(isinstance(tensor, torch.Tensor) for tensor in state.values())


@given(damaged([STARTED]))
@often
def test_a_training_continues_correctly_from_a_damaged_checkpoint_or_is_refused(content):
    losses = read(lambda path: trained(path, 3), content, "checkpoint")
    assert losses is None or losses == WHOLE


with tempfile.TemporaryDirectory() as _folder:
    WHOLE = trained(Path(_folder) / "checkpoint", 3)


# --- folders ------------------------------------------------------------------------------------------------------------

unusual = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs",)), min_size=1, max_size=6).filter(
    lambda name: name not in (".", ".."))
part = st.sampled_from(["train", "test", "good", "blob", "ground_truth", "nut", "000.png", "000_mask.png", "00000.png",
                        "00000_GT.png", "٣.png", "²_GT.png"]) | unusual


@given(st.lists(st.tuples(st.lists(part, min_size=1, max_size=4), st.sampled_from(["mask", "image", "empty", "folder"])),
                max_size=8))
@often
def test_folders_with_unusual_names_are_read_or_refused(entries):
    with tempfile.TemporaryDirectory() as folder, in_time():
        root = Path(folder)
        for parts, what in entries:
            with contextlib.suppress(OSError):                            # a file instead of a folder, a name too long
                path = root.joinpath(*parts)
                (path if what == "folder" else path.parent).mkdir(parents=True, exist_ok=True)
                if what != "folder":
                    path.write_bytes({"mask": MASKS[0], "image": IMAGES[0], "empty": b""}[what])
        for load in (load_ksdd2, load_mvtec):
            try:
                data = load(root, "odd")
                assert (data.train or data.test) and all(sample.path.is_file() for sample in (*data.train, *data.test))
            except AdcoreError as error:
                assert str(error)
