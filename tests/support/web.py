"""A web server on this machine that misbehaves as a test tells it to."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator

import pytest

Answer = Callable[["Handler", bytes, int], None]


class Web:
    """files: what there is, by path. answers: what to do with the next requests of a path, before honest ones. asked: the path
    and the Range of each request so far."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.released = threading.Event()  # lets a stalled answer end with the test

    def put(self, path: str, content: bytes, *answers: Answer) -> str:
        """Serve a file; its address."""
        self.files[path] = content
        self.answers[path] = list(answers)
        return f"{self.address}{path}"

    def ranges(self, path: str) -> list[str | None]:
        return [asked for name, asked in self.asked if name == path]


class Handler(http.server.BaseHTTPRequestHandler):
    web: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.web.asked.append((self.path, asked))
        content = self.web.files.get(self.path)
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        if content is None:
            self.send_error(404)
            return
        answers = self.web.answers.get(self.path)
        with contextlib.suppress(ConnectionError):
            (answers.pop(0) if answers else honest())(self, content, start)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def honest(tag: str = '"1"', cut: int | None = None, then: Callable[[Web], None] | None = None) -> Answer:
    """The bytes that are asked for; `cut` ends the connection after so many of them, `then` happens before that."""
    def answer(handler: Handler, content: bytes, start: int) -> None:
        if start >= len(content) > 0:
            handler.head(416, Content_Range=f"bytes */{len(content)}")
            return
        condition = handler.headers.get("If-Range")
        if start and condition in (None, tag):
            handler.head(206, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}", ETag=tag,
                         Content_Length=len(content) - start)
        else:
            start = 0
            handler.head(200, Content_Length=len(content), ETag=tag)
        handler.wfile.write(content[start:] if cut is None else content[start:start + cut])
        if then:
            handler.wfile.flush()
            then(handler.web)
    return answer


def says(status: int, body: int | None = None, **headers: object) -> Answer:
    """This status and these headers, and as many bytes of the file as `body`, all by default."""
    def answer(handler: Handler, content: bytes, start: int) -> None:
        handler.head(status, **headers)
        handler.wfile.write(content[:body] if body is not None else content)
    return answer


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {})) as server:
        server.daemon_threads = True
        server.RequestHandlerClass.web = Web(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.RequestHandlerClass.web  # type: ignore[attr-defined]
        server.RequestHandlerClass.web.released.set()  # type: ignore[attr-defined]
        server.shutdown()
