"""Downloads from a server that cuts, lies, stalls, redirects and sends another file than the one asked for."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import requests
import urllib3
from support.web import Handler, Web, honest, says, web

from adcore.data import download as module
from adcore.data.download import _reason, download
from adcore.errors import DataError
from adcore.files import one_at_a_time
from adcore.progress import progress_bar

__all__ = ["web"]
CONTENT = bytes(range(251)) * 400  # 100,400 bytes without a repetition at a round number
SIZE = len(CONTENT)
REMEDY = "get x.bin by hand from https://example.org, then run `adcore data fetch x --from x.bin`"


def is_content(path: Path) -> str:
    return "" if path.read_bytes() == CONTENT else f"is not 'x': found {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


fetch = partial(download, flaw=is_content, remedy=REMEDY, timeout=5.0, progress=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file goes; pooch does not wait between two attempts."""
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    return tmp_path / "data" / "x.bin"


def test_a_file_arrives_with_one_request_and_a_second_call_asks_for_nothing(web: Web, target):
    url = web.put("/x.bin", CONTENT)
    for _ in range(2):
        assert fetch(url, target, size=SIZE) == target and target.read_bytes() == CONTENT
    assert web.asked == ["/x.bin"] and names(target.parent) == ["x.bin"]
    assert target.stat().st_mode & 0o777 == 0o644


def test_a_wrong_file_is_replaced_when_the_right_one_has_arrived(web: Web, target):
    target.parent.mkdir()
    target.write_bytes(b"something else")
    url = web.put("/x.bin", CONTENT, honest(cut=9))
    complaint(lambda: fetch(url, target, retries=0))
    assert target.read_bytes() == b"something else"
    assert fetch(url, target).read_bytes() == CONTENT


def test_a_file_is_requested_again_after_a_cut_connection(web: Web, target):
    url = web.put("/x.bin", CONTENT, honest(cut=30_000), honest(cut=1), honest(cut=50_000))
    assert fetch(url, target).read_bytes() == CONTENT and len(web.asked) == 4
    assert names(target.parent) == ["x.bin"]


def test_a_download_that_is_always_cut_fails_and_leaves_nothing(web: Web, target):
    url = web.put("/x.bin", CONTENT, *[honest(cut=40_000)] * 9)
    text = complaint(lambda: fetch(url, target, retries=2))
    assert text == f"cannot download {url} (the connection was cut after 40000 of {SIZE} bytes): {REMEDY}"
    assert names(target.parent) == [] and len(web.asked) == 3


@pytest.mark.parametrize("claim", [SIZE + 1000, 10 * SIZE])
def test_a_server_that_states_more_bytes_than_it_sends_is_an_error(web: Web, target, claim):
    url = web.put("/x.bin", CONTENT, *[says(200, Content_Length=claim)] * 9)
    assert f"cut after {SIZE} of {claim} bytes" in complaint(lambda: fetch(url, target, flaw=None, retries=0))
    assert names(target.parent) == []


def test_a_server_that_states_fewer_bytes_than_the_file_has_is_detected_by_the_checksum(web: Web, target):
    url = web.put("/x.bin", CONTENT, says(200, Content_Length=SIZE - 1))
    assert complaint(lambda: fetch(url, target)).startswith(f"{url} sent a file that is not 'x': found ")
    assert names(target.parent) == []


def test_a_length_other_than_the_manifest_s_is_refused_before_a_byte_is_read(web: Web, target):
    url = web.put("/x.bin", CONTENT)
    text = complaint(lambda: fetch(url, target, size=SIZE - 1))
    assert text == f"cannot download {url} (the server has {SIZE} bytes where {SIZE - 1} are expected): {REMEDY}"
    assert names(target.parent) == [] and len(web.asked) == 1


@pytest.mark.parametrize("headers", [{}, {"Content_Length": "9" * 5000}, {"Content_Length": "-1"}])
def test_a_stream_without_a_stated_length_is_refused(web: Web, target, headers):
    url = web.put("/x.bin", CONTENT + bytes(10_000_000), says(200, **headers))
    assert "the server does not state the file's length" in complaint(lambda: fetch(url, target, size=SIZE))
    assert names(target.parent) == [] and len(web.asked) == 1


