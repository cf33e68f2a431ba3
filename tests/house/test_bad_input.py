"""Every invalid input ends in one clear sentence and exit status 2, and leaves no partial file."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

from adcore.cli import main
from adcore.data import View, load_dataset, read_images, read_masks
from adcore.data.mini import write
from adcore.errors import AdcoreError, DataError, ParameterError, StoreError
from adcore.experiments import Experiment, Result, Store
from adcore.features import FeatureExtractor, cached_features

pytestmark = pytest.mark.usefixtures("nothing_here")

NAN = """\
import torch
from adcore.features import FeatureExtractor
images = torch.zeros(2, 3, 64, 64)
images[1, 0, 5, 5] = float("nan")
FeatureExtractor("resnet18", (1,), "random")(images)
"""


def picture(path: Path, h: int = 40, w: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(str(path))).integers(0, 256, (h, w, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete data set `toy` with one category, nut."""
    root = tmp_path / "data" / "toy"
    for name in ("train/good/000", "train/good/001", "test/good/000", "test/scratch/000", "test/scratch/001"):
        picture(root / "nut" / f"{name}.png")
    for name in ("000", "001"):
        path = root / f"nut/ground_truth/scratch/{name}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (60, 40), 255).save(path)
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    return root


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A notebook with the parameters seed and rate that fails because features are not finite."""
    parameters = new_code_cell("seed = 0\nrate = 0.5", metadata={"tags": ["parameters"]})
    cells = new_notebook(cells=[parameters, new_code_cell(NAN)], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    path = tmp_path / "nan.ipynb"
    import nbformat
    nbformat.write(cells, path)
    return path


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A results store with one result."""
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    result = Result(Experiment("patchcore"), ({"category": "nut", "metric": "image_auroc", "value": 0.5},), {"seconds": 1.0})
    Store().save(result, pd.DataFrame({"score": [0.5]}), {})


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """A function that runs a command, which must fail with one matching sentence and write only `leaves` below tmp_path."""
    def check(*words: object, message: str, leaves: set[str] | None = None) -> None:
        before = files_below(tmp_path)
        assert main([str(word) for word in words]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and err.endswith("\n") and "Traceback" not in err
        assert re.match(f"adcore: .*{message}", err), err
        assert files_below(tmp_path) - before == (leaves or set())

    return check


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@contextlib.contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, how: str) -> Iterator[None]:
    """A full disk: with `write` no file can grow above 600 bytes, with `sync` every fsync fails."""
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with monkeypatch.context() as patch:
        if how == "sync":
            patch.setattr(os, "fsync", full)
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (600, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("which", ["train/good/001.png", "test/scratch/000.png", "ground_truth/scratch/001_mask.png"])
def test_a_truncated_png_is_named(toy, refused, which):
    cut(toy / "nut" / which)
    message = rf"{toy / 'nut' / which} cannot be read as an image \(.+\): fetch or copy it again"
    refused("data", "verify", "toy", message=message)
    data = load_dataset("toy")
    with pytest.raises(DataError, match=re.escape(which)):
        if "mask" in which:
            read_masks(data.test, View(32))
        else:
            list(read_images([*data.train, *data.test], View(32), batch_size=2))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_an_image_is_named(toy, refused, content):
    (toy / "nut/test/good/000.png").write_bytes(content)
    refused("data", "verify", "toy", message=r".*nut/test/good/000\.png cannot be read as an image")


def test_a_mask_of_another_size_is_named_with_both_sizes_height_first(toy, refused):
    Image.new("L", (40, 60), 255).save(toy / "nut/ground_truth/scratch/001_mask.png")
    message = r"mask .*scratch/001_mask\.png is 60x40 but its image is 40x60: make them the same height and width"
    refused("data", "verify", "toy", message=message)
    with pytest.raises(DataError, match=message):
        read_masks(load_dataset("toy").test, View(32))


def test_a_missing_mask_of_mvtec_ad_is_named_with_the_expected_path(toy, refused):
    toy = toy.rename(toy.parent / "mvtec_ad")
    (toy / "nut/ground_truth/scratch/001_mask.png").unlink()
    message = r"nut/test/scratch/001\.png has no mask: expected nut/ground_truth/scratch/001_mask\.png"
    refused("data", "verify", "mvtec_ad", message=message)
    with pytest.raises(DataError, match=f"^{message}$"):
        load_dataset("mvtec_ad")


def test_a_missing_mask_of_mtd_is_named(tmp_path, refused, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    for kind in ("Free", "Blowhole", "Break", "Crack", "Fray", "Uneven"):
        picture(tmp_path / f"mtd/MT_{kind}/Imgs/a.jpg")
        picture(tmp_path / f"mtd/MT_{kind}/Imgs/a.png")
    (tmp_path / "mtd/MT_Crack/Imgs/a.png").unlink()
    refused("data", "verify", "mtd", message=r"MT_Crack/Imgs/a\.jpg has no mask: expected MT_Crack/Imgs/a\.png")
    (tmp_path / "mtd/MT_Fray/Imgs/a.jpg").unlink()
    (tmp_path / "mtd/MT_Crack/Imgs/a.jpg").unlink()
    refused("data", "verify", "mtd", message=r".*MT_Crack/Imgs holds no \.jpg image")


def test_an_image_deleted_after_listing_is_named(toy):
    data = load_dataset("toy")
    data.train[1].path.unlink()
    with pytest.raises(DataError, match=r"train/good/001\.png is not there: restore the file or remove it"):
        list(read_images(data.train, View(32)))


@pytest.mark.parametrize(("emptied", "message"), [
    ("train/good", r"nut/train/good in .*mvtec_ad holds no image: a category needs at least one to train on"),
    ("test", r"category 'nut' has no test images: expected .*nut/test/<defect>/\*\.png"),
])
def test_an_empty_category_of_mvtec_ad_is_named(toy, refused, emptied, message):
    toy = toy.rename(toy.parent / "mvtec_ad")
    for path in (toy / "nut" / emptied).rglob("*.png"):
        path.unlink()
    refused("data", "verify", "mvtec_ad", message=message)
    with pytest.raises(DataError, match=message):
        load_dataset("mvtec_ad")


def test_a_folder_without_categories_is_named(toy, refused):
    (toy.parent / "hollow").mkdir()
    refused("data", "verify", "hollow", message=r".*hollow holds no data set in MVTec layout: expected <category>/train/good/")


def test_an_unknown_category_is_refused_with_the_known_ones(toy):
    for name, known in (("toy", "nut"), ("mini", "brick, grass")):
        with pytest.raises(ParameterError, match=f"^unknown category 'screw' in data set '{name}'; it has {known}"):
            load_dataset(name, ["screw"])
    with pytest.raises(ParameterError, match="unknown category 'screw'"):
        Experiment("patchcore", "toy", "nut+screw").data()


@pytest.mark.parametrize("command", ["path", "verify"])
def test_an_unknown_data_set_is_refused_with_the_most_similar_name(toy, refused, command):
    refused("data", command, "tyo", message=r"unknown data set 'tyo' \(did you mean 'toy'\?\); there are mini, .*toy")


@pytest.mark.parametrize("command", ["path", "verify", "fetch"])
def test_unknown_weights_are_refused_with_the_known_ones(refused, command):
    refused("weights", command, "resnet81", message=r"unknown weights 'resnet81'; data_manifest\.csv has .*resnet18")


def test_an_archive_with_a_wrong_checksum_is_named(tmp_path, refused):
    archive = tmp_path / "mvtec.tar.xz"
    archive.write_bytes(b"x" * 100)
    refused("data", "verify", "mvtec_ad", "--file", archive, message=rf"{archive} .*'mvtec_ad'.*fetch it again from https")
    refused("data", "verify", "mvtec_da", "--file", archive, message=r"unknown data set or weights 'mvtec_da' \(did you mean")


def test_a_checkpoint_with_a_wrong_checksum_is_named(tmp_path, refused, monkeypatch):
    path = tmp_path / "resnet18-f37072fd.pth"
    path.write_bytes(b"x")
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path))
    message = rf"{path} (is not 'resnet18': expected sha256 f37072fd|has 1 bytes where 'resnet18').*fetch it again from https"
    refused("weights", "verify", "resnet18", message=message)


