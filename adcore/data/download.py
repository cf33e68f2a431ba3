"""Files over HTTP: they go on where they broke off, and get their name when they are whole.

Pooch, which the project knows too (`adcore data export --pooch`), begins again after a cut connection, and data sets of 5 GB
seldom arrive in one go. So this is a loop of our own, over the standard library:

    <file>.part    what has arrived; a killed download leaves this and nothing else, and the next one goes on from it
    <file>         length and checksum are right
"""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any, NoReturn
from urllib.parse import urlsplit

import adcore
from adcore.errors import DataError
from adcore.files import hold
from adcore.progress import progress_bar

BLOCK = 1 << 18
LONGEST_PAUSE = 30.0  # seconds
PASSING = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may change its mind
WEB = ("http", "https")


def download(url: str, target: Path, *, size: int | None = None, flaw: Callable[[Path], str] | None = None,
             remedy: str = "get it by hand", retries: int = 4, timeout: float = 30.0, pause: float = 1.0,
             progress: bool | None = None) -> Path:
    """Download `url` to `target`; nothing is done when `target` is there without a flaw.

    size      bytes the file must have, if known
    flaw      what is wrong with a file ("is not 'x': expected ..."), '' when nothing is; None when no checksum is known. Then
              what an earlier run left is thrown away: the server's file may be another by now, and nothing would tell
    remedy    ends the message of a download that failed
    retries   how often in a row an attempt may bring nothing new
    timeout   seconds of silence after which a connection counts as dead
    pause     seconds before the first retry; doubled for each further one

    Raises:
        DataError: no such file, no connection, not the file that was expected, no room; one sentence that ends in `remedy`.
    """
    if target.is_file() and _flaw(target, size, flaw) == "":
        return target
    if urlsplit(url).scheme not in WEB:
        raise DataError(f"cannot download {url} (only http and https are): {remedy}")
    part = target.with_name(target.name + ".part")
    with _held(part, remedy) as file, progress_bar(desc=target.name, unit="B", unit_scale=True, unit_divisor=1024,
                                                   enabled=progress) as bar:
        if flaw is None:
            file.truncate(0)
        transfer = _Transfer(url, file, bar, size, flaw is not None, remedy, timeout, target.parent,
                             joined=file.seek(0, os.SEEK_END) > 0)
        while True:
            transfer.complete(retries, pause)
            file.flush()
            os.fsync(file.fileno())
            wrong = _flaw(part, size, flaw)
            if not wrong:
                part.replace(target)
                return target
            file.truncate(0)
            if not transfer.joined:
                raise DataError(f"{url} sent a file that {wrong}: {remedy}")
            transfer.joined = False  # its parts may be of two days' files: once more, from the beginning


def _flaw(path: Path, size: int | None, flaw: Callable[[Path], str] | None) -> str:
    found = path.stat().st_size
    if size is not None and found != size:
        return f"has {found} bytes where {size} are expected"
    return flaw(path) if flaw else ""


@contextlib.contextmanager
def _held(part: Path, remedy: str) -> Iterator[IO[bytes]]:
    """The .part file, open to read and write; only one process has it."""
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        descriptor = hold(part, os.O_RDWR | os.O_CREAT)
    except BlockingIOError:
        raise DataError(f"{part} is being downloaded by another process: wait for that one") from None
    except OSError as error:
        raise DataError(f"cannot write {part}: {error.strerror}; name another folder in ADCORE_DATA or ADCORE_WEIGHTS, "
                        f"or {remedy}") from error
    with os.fdopen(descriptor, "r+b") as file:
        try:
            yield file
        finally:
            if os.fstat(descriptor).st_size == 0:
                part.unlink(missing_ok=True)


class _PassingError(Exception):
    """An attempt that failed in a way that another one may not."""


