"""Archives of others unpacked without trust: what is written lies inside the folder and is a plain file.

Refused are links of both kinds, device files, pipes, absolute and parent paths, names that two members share on some file
system (`A` and `a`; `é` in one sign or two), too many members, and bombs. What a header says of sizes is not believed: bytes
are counted as they come out.

    with placing(root / "ksdd2") as folder:      # a folder beside it, renamed at the end or removed
        unpack(archive, folder)
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from adcore.errors import DataError
from adcore.files import hold

BLOCK = 1 << 20
MAX_FILES = 200_000
MAX_BYTES = 64 << 30
MAX_RATIO = 100          # images are packed already: the archives of data sets unpack to about their own size
SMALL = 16 << 20         # up to here no ratio is held against an archive
LONGEST_HEADER = 1 << 20  # of a tar member's long name or attributes, which tarfile reads into memory whole
PACKERS: dict[bytes, Any] = {b"\xfd7zXZ\0": lzma.LZMAFile, b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
                             b"BZh": bz2.BZ2File}
OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO)
_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@contextlib.contextmanager
def placing(target: Path) -> Iterator[Path]:
    """A new folder beside `target` that takes its name when the block ends well and is removed when it does not.

    What a killed process left there is cleared by the next one.

    Raises:
        DataError: `target` is there, its folder cannot be written, or another process is at it.
    """
    folder = target.with_name(f".{target.name}.unpacking")
    descriptor, placed = -1, False
    try:
        if target.exists():
            raise DataError(f"{target} is there already: remove it first to put another in its place")
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = hold(folder, os.O_RDONLY)
        _clear(folder)
        yield folder
        folder.rename(target)
        placed = True
    except BlockingIOError:
        raise DataError(f"{target} is being unpacked by another process: wait for that one") from None
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}; make room, or name another folder in "
                        f"ADCORE_DATA") from error
    finally:
        if descriptor >= 0:
            if not placed:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(descriptor)


def _clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def unpack(archive: Path, folder: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES,
           max_ratio: float = MAX_RATIO) -> int:
    """Unpack a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip, told by its first bytes, into an empty folder; how many files.

    Owners, times and permissions are not taken over.

    Raises:
        DataError: it is no such archive, is broken, or holds what is refused (see the module).
        OSError: the disk is full or cannot be written; `placing` puts it into words.
    """
    try:
        allowed = min(max_bytes, max(SMALL, int(max_ratio * archive.stat().st_size)))
        writer = _Writer(archive, folder, max_files, allowed)
        with archive.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            if start.startswith((b"PK\3\4", b"PK\5\6")):
                _zip(file, writer)
            else:
                _tar(file, start, writer)
    except DataError:
        raise
    except OSError as error:
        if error.errno in OF_THE_DISK:
            raise
        raise _broken(archive, error) from error
    except Exception as error:  # whatever bytes can make of a reader of archives: ReadError, EOFError, LZMAError, struct.error
        raise _broken(archive, error) from error
    if not writer.files:
        raise DataError(f"{archive} holds no file: get it again from the data set's own page")
    return writer.files


def _broken(archive: Path, error: Exception) -> DataError:
    what = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError(f"{archive} cannot be read as a tar or zip archive ({what}): get it again from the data set's own page")


@dataclass
class _Writer:
    """Writes members below `folder` and keeps the accounts of an archive."""

    archive: Path
    folder: Path
    max_files: int
    allowed: int
    files: int = 0
    members: int = 0
    spent: int = 0
    names: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)  # as a file system may see it -> as spelt
    plain: set[tuple[str, ...]] = field(default_factory=set)

    def refuse(self, name: str, why: str) -> DataError:
        return DataError(f"{self.archive} is not unpacked: {name!r} {why}; get the archive from the data set's own page")

    def spend(self, count: int) -> None:
        """Count bytes that come out. Raises DataError beyond the limit."""
        self.spent += count
        if self.spent > self.allowed:
            raise DataError(f"{self.archive} is not unpacked: it grows beyond {self.allowed} bytes, as no data set of its "
                            f"size does; get the archive from the data set's own page")

    def make_folder(self, name: str) -> None:
        self._count()
        parts = self._enter(name)
        if parts in self.plain:
            raise self.refuse(name, "is there twice")
        self.folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, source: IO[bytes], *, counted: bool) -> int:
        """Write one file; its length. `counted` says that `source` counts its bytes itself."""
        self._count()
        parts = self._enter(name)
        if not parts or name.endswith("/"):
            raise self.refuse(name, "is a file with the name of a folder")
        if parts in self.plain or self.folder.joinpath(*parts).exists():
            raise self.refuse(name, "is there twice")
        self.plain.add(parts)
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        length = 0
        with path.open("xb") as file:
            while block := source.read(BLOCK):
                if not counted:
                    self.spend(len(block))
                length += file.write(block)
        self.files += 1
        return length

    def _count(self) -> None:
        self.members += 1
        if self.members > self.max_files:
            raise DataError(f"{self.archive} is not unpacked: it has more than {self.max_files} members; get the archive from "
                            f"the data set's own page")

    def _enter(self, name: str) -> tuple[str, ...]:
        """The parts of a member's path, checked, and each folder on the way noted."""
        parts = safe_parts(name)
        if isinstance(parts, str):
            raise self.refuse(name, parts)
        for end in range(1, len(parts) + 1):
            place = parts[:end]
            if place in self.plain and end < len(parts):
                raise self.refuse(name, "lies in a file")
            seen = tuple(_folded(part) for part in place)
            if self.names.setdefault(seen, place) != place:
                raise self.refuse(name, f"is the same as {'/'.join(self.names[seen])!r} on some file systems")
        return parts