def test_a_nan_feature_ends_a_run_which_keeps_the_traceback(notebook, tmp_path, refused):
    out = tmp_path / "run.ipynb"
    refused("run", notebook, "-o", out, "--record", tmp_path / "record.json", leaves={"run.ipynb"}, message=(
        r"nan failed in cell 2: DataError: features of resnet18 at tap 1 are NaN or infinite for image 1 of the batch"))
    assert "NaN or infinite" in out.read_text()


def test_a_nan_feature_leaves_no_cache_entry(toy, tmp_path):
    extractor = FeatureExtractor("resnet18", (1,), "random")
    extractor.std.zero_()
    extractor.mean.fill_(float("nan"))
    with pytest.raises(DataError, match="NaN or infinite for image 0, 1 of the batch"):
        cached_features(load_dataset("toy").train, View(32), extractor, lambda maps: maps[0], "x", folder=tmp_path / "c")
    assert files_below(tmp_path / "c") == set()


@pytest.mark.parametrize("how", ["write", "sync"])
def test_a_full_disk_leaves_no_cache_entry(toy, tmp_path, monkeypatch, how):
    extractor = FeatureExtractor("resnet18", (1,), "random")
    data = load_dataset("toy")
    with full_disk(monkeypatch, how), pytest.raises(StoreError, match=rf"^cannot write {tmp_path / 'c'}/.*; free the folder"):
        cached_features(data.train, View(32), extractor, lambda maps: maps[0], "x", folder=tmp_path / "c")
    assert files_below(tmp_path / "c") == set()


