"""Data sets are downloaded or taken from a file, checked, unpacked, counted and put in their folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pooch
import pytest
from PIL import Image
from support.web import Web, web

from adcore import cli
from adcore.data import load_dataset, verify
from adcore.data.export import croissant, pooch_registry
from adcore.data.fetch import fetch
from adcore.data.manifest import Entry, direct_link, load_manifest
from adcore.errors import DataError, ParameterError
from adcore.files import private_folder

__all__ = ["web"]
pytestmark = pytest.mark.usefixtures("nothing_here")


def png(level: int = 200, side: int = 4) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((side, side), level, np.uint8)).save(out, "PNG")
    return out.getvalue()


# Small sets in the five layouts, and the counts that they have.
MVTEC = {f"{category}/{name}": png() for category in ("bottle", "screw") for name in (
    "train/good/000.png", "train/good/001.png", "test/good/000.png", "test/crack/000.png",
    "ground_truth/crack/000_mask.png", "readme.txt")}
LOCO = {f"{category}/{name}": png() for category in ("pushpins", "screw_bag") for name in (
    "train/good/000.png", "validation/good/000.png", "test/good/000.png", "test/structural_anomalies/000.png",
    "test/logical_anomalies/000.png", "ground_truth/structural_anomalies/000/000.png",
    "ground_truth/logical_anomalies/000/000.png")}
KSDD2 = {f"{part}/{number}{end}.png": png(level) for part, number, mask in (
    ("train", "10000", 0), ("train", "10001", 9), ("test", "20000", 0), ("test", "20001", 9))
    for end, level in (("", 200), ("_GT", mask))} | {"train/10000 (copy).png": png(), "train/10000_GT (copy).png": png()}
MTD = {f"MT_{kind}/Imgs/{i}{end}": png() for kind in ("Free", "Blowhole", "Break", "Crack", "Fray", "Uneven")
       for i in range(2) for end in (".jpg", ".png")}
COUNTS = {"mvtec_ad": {"bottle": (2, 2), "screw": (2, 2)}, "mvtec_loco": {"pushpins": (1, 3), "screw_bag": (1, 3)},
          "ksdd2": {"ksdd2": (1, 2)}, "mtd": {"magnetic_tile": (1, 11)}}
SETS = {"mvtec_ad": MVTEC, "mvtec_loco": LOCO, "ksdd2": KSDD2, "mtd": MTD}


def archive(path: Path, files: dict[str, bytes], around: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as out:
            for name, content in files.items():
                out.writestr(around + name, content)
    else:
        with tarfile.open(path, "w:xz") as out:
            for name, content in files.items():
                info = tarfile.TarInfo(around + name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ADCORE_DATA; data sets have the counts of the small ones."""
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(verify, "PUBLISHED", COUNTS)
    return tmp_path / "data"


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, Entry]:
    """A manifest that a test may change."""
    manifest = load_manifest()
    for module in ("manifest", "registry", "export"):
        monkeypatch.setattr(f"adcore.data.{module}.load_manifest", lambda: manifest)
    return manifest


