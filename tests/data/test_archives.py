"""Archives crafted to do harm are refused; the formats of data sets are unpacked."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import resource
import shutil
import stat
import struct
import tarfile
import tempfile
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from adcore.data.archives import _Guard, safe_parts, unpack
from adcore.errors import DataError
from adcore.files import private_folder

FILES = {"train/good/000.png": b"one", "train/good/001.png": b"two" * 700_000, "license.txt": b"", "a b/ü.png": b"four"}
KINDS = ("tar", "tar.gz", "tar.bz2", "tar.xz", "zip")
Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"x", **attributes: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, content


def tar(path: Path, *members: Member, mode: str = "w", format: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def zipped(path: Path, *members: tuple[str, bytes], kind: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo("x")
            info.filename = name  # ZipInfo's constructor would correct it
            info.external_attr = (kind | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return path


def plain(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return zipped(path, *files.items())
    mode = {".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}.get(path.suffix, "w")
    return tar(path, *(file(name, content) for name, content in files.items()), mode=mode)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def place(archive: Path, target: Path, **limits: Any) -> int:
    """Unpack as `fetch` does: in a private folder, which is renamed in the end. Returns the number of files."""
    with private_folder(target) as folder:
        (folder / "new").mkdir()
        files = unpack(archive, folder / "new", **limits)
        (folder / "new").rename(target)
        return files


def refused(archive: Path, **limits: Any) -> str:
    """The message of the refusal, after which nothing is left, neither inside nor outside the folder."""
    target = archive.parent / "inside" / "set"
    target.parent.mkdir(exist_ok=True)
    before = sorted(archive.parent.rglob("*"))
    with pytest.raises(DataError) as caught:
        place(archive, target, **limits)
    assert sorted(archive.parent.rglob("*")) == before
    text = str(caught.value)
    assert "\n" not in text and len(text) < 1000
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_archive_is_unpacked_whole_under_any_name(tmp_path, kind):
    archive = plain(tmp_path / f"x.{kind}", FILES).rename(tmp_path / "download")
    assert place(archive, tmp_path / "set") == len(FILES)
    assert contents(tmp_path / "set") == FILES and sorted(path.name for path in tmp_path.iterdir()) == ["download", "set"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_is_read_with_its_folders_and_long_names(tmp_path, format):
    name = "/".join(["folder" * 8] * 3) + "/image.png"
    folder = tarfile.TarInfo("./folder")
    folder.type = tarfile.DIRTYPE
    archive = tar(tmp_path / "x.tar", (folder, b""), file(f"./{name}", b"deep"), format=format)
    place(archive, tmp_path / "set")
    assert contents(tmp_path / "set") == {name: b"deep"} and (tmp_path / "set/folder").is_dir()


def test_owner_permissions_and_time_are_not_restored(tmp_path):
    archive = tar(tmp_path / "x.tar", file("run", b"#!/bin/sh", mode=0o7777, uid=12, mtime=1))
    place(archive, tmp_path / "set")
    found = (tmp_path / "set/run").stat()
    assert not found.st_mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX | 0o111)
    assert found.st_uid == os.getuid() and found.st_mtime > 1e9


@pytest.mark.parametrize(("type", "says"), [
    (tarfile.SYMTYPE, "is a symbolic link"), (tarfile.LNKTYPE, "is a hard link"), (tarfile.CHRTYPE, "is no plain file"),
    (tarfile.BLKTYPE, "is no plain file"), (tarfile.FIFOTYPE, "is no plain file"), (tarfile.GNUTYPE_SPARSE, "")])
def test_links_devices_pipes_and_sparse_files_in_a_tar_are_refused(tmp_path, type, says):
    bad = file("bad", b"", type=type, linkname="../../secret")
    assert says in refused(tar(tmp_path / "x.tar", file("good"), bad, file("later")))


def test_a_file_behind_a_link_is_never_written_through_it(tmp_path):
    (tmp_path / "outside").mkdir()
    archive = tar(tmp_path / "x.tar", file("door", b"", type=tarfile.SYMTYPE, linkname=str(tmp_path / "outside")),
                  file("door/planted"))
    assert "'door' is a symbolic link" in refused(archive) and not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize(("kind", "says"), [
    (stat.S_IFLNK, "is a symbolic link"), (stat.S_IFCHR, "is no plain file"), (stat.S_IFIFO, "is no plain file"),
    (stat.S_IFBLK, "is no plain file"), (stat.S_IFSOCK, "is no plain file")])
def test_links_devices_and_pipes_in_a_zip_are_refused(tmp_path, kind, says):
    assert says in refused(zipped(tmp_path / "x.zip", ("bad", b"/etc/passwd"), kind=kind))


DEEP = "/".join(["d"] * 65)
OUTSIDE = [(DEEP, "is a path that is too long"), ("é" * 2100, "is a path that is too long"),
           ("/etc/planted", "is an absolute path"), ("../planted", "leads out"), ("a/../../planted", "leads out"),
           ("a/..", "leads out"), ("..", "leads out"), ("C:/planted", "is an absolute path"), ("c:planted", "is an absolute"),
           ("..\\planted", "does not belong"), ("a\\b", "does not belong"), ("a\nb", "does not belong"),
           ("//planted", "is an absolute path"), ("\x1b[2Jx", "does not belong"), ("x\u202egnp.exe", "does not belong"),
           ("a\u200bb", "does not belong"), ("\ufeffa", "does not belong"), ("a\u2028b", "does not belong")]


@pytest.mark.parametrize(("name", "says"), OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, kind, name, says):
    assert says in refused(plain(tmp_path / f"x.{kind}", {"good": b"1", name: b"x"}))
    assert not Path("/etc/planted").exists()


def test_a_name_with_a_zero_byte_is_refused(tmp_path):
    archive = zipped(tmp_path / "x.zip", ("good?hidden", b"x"))
    archive.write_bytes(archive.read_bytes().replace(b"good?hidden", b"good\0hidden"))
    assert "does not belong" in refused(archive)


@pytest.mark.parametrize("names", [
    ("a.png", "A.png"), ("Data/a", "data/b"), ("é.png", unicodedata.normalize("NFD", "é.png")), ("straße", "STRASSE"),
    ("a", "a"), ("a", "a/b"), ("a/b", "a"), ("./a", "a"), ("a//b", "a/b")])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_are_the_same_on_some_file_system_are_refused(tmp_path, kind, names):
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with pytest.warns(UserWarning, match="Duplicate") if names == ("a", "a") else contextlib.nullcontext():
            zipped(path, *((name, b"x") for name in names))
    else:
        tar(path, *(file(name) for name in names))
    assert any(says in refused(path) for says in ("is the same as", "is there twice", "lies in a file"))


def test_a_folder_may_be_named_twice_and_a_file_is_no_folder(tmp_path):
    folders = [file("d", b"", type=tarfile.DIRTYPE), file("d/", b"", type=tarfile.DIRTYPE), file("d/x")]
    assert place(tar(tmp_path / "x.tar", *folders), tmp_path / "set") == 1
    assert "is there twice" in refused(tar(tmp_path / "y.tar", file("d"), file("d", b"", type=tarfile.DIRTYPE)))


# Bombs.

@pytest.mark.parametrize("kind", KINDS)
def test_a_bomb_is_stopped_by_its_ratio_before_it_is_written(tmp_path, kind):
    archive = plain(tmp_path / f"x.{kind}", {"zeros": bytes(32 << 20)})
    if kind == "tar":
        assert place(archive, tmp_path / "set") == 1  # it is as large as it says
    else:
        assert "grows beyond 16777216 bytes" in refused(archive)


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_bytes_and_too_many_members_are_refused(tmp_path, kind):
    archive = plain(tmp_path / f"x.{kind}", {f"{i}": os.urandom(3000) for i in range(20)})
    assert "grows beyond 30000 bytes" in refused(archive, max_bytes=30_000)
    assert "has more than 19 files and folders" in refused(archive, max_files=19)
    assert place(archive, tmp_path / "set", max_files=20) == 20


def test_a_zip_that_states_wrong_lengths_is_refused(tmp_path):
    archive = zipped(tmp_path / "x.zip", ("zeros", bytes(32 << 20)))
    archive.write_bytes(archive.read_bytes().replace(struct.pack("<I", 32 << 20), struct.pack("<I", 100)))
    refused(archive)


def test_a_tar_whose_long_name_is_a_bomb_is_refused_before_it_is_read_into_memory(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 12 << 20
    with gzip.open(tmp_path / "x.tar.gz", "wb") as out:
        out.write(info.tobuf(tarfile.GNU_FORMAT) + b"a" * (12 << 20) + bytes(1024))
    assert "a header claims 12582912 bytes" in refused(tmp_path / "x.tar.gz")


def peak(call: Callable[[], Any]) -> int:
    """The most bytes that Python holds at once during a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_deeply_nested_names_need_memory_in_proportion_to_their_length():
    names = ["/".join([f"{i:04}" + "a" * 58] + ["b" * 62] * 63) for i in range(200)]
    guard = _Guard(Path("x.zip"), 200_000, 1)
    assert peak(lambda: [guard.admit(name, False) for name in names]) < 8 * sum(map(len, names)) and guard.files == 200
    with pytest.raises(DataError, match=r"has more than 640 files and folders"):
        narrow = _Guard(Path("x.zip"), 640, 1)
        for name in names[:11]:
            narrow.admit(name, False)