def safe_parts(name: str) -> tuple[str, ...] | str:
    """The folders and the file of a member's name, or what is wrong with it."""
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if "\\" in name or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        return "has a sign in its name that does not belong there"
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        return "leads out of the folder"
    return parts


def _folded(part: str) -> str:
    """A name as the most forgiving file system sees it: case and the way an accent is written make no difference."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())


def _zip(file: IO[bytes], writer: _Writer) -> None:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.orig_filename  # as written: `filename` has been mended by zipfile
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind == stat.S_IFLNK:
                raise writer.refuse(name, "is a symbolic link")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise writer.refuse(name, "is no plain file")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise writer.refuse(name, "is packed in an unusual way")
            if name.endswith("/"):
                writer.make_folder(name)
            else:
                with archive.open(member) as source:
                    writer.write(name, source, counted=False)


def _tar(file: IO[bytes], start: bytes, writer: _Writer) -> None:
    opened = next((reader for magic, reader in PACKERS.items() if start.startswith(magic)), None)
    counted = _Counted(opened(file) if opened else file, writer)
    # "r|" reads once from front to back, so that what is counted is all that comes out.
    with tarfile.open(fileobj=counted, mode="r|", tarinfo=_Header) as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.issym():
                raise writer.refuse(member.name, "is a symbolic link")
            if member.islnk():
                raise writer.refuse(member.name, "is a hard link")
            if member.isdir():
                writer.make_folder(member.name)
            elif member.isreg() and not member.issparse():
                source = archive.extractfile(member)
                if source is None or writer.write(member.name, source, counted=True) != member.size:
                    raise DataError(f"{writer.archive} is cut off in {member.name!r}: get it again")
            else:
                raise writer.refuse(member.name, "is no plain file")
    while counted.read(BLOCK):  # to the end, where the checksums of gzip and xz are
        pass


class _Counted:
    """A stream that reports its bytes to the writer's accounts."""

    def __init__(self, stream: IO[bytes], writer: _Writer) -> None:
        self.stream, self.writer = stream, writer

    def read(self, size: int) -> bytes:
        block = self.stream.read(size)
        self.writer.spend(len(block))
        return block


class _Header(tarfile.TarInfo):
    """A member's header that does not claim to be endless."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in _NAMES and header.size > LONGEST_HEADER):
            raise DataError(f"the archive is not unpacked: a header claims {header.size} bytes; get it from the data set's own "
                            f"page")
        return header


def unwrap(folder: Path) -> None:
    """Move everything up out of a folder that holds all of it, such as the one that GitHub puts around a repository."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
        if len(inside) != 1 or not inside[0].is_dir():
            return
        wrapper = inside[0].rename(folder / ".wrapper")
        for path in wrapper.iterdir():
            path.rename(folder / path.name)
        wrapper.rmdir()


def copy_folder(source: Path, folder: Path) -> int:
    """Copy the plain files of a folder, without .git, into an empty one; how many.

    Raises:
        DataError: a link or a device file, or no file at all.
    """
    files = 0
    for here, folders, names in os.walk(source):
        folders[:] = [name for name in folders if name != ".git"]
        there = folder / Path(here).relative_to(source)
        there.mkdir(parents=True, exist_ok=True)
        for name in [*folders, *names]:
            path = Path(here) / name
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise DataError(f"{path} is a link or no plain file: only a folder of plain files is copied")
        for name in names:
            shutil.copyfile(Path(here) / name, there / name)
            files += 1
    if not files:
        raise DataError(f"{source} holds no file")
    return files
