"""Where a number came from: versions, commit, machine, time, memory, and a fingerprint of the code that made it."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

import adcore
from adcore.models import METHODS
from adcore.paths import repository
from adcore.source import paper_digest

# Variables that name a repository, and not by the folder. git sets them for its hooks.
ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
             "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_PREFIX")


@functools.lru_cache(maxsize=1)
def commit() -> str:
    """The checkout's commit, followed by '+' when files below adcore/ differ from it; '' outside a checkout.

    An archive that was unpacked inside another repository has no commit. For a copy of the files without git, on a machine that
    only computes, the variable ADCORE_COMMIT names it.
    """
    elsewhere = os.environ.get("ADCORE_COMMIT", "")
    elsewhere = elsewhere if re.fullmatch(r"[0-9a-f]{7,40}\+?", elsewhere) else ""
    root = repository()
    if root is None:
        return elsewhere
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root.resolve():
            return elsewhere
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", "adcore") else "")
    except (OSError, subprocess.CalledProcessError):
        return elsewhere


def _git(root: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    return subprocess.run(["git", *words], cwd=root, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def machine(device: torch.device) -> str:
    """Name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_cpu_name()}, {os.cpu_count()} cores"


@functools.lru_cache(maxsize=1)
def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of the packages that affect numbers."""
    import numpy
    import sklearn
    import timm
    import torchvision
    return {"adcore": adcore.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "torchvision": torchvision.__version__, "timm": timm.__version__, "numpy": numpy.__version__,
            "scikit-learn": sklearn.__version__}


@functools.lru_cache(maxsize=32)
def fingerprint(method: str) -> str:
    """16 digits that change when the code behind a method's numbers changes, see `adcore.source.paper_digest`."""
    found = METHODS.get(method)
    return paper_digest(found.paper if found else "")


class Meter:
    """Seconds and peak memory of a block. Memory is this process's resident set on a CPU, the allocations on a GPU.

        with Meter(device) as meter: ...
        meter.seconds, meter.peak_bytes
    """

    def __init__(self, device: torch.device, interval: float = 0.05) -> None:
        self.device, self.interval = device, interval
        self.seconds, self.peak_bytes = 0.0, 0

    def __enter__(self) -> Meter:
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        self._watcher.start()
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._start
        self._stop.set()
        self._watcher.join()
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device)

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)
            if self._stop.wait(self.interval):
                return


def origin(device: torch.device, method: str) -> dict[str, Any]:
    """Where a result comes from, as plain values. Taken before the work starts: files may change while a long run lasts."""
    return {"versions": versions(), "commit": commit(), "code": fingerprint(method), "device": device.type,
            "machine": machine(device)}
