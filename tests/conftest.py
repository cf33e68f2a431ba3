"""Settings and fixtures of all tests. No test reads or writes the user's own caches and results."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from adcore.data import Dataset

hypothesis.settings.register_profile("adcore", deadline=None)  # tests do not check times, because the machine may be busy
hypothesis.settings.load_profile("adcore")

os.environ.setdefault("OMP_NUM_THREADS", "1")  # set before torch is imported: pytest's workers already run in parallel


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Say how a worker ended, which pytest-xdist does not. A negative status is the signal that ended it."""
    if error:
        print(f"\n{node.gateway.id} ended with status {node.gateway._io.wait()}", flush=True)


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One cache for all workers of a test session, one results store per worker, and no progress bars."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADCORE_CACHE", str(shared / "cache"))
        patch.setenv("ADCORE_RUNS", str(base / "runs"))
        patch.setenv("ADCORE_PROGRESS", "0")
        yield


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hide the user's own data sets and weights; those of installed packages remain."""
    for variable in ("ADCORE_DATA", "ADCORE_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("XDG_DATA_HOME", "TORCH_HOME"):
        monkeypatch.setenv(variable, str(tmp_path_factory.mktemp("nothing")))


@pytest.fixture
def one_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """All detectors use the same frozen backbone, because building one takes longer than most tests."""
    from support.tiny import shared_extractor

    from adcore.papers.heckler2023 import frozen
    from adcore.papers.uniad2022 import reconstruction
    for module in (frozen, reconstruction):
        monkeypatch.setattr(module, "FeatureExtractor", shared_extractor)


@pytest.fixture
def style() -> Iterator[None]:
    """Figures in adcore's style, drawn without a screen."""
    import matplotlib.pyplot as plt

    from adcore import figures
    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        yield
    plt.close("all")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A data set with one category, written by `tiny.write_tiny`."""
    from support.tiny import write_tiny

    from adcore.data.mvtec import load_mvtec
    return load_mvtec(write_tiny(tmp_path_factory.mktemp("tiny")), "tiny")
