"""Files over HTTP: pooch downloads them into a private folder, and they get their name when length and checksum are right."""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests

import adcore
from adcore.errors import DataError
from adcore.files import private_folder
from adcore.progress import progress_bar

BLOCK = 1 << 18  # bytes
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # HTTP errors that may be gone at the next attempt
WEB = ("http", "https")
LARGEST = 64 << 30   # bytes of a file whose size is not known
SLOWEST = 10_000     # bytes per second over the whole download, all attempts together
PATIENCE = 600.0     # seconds allowed on top


def download(url: str, target: Path, *, size: int | None = None, flaw: Callable[[Path], str] | None = None,
             remedy: str = "get it by hand", retries: int = 4, timeout: float = 30.0, progress: bool | None = None) -> Path:
    """Download `url` to `target`. A file that is already there is kept if it has no flaw.

    size      bytes the file must have, if known
    flaw      what is wrong with a file ("is not 'x': expected ..."), '' if nothing; None when no checksum is known
    remedy    ends the message of a download that failed
    retries   further attempts after a network error; each begins from the start of the file
    timeout   seconds without a byte after which a connection has failed

    Raises:
        DataError: no such file, no connection, a very slow one, a wrong file, or no room; one sentence that ends in `remedy`.
    """
    answers: list[requests.Response] = []
    expected = size or 0

    def wrong(path: Path) -> str:
        found = path.stat().st_size
        return f"has {found} bytes where {size} are expected" if size not in (None, found) else flaw(path) if flaw else ""

    def failed(why: str) -> DataError:
        return DataError(f"cannot download {url} ({why}): {remedy}")

    def inspect(answer: requests.Response, **_: Any) -> None:
        """Refuse an answer by its headers, before its body is read. `requests` calls this for redirections too."""
        nonlocal expected
        answers.append(answer)
        answer.raw.headers.pop("Content-Encoding", None)  # a file stays packed, whatever the server says of it
        here, there = answer.url, urljoin(answer.url, answer.headers.get("Location", ""))
        length = answer.headers.get("Content-Length", "")
        if answer.is_redirect:
            if urlsplit(there).scheme not in WEB or (urlsplit(here).scheme == "https" and urlsplit(there).scheme == "http"):
                raise failed(f"{answer.status_code} {answer.reason}: it redirects to {there}, which is refused")
        elif answer.status_code in TEMPORARY:
            return  # pooch raises an HTTPError and tries again
        elif answer.status_code != 200:
            raise failed(f"{answer.status_code} {answer.reason}")
        elif answer.headers.get("Content-Type", "").startswith("text/html"):
            raise failed("it is a web page, not a file")
        elif not re.fullmatch("[0-9]{1,18}", length) or "Transfer-Encoding" in answer.headers:  # which would overrule it
            raise failed("the server does not state the file's length")
        elif size not in (None, int(length)):
            raise failed(f"the server has {length} bytes where {size} are expected")
        elif int(length) > LARGEST:
            raise failed(f"the server has {length} bytes where {LARGEST} are the limit")
        elif int(length) > (free := shutil.disk_usage(target.parent).free):
            raise failed(f"{target.parent} has {free / 1e9:.1f} GB of room where {int(length) / 1e9:.1f} GB are needed")
        else:
            expected = int(length)
            bar.reset()

    def allowed() -> float:
        return PATIENCE + expected / SLOWEST

    if target.is_file() and not wrong(target):
        return target
    if urlsplit(url).scheme not in WEB:
        raise failed("only http and https are supported")
    pooch.get_logger().setLevel("WARNING")
    try:
        with private_folder(target) as folder, progress_bar(desc=target.name, total=size or 1, unit="B", unit_scale=True,
                                                            unit_divisor=1024, enabled=progress) as bar:
            if target.is_file() and not wrong(target):
                return target  # another process downloaded it while this one waited
            files = pooch.create(folder, base_url="", registry={target.name: None}, urls={target.name: url},
                                 retry_if_failed=retries)
            identity = {"User-Agent": f"adcore/{adcore.__version__}", "Accept-Encoding": "identity"}  # a .gz stays packed
            get = pooch.HTTPDownloader(progressbar=bar, chunk_size=BLOCK, timeout=timeout, headers=identity,
                                       hooks={"response": inspect})
            with _in_background(lambda: Path(files.fetch(target.name, downloader=get)), answers) as arriving:
                began = time.monotonic()
                while not wait([arriving], timeout=0.1).done:
                    if time.monotonic() - began > allowed():
                        raise failed(f"it is not complete after {allowed():.0f} seconds, slower than {SLOWEST} bytes a second")
            arrived = arriving.result()
            if found := wrong(arrived):
                raise DataError(f"{url} sent a file that {found}: {remedy}")
            arrived.chmod(0o644)  # pooch writes files that only this user can read
            return arrived.replace(target)
    except requests.RequestException as error:
        raise failed(_reason(error, timeout)) from error
    except OSError as error:
        raise DataError(f"cannot write {target}: {error.strerror}; name another folder in ADCORE_DATA or ADCORE_WEIGHTS, or "
                        f"{remedy}") from error


@contextlib.contextmanager
def _in_background(work: Callable[[], Path], answers: list[requests.Response]) -> Iterator[Future[Path]]:
    """The result to come of `work`, which runs in a thread: a server that sends a byte now and then, in its headers or in its
    body, keeps one busy for ever. At the end of the block a thread that is not done is left alone, and its connection ended."""
    future: Future[Path] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again by `result`
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield future
    finally:
        if not future.done():
            for answer in answers[-1:]:
                with contextlib.suppress(AttributeError, RuntimeError, OSError, ValueError):  # older urllib3, or closed already
                    answer.raw.shutdown()


def _reason(error: BaseException, timeout: float) -> str:
    """What failed, in a few words: the libraries' own messages are long and nested."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.TooManyRedirects):
        return "it redirects in a circle"
    while error.__context__ is not None:
        error = error.__context__
    if isinstance(error, http.client.IncompleteRead):
        received = int(error.partial)  # urllib3 gives a number where Python gives the bytes
        return f"the connection was cut after {received} of {received + (error.expected or 0)} bytes"
    if isinstance(error, TimeoutError):
        return f"nothing came for {timeout:g} seconds"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not valid: {error.verify_message}"
    return f"the connection failed: {error}"
