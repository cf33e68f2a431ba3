"""Where a number came from: versions, commit, machine, time, memory, and a fingerprint of the code that made it."""

from __future__ import annotations

import ast
import functools
import os
import platform
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

import adcore
from adcore.files import digest_text
from adcore.models import METHODS
from adcore.paths import repository


@functools.lru_cache(maxsize=1)
def commit() -> str:
    """The checkout's commit, '+' behind it when files differ from it; '' outside a checkout."""
    root = repository()
    if root is None:
        return ""
    try:
        head = _git(root, "rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--", "adcore") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


def machine(device: torch.device) -> str:
    """The chip that computed, in words."""
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
    """Versions of what decides numbers."""
    import numpy
    import sklearn
    import timm
    import torchvision
    return {"adcore": adcore.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "torchvision": torchvision.__version__, "timm": timm.__version__, "numpy": numpy.__version__,
            "scikit-learn": sklearn.__version__}


@functools.lru_cache(maxsize=32)
def fingerprint(method: str) -> str:
    """16 digits that change when code on which the method's numbers rest changes; comments and docstrings do not count."""
    root = Path(adcore.__file__).parent
    files = [root / name for name in ("losses.py", "metrics.py", "training.py", "experiments/runner.py")]
    models = _models_of(root / "models" / f"{_module_of(method)}.py")
    files += models + sorted(path for room in SOME for path in _files_of(root, room) if _imports(models, room))
    files += sorted(path for folder in ("data", "features", "kernels") for path in (root / folder).rglob("*.py"))
    return digest_text("\n".join(_bones(path) for path in files if path.is_file()))


SOME = ("color", "density")  # rooms that only some methods stand on; the others are counted for all


def _files_of(root: Path, room: str) -> list[Path]:
    return [root / f"{room}.py", *(root / room).rglob("*.py")]


def _imports(files: list[Path], room: str) -> bool:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in files)
    return any(isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"adcore.{room}.")
               for tree in trees for node in ast.walk(tree))


def _module_of(method: str) -> str:
    found = METHODS.get(method)
    return found.__module__.rpartition(".")[2] if found else method


def _models_of(path: Path) -> list[Path]:
    """A method's file and those files of models/ that it imports, directly or not."""
    found: list[Path] = []
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("adcore.models."):
                waiting.append(path.with_name(f"{str(node.module).rpartition('.')[2]}.py"))
    return sorted(found)


def _bones(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    return ast.dump(tree)


class Meter:
    """Seconds and peak memory of a block; memory is this process's resident set, or the GPU's allocations.

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


def provenance(device: torch.device, method: str, meter: Meter) -> dict[str, Any]:
    """Plain values to store beside a result."""
    return {"versions": versions(), "commit": commit(), "code": fingerprint(method), "device": device.type,
            "machine": machine(device), "seconds": round(meter.seconds, 2), "peak_bytes": meter.peak_bytes,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
