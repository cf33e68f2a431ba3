"""Archives from anywhere, unpacked safely: everything that is written is a plain file inside the folder.

tarfile's data filter and zipfile keep a member inside the folder. `_Guard` refuses what they would accept or silently
repair: links, device files, absolute paths and `..`, names that are the same on some file systems (`A` and `a`; `é` as one
character or two), too many members, and archives that grow far beyond their own size.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tarfile
import unicodedata
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from adcore.errors import DataError

BLOCK = 1 << 20
MAX_FILES = 200_000
MAX_BYTES = 64 << 30
MAX_RATIO = 100           # images are compressed already: the archive of a data set is about as large as its files
SMALL = 16 << 20          # an archive may grow to this size at any ratio
LONGEST_HEADER = 1 << 20  # of a tar member's long name or attributes, which tarfile reads into memory at once
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EIO)
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LINKS = {tarfile.SYMTYPE: "is a symbolic link", tarfile.LNKTYPE: "is a hard link"}


def unpack(archive: Path, folder: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES,
           max_ratio: float = MAX_RATIO) -> int:
    """Unpack a .tar, .tar.gz, .tar.bz2, .tar.xz or .zip into an empty folder. Returns the number of files.

    The format is read from the content, not from the file's name. Owners, times and permissions are not restored.

    Raises:
        DataError: it is no such archive, is damaged, or holds what is refused (see the module).
        OSError: the disk is full or cannot be written.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DataError("this Python unpacks archives without tarfile's data filter: update it to 3.10.12, 3.11.4 or later")
    try:
        guard = _Guard(archive, max_files, min(max_bytes, max(SMALL, int(max_ratio * archive.stat().st_size))))
        with archive.open("rb") as file:
            is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
        (_unzip if is_zip else _untar)(archive, folder, guard)
    except DataError:
        raise
    except Exception as error:  # damaged archives raise ReadError, EOFError, LZMAError, struct.error, RuntimeError, ...
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{archive} cannot be read as a tar or zip archive ({what}): get it again from the data set's own "
                        f"page") from error
    if not guard.files:
        raise DataError(f"{archive} holds no file: get it again from the data set's own page")
    return len(guard.files)


@dataclass
class _Guard:
    """Checks the members of an archive one by one, before each is written.

    limit     bytes to which the archive may grow
    files     paths of files so far
    spelling  paths of files and folders so far, by the form that a file system may compare
    """

    archive: Path
    max_files: int
    limit: int
    members: int = 0
    size: int = 0
    files: set[str] = field(default_factory=set)
    spelling: dict[str, str] = field(default_factory=dict)

    def refuse(self, name: str, why: str) -> DataError:
        return DataError(f"{self.archive} is not unpacked: {name[:200]!r} {why}; get the archive from the data set's own page")

    def grow(self, count: int) -> None:
        """Count bytes that will come out. Raises DataError beyond the limit."""
        self.size += count
        if self.size > self.limit:
            raise DataError(f"{self.archive} is not unpacked: it grows beyond {self.limit} bytes, too much for an archive of "
                            f"its size; get the archive from the data set's own page")

    def admit(self, name: str, is_folder: bool) -> None:
        """Count a member and check its name. Raises DataError when it is refused."""
        self.members += 1
        if self.members > self.max_files:
            raise DataError(f"{self.archive} is not unpacked: it has more than {self.max_files} members; get the archive from "
                            f"the data set's own page")
        parts = safe_parts(name)
        if isinstance(parts, str):
            raise self.refuse(name, parts)
        if not is_folder and (not parts or name.endswith("/")):
            raise self.refuse(name, "is a file with the name of a folder")
        path = "/".join(parts)
        known = _compared(path) in self.spelling
        for end in range(1, len(parts) + 1):
            above = "/".join(parts[:end])
            if above in self.files and end < len(parts):
                raise self.refuse(name, "lies in a file")
            other = self.spelling.setdefault(_compared(above), above)
            if other != above:
                raise self.refuse(name, f"is the same as {other!r} on some file systems")
        if path in self.files or (known and not is_folder):
            raise self.refuse(name, "is there twice")
        if not is_folder:
            self.files.add(path)


def safe_parts(name: str) -> tuple[str, ...] | str:
    """The folders and the file name of a member's path, or what is wrong with it.

    >>> safe_parts("./train/good/000.png")
    ('train', 'good', '000.png')
    >>> safe_parts("../000.png")
    'leads out of the folder'
    """
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if "\\" in name or any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "has a character in its name that does not belong there"
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        return "leads out of the folder"
    if len(parts) > 64 or len(name.encode()) > 4096:
        return "is a path that is too long"
    return parts


def _compared(path: str) -> str:
    """A path as the least strict file system compares it: without case, and with one way to write an accent."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _unzip(archive: Path, folder: Path, guard: _Guard) -> None:
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            name = member.orig_filename  # as written: zipfile has repaired `filename`
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise guard.refuse(name, "is a symbolic link" if kind == stat.S_IFLNK else "is no plain file")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise guard.refuse(name, "is compressed in an unusual way")
            guard.admit(name, name.endswith("/"))
            guard.grow(member.file_size)  # zipfile writes no more than this, and then compares a checksum
            opened.extract(member, folder)


def _untar(archive: Path, folder: Path, guard: _Guard) -> None:
    class Header(tarfile.TarInfo):
        """Counts and checks the size in each header before tarfile trusts it: one below zero would make it loop forever."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            header = super().frombuf(buf, encoding, errors)
            if header.size < 0 or (header.type in _HEADERS and header.size > LONGEST_HEADER):
                raise guard.refuse(header.name, f"is wrong: a header claims {header.size} bytes")
            guard.grow(header.size)
            return header

    with tarfile.open(archive, tarinfo=Header) as opened:
        for member in opened:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise guard.refuse(member.name, _LINKS.get(member.type, "is no plain file"))
            guard.admit(member.name, member.isdir())
            opened.extract(member, folder, set_attrs=False, filter="data")
        assert opened.fileobj is not None
        while block := opened.fileobj.read(BLOCK):  # to the end, where gzip and xz have their checksum
            guard.grow(len(block))


def unwrap(folder: Path) -> None:
    """Move everything up out of a folder that holds all of it, such as the one that GitHub puts around a repository."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith(".") and path.name != "__MACOSX"]
        if len(inside) != 1 or not inside[0].is_dir():
            return
        wrapper = inside[0].rename(folder.with_name(f"{folder.name}.wrapper"))  # outside, where no other name is
        for path in wrapper.iterdir():
            path.rename(folder / path.name)
        wrapper.rmdir()


def copy_folder(source: Path, folder: Path) -> int:
    """Copy the plain files of a folder, without .git, into an empty one. Returns the number of files.

    Raises:
        DataError: it holds a link or a device file, or no file at all.
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