def test_attributes_that_count_for_all_members_of_a_tar_are_not_kept_for_each_of_them(tmp_path):
    attributes = b"".join(b"13 k%04d=123\n" % i for i in range(4500))
    (tmp_path / "x.tar").write_bytes(header("global", tarfile.XGLTYPE, len(attributes)) + padded(attributes) + b"".join(
        header(f"{i}", tarfile.REGTYPE) for i in range(150)) + bytes(1024))
    (tmp_path / "set").mkdir()
    assert peak(lambda: unpack(tmp_path / "x.tar", tmp_path / "set")) < 10_000_000
    assert len(list((tmp_path / "set").iterdir())) == 150
    (tmp_path / "x.tar").write_bytes(header("global", tarfile.XGLTYPE, 1 << 17) + bytes(1 << 17))
    assert "a header claims 131072 bytes" in refused(tmp_path / "x.tar")


def test_a_sparse_file_is_refused_before_its_map_is_read(tmp_path):
    old = bytearray(header("sparse", tarfile.GNUTYPE_SPARSE))
    old[482] = 1  # its map goes on in further blocks
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    block = (b"%011o\0%011o\0" % (1, 1)) * 21 + b"\1" + bytes(7)
    with gzip.open(tmp_path / "old.tar.gz", "wb", 1) as out:
        out.write(bytes(old) + block * 4000)
    assert peak(lambda: refused(tmp_path / "old.tar.gz")) < 3_000_000 and "is no plain file" in refused(tmp_path / "old.tar.gz")
    attributes = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
    new = header("x", tarfile.XHDTYPE, len(attributes)) + padded(attributes) + header("new", tarfile.REGTYPE, 2048)
    (tmp_path / "new.tar").write_bytes(new + padded(b"99999999\n" + b"1\n" * 1000) + bytes(1024))
    assert "'new' is no plain file" in refused(tmp_path / "new.tar")


