"""The fingerprint of a method's code changes with the code that computes numbers, and only with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import adcore
from adcore import source
from adcore.experiments import provenance
from adcore.models import METHODS


@pytest.fixture
def copied(tmp_path, monkeypatch) -> Path:
    """A copy of the package that a test may edit."""
    source, copy = Path(adcore.__file__).parent, tmp_path / "adcore"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__", "*.csv", "*.html"))
    monkeypatch.setattr(adcore, "__file__", str(copy / "__init__.py"))
    return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def look(method: str) -> str:
    return provenance.fingerprint.__wrapped__(method)


def test_comments_docstrings_and_spacing_leave_the_fingerprint_unchanged(copied):
    before = look("uniad")
    edit(copied / "papers/uniad2022/uniad.py", "def neighbor_mask", "# a comment\n\n\ndef neighbor_mask")
    edit(copied / "papers/uniad2022/losses.py", '"""', '"""Reworded. ')
    edit(copied / "training.py", "    return (seed * 1_000_003", "    # why\n    return (seed  *  1_000_003")
    assert look("uniad") == before


@pytest.mark.parametrize(("file", "old", "new"), [
    ("papers/uniad2022/uniad.py", "randn", "rand"), ("papers/uniad2022/losses.py", "dim=-1", "dim=-2"),
    ("training.py", "1_000_003", "1_000_005"), ("features/cache.py", "24)", "23)"), ("data/split.py", "SEED = 0", "SEED = 1"),
    ("experiments/evaluation.py", "KEPT_MAPS = 12", "KEPT_MAPS = 13"), ("detector.py", "bilinear", "nearest")])
def test_a_change_of_the_papers_folder_or_of_shared_code_changes_the_fingerprint(copied, file, old, new):
    before = look("uniad")
    edit(copied / file, old, new)
    assert look("uniad") != before


def test_every_shared_file_and_folder_counts(copied):
    for name in source.SHARED:
        path = copied / name if name.endswith(".py") else copied / name / "new" / "file.py"
        path.parent.mkdir(exist_ok=True)
        before = look("uniad")
        path.write_text("")
        assert look("uniad") != before, name


@pytest.mark.parametrize("file", ["papers/heckler2023/patchcore.py", "report/card.py", "papers/uniad2022/experiments.py"])
def test_another_paper_the_report_and_the_lists_of_experiments_leave_the_fingerprint_unchanged(copied, file):
    before = look("uniad")
    (copied / file).write_text("changed = True")
    assert look("uniad") == before


def test_all_methods_of_a_paper_share_one_fingerprint_and_papers_differ():
    found = {method.paper: {look(name) for name, method in METHODS.items() if method.paper == paper}
             for paper in {m.paper for m in METHODS.values()} for method in METHODS.values() if method.paper == paper}
    assert all(len(digests) == 1 for digests in found.values())
    assert len(set.union(*found.values())) == len(found) == 5


def test_the_methods_of_a_paper_are_defined_in_its_folder():
    """The fingerprint covers the folder that `paper` names."""
    assert all(method.__module__.startswith(f"adcore.papers.{method.paper}.") for method in METHODS.values())