@dataclass
class _Transfer:
    """One file on its way. `file` holds what has arrived, and `total` is its length, known from the first answer on."""

    url: str
    file: IO[bytes]
    bar: Any
    size: int | None
    checked: bool
    remedy: str
    timeout: float
    folder: Path
    joined: bool  # what is here came in more than one answer
    total: int | None = None
    version: str = ""  # the server's tag of the file, so that it does not go on with another one

    def complete(self, retries: int, pause: float) -> None:
        """Ask until all is there. A retry counts only when the attempt before it brought nothing new."""
        furthest, failures = 0, 0
        while True:
            try:
                if self._attempt():
                    return
                why = f"the connection was cut after {self._have()} of {self.total} bytes"
            except _PassingError as error:
                why = str(error)
            have = self._have()
            failures = 0 if have > furthest else failures + 1
            furthest = max(furthest, have)
            if failures > retries:
                kept = f", {have} bytes are kept and the same command goes on from there" if have and self.checked else ""
                self._fail(f"{why}, {failures} times in a row without progress{kept}")
            time.sleep(min(LONGEST_PAUSE, pause * 2 ** max(0, failures - 1)))

    def _have(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def _fail(self, why: str) -> NoReturn:
        raise DataError(f"cannot download {self.url} ({why}): {self.remedy}")

    def _restart(self) -> None:
        self.file.seek(0)
        self.file.truncate(0)

    def _attempt(self) -> bool:
        """One request, from where the file ends. True when the file is complete.

        Raises:
            _PassingError: the server or the line failed.
            DataError: another attempt would not help.
        """
        if self.size is not None and self._have() > self.size:
            self._restart()
        if self._have() and self._have() == self.size:
            return True
        try:
            with _opener().open(self._request(), timeout=self.timeout) as response:
                self._accept(response.status, response.headers)
                self._receive(response)
        except urllib.error.HTTPError as error:
            with error:
                return self._refused(error)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                self._fail(f"its certificate is not valid: {reason.verify_message}")
            if isinstance(reason, TimeoutError):
                raise _PassingError(f"nothing came for {self.timeout:g} seconds") from error
            raise _PassingError(f"{type(reason).__name__}: {reason}") from error
        have = self._have()
        return have == self.total if self.total is not None else have > 0

    def _request(self) -> urllib.request.Request:
        request = urllib.request.Request(self.url, headers={"User-Agent": f"adcore/{adcore.__version__}"})
        if have := self._have():
            request.add_header("Range", f"bytes={have}-")
            if self.version:
                request.add_header("If-Range", self.version)
        return request

    def _accept(self, status: int, headers: Message) -> None:
        """Read off an answer where its bytes belong: 206 goes on, 200 begins again, whatever was asked for."""
        length = headers.get("Content-Length", "")
        total = int(length) if length.isdecimal() else None
        if status == 206:
            start, total = _content_range(headers)
            if start != self._have():
                self._restart()
                raise _PassingError(f"the server sent the bytes from {start} on where others were asked for")
            self.joined |= start > 0
        elif status == 200:
            self._restart()
        else:
            self._fail(f"the server answered {status}")
        if headers.get_content_type() == "text/html":
            self._fail("it is a web page, not a file")
        if total is not None and self.size is not None and total != self.size:
            self._fail(f"the server has {total} bytes where {self.size} are expected")
        self.total = total if total is not None else self.size
        if self.total is None and not self.checked:
            self._fail("neither its length nor its checksum is known, so a part could not be told from the whole")
        tag = headers.get("ETag", "")
        self.version = "" if tag.startswith("W/") else tag
        missing = (self.total or 0) - self._have()
        free = shutil.disk_usage(self.folder).free
        if missing > free:
            self._fail(f"{missing / 1e9:.1f} GB are missing and {self.folder} has {free / 1e9:.1f} GB of room")

    def _receive(self, response: http.client.HTTPResponse) -> None:
        """Append what comes, block by block, so that a cut loses nothing."""
        have = self._have()
        self.bar.total = self.total
        self.bar.n = have
        self.bar.refresh()
        while block := response.read1(BLOCK):
            have += len(block)
            if self.total is not None and have > self.total:
                self._restart()
                self._fail(f"the server sent more than the {self.total} bytes it has")
            try:
                self.file.write(block)
                self.file.flush()
            except OSError as error:
                self._fail(f"{self.folder}: {error.strerror}")
            self.bar.update(len(block))

    def _refused(self, error: urllib.error.HTTPError) -> bool:
        """An answer that is no file. True when it says that all is here already."""
        if error.code == 416:  # nothing lies behind the bytes that we have: the end, or those are of another file
            match = re.fullmatch(r"bytes \*/(\d+)", error.headers.get("Content-Range", ""))
            if match and int(match[1]) == self._have() and self.size in (None, self._have()):
                return True
            self._restart()
            raise _PassingError("the server has no bytes behind those that are here") from error
        if error.code in PASSING:
            raise _PassingError(f"{error.code} {error.reason}") from error
        self._fail(f"{error.code} {str(error.reason).splitlines()[0] if error.reason else ''}".strip())


def _content_range(headers: Message) -> tuple[int, int | None]:
    """Where the bytes of a 206 begin, -1 when it does not say, and how long the whole file is."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if not match:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections on the web and nowhere else; not out of https either, where anyone on the way could change it."""

    def redirect_request(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any,
                         newurl: str) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in WEB or (urlsplit(req.full_url).scheme, scheme) == ("https", "http"):
            raise urllib.error.HTTPError(req.full_url, code, f"it redirects to {newurl}, which is refused", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """http, https and the system's proxies; the handlers for files and ftp that urllib would add are left out."""
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
                    urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPErrorProcessor, _Redirects):
        opener.add_handler(handler())
    return opener
