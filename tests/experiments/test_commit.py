"""The commit in a result is that of the checkout, and of no other repository."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from adcore.experiments import provenance

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *words: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    return subprocess.run(["git", *who, *words], cwd=folder, env=environment, capture_output=True, text=True,
                          check=True).stdout.strip()


def commit_all(folder: Path) -> str:
    """Make the folder a repository with one commit of all its files; return the commit's first ten digits."""
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "all")
    return git(folder, "rev-parse", "HEAD")[:10]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """outer/checkout, a folder with a package in it; the commit is asked for anew."""
    folder = tmp_path / "outer" / "checkout"
    (folder / "adcore").mkdir(parents=True)
    (folder / "adcore" / "x.py").write_text("x = 1\n")
    monkeypatch.setattr(provenance, "repository", lambda: folder)
    for name in provenance.ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    return folder


def found() -> str:
    provenance.commit.cache_clear()
    try:
        return provenance.commit()
    finally:
        provenance.commit.cache_clear()


def test_a_changed_file_of_the_package_adds_a_plus_and_other_files_do_not(checkout):
    (checkout / "notes.txt").write_text("a")
    head = commit_all(checkout)
    (checkout / "notes.txt").write_text("b")
    assert found() == head
    (checkout / "adcore" / "x.py").write_text("x = 2\n")
    assert found() == head + "+"


def test_an_archive_unpacked_inside_another_repository_has_no_commit(checkout):
    (checkout.parent / "other.txt").write_text("other")
    commit_all(checkout.parent)
    assert found() == ""
    assert commit_all(checkout) == found() != ""                # a repository of its own inside the other one


def test_a_checkout_reached_by_a_link_has_its_commit(checkout, tmp_path, monkeypatch):
    head = commit_all(checkout)
    (tmp_path / "link").symlink_to(checkout)
    monkeypatch.setattr(provenance, "repository", lambda: tmp_path / "link")
    assert found() == head


def test_variables_that_git_sets_for_its_hooks_do_not_name_another_repository(checkout, tmp_path, monkeypatch):
    head = commit_all(checkout)
    other = tmp_path / "other"
    (other / "adcore").mkdir(parents=True)
    (other / "adcore" / "y.py").write_text("")
    assert commit_all(other) != head
    for name, value in (("GIT_DIR", other / ".git"), ("GIT_WORK_TREE", other), ("GIT_INDEX_FILE", other / ".git" / "index")):
        monkeypatch.setenv(name, str(value))
        assert found() == head, name
    shutil.rmtree(checkout / ".git")                            # an archive, in a hook of another repository
    assert found() == ""


def test_outside_a_checkout_there_is_no_commit(monkeypatch):
    monkeypatch.setattr(provenance, "repository", lambda: None)
    assert found() == ""


@pytest.mark.parametrize(("named", "expected"), [("0123456789", "0123456789"), ("0123456789+", "0123456789+"), ("main", ""),
                                                 ("<b>0123456</b>", ""), ("", "")])
def test_a_copy_without_git_has_the_commit_that_the_variable_names(checkout, monkeypatch, named, expected):
    monkeypatch.setenv("ADCORE_COMMIT", named)
    assert found() == expected                              # no repository
    git(checkout.parent, "init", "--quiet")
    assert found() == expected                              # inside another one
    head = commit_all(checkout)
    assert found() == head                                  # a checkout knows better
