"""The code's fingerprint changes with what makes numbers, and with nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import adcore
from adcore.experiments import (
    provenance,
)


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """The package's sources, copied to where a test may edit them."""
    source, copy = Path(adcore.__file__).parent, tmp_path / "adcore"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.csv", "*.html"))
    monkeypatch.setattr(adcore, "__file__", str(copy / "__init__.py"))
    return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_comments_docstrings_and_spacing_leave_the_fingerprint_as_it_was(copied):
    look = provenance.fingerprint.__wrapped__
    before = look("uniad")
    edit(copied / "models" / "reconstruction" / "transformer.py", "def neighbor_mask", "# a remark\n\n\ndef neighbor_mask")
    edit(copied / "losses.py", "Mean squared error over", "The mean of squared errors over")
    edit(copied / "training.py", "    return (seed * 1_000_003", "    # why\n    return (seed  *  1_000_003")
    assert look("uniad") == before


@pytest.mark.parametrize(("file", "old", "new"), [
    ("models/uniad.py", "randn", "rand"), ("models/reconstruction/transformer.py", "size // 2", "size // 3"),
    ("losses.py", "dim=-1", "dim=-2"), ("training.py", "1_000_003", "1_000_005"),
    ("kernels/kcenter.py", "CENTRES = 1024", "CENTRES = 512"), ("features/cache.py", "16", "17"),
    ("data/split.py", "SEED = 0", "SEED = 1")])
def test_a_change_to_code_that_makes_numbers_changes_the_fingerprint(copied, file, old, new):
    before = provenance.fingerprint.__wrapped__("uniad")
    edit(copied / file, old, new)
    assert provenance.fingerprint.__wrapped__("uniad") != before


def test_another_methods_code_and_the_report_leave_the_fingerprint_as_it_was(copied):
    before = provenance.fingerprint.__wrapped__("uniad")
    edit(copied / "models" / "patchcore.py", "starts: int = 10", "starts: int = 11")
    edit(copied / "report" / "card.py", '"not run"', '"idle"')
    assert provenance.fingerprint.__wrapped__("uniad") == before


@pytest.mark.parametrize(("file", "old", "new"), [("density/contrast.py", "share: float = 0.1", "share: float = 0.2"),
                                                  ("color.py", "1e-6", "1e-5"), ("models/tuned.py", "eval()", "train()")])
def test_a_room_that_some_methods_stand_on_counts_for_these_alone(copied, file, old, new):
    look = provenance.fingerprint.__wrapped__
    before = {method: look(method) for method in ("contrastive", "uniad")}
    edit(copied / file, old, new)
    assert look("contrastive") != before["contrastive"] and look("uniad") == before["uniad"]
