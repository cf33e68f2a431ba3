"""A JupyterLab of this environment on a folder, with settings, data folders and token of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import adcore

TOKEN = "adcore"


class Lab:
    def __init__(self, folder: Path, port: int) -> None:
        self.folder, self.address = folder, f"http://127.0.0.1:{port}"

    def page_of(self, notebook: str) -> str:
        return f"{self.address}/lab/tree/{notebook}?token={TOKEN}&reset"

    def sessions(self) -> list[dict[str, Any]]:
        """The open notebooks that have a kernel."""
        return json.loads(self._ask("GET", "sessions"))

    def end_kernels(self) -> None:
        for session in self.sessions():
            self._ask("DELETE", f"sessions/{session['id']}")

    def _ask(self, method: str, path: str) -> bytes:
        request = urllib.request.Request(f"{self.address}/api/{path}?token={TOKEN}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()


@contextmanager
def jupyterlab(folder: Path, private: Path) -> Iterator[Lab]:
    """JupyterLab with the notebooks of `folder`; its own files are in `private`."""
    settings = private / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')          # otherwise cells outside the window are not in the page
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "ADCORE_PROGRESS"}
    for name in ("CONFIG", "DATA", "RUNTIME"):
        environment[f"JUPYTER_{name}_DIR"] = str(private / name.lower())
    environment |= {"JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
                    "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
                    "PYTHONPATH": str(Path(adcore.__file__).parents[1])}
    with (private / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--allow-root", "--no-browser", f"--port={port}", "--ServerApp.port_retries=0",
             f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"],
            cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
    lab = Lab(folder, port)
    try:
        for _ in range(240):
            try:
                lab.sessions()
                break
            except OSError:
                assert process.poll() is None, (private / "log").read_text()
                time.sleep(0.5)
        yield lab
        lab.end_kernels()
    finally:
        process.terminate()
        process.wait(30)