def test_a_stated_length_does_not_hide_a_stream_without_end(web: Web, target):
    answer = says(200, Content_Length=SIZE, Transfer_Encoding="chunked")
    url = web.put("/x.bin", b"100000\r\n" + bytes(1 << 20) + b"\r\n0\r\n\r\n", answer)
    assert "the server does not state the file's length" in complaint(lambda: fetch(url, target, flaw=None))
    assert names(target.parent) == [] and len(web.asked) == 1


def test_a_file_of_unknown_size_has_a_limit(web: Web, target, monkeypatch):
    monkeypatch.setattr(module, "LARGEST", SIZE - 1)
    url = web.put("/x.bin", CONTENT)
    assert f"(the server has {SIZE} bytes where {SIZE - 1} are the limit)" in complaint(lambda: fetch(url, target, flaw=None))


@pytest.mark.parametrize("start", [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_server_that_sends_a_byte_now_and_then_does_not_keep_the_download_for_ever(web: Web, target, monkeypatch, start):
    def drips(handler: Handler, content: bytes) -> None:
        handler.wfile.write(start)
        while not web.released.wait(0.02):
            handler.wfile.write(b"x")

    monkeypatch.setattr(module, "PATIENCE", 0.3)
    url, began = web.put("/x.bin", CONTENT, drips), time.monotonic()
    text = complaint(lambda: fetch(url, target))
    assert time.monotonic() - began < 10
    assert "(it is not complete after 0 seconds, slower than 10000 bytes a second)" in text and names(target.parent) == []


def test_what_others_have_planted_in_the_folder_is_not_followed(web: Web, target):
    (thesis := target.parent / "thesis").mkdir(parents=True)
    (text := thesis / "thesis.tex").write_text("precious")
    for name in (target.name, f".{target.name}.lock", f"{target.name}.part"):
        (target.parent / name).symlink_to(text)
    (target.parent / f".{target.name}.new-1").symlink_to(thesis)
    (target.parent / f".{target.name}.unpacking").symlink_to(thesis)
    assert fetch(web.put("/x.bin", CONTENT), target).read_bytes() == CONTENT
    assert not target.is_symlink() and text.read_text() == "precious" and list(thesis.iterdir()) == [text]


def test_pipes_under_the_names_of_the_file_and_its_lock_do_not_block(web: Web, target):
    target.parent.mkdir()
    for name in (target.name, f".{target.name}.lock", f"{target.name}.part"):
        os.mkfifo(target.parent / name)
    assert fetch(web.put("/x.bin", CONTENT), target).read_bytes() == CONTENT


def test_escape_sequences_of_a_server_are_shown_and_not_obeyed(web: Web, target):
    def gone(handler: Handler, content: bytes) -> None:
        handler.send_response(404, "\x1b[2JGone")
        handler.end_headers()

    assert r"(404 \x1b[2JGone)" in complaint(lambda: fetch(web.put("/x.bin", CONTENT, gone), target))


def test_another_file_is_refused_by_its_checksum_and_leaves_nothing(web: Web, target):
    url = web.put("/x.bin", CONTENT[::-1])
    found = hashlib.sha256(CONTENT[::-1]).hexdigest()[:8]
    assert complaint(lambda: fetch(url, target, size=SIZE)) == f"{url} sent a file that is not 'x': found {found}: {REMEDY}"
    assert names(target.parent) == [] and len(web.asked) == 1


def test_the_checksum_is_compared_before_the_file_has_its_name(web: Web, target):
    def flaw(path: Path) -> str:
        assert not target.exists() and path.read_bytes() == CONTENT
        return ""

    assert fetch(web.put("/x.bin", CONTENT), target, flaw=flaw).read_bytes() == CONTENT


def test_a_compressed_file_is_not_decompressed(web: Web, target):
    packed = gzip.compress(bytes(10_000_000))
    for encoding in ({}, {"Content_Encoding": "gzip"}):
        url = web.put("/x.bin", packed, says(200, Content_Length=len(packed), **encoding))
        assert fetch(url, target, flaw=None).read_bytes() == packed
        target.unlink()
    assert web.headers[-1]["Accept-Encoding"] == "identity" and web.headers[-1]["User-Agent"].startswith("adcore/")


def test_parts_of_two_versions_are_never_put_together_even_without_a_checksum(web: Web, target):
    other = CONTENT[::-1]

    def changes(handler: Handler, content: bytes) -> None:
        handler.head(200, Content_Length=SIZE, ETag='"old"')
        handler.wfile.write(content[:70_000])
        web.files["/x.bin"] = other

    assert fetch(web.put("/x.bin", CONTENT, changes), target, flaw=None).read_bytes() == other
    assert len(web.asked) == 2 and "Range" not in web.headers[-1]


def test_a_web_page_in_place_of_the_file_is_refused(web: Web, target):
    url = web.put("/x.bin", b"<html>sign in</html>", says(200, Content_Type="text/html; charset=utf-8", Content_Length=20))
    assert "(it is a web page, not a file)" in complaint(lambda: fetch(url, target)) and names(target.parent) == []


def test_a_redirection_is_followed(web: Web, target):
    url = web.put("/x.bin", b"", says(302, Location=web.put("/there.bin", CONTENT)))
    assert fetch(url, target).read_bytes() == CONTENT and web.asked == ["/x.bin", "/there.bin"]


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1/x.bin", "data:text/plain,x", "gopher://x/"])
def test_a_redirection_out_of_the_web_is_refused(web: Web, target, where):
    url = web.put("/x.bin", CONTENT, says(302, Location=where))
    text = complaint(lambda: fetch(url, target))
    assert text == f"cannot download {url} (302 Found: it redirects to {where}, which is refused): {REMEDY}"
    assert names(target.parent) == [] and len(web.asked) == 1
    assert "only http and https are" in complaint(lambda: fetch(where, target))


def test_a_redirection_in_a_circle_ends(web: Web, target):
    url = web.put("/x.bin", CONTENT, *[says(302, Location="/x.bin")] * 40)
    assert "(it redirects in a circle)" in complaint(lambda: fetch(url, target, retries=0)) and len(web.asked) < 40


@pytest.mark.parametrize(("here", "there", "refused"), [
    ("https://example.org/x", "http://example.org/x", True), ("https://example.org/x", "https://example.org/y", False)])
def test_a_redirection_from_https_to_http_is_refused(target, monkeypatch, here, there, refused):
    def answer(adapter: object, request: requests.PreparedRequest, **_: object) -> requests.Response:
        found = requests.Response()
        found.request, found.url, found.reason = request, str(request.url), "Found"
        found.status_code = 302 if request.url == here else 404
        found.headers["Location"] = there if request.url == here else ""
        found._content, found.raw = b"", urllib3.HTTPResponse()
        return found

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", answer)
    text = complaint(lambda: fetch(here, target))
    assert (f"it redirects to {there}, which is refused" in text) == refused == ("(404 " not in text)


def test_a_silent_server_is_asked_again_after_the_timeout(web: Web, target):
    stall = honest(cut=100, then=lambda web: web.released.wait(20))
    url = web.put("/x.bin", CONTENT, stall)
    began = time.monotonic()
    assert fetch(url, target, timeout=0.2).read_bytes() == CONTENT
    assert time.monotonic() - began < 15 and len(web.asked) == 2
    web.answers["/x.bin"] = [stall] * 2
    target.unlink()
    assert "(nothing came for 0.2 seconds)" in complaint(lambda: fetch(url, target, timeout=0.2, retries=1))


def test_a_404_says_at_once_where_to_get_the_file_by_hand(web: Web, target):
    url = f"{web.address}/x.bin"
    assert complaint(lambda: fetch(url, target)) == f"cannot download {url} (404 Not Found): {REMEDY}"
    assert len(web.asked) == 1 and names(target.parent) == []


@pytest.mark.parametrize(("status", "asked"), [(503, 3), (429, 3), (403, 1), (410, 1)])
def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(web: Web, target, status, asked):
    url = web.put("/x.bin", CONTENT, *[says(status, 0, Content_Length=0)] * 2)
    if asked > 1:
        assert fetch(url, target).read_bytes() == CONTENT
    else:
        assert f"({status} " in complaint(lambda: fetch(url, target))
    assert len(web.asked) == asked
    web.answers["/x.bin"] = [says(status, 0, Content_Length=0)] * 2
    target.unlink(missing_ok=True)
    assert f"({status} " in complaint(lambda: fetch(url, target, retries=1))


def test_a_server_that_is_not_there_is_named(target):
    text = complaint(lambda: fetch("http://127.0.0.1:9/x.bin", target, retries=1))
    assert text == (f"cannot download http://127.0.0.1:9/x.bin (the connection failed: [Errno 111] Connection refused): "
                    f"{REMEDY}")
    assert names(target.parent) == []


def test_an_invalid_certificate_is_named_as_the_reason():
    error = requests.exceptions.SSLError("long and nested")
    error.__context__ = ssl.SSLCertVerificationError("no")
    error.__context__.verify_message = "self-signed certificate"
    assert _reason(error, 1.0) == "its certificate is not valid: self-signed certificate"


def test_too_little_room_is_reported_before_a_byte_is_written(web: Web, target, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, SIZE - 1))
    url = web.put("/x.bin", CONTENT)
    assert f"{target.parent} has 0.0 GB of room" in complaint(lambda: fetch(url, target)) and names(target.parent) == []


def test_a_folder_that_cannot_be_written_is_named(web: Web, target):
    target.parent.write_text("in the way")
    text = complaint(lambda: fetch(web.put("/x.bin", CONTENT), target))
    assert text == f"cannot write {target}: File exists; name another folder in ADCORE_DATA or ADCORE_WEIGHTS, or {REMEDY}"
    assert web.asked == []


def test_a_process_waits_for_the_one_that_downloads_the_file_and_takes_its_copy(web: Web, target, capsys):
    url = web.put("/x.bin", CONTENT)
    with one_at_a_time(target.with_name(".x.bin.lock")):
        thread = threading.Thread(target=lambda: fetch(url, target))
        thread.start()
        until = time.monotonic() + 20
        while not (said := capsys.readouterr().err) and time.monotonic() < until:
            time.sleep(0.02)
        assert said == f"adcore: another process is writing {target}: waiting for it\n"
        target.write_bytes(CONTENT)
    thread.join()
    assert web.asked == [] and names(target.parent) == ["x.bin"]


def test_a_killed_download_leaves_nothing_under_the_file_s_name_and_the_next_one_cleans_up(web: Web, target):
    url = web.put("/x.bin", CONTENT, honest(cut=600, then=lambda web: web.released.wait(20)))
    code = (f"from pathlib import Path; from adcore.data.download import download; "
            f"download({url!r}, Path({str(target)!r}), flaw=lambda path: '', progress=False)")
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 300  # importing torch takes long on a busy machine
    while time.monotonic() < until and not (target.parent.is_dir() and list(target.parent.glob(".x.bin.new-*/*"))):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists() and len(names(target.parent)) == 2, "its lock and its folder"
    assert fetch(url, target).read_bytes() == CONTENT and names(target.parent) == ["x.bin"]


def test_the_bar_starts_again_with_each_attempt_and_ends_with_the_file(web: Web, target, monkeypatch):
    bars, starts = [], []

    def noted(**options: Any) -> Any:
        bar = progress_bar(**options)
        reset = bar.reset
        bar.reset = lambda: (starts.append(bar.n), reset())
        bars.append(bar)
        return bar

    monkeypatch.setattr("adcore.data.download.progress_bar", noted)
    monkeypatch.setattr("adcore.data.download.BLOCK", 100)
    fetch(web.put("/x.bin", CONTENT, honest(cut=50_000)), target, progress=True)
    (bar,) = bars
    assert (bar.desc, bar.n, bar.total) == ("x.bin", SIZE, SIZE)
    assert starts[:2] == [0, 50_000], "pooch itself resets the bar only at the end"
