"""A web server on this machine that misbehaves as a test tells it to."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator, Mapping

import pytest

Answer = Callable[["Handler", bytes], None]


class Web:
    """A server and what happened to it.

    files    content by path
    answers  what to do with the next requests of a path; when these are used up, answers are honest
    asked    paths of the requests so far
    headers  headers of the requests so far
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.released = threading.Event()  # lets a stalled answer end with the test

    def put(self, path: str, content: bytes, *answers: Answer) -> str:
        """Serve a file; returns its address."""
        self.files[path] = content
        self.answers[path] = list(answers)
        return f"{self.address}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    web: Web

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.web.asked.append(self.path)
        self.web.headers.append(dict(self.headers))
        content = self.web.files.get(self.path)
        if content is None:
            self.send_error(404)
            return
        answers = self.web.answers.get(self.path)
        with contextlib.suppress(ConnectionError):
            (answers.pop(0) if answers else honest())(self, content)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()


def honest(cut: int | None = None, then: Callable[[Web], None] | None = None) -> Answer:
    """The file. `cut` ends the connection after so many bytes; `then` is called before the connection ends."""
    def answer(handler: Handler, content: bytes) -> None:
        handler.head(200, Content_Length=len(content))
        handler.wfile.write(content[:cut])
        if then:
            handler.wfile.flush()
            then(handler.web)
    return answer


def says(status: int, body: int | None = None, **headers: object) -> Answer:
    """This status and these headers, and the first `body` bytes of the file, all by default."""
    def answer(handler: Handler, content: bytes) -> None:
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
