"""Archives from anywhere, unpacked safely: everything that is written is a plain file inside the folder.

tarfile's data filter and zipfile keep a member inside the folder. `_Guard` refuses what they would accept or silently
repair: links, device files, absolute paths and `..`, invisible characters, names that are the same on some file systems (`A`
and `a`; `é` as one character or two), too many members, and archives that grow far beyond their own size.
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
from typing import BinaryIO, NamedTuple

from adcore.errors import DataError
from adcore.files import open_plain

BLOCK = 1 << 20
MAX_FILES = 200_000
MAX_BYTES = 64 << 30
MAX_RATIO = 100           # images are compressed already: the archive of a data set is about as large as its files
SMALL = 16 << 20          # an archive may grow to this size at any ratio
LONGEST_HEADER = 1 << 16  # of a tar member's long name or attributes, which tarfile reads at once and copies to later members
INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories of control and formatting characters, and of line breaks
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
        with open_plain(archive) as file:
            guard = _Guard(archive, max_files, min(max_bytes, max(SMALL, int(max_ratio * os.fstat(file.fileno()).st_size))))
            is_zip = file.read(4) in (b"PK\3\4", b"PK\5\6")
            file.seek(0)
            (_unzip if is_zip else _untar)(file, folder, guard)
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
    return guard.files


class _Entry(NamedTuple):
    """A file or folder: its number, its name as the archive spells it, and whether it is a file."""

    number: int
    name: str
    is_file: bool


@dataclass
class _Guard:
    """Checks the members of an archive one by one, before each is written.

    limit    bytes to which the archive may grow
    entries  files and folders so far, by the number of the folder that they are in (0 for the outermost) and by their name as
             a file system may compare it. No path is kept: deeply nested ones would fill the memory
    """

    archive: Path
    max_files: int
    limit: int
    members: int = 0
    files: int = 0
    size: int = 0
    entries: dict[tuple[int, str], _Entry] = field(default_factory=dict)

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
        parts = safe_parts(name)
        if isinstance(parts, str):
            raise self.refuse(name, parts)
        if not is_folder and (not parts or name.endswith("/")):
            raise self.refuse(name, "is a file with the name of a folder")
        within = 0
        for i, part in enumerate(parts):
            last = i + 1 == len(parts)
            new = _Entry(len(self.entries) + 1, part, last and not is_folder)
            entry = self.entries.setdefault((within, _compared(part)), new)
            if entry.name != part:
                other = "/".join((*parts[:i], entry.name))
                raise self.refuse(name, f"is the same as {other!r} on some file systems")
            if entry.is_file and not last:
                raise self.refuse(name, "lies in a file")
            if last and entry is not new and (entry.is_file or not is_folder):
                raise self.refuse(name, "is there twice")
            within = entry.number
        self.files += not is_folder
        if max(self.members, len(self.entries)) > self.max_files:
            raise DataError(f"{self.archive} is not unpacked: it has more than {self.max_files} files and folders; get the "
                            f"archive from the data set's own page")


def safe_parts(name: str) -> tuple[str, ...] | str:
    """The folders and the file name of a member's path, or what is wrong with it.

    >>> safe_parts("./train/good/000.png")
    ('train', 'good', '000.png')
    >>> safe_parts("../000.png")
    'leads out of the folder'
    """
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    if "\\" in name or any(unicodedata.category(character) in INVISIBLE for character in name):
        return "has a character in its name that does not belong there"
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if ".." in parts:
        return "leads out of the folder"
    if len(parts) > 64 or len(name.encode()) > 4096:
        return "is a path that is too long"
    return parts


def _compared(name: str) -> str:
    """A name as the least strict file system compares it: without case, and with one way to write an accent."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _unzip(file: BinaryIO, folder: Path, guard: _Guard) -> None:
    with zipfile.ZipFile(file) as opened:
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


def _untar(file: BinaryIO, folder: Path, guard: _Guard) -> None:
    class Header(tarfile.TarInfo):
        """Counts and checks the size in each header before tarfile trusts it: one below zero would make it loop forever."""

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
            header = super().frombuf(buf, encoding, errors)
            if header.size < 0 or (header.type in _HEADERS and header.size > LONGEST_HEADER):
                raise guard.refuse(header.name, f"is wrong: a header claims {header.size} bytes")
            if header.type == tarfile.GNUTYPE_SPARSE:  # tarfile would read its map, of any length, into memory
                raise guard.refuse(header.name, "is no plain file")
            guard.grow(header.size)
            return header

        def _proc_gnusparse_10(self, following: tarfile.TarInfo, *_: object) -> None:
            raise guard.refuse(following.name, "is no plain file")  # a sparse file in the newer format

    with tarfile.open(fileobj=file, tarinfo=Header) as opened:
        while (member := opened.next()) is not None:
            opened.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all headers otherwise
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
        everything = list(folder.iterdir())
        inside = [path for path in everything if not path.name.startswith(".") and path.name != "__MACOSX"] or everything
        if len(inside) != 1 or not inside[0].is_dir() or _clash(inside[0], folder):
            return
        wrapper = inside[0].rename(folder.with_name(f"{folder.name}.wrapper"))  # outside, where no other name is
        for path in wrapper.iterdir():
            path.rename(folder / path.name)
        wrapper.rmdir()


def _clash(wrapper: Path, folder: Path) -> bool:
    """Whether a folder beside the wrapper, which is hidden then, has the name of something in it, or the other way round."""
    pairs = [(path, folder / path.name) for path in wrapper.iterdir() if path.name != wrapper.name]
    return any(there.exists() and (there.is_dir() or path.is_dir()) for path, there in pairs)


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
