"""Digests of files are remembered, and never outlive the content that they were taken of."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from adcore import digests
from adcore.digests import file_digests, folder_digest
from adcore.paths import cache_folder


@pytest.fixture
def files(tmp_path, monkeypatch) -> list[Path]:
    """Three files that were written long ago, and a cache of their own."""
    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_known", {})
    monkeypatch.setattr(digests, "AT_REST", -10.0)
    (tmp_path / "data" / "sub").mkdir(parents=True)
    paths = [tmp_path / "data" / "a", tmp_path / "data" / "b", tmp_path / "data" / "sub" / "a"]
    for path in paths:
        path.write_bytes(path.name.encode() * 10)
    return paths


@pytest.fixture
def read(monkeypatch) -> list[Path]:
    """The files whose content is read."""
    found: list[Path] = []

    def reading(path: Path, algorithm: str) -> str:
        found.append(path)
        return hashlib.new(algorithm, path.read_bytes()).hexdigest()

    monkeypatch.setattr(digests, "digest_file", reading)
    return found


def new_process() -> None:
    digests._known.clear()


def test_digests_are_those_of_hashlib_in_the_order_of_the_paths(files):
    order = [files[2], files[0], files[2], files[1]]
    assert file_digests(order) == [hashlib.blake2b(path.read_bytes()).hexdigest()[:32] for path in order]
    assert file_digests(files, "sha256") == [hashlib.sha256(path.read_bytes()).hexdigest()[:32] for path in files]


def test_a_file_is_read_once_by_any_number_of_processes(files, read):
    first = file_digests(files)
    assert sorted(read) == sorted(files)
    new_process()
    assert file_digests(files) == first and len(read) == 3


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_file_with_another_content_of_the_same_length_and_time_is_read_again(files, read, keep_time):
    first = file_digests(files)
    before = files[0].stat()
    files[0].write_bytes(b"z" * 10)
    if keep_time:                                              # as `cp -p` and `rsync -t` do
        os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    new_process()
    assert file_digests(files)[0] != first[0] and read.count(files[0]) == 2
    assert file_digests(files)[1:] == first[1:] and read.count(files[1]) == 1


def test_a_file_that_was_written_a_moment_ago_is_not_remembered(files, read, monkeypatch):
    monkeypatch.setattr(digests, "AT_REST", 60.0)
    file_digests(files[:1])
    file_digests(files[:1])
    assert read == [files[0]] * 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 3}', '{"a": [1, 2, 3, null]}'])
def test_a_damaged_file_of_the_cache_costs_time_only(files, content):
    first = file_digests(files[:1])
    (stored,) = (cache_folder() / "digests").iterdir()
    assert len(json.loads(stored.read_text())) == 1
    stored.write_text(content)
    new_process()
    assert file_digests(files[:1]) == first


def test_the_digest_of_a_folder_covers_contents_and_names_below_it_but_no_hidden_file(files, tmp_path):
    folder = tmp_path / "data"
    seen = [folder_digest(folder)]
    (folder / ".hidden").write_text("x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "a").write_text("x")
    assert folder_digest(folder) == seen[0]
    for change in (lambda: files[2].write_text("other"), lambda: files[2].rename(folder / "sub" / "b"), files[1].unlink):
        change()
        seen.append(folder_digest(folder))
    assert len(set(seen)) == 4