def header(name: str, type: bytes, size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = type, size
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def test_a_header_of_negative_size_is_refused_without_a_loop(tmp_path):
    buffer = bytearray(file("x", b"")[0].tobuf(tarfile.GNU_FORMAT))
    buffer[124:136] = b"\xff" * 11 + b"\x00"  # base 256, below zero
    buffer[148:156] = b" " * 8
    buffer[148:156] = b"%06o\0 " % sum(buffer)
    (tmp_path / "x.tar").write_bytes(bytes(buffer) + bytes(1024))
    refused(tmp_path / "x.tar")


def test_a_pipe_in_place_of_an_archive_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "x.zip")
    assert "it is no plain file" in refused(tmp_path / "x.zip")


# Damage.

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fraction", [0.3, 0.7, 0.97])
def test_an_archive_that_is_cut_off_is_refused(tmp_path, kind, fraction):
    archive = plain(tmp_path / f"x.{kind}", {f"{i}": os.urandom(5000) for i in range(3)})
    whole = archive.read_bytes() if kind != "tar" else archive.read_bytes()[:3 * 5632]
    archive.write_bytes(whole[:int(fraction * len(whole))])
    refused(archive)


@pytest.mark.parametrize("kind", ["tar.gz", "tar.xz", "tar.bz2", "zip"])
def test_a_flipped_bit_is_detected(tmp_path, kind):
    archive = plain(tmp_path / f"x.{kind}", {"a": os.urandom(50_000)})
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    archive.write_bytes(bytes(damaged))
    refused(archive)


