"""Downloads from a server that cuts, lies, stalls, redirects and has something else than was asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.web import Answer, Web, honest, says, web

from adcore.data.download import _Redirects, download
from adcore.errors import DataError
from adcore.files import hold
from adcore.progress import progress_bar

__all__ = ["web"]
CONTENT = bytes(range(251)) * 400  # 100,400 bytes without a repetition at a round number
SIZE = len(CONTENT)
REMEDY = "get x.bin by hand from https://example.org, then run `adcore data fetch x --from x.bin`"


def is_content(path: Path) -> str:
    return "" if path.read_bytes() == CONTENT else f"is not 'x': found {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}"


fetch = partial(download, flaw=is_content, remedy=REMEDY, timeout=5.0, pause=0.001, progress=False)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def complaint(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "data" / "x.bin"


def test_a_file_arrives_with_one_request_and_a_second_call_asks_for_nothing(web: Web, target):
    url = web.put("/x.bin", CONTENT)
    for _ in range(2):
        assert fetch(url, target, size=SIZE) == target and target.read_bytes() == CONTENT
    assert web.ranges("/x.bin") == [None] and names(target.parent) == ["x.bin"]


def test_a_file_that_is_there_and_wrong_is_replaced(web: Web, target):
    target.parent.mkdir()
    target.write_bytes(b"something else")
    assert fetch(web.put("/x.bin", CONTENT), target).read_bytes() == CONTENT


def test_after_each_cut_only_the_missing_bytes_are_asked_for(web: Web, target):
    url = web.put("/x.bin", CONTENT, honest(cut=30_000), honest(cut=1), honest(cut=50_000))
    assert fetch(url, target).read_bytes() == CONTENT
    assert web.ranges("/x.bin") == [None, "bytes=30000-", "bytes=30001-", "bytes=80001-"]
    assert names(target.parent) == ["x.bin"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, SIZE // 2), max_size=6))
def test_wherever_the_cuts_are_the_file_is_whole(web: Web, tmp_path, cuts):
    url = web.put("/x.bin", CONTENT, *(honest(cut=cut) for cut in cuts))
    (tmp_path / "x.bin").unlink(missing_ok=True)
    assert fetch(url, tmp_path / "x.bin", retries=7).read_bytes() == CONTENT


def test_a_download_that_gives_up_keeps_its_part_and_the_next_run_goes_on_from_it(web: Web, target):
    url = web.put("/x.bin", CONTENT, honest(cut=40_000), *[honest(cut=0)] * 3)
    text = complaint(lambda: fetch(url, target, retries=2))
    assert text == (f"cannot download {url} (the connection was cut after 40000 of {SIZE} bytes, 3 times in a row without "
                    f"progress, 40000 bytes are kept and the same command goes on from there): {REMEDY}")
    assert names(target.parent) == ["x.bin.part"] and len(web.asked) == 4
    assert (target.parent / "x.bin.part").read_bytes() == CONTENT[:40_000]
    assert fetch(url, target).read_bytes() == CONTENT and web.ranges("/x.bin")[-1] == "bytes=40000-"


def test_progress_starts_the_retries_anew(web: Web, target):
    url = web.put("/x.bin", CONTENT, *[honest(cut=10_000), honest(cut=0)] * 8)
    assert fetch(url, target, retries=1).read_bytes() == CONTENT and len(web.asked) == 17


def test_without_a_checksum_an_old_part_is_thrown_away_for_nothing_could_tell_a_mixture(web: Web, target):
    target.parent.mkdir()
    (target.parent / "x.bin.part").write_bytes(b"of another file")
    url = web.put("/x.bin", CONTENT, honest(cut=500))
    assert fetch(url, target, flaw=None).read_bytes() == CONTENT
    assert web.ranges("/x.bin") == [None, "bytes=500-"]


@pytest.mark.parametrize("old", [b"of another file", CONTENT + b"more", bytes(SIZE)])
def test_an_old_part_that_does_not_belong_is_found_out_by_the_checksum_and_all_is_asked_for(web: Web, target, old):
    target.parent.mkdir()
    (target.parent / "x.bin.part").write_bytes(old)
    assert fetch(web.put("/x.bin", CONTENT), target, size=SIZE).read_bytes() == CONTENT
    assert web.ranges("/x.bin")[-1] is None and names(target.parent) == ["x.bin"]


def test_a_part_that_is_complete_needs_no_byte_more(web: Web, target):
    target.parent.mkdir()
    for size, asked in ((None, [f"bytes={SIZE}-"]), (SIZE, [])):
        (target.parent / "x.bin.part").write_bytes(CONTENT)
        web.asked.clear()
        assert fetch(web.put("/x.bin", CONTENT), target, size=size).read_bytes() == CONTENT
        assert web.ranges("/x.bin") == asked
        target.unlink()


def test_a_file_that_changes_between_two_attempts_is_not_joined_to_the_old_one(web: Web, target):
    url = web.put("/x.bin", bytes(SIZE), honest('"old"', cut=300, then=lambda web: web.files.update({"/x.bin": CONTENT})))
    assert fetch(url, target, flaw=None).read_bytes() == CONTENT
    assert web.ranges("/x.bin") == [None, "bytes=300-"]


def test_a_server_that_knows_no_ranges_is_read_from_the_beginning(web: Web, target):
    whole = says(200, Content_Length=SIZE)
    url = web.put("/x.bin", CONTENT, says(200, 70_000, Content_Length=SIZE), whole, whole)
    assert fetch(url, target).read_bytes() == CONTENT
    assert web.ranges("/x.bin") == [None, "bytes=70000-"]


def test_a_server_without_ranges_that_always_cuts_is_given_up(web: Web, target):
    url = web.put("/x.bin", CONTENT, *[says(200, 70_000, Content_Length=SIZE)] * 9)
    assert "3 times in a row without progress" in complaint(lambda: fetch(url, target, retries=2))
    assert len(web.asked) == 4


@pytest.mark.parametrize("headers", [{"Content_Range": f"bytes 7-{SIZE - 1}/{SIZE}"}, {"Content_Range": "bytes 1000-x"}, {}])
def test_a_part_from_another_place_than_was_asked_for_is_not_used(web: Web, target, headers):
    url = web.put("/x.bin", CONTENT, honest(cut=1000), says(206, Content_Length=SIZE, **headers))
    assert fetch(url, target).read_bytes() == CONTENT
    assert web.ranges("/x.bin") == [None, "bytes=1000-", None]


@pytest.mark.parametrize("claim", [SIZE + 1000, 10 * SIZE])
def test_a_server_that_claims_more_than_it_has_is_believed_only_once(web: Web, target, claim):
    url = web.put("/x.bin", CONTENT, says(200, Content_Length=claim))
    assert fetch(url, target).read_bytes() == CONTENT  # the rest was asked for, and there is none
    assert web.ranges("/x.bin") == [None, f"bytes={SIZE}-"]


def test_a_server_that_claims_less_than_it_has_is_found_out_by_the_checksum(web: Web, target):
    url = web.put("/x.bin", CONTENT, says(200, Content_Length=SIZE - 1))
    assert complaint(lambda: fetch(url, target)).startswith(f"{url} sent a file that is not 'x': found ")
    assert names(target.parent) == []


def test_a_length_other_than_the_manifest_s_is_refused_before_a_byte_is_read(web: Web, target):
    url = web.put("/x.bin", CONTENT)
    text = complaint(lambda: fetch(url, target, size=SIZE - 1))
    assert text == f"cannot download {url} (the server has {SIZE} bytes where {SIZE - 1} are expected): {REMEDY}"
    assert names(target.parent) == [] and len(web.asked) == 1


def test_a_stream_without_end_is_stopped_at_the_length_that_is_known(web: Web, target):
    url = web.put("/x.bin", CONTENT + bytes(10_000_000), says(200))
    assert "sent more than the" in complaint(lambda: fetch(url, target, size=SIZE)) and names(target.parent) == []


def test_a_file_of_unknown_length_is_whole_when_the_checksum_says_so_and_else_refused(web: Web, target):
    url = web.put("/x.bin", CONTENT, says(200), says(200))
    assert "neither its length nor its checksum is known" in complaint(lambda: fetch(url, target, flaw=None))
    assert fetch(url, target).read_bytes() == CONTENT


def test_another_file_is_refused_by_its_checksum_and_leaves_nothing(web: Web, target):
    url = web.put("/x.bin", CONTENT[::-1])
    text = complaint(lambda: fetch(url, target, size=SIZE))
    assert text == f"{url} sent a file that {is_content_of(CONTENT[::-1])}: {REMEDY}"
    assert names(target.parent) == [] and len(web.asked) == 1


def is_content_of(other: bytes) -> str:
    return f"is not 'x': found {hashlib.sha256(other).hexdigest()[:8]}"


def test_a_web_page_in_place_of_the_file_is_refused(web: Web, target):
    url = web.put("/x.bin", b"<html>sign in</html>", says(200, Content_Type="text/html; charset=utf-8", Content_Length=20))
    assert "(it is a web page, not a file)" in complaint(lambda: fetch(url, target)) and names(target.parent) == []


def test_a_redirection_is_followed_also_in_the_middle(web: Web, target):
    there = web.put("/there.bin", CONTENT, honest(cut=1000))
    url = web.put("/x.bin", b"", *[says(302, Location=there)] * 2)
    assert fetch(url, target).read_bytes() == CONTENT
    assert web.ranges("/there.bin") == [None, "bytes=1000-"]


@pytest.mark.parametrize("where", ["file:///etc/hostname", "ftp://127.0.0.1/x.bin", "data:text/plain,x", "gopher://x/"])
def test_a_redirection_out_of_the_web_is_refused(web: Web, target, where):
    url = web.put("/x.bin", CONTENT, says(302, Location=where))
    text = complaint(lambda: fetch(url, target))
    assert text.startswith(f"cannot download {url} (302 ") and text.endswith(REMEDY)
    assert names(target.parent) == [] and len(web.asked) == 1
    assert "only http and https are" in complaint(lambda: fetch(where, target))


def test_a_redirection_in_a_circle_ends(web: Web, target):
    url = web.put("/x.bin", CONTENT, *[says(302, Location="/x.bin")] * 40)
    assert "redirect" in complaint(lambda: fetch(url, target)) and len(web.asked) < 40


def test_a_redirection_from_https_to_http_is_refused():
    request = urllib.request.Request("https://example.org/x")
    with pytest.raises(urllib.error.HTTPError, match=r"redirects to http://example\.org/x, which is refused"):
        _Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.org/x")


def test_a_server_that_falls_silent_is_left_after_the_timeout_and_asked_again(web: Web, target):
    def stall(after: int) -> Answer:
        return honest(cut=after, then=lambda web: web.released.wait(20))

    url = web.put("/x.bin", CONTENT, stall(100))
    began = time.monotonic()
    assert fetch(url, target, timeout=0.2).read_bytes() == CONTENT
    assert time.monotonic() - began < 5 and web.ranges("/x.bin") == [None, "bytes=100-"]
    web.answers["/x.bin"] = [stall(0)] * 2
    target.unlink()
    assert "nothing came for 0.2 seconds, 2 times" in complaint(lambda: fetch(url, target, timeout=0.2, retries=1))


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


def test_a_server_that_is_not_there_is_named(target):
    text = complaint(lambda: fetch("http://127.0.0.1:9/x.bin", target, retries=1))
    assert "127.0.0.1:9" in text and "refused" in text and text.endswith(REMEDY) and names(target.parent) == []


def test_too_little_room_is_said_before_a_byte_is_written(web: Web, target, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, SIZE - 1))
    url = web.put("/x.bin", CONTENT)
    assert f"{target.parent} has 0.0 GB of room" in complaint(lambda: fetch(url, target)) and names(target.parent) == []


def test_two_processes_do_not_write_one_part(web: Web, target):
    target.parent.mkdir()
    descriptor = hold(target.parent / "x.bin.part", os.O_RDWR | os.O_CREAT)
    try:
        assert "is being downloaded by another process" in complaint(lambda: fetch(web.put("/x.bin", CONTENT), target))
    finally:
        os.close(descriptor)
    assert fetch(web.put("/x.bin", CONTENT), target).read_bytes() == CONTENT


def test_a_killed_download_leaves_its_part_alone_and_the_next_goes_on(web: Web, target):
    url = web.put("/x.bin", CONTENT, honest(cut=600, then=lambda web: web.released.wait(20)))
    code = (f"from pathlib import Path; from adcore.data.download import download; "
            f"download({url!r}, Path({str(target)!r}), flaw=lambda path: '', progress=False)")
    process = subprocess.Popen([sys.executable, "-c", code])
    part = target.parent / "x.bin.part"
    until = time.monotonic() + 20
    while time.monotonic() < until and not (part.is_file() and part.stat().st_size == 600):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert names(target.parent) == ["x.bin.part"] and part.stat().st_size == 600
    assert fetch(url, target).read_bytes() == CONTENT and web.ranges("/x.bin") == [None, "bytes=600-"]


def test_a_bar_counts_the_bytes_of_a_resumed_file_from_where_it_stands(web: Web, target, monkeypatch):
    bars: list[Any] = []

    def noted(**options: Any) -> Any:
        bars.append(progress_bar(**options))
        return bars[-1]

    monkeypatch.setattr("adcore.data.download.progress_bar", noted)
    target.parent.mkdir()
    (target.parent / "x.bin.part").write_bytes(CONTENT[:7])
    fetch(web.put("/x.bin", CONTENT, honest(cut=SIZE // 2)), target, progress=True)
    (bar,) = bars
    assert (bar.desc, bar.n, bar.total) == ("x.bin", SIZE, SIZE)
