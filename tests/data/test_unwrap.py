"""The folder around an archive's content is removed; a folder in place of an archive is copied."""

from __future__ import annotations

from pathlib import Path

import pytest

from adcore.data.archives import copy_folder, unwrap
from adcore.errors import DataError


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_around_everything_is_removed(tmp_path):
    for name in ("Set.-master/.gitignore", "Set.-master/inner/Set.-master/a", "Set.-master/inner/Set.-master/b/Set.-master",
                 "__MACOSX/c", ".DS_Store"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    unwrap(tmp_path)
    assert sorted(contents(tmp_path)) == sorted([".DS_Store", ".gitignore", "__MACOSX/c", "a", "b/Set.-master"])
    assert not tmp_path.with_name(f"{tmp_path.name}.wrapper").exists()


@pytest.mark.parametrize("names", [(".hidden/a", "set/.hidden/b"), (".hidden/a", "set/.hidden"), (".hidden", "set/.hidden/b")])
def test_a_folder_around_everything_stays_if_something_beside_it_has_the_name_of_something_in_it(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    unwrap(tmp_path)
    assert set(contents(tmp_path)) == set(names)


def test_a_hidden_folder_around_everything_is_removed_too(tmp_path):
    (tmp_path / "set/.wrapper/.DS_Store").parent.mkdir(parents=True)
    for name in ("set/.wrapper/a", "set/.wrapper/.DS_Store"):
        (tmp_path / name).write_bytes(b"")
    unwrap(tmp_path / "set")
    assert sorted(contents(tmp_path)) == ["set/.DS_Store", "set/a"]


def test_a_hidden_file_may_have_the_name_wrapper(tmp_path):
    for name in ("set/.wrapper", "set/set/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    unwrap(tmp_path / "set")
    assert sorted(contents(tmp_path)) == ["set/.wrapper", "set/a"]


def test_a_copied_folder_has_its_plain_files_without_git_and_no_links(tmp_path):
    source = tmp_path / "source"
    for name in ("a/b", ".git/config", "c"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(name.encode())
    assert copy_folder(source, tmp_path / "copy") == 2
    assert contents(tmp_path / "copy") == {"a/b": b"a/b", "c": b"c"}
    (source / "a/link").symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="a/link is a link or no plain file"):
        copy_folder(source, tmp_path / "again")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty holds no file"):
        copy_folder(tmp_path / "empty", tmp_path / "third")