@pytest.mark.parametrize("content", [b"", b"<html>sign in</html>", b"PK\3\4", b"PK\5\6" + bytes(18), bytes(10_240),
                                     b"\x1f\x8b"])
def test_a_file_that_is_no_archive_and_an_empty_archive_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    assert "from the data set's own page" in refused(tmp_path / "x")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_full_disk_is_no_damaged_archive_and_leaves_nothing(tmp_path, kind):
    archive = plain(tmp_path / f"x.{kind}", FILES)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))  # the kernel refuses larger files, as a full disk would
    try:
        with pytest.raises(OSError, match="File too large"):
            place(archive, tmp_path / "set")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == [archive]


def test_a_python_without_the_data_filter_unpacks_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    assert "update it to 3.10.12" in refused(plain(tmp_path / "x.tar", FILES))


def test_an_encrypted_member_and_an_unusual_compression_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a", b"x" * 100)
    assert "is compressed in an unusual way" in refused(tmp_path / "x.zip")
    archive = bytearray(zipped(tmp_path / "y.zip", ("a", b"x")).read_bytes())
    central = archive.index(b"PK\1\2")
    archive[central + 8] |= 1
    (tmp_path / "y.zip").write_bytes(bytes(archive))
    assert "is encrypted" in refused(tmp_path / "y.zip")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_every_damaged_archive_is_refused_with_a_data_error_or_unpacked(tmp_path, data):
    kind = data.draw(st.sampled_from(KINDS))
    archive = plain(tmp_path / f"x.{kind}", {"a/b": b"0123456789" * 20, "c": b"x"})
    damaged = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(bytes(damaged[:data.draw(st.integers(0, len(damaged)))]))
    with contextlib.suppress(DataError):
        place(archive, tmp_path / "set")
        shutil.rmtree(tmp_path / "set")  # the damage was harmless
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith("x.")] == []


# Names.

parts = st.sampled_from(["a", "A", "..", ".", "", "b", "é", "e\u0301", "c:", "\\", "\0", "~", "-", " "])


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=12), st.lists(parts, max_size=5).map("/".join)))
@example("a/./b//c/")
@example("~/x")
def test_a_name_is_either_refused_or_stays_inside(name):
    found = safe_parts(name)
    if isinstance(found, str):
        assert found.startswith(("is ", "has ", "leads "))
        return
    assert not any(part in ("", ".", "..") or "/" in part or "\\" in part or "\0" in part for part in found)
    assert os.path.normpath(os.path.join("/root", *found)).startswith("/root")  # noqa: PTH118
    assert not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(parts, min_size=1, max_size=3).map("/".join), min_size=1, max_size=4), st.sampled_from(["tar", "zip"]))
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_all_members_are_unpacked_under_names_of_their_own_or_none(tmp_path, names, kind):
    with tempfile.TemporaryDirectory(dir=tmp_path) as here:
        archive, target = Path(here) / f"x.{kind}", Path(here) / "set"
        if kind == "zip":
            zipped(archive, *((name, b"x") for name in names))
            with zipfile.ZipFile(archive) as opened:
                files = sum(not member.orig_filename.endswith("/") for member in opened.infolist())
        else:
            tar(archive, *(file(name) for name in names))
            files = len(names)
        try:
            place(archive, target)
        except DataError:
            assert list(Path(here).iterdir()) == [archive]
            return
        written = [path.relative_to(target).as_posix() for path in target.rglob("*") if path.is_file()]
        assert len(written) == files and set(Path(here).iterdir()) == {archive, target}
        assert len({unicodedata.normalize("NFC", name).casefold() for name in written}) == files
