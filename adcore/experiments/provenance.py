"""Where a number came from: versions, commit, machine, time, memory, and a fingerprint of the code that made it."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import threading
import time
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import torch

import adcore
from adcore.models import METHODS
from adcore.paths import repository
from adcore.source import code_digest, imports, with_imports


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


def versions(device: torch.device | None = None) -> dict[str, str]:
    """Versions of what decides numbers; of the features' engine too, where one is chosen for `device`, by default a CPU."""
    import numpy
    import sklearn
    import timm
    import torchvision

    from adcore.features.engines import chosen_engine
    chosen = chosen_engine() if device is None or device.type == "cpu" else "torch"
    engine = {} if chosen == "torch" else {chosen: metadata.version("openvino") if chosen == "openvino" else adcore.__version__}
    return {"adcore": adcore.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "torchvision": torchvision.__version__, "timm": timm.__version__, "numpy": numpy.__version__,
            "scikit-learn": sklearn.__version__, **engine}


@functools.lru_cache(maxsize=32)
def fingerprint(method: str) -> str:
    """16 digits that change when code on which the method's numbers rest changes; comments and docstrings do not count."""
    root = Path(adcore.__file__).parent
    files = [root / name for name in ("distributed.py", "losses.py", "metrics.py", "training.py", "experiments/runner.py")]
    models = with_imports(root / "models" / f"{_module_of(method)}.py", "adcore.models")
    files += models + sorted(path for room in SOME for path in _files_of(root, room) if imports(models, f"adcore.{room}"))
    files += sorted(path for folder in ("data", "features", "kernels") for path in (root / folder).rglob("*.py"))
    return code_digest(files)


SOME = ("color", "density")  # rooms that only some methods stand on; the others are counted for all


def _files_of(root: Path, room: str) -> list[Path]:
    return [root / f"{room}.py", *(root / room).rglob("*.py")]


def _module_of(method: str) -> str:
    found = METHODS.get(method)
    return found.__module__.rpartition(".")[2] if found else method


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
    return {"versions": versions(device), "commit": commit(), "code": fingerprint(method), "device": device.type,
            "machine": machine(device), "seconds": round(meter.seconds, 2), "peak_bytes": meter.peak_bytes,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