@pytest.mark.parametrize("how", ["write", "sync"])
def test_a_full_disk_leaves_an_existing_export_unchanged(stored, tmp_path, refused, monkeypatch, how):
    out = tmp_path / "out.csv"
    out.write_text("old")
    monkeypatch.setattr("adcore.experiments.record.COLUMNS", ["method", "dataset", "category", "settings", "seed", "metric",
                                                              "value", "key", *["seconds"] * 99])
    with full_disk(monkeypatch, how):
        refused("results", "--to", out, message=rf"cannot write {out}: .+; free the folder or name another one")
    assert out.read_text() == "old"


@pytest.mark.parametrize("how", ["write", "sync"])
def test_a_full_disk_leaves_no_partial_notebook(notebook, tmp_path, refused, monkeypatch, how):
    def executed(path: str, output: str, *_: object, **__: object) -> None:
        Path(output).write_bytes(b"x" * 10_000)

    monkeypatch.setattr("papermill.execute_notebook", executed)
    with full_disk(monkeypatch, how):
        words = ("run", notebook, "-o", tmp_path / "run.ipynb", "--record", tmp_path / "record.json")
        refused(*words, message=r"cannot write .*run\.ipynb: .+; free the folder")


def test_a_full_disk_leaves_no_partial_category_of_mini(tmp_path, refused, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(write, "_write", full)
    refused("data", "path", "mini", message=r"cannot write .*mini-\d+/brick: No space left on device; free the folder",
            leaves={"cache", f"cache/mini-{write.VERSION}"})


@pytest.mark.parametrize("place", ["/proc/adcore", "{tmp}/file"])
def test_a_folder_that_cannot_be_written_is_named(stored, notebook, tmp_path, refused, monkeypatch, place):
    """Root may write everywhere except below /proc, or below a file instead of a folder."""
    (tmp_path / "file").touch()
    folder = place.format(tmp=tmp_path)
    refused("results", "--to", f"{folder}/out.csv", message=rf"cannot write {folder}/out\.csv: .+; free the folder")
    refused("run", notebook, "-o", f"{folder}/run.ipynb", message=rf"cannot write {folder}/run\.ipynb: .+; free the folder")
    monkeypatch.setenv("ADCORE_CACHE", folder)
    refused("data", "path", "mini", message=rf"cannot write {folder}/mini-\d+/brick: .+; free the folder or name another")
    monkeypatch.setenv("ADCORE_RUNS", folder)
    refused("run", notebook, message=rf"cannot write {folder}/notebooks/nan/run\.ipynb: ")
    refused("results", message="the store has no result with dataset=any and profile=any")


def test_a_wrong_parameter_is_refused_with_the_known_names(notebook, tmp_path, refused):
    for given, message in (("sed=1", r"unknown parameter 'sed' for nan \(did you mean 'seed'\?\); it takes seed, rate"),
                        ("seed=x", "parameter 'seed' of nan takes int like 0, not str 'x'"),
                        ("seed", "'seed' is not name=value"), ("seed=[1", r"the value of 'seed=\[1' cannot be read")):
        refused("run", notebook, "-p", given, "-o", tmp_path / "run.ipynb", message=message)
    refused("run", "uniad2022/02_ablation_", message="there is no notebook 'uniad2022/02_ablation_'")


def test_a_wrong_setting_or_method_is_refused_with_the_known_names():
    with pytest.raises(ParameterError, match=r"has no setting 'tops'; it has .*taps"):
        Experiment("patchcore", settings=(("tops", 1),)).config()
    with pytest.raises(ParameterError, match=r"unknown method 'patchcor' \(did you mean 'patchcore'\?\); there are"):
        Experiment("patchcor").config()


def test_the_process_exits_with_status_2_and_one_line_on_stderr(notebook, tmp_path):
    words = [sys.executable, "-m", "adcore.cli", "run", str(notebook), "-p", "sed=1", "-o", str(tmp_path / "run.ipynb")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "adcore: unknown parameter 'sed' for nan (did you mean 'seed'?); it takes seed, rate\n"
    assert files_below(tmp_path) == {"nan.ipynb"}


def test_all_errors_for_users_have_one_base_class():
    import adcore.errors as errors
    family = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(family) == 5 and all(issubclass(kind, AdcoreError) for kind in family)