def serve(web: Web, rows: dict[str, Entry], path: Path, *answers, name: str = "ksdd2") -> str:
    """Put an archive on the server and its address, size and checksum into the manifest."""
    content = path.read_bytes()
    url = web.put(f"/{path.name}", content, *answers)
    rows[name] = replace(rows[name], url=url, file=path.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    return url


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def complaint(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert cli.main([str(word) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("adcore: ") and err.count("\n") == 1
    return err.removeprefix("adcore: ").rstrip("\n")


# From the server.

def test_a_data_set_is_downloaded_unpacked_and_counted_once(web: Web, rows, data, tmp_path, capsys):
    serve(web, rows, archive(tmp_path / "KolektorSDD2.zip", KSDD2))
    for _ in range(2):
        assert cli.main(["data", "fetch", "ksdd2"]) == 0
        first, *rest = capsys.readouterr().out.splitlines()
        assert first == str(data / "ksdd2")
        assert rest[0] == "license: CC-BY-NC-SA-4.0" and rest[1].startswith("cite: Božič et al.")
    assert len(web.asked) == 1 and names(data) == ["ksdd2"] and (data / "ksdd2").stat().st_mode & 0o777 == 0o755
    found = load_dataset("ksdd2")
    assert len(found.train) == 1 and [sample.label for sample in found.test] == [0, 1]


def test_a_second_process_waits_and_finds_the_data_set_in_place(rows, data, tmp_path, capsys):
    rows["mtd"] = replace(rows["mtd"], sha256="", bytes=None)
    path = archive(tmp_path / "by hand.zip", MTD)
    with private_folder(data / "mtd") as folder:
        thread = threading.Thread(target=fetch, args=("mtd", path))
        thread.start()
        until = time.monotonic() + 20
        while not (said := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.02)
        assert said == f"adcore: another process is writing {data}/mtd: waiting for it\n"
        for name, content in {**MTD, "mark": b""}.items():
            (folder / "mtd" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "mtd" / name).write_bytes(content)
        (folder / "mtd").rename(data / "mtd")
    thread.join()
    assert names(data) == ["mtd"] and (data / "mtd/mark").exists()


def test_the_error_for_a_file_that_the_server_no_longer_has_says_how_to_get_it_by_hand(web: Web, rows, data, tmp_path, capsys):
    url = serve(web, rows, archive(tmp_path / "KolektorSDD2.zip", KSDD2))
    web.files.clear()
    assert complaint(capsys, "data", "fetch", "ksdd2") == (
        f"cannot download {url} (404 Not Found): get KolektorSDD2.zip by hand from "
        f"https://www.vicos.si/resources/kolektorsdd2/ (CC-BY-NC-SA-4.0), then run "
        f"`adcore data fetch ksdd2 --from KolektorSDD2.zip`")
    assert names(data) == []


def test_another_file_on_the_server_is_never_unpacked(web: Web, rows, data, tmp_path, monkeypatch):
    url = serve(web, rows, archive(tmp_path / "KolektorSDD2.zip", KSDD2))
    rows["ksdd2"] = replace(rows["ksdd2"], sha256="0" * 64)
    monkeypatch.setattr("adcore.data.fetch.unpack", lambda *_: pytest.fail("unpacked before it was checked"))
    with pytest.raises(DataError, match=rf"^{url} sent a file that is not 'ksdd2': expected sha256 0{{64}}, found [0-9a-f]+: "
                                        rf"get KolektorSDD2\.zip by hand"):
        fetch("ksdd2")
    assert names(data) == []


def test_cifar10_is_fetched_and_its_files_are_compared_with_their_digests(web: Web, rows, data, tmp_path, monkeypatch):
    batches = {name: name.encode() for name in ("data_batch_1", "data_batch_2", "test_batch")}
    path = archive(tmp_path / "cifar-10-python.tar.gz", batches, around="cifar-10-batches-py/")
    serve(web, rows, path, name="cifar10")
    with pytest.raises(DataError, match=r"is not 'cifar10' as published \(data_batch_1 is not CIFAR-10's: expected md5 c99c"):
        fetch("cifar10")
    assert names(data) == ["cifar-10-python.tar.gz"]  # right by the manifest, so that it need not come again
    monkeypatch.setattr("adcore.data.verify.list_dataset", lambda name, root: (load_dataset("digits"), []))
    assert fetch("cifar10") == data / "cifar10" and set(batches) <= set(names(data / "cifar10")) and len(web.asked) == 1


# From a file or folder that a person downloaded.

@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("around", ["", "outer/inner./"])
@pytest.mark.parametrize("kind", ["tar.xz", "zip", "folder"])
def test_each_layout_is_fetched_from_an_archive_or_a_folder(rows, data, tmp_path, name, around, kind):
    rows[name] = replace(rows[name], sha256="", bytes=None)
    path = tmp_path / f"by hand.{kind}"
    if kind == "folder":
        for file, content in SETS[name].items():
            (path / around / file).parent.mkdir(parents=True, exist_ok=True)
            (path / around / file).write_bytes(content)
    else:
        archive(path, SETS[name], around)
    assert fetch(name, path) == data / name == fetch(name)
    found = {path.relative_to(data / name).as_posix() for path in (data / name).rglob("*") if path.is_file()}
    assert found == set(SETS[name])
    assert path.exists(), "a file given with --from is not removed"


@pytest.mark.parametrize("name", SETS)
def test_a_set_that_lacks_images_is_refused_with_its_counts_and_leaves_nothing(rows, data, tmp_path, monkeypatch, name):
    rows[name] = replace(rows[name], sha256="", bytes=None)
    path = archive(tmp_path / "by hand.zip", SETS[name])
    for i in (0, 1):
        wrong = {category: (train + (i == 0), test + (i == 1)) for category, (train, test) in COUNTS[name].items()}
        monkeypatch.setitem(verify.PUBLISHED, name, wrong)
        with pytest.raises(DataError, match=rf"^{path} is not '{name}' as published \({name}/\w+ has \d+ training and \d+ test "
                                            rf"images, expected \d+ and \d+.*\): "):
            fetch(name, path)
        assert names(data) == []


def test_a_wrong_layout_is_refused_without_the_temporary_folder_in_the_message(rows, data, tmp_path):
    rows["mvtec_ad"] = replace(rows["mvtec_ad"], sha256="", bytes=None)
    path = archive(tmp_path / "other.zip", MTD)
    with pytest.raises(DataError) as caught:
        fetch("mvtec_ad", path)
    assert str(data) not in str(caught.value) and "it holds no data set in MVTec layout" in str(caught.value)
    assert names(data) == []


def test_an_archive_is_checked_before_it_is_unpacked(rows, data, tmp_path, capsys):
    path = archive(tmp_path / "mvtec_anomaly_detection.tar.xz", MVTEC)
    rows["mvtec_ad"] = replace(rows["mvtec_ad"], bytes=None)
    text = complaint(capsys, "data", "fetch", "mvtec_ad", "--from", path)
    assert text.startswith(f"{path} is not 'mvtec_ad': expected sha256 cf4313b1") and names(data) == []
    rows["mvtec_ad"] = replace(rows["mvtec_ad"], sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert cli.main(["data", "fetch", "mvtec_ad", "--from", str(path), "--to", str(tmp_path / "else")]) == 0
    assert names(tmp_path / "else") == ["mvtec_ad"] and names(data) == []


def test_a_hostile_archive_given_with_from_leaves_nothing(rows, data, tmp_path):
    path = archive(tmp_path / "mtd.zip", {**MTD, "../planted": b"x"})
    with pytest.raises(DataError, match=r"'\.\./planted' leads out of the folder"):
        fetch("mtd", path)
    assert names(data) == [] and not (tmp_path / "planted").exists()


def test_a_missing_file_given_with_from_is_named(data, tmp_path):
    with pytest.raises(DataError, match=rf"^{tmp_path}/none\.zip is not there: run `git clone"):
        fetch("mtd", tmp_path / "none.zip")


@pytest.mark.parametrize("name", SETS)
def test_an_interrupt_leaves_nothing(rows, data, tmp_path, monkeypatch, name):
    rows[name] = replace(rows[name], sha256="", bytes=None)
    path = archive(tmp_path / "by hand.zip", SETS[name])

    def interrupted(*_: object) -> None:
        assert len(names(data)) == 2 and not (data / name).exists(), "a lock file and a private folder"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("adcore.data.fetch.check_layout", interrupted)
        fetch(name, path)
    assert names(data) == []
    assert fetch(name, path) == data / name


def test_an_incomplete_data_set_in_place_is_reported_and_not_changed(rows, data, tmp_path, capsys):
    (data / "mtd" / "MT_Free").mkdir(parents=True)
    text = complaint(capsys, "data", "fetch", "mtd")
    assert text.startswith(f"{data}/mtd is not 'mtd' as published (") and "remove it, then run `adcore data fetch mtd`" in text
    assert names(data / "mtd") == ["MT_Free"]


def test_too_little_room_is_reported_before_anything_is_downloaded_or_unpacked(web: Web, rows, data, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    path = archive(tmp_path / "KolektorSDD2.zip", KSDD2)
    serve(web, rows, path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, 2 * path.stat().st_size))
    with pytest.raises(DataError, match=rf"^{data} has 0\.0 GB of room where 0\.0 GB are needed: make room, or name another"):
        fetch("ksdd2")
    assert web.asked == []
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9, path.stat().st_size))
    with pytest.raises(DataError, match=rf"^{data} has 0\.0 GB of room"):
        fetch("ksdd2", path)
    assert names(data) == []


def test_a_folder_that_cannot_be_written_is_named(rows, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    path = archive(tmp_path / "mtd.zip", MTD)
    with pytest.raises(DataError, match=rf"^cannot write {tmp_path}/file/mtd: .*File exists: '{tmp_path}/file'; make room"):
        fetch("mtd", path, tmp_path / "file")


# Data sets without a direct link, and names that are no data set.

@pytest.mark.parametrize(("name", "says"), [
    ("mvtec_ad", "data set 'mvtec_ad' has no direct link: get mvtec_anomaly_detection.tar.xz by hand from "
                 "https://www.mvtec.com/company/research/datasets/mvtec-ad (CC-BY-NC-SA-4.0), then run "
                 "`adcore data fetch mvtec_ad --from mvtec_anomaly_detection.tar.xz`"),
    ("mtd", "data set 'mtd' has no direct link: run `git clone --depth 1 "
            "https://github.com/abin24/Magnetic-tile-defect-datasets..git`, then `adcore data fetch mtd --from "
            "Magnetic-tile-defect-datasets.`"),
    ("imagenet", "data set 'imagenet' has no layout that adcore reads, so it is not fetched: get ILSVRC2012_img_val.tar by "
                 "hand from https://www.image-net.org/download.php (non-commercial research, by agreement on the site)"),
    ("resnet18", "'resnet18' is a checkpoint, not a data set: run `adcore weights fetch resnet18`"),
    ("mvtec_da", "unknown data set or weights 'mvtec_da' (did you mean 'mvtec_ad'?)")])
def test_the_error_for_a_data_set_that_cannot_be_fetched_says_how_to_get_it(data, capsys, name, says):
    assert complaint(capsys, "data", "fetch", name).startswith(says)


def test_an_embedded_data_set_needs_no_fetch(data):
    assert fetch("digits").exists()


def test_the_data_sets_with_a_direct_link_have_checksum_and_size():
    remote = [one for one in load_manifest().values() if one.kind == "dataset" and one.url.startswith("http")]
    assert {one.name for one in remote if direct_link(one)} == {"ksdd2", "cifar10"}
    assert {one.name for one in remote if direct_link(one) and not (one.sha256 and one.bytes)} == set()


# Published counts.

def test_the_published_counts_add_up():
    # DS2's supplement, Sec. 4: MVTec AD 3,629 and 1,725; KSDD2 2,085 normal training images; MTD 952 normal and 392 others.
    sums = {name: tuple(map(sum, zip(*rows.values(), strict=True))) for name, rows in verify.PUBLISHED.items()}
    assert sums == {"mvtec_ad": (3629, 1725), "mvtec_loco": (1778, 575 + 561 + 432), "ksdd2": (2085, 110 + 894),
                    "mtd": (761, 191 + 115 + 85 + 57 + 32 + 103)}
    assert sum(sums["mtd"]) == 952 + 392 and len(verify.PUBLISHED["mvtec_loco"]) == 5


def test_the_counts_of_mvtec_ad_are_those_of_the_paper_s_table():
    # Bergmann et al. 2019, Table 1: training images, normal and defective test images.
    printed = """carpet 280 28 89, grid 264 21 57, leather 245 32 92, tile 230 33 84, wood 247 19 60, bottle 209 20 63,
                 cable 224 58 92, capsule 219 23 109, hazelnut 391 40 70, metal_nut 220 22 93, pill 267 26 141,
                 screw 320 41 119, toothbrush 60 12 30, transistor 213 60 40, zipper 240 32 119"""
    rows = {name: (int(train), int(good) + int(bad)) for name, train, good, bad in map(str.split, printed.split(","))}
    assert verify.PUBLISHED["mvtec_ad"] == rows and len(rows) == 15


def test_only_mvtec_loco_takes_the_option_logical(rows, data, tmp_path):
    rows["mvtec_loco"] = replace(rows["mvtec_loco"], sha256="")
    fetch("mvtec_loco", archive(tmp_path / "x.zip", LOCO))
    kinds = [sample.defect for sample in load_dataset("mvtec_loco", "pushpins", logical=True).test]
    assert kinds == ["good", "logical_anomalies", "structural_anomalies"]
    assert len(load_dataset("mvtec_loco").test) == len(load_dataset("mvtec_loco", logical=False).test) == 4
    with pytest.raises(ParameterError, match=r"^data set 'digits' takes no option logical; those are for 'mvtec_loco'$"):
        load_dataset("digits", logical=True)
    with pytest.raises(ParameterError, match=r"^data set 'mvtec_loco' takes no option train; those are for 'mini'$"):
        load_dataset("mvtec_loco", train=3)
    with pytest.raises(ParameterError, match=r"^data set 'mini' takes no option color$"):
        load_dataset("mini", color=3)


# The manifest in other formats.

def test_pooch_reads_the_registry_and_finds_every_file_with_a_full_checksum(tmp_path, capsys):
    assert cli.main(["data", "export", "--pooch"]) == 0
    text = capsys.readouterr().out
    assert text == pooch_registry()
    (tmp_path / "registry.txt").write_text(text, encoding="utf-8")
    registry = pooch.create(path=tmp_path, base_url="", registry=None)
    registry.load_registry(tmp_path / "registry.txt")
    manifest = load_manifest()
    linked = [one for one in manifest.values() if direct_link(one)]
    full = [one for one in linked if one.sha256 and not one.sha256.startswith("prefix:")]
    assert registry.registry == {one.file: one.sha256 for one in full} and len(full) == 15
    assert registry.urls == {one.file: one.url for one in full}
    commented = {line.split()[1] for line in text.splitlines() if line.startswith("#")}
    assert commented == {one.file for one in linked if one not in full}


def test_a_file_of_the_registry_is_fetched_and_checked_by_pooch(web: Web, rows, tmp_path):
    serve(web, rows, archive(tmp_path / "KolektorSDD2.zip", KSDD2))
    (tmp_path / "registry.txt").write_text(pooch_registry(), encoding="utf-8")
    registry = pooch.create(path=tmp_path / "cache", base_url="", registry=None)
    registry.load_registry(tmp_path / "registry.txt")
    assert Path(registry.fetch("KolektorSDD2.zip")).read_bytes() == (tmp_path / "KolektorSDD2.zip").read_bytes()


def test_croissant_describes_each_data_set_with_license_citation_address_and_checksum(capsys):
    assert cli.main(["data", "export", "--croissant"]) == 0
    catalog = json.loads(capsys.readouterr().out)
    assert catalog["@type"] == "sc:DataCatalog"
    assert [one["name"] for one in catalog["dataset"]] == ["mvtec_ad", "mvtec_loco", "ksdd2", "mtd", "cifar10", "imagenet"]
    for one in catalog["dataset"]:
        row = load_manifest()[one["name"]]
        assert one["@type"] == "sc:Dataset" and one["conformsTo"] == "http://mlcommons.org/croissant/1.0"
        assert one["citeAs"] == row.citation and one["license"] and one["url"] == row.url
        (file,) = one["distribution"]
        assert file["@type"] == "cr:FileObject" and file["@id"] and file["encodingFormat"]
        digest = file.get("sha256") if "md5" not in file else f"md5:{file['md5']}"
        assert digest == (row.sha256 or "https://github.com/mlcommons/croissant/issues/80")
        assert file["contentUrl"] == (row.url if direct_link(row) else row.file or f"{row.url}.git")
    assert {one["license"] for one in catalog["dataset"][:3]} == {"https://creativecommons.org/licenses/by-nc-sa/4.0/"}


def test_croissant_describes_one_data_set_and_refuses_one_without_files(capsys):
    assert cli.main(["data", "export", "ksdd2", "--croissant"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one == croissant("ksdd2") and one["name"] == "ksdd2"
    prefixes = {word.partition(":")[0] for word in re.findall(r'"@type": "([^"@]+)"', json.dumps(one))}
    assert prefixes == {"sc", "cr"} and prefixes <= set(one["@context"])
    assert "'mini' is no data set with files of its own" in complaint(capsys, "data", "export", "mini", "--croissant")
    assert "always lists all files" in complaint(capsys, "data", "export", "ksdd2", "--pooch")


def test_an_export_needs_exactly_one_format(capsys):
    for words in ([], ["--croissant", "--pooch"]):
        with pytest.raises(SystemExit):
            cli.main(["data", "export", *words])
    assert os.linesep not in capsys.readouterr().out
