"""Files that appear complete or not at all, locks, and the folders of the package."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adcore import files, paths
from adcore.errors import DataError, ParameterError, StoreError, did_you_mean, tell
from adcore.files import (
    atomic,
    digest_file,
    digest_text,
    on_disk,
    one_at_a_time,
    open_plain,
    private_folder,
    write_json,
    write_text,
)


@pytest.fixture
def umask() -> Iterator[None]:
    """Restores the umask after the test."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """The kernel refuses larger files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_new_file_appears_with_its_content_and_the_folders_above_it(tmp_path):
    with atomic(tmp_path / "a" / "b" / "x.txt") as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".txt" and not (tmp_path / "a" / "b" / "x.txt").exists()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["x.txt"]
    assert (tmp_path / "a" / "b" / "x.txt").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, DataError, OSError])
def test_the_old_file_survives_a_block_that_fails(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises((error, StoreError)), atomic(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        raise error("no")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("x.txt", "old")]


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    code = ("import sys, time\nfrom adcore.files import atomic\n"
            "with atomic(sys.argv[1]) as temporary:\n"
            "    temporary.write_text('half')\n    print('ready', flush=True)\n    time.sleep(60)\n")
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == "old"


def test_a_full_disk_raises_one_sentence_and_keeps_the_old_file(tmp_path, monkeypatch):
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "x.txt"
    path.write_text("old")
    with no_file_above(100), pytest.raises(StoreError, match=rf"^cannot write {path}: File too large; free the folder"):
        write_text(path, "x" * 1000)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match=rf"^cannot write {path}: No space left on device; free the folder") as caught:
        write_text(path, "new")
    assert "\n" not in str(caught.value) and [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("x.txt", "old")]


def test_a_folder_that_cannot_be_written_raises_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (Path("/proc/adcore/x.json"), Path("/proc/x.json"), tmp_path / "file" / "x.json",
                 tmp_path / "file" / "deeper" / "x.json", tmp_path / "folder"):
        with pytest.raises(StoreError, match=rf"^cannot write {path}: [A-Z].+; free the folder or name another one"):
            write_json(path, {})
    monkeypatch.chdir("/proc")
    with pytest.raises(StoreError, match=r"^cannot write x\.json"):
        write_json("x.json", {})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_an_error_about_another_file_is_raised_unchanged(tmp_path):
    missing = tmp_path / "images" / "x.png"
    with pytest.raises(FileNotFoundError) as caught, atomic(tmp_path / "out" / "x.txt"):
        Image.open(missing)
    assert Path(str(caught.value.filename)) == missing and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path, umask, mask):
    os.umask(mask)
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert os.umask(mask) == mask


def test_threads_that_write_the_same_file_leave_one_complete_text_and_the_umask(tmp_path, umask):
    path, texts = tmp_path / "x.txt", [letter * 50_000 for letter in "abcd"]
    write_text(path, texts[0])
    seen: set[str] = set()
    done = threading.Event()

    def write(text: str) -> None:
        for _ in range(25):
            write_text(path, text)

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_text())
            time.sleep(0.001)

    reader, writers = threading.Thread(target=read), [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert seen <= set(texts) and path.read_text() in texts
    assert [one.name for one in tmp_path.iterdir()] == ["x.txt"]
    assert os.umask(0o022) == 0o022


def test_json_is_sorted_and_refuses_nan(tmp_path):
    write_json(tmp_path / "x.json", {"b": [1, 2.5], "a": "ä"})
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": "ä", "b": [1, 2.5]} and text.index('"a"') < text.index('"b"') and text.endswith("}\n")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "y.json", {"value": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@given(st.binary(max_size=3000))
def test_digests_are_hashlib_s(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "digested"
    file.write_bytes(content)
    assert digest_file(file) == hashlib.sha256(content).hexdigest()
    assert digest_file(file, "md5") == hashlib.md5(content).hexdigest()


def test_a_file_larger_than_a_block_is_digested_whole(tmp_path):
    content = bytes(range(256)) * 10_000
    (tmp_path / "large").write_bytes(content)
    assert digest_file(tmp_path / "large") == hashlib.sha256(content).hexdigest()
    assert digest_text("abc", 8) == "ba7816bf"  # FIPS 180-2, appendix B.1


# Locks between processes, and folders in which something is made. More on locks: tests/experiments/test_concurrency.py.

def test_a_process_that_finds_the_lock_held_says_so_once_and_waits(tmp_path):
    said: list[str] = []

    def second() -> None:
        with one_at_a_time(tmp_path / "lock", lambda: said.append("waiting")):
            said.append("inside")

    with one_at_a_time(tmp_path / "lock") as locked:
        thread = threading.Thread(target=second)
        thread.start()
        until = time.monotonic() + 20
        while said != ["waiting"] and time.monotonic() < until:
            time.sleep(0.01)
        assert locked and said == ["waiting"]
        said.append("left")
    thread.join()
    assert said == ["waiting", "left", "inside"] and list(tmp_path.iterdir()) == []


def test_a_stale_lock_file_does_not_block_and_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "stale").touch()
    with one_at_a_time(tmp_path / "stale", lambda: pytest.fail("waited for nobody")) as locked:
        assert locked
    (tmp_path / "planted").symlink_to(tmp_path / "target")
    with one_at_a_time(tmp_path / "planted") as locked:
        assert not locked and not (tmp_path / "target").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["planted"]


def test_a_private_folder_is_new_and_closed_to_others_and_removed_at_the_end(tmp_path):
    for _ in range(2):
        with contextlib.suppress(KeyboardInterrupt), private_folder(tmp_path / "set") as folder:
            assert folder.parent == tmp_path and folder.stat().st_mode & 0o777 == 0o700 and not list(folder.iterdir())
            (folder / "half").write_text("x")
            raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    code = ("import sys, time\nfrom pathlib import Path\nfrom adcore.files import private_folder\n"
            "with private_folder(Path(sys.argv[1])) as folder:\n"
            "    (folder / 'half').write_text('x')\n    print('ready', flush=True)\n    time.sleep(60)\n")
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "set")], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    assert len(list(tmp_path.iterdir())) == 2, "its folder and its lock file"
    (tmp_path / "thesis").mkdir()
    (tmp_path / ".set.new-link").symlink_to(tmp_path / "thesis")
    (tmp_path / ".set.zip.new-1").mkdir()
    with private_folder(tmp_path / "set") as folder:
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
            [".set.lock", ".set.new-link", ".set.zip.new-1", folder.name, "thesis"])


# What others may have planted in a shared folder. Images, archives and downloads: tests/data.

def test_a_folder_of_one_s_own_that_has_got_the_name_of_a_leftover_is_not_removed(tmp_path):
    for mode in (0o755, 0o700):
        folder = tmp_path / f".set.new-{mode:o}"
        folder.mkdir(mode)
        (folder / "thesis.tex").write_text("precious")
    with private_folder(tmp_path / "set"):
        pass
    assert sorted(path.read_text() for path in tmp_path.rglob("thesis.tex")) == ["precious"] * 2


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_has_taken_the_place_of_the_private_folder_is_not_removed(tmp_path, kind):
    (tmp_path / "thesis").mkdir(0o700)
    (tmp_path / "thesis" / "thesis.tex").write_text("precious")
    with private_folder(tmp_path / "set") as folder:
        folder.rename(tmp_path / "away")
        if kind == "link":
            folder.symlink_to(tmp_path / "thesis")
        else:
            (tmp_path / "thesis").rename(folder)
    assert (folder / "thesis.tex").read_text() == "precious"


def test_a_leftover_of_another_user_is_not_removed(tmp_path, monkeypatch):
    for user in (os.geteuid(), os.geteuid() + 1):
        (tmp_path / ".set.new-1").mkdir(mode=files.PRIVATE, exist_ok=True)
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        with private_folder(tmp_path / "set"):
            assert (tmp_path / ".set.new-1").exists() == (user == os.getuid() + 1)


def test_a_link_under_a_file_s_name_is_replaced_and_its_target_unchanged(tmp_path):
    (tmp_path / "thesis").write_text("precious")
    (tmp_path / "x.json").symlink_to(tmp_path / "thesis")
    write_json(tmp_path / "x.json", {})
    assert not (tmp_path / "x.json").is_symlink() and (tmp_path / "thesis").read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"precious"])
def test_a_lock_that_is_a_hard_link_or_another_s_file_is_not_written(tmp_path, content):
    (tmp_path / "thesis").write_bytes(content)
    (tmp_path / "lock").hardlink_to(tmp_path / "thesis")
    with one_at_a_time(tmp_path / "lock") as locked:
        assert locked and (tmp_path / "thesis").read_bytes() == content
    (tmp_path / "lock").write_bytes(b"precious")
    with one_at_a_time(tmp_path / "lock"):
        assert (tmp_path / "lock").read_bytes() == b"precious"


def test_a_pipe_blocks_neither_a_lock_nor_a_reader(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no plain file"):
        open_plain(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no plain file"):
        digest_file(tmp_path / "pipe")
    with one_at_a_time(tmp_path / "pipe", lambda: pytest.fail("waited for nobody")):
        assert files._read_start(tmp_path / "pipe") == ""


def test_a_process_that_waits_for_long_says_who_holds_the_lock_and_ends_after_the_timeout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "REMIND", 0.02)
    monkeypatch.setenv("ADCORE_LOCK_TIMEOUT", "0.05")
    holder = rf"adcore process {os.getpid()} of \S+ on \S+"
    with one_at_a_time(tmp_path / "lock"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o666, "other accounts must be able to lock it"
        says = (rf"^{tmp_path}/lock is locked by {holder}, and not released in 0\.05 seconds \(ADCORE_LOCK_TIMEOUT\): wait for "
                rf"that process or end it, then run this again$")
        with pytest.raises(StoreError, match=says), one_at_a_time(tmp_path / "lock"):
            pytest.fail("entered")
        first, second = capsys.readouterr().err.splitlines()
        assert re.match(rf"adcore: still waiting for {holder}, after 0\.02 seconds; ADCORE_LOCK_TIMEOUT=SECONDS", first)
        assert "after 0.04 seconds" in second
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_of_a_killed_process_names_the_next_holder_and_a_forged_name_is_printed_harmless(tmp_path, monkeypatch):
    (tmp_path / "lock").write_bytes(files.SIGN + b"1 of somebody with a long name on another machine")
    monkeypatch.setenv("ADCORE_LOCK_TIMEOUT", "0")
    with one_at_a_time(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text().startswith(f"adcore process {os.getpid()} of ")
        (tmp_path / "lock").write_bytes(files.SIGN + b"\x1b[2J\nof nobody")
        says = r"locked by adcore process \\x1b\[2J\\nof nobody, and"
        with pytest.raises(StoreError, match=says), one_at_a_time(tmp_path / "lock"):
            pytest.fail("entered")


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "1e9", "9" * 5000])
def test_a_lock_timeout_that_is_no_number_of_seconds_is_refused(tmp_path, monkeypatch, text):
    monkeypatch.setenv("ADCORE_LOCK_TIMEOUT", text)
    with (one_at_a_time(tmp_path / "lock"), pytest.raises(ParameterError, match=r"is not a number of seconds$"),
          one_at_a_time(tmp_path / "lock")):
        pytest.fail("entered")


def test_an_error_message_shows_control_characters_as_escapes_in_one_line():
    for kind in (DataError, StoreError):
        assert str(kind("a\x1b[2Jb\r\nc\u202ed\u2028e\udc80 é 漢")) == "a\\x1b[2Jb\\r\\nc\\u202ed\\u2028e\\udc80 é 漢"


def test_every_message_on_stderr_is_made_printable(capsys):
    package = Path(files.__file__).parent
    assert {path.name for path in package.rglob("*.py") if "file=sys.stderr" in path.read_text()} == {"errors.py", "cli.py"}
    tell("a\x1b[2J\nb")
    assert capsys.readouterr().err == "adcore: a\\x1b[2J\\nb\n"


def test_a_similar_name_is_suggested_and_a_different_one_is_not():
    assert did_you_mean("sed", ["seeds", "profile", "seed"]) == " (did you mean 'seed'?)"
    assert did_you_mean("xyz", ["seed", "profile"]) == "" == did_you_mean("seed", [])


def test_each_folder_is_changed_by_its_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", f"{tmp_path / 'a'}{os.pathsep}{os.pathsep}~/b")
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path / "w"))
    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "c"))
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "r"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "t"))
    assert paths.data_folders()[:2] == [tmp_path / "a", Path.home() / "b"]
    assert paths.weight_folders()[0] == tmp_path / "w" and paths.weight_folders()[-1] == tmp_path / "t/hub/checkpoints"
    assert paths.cache_folder() == tmp_path / "c"
    assert paths.runs_folder() == tmp_path / "r" and paths.runs_folder(tmp_path / "o") == tmp_path / "o"


def test_without_variables_the_folders_are_in_the_user_s_home(tmp_path, monkeypatch):
    for variable in ("ADCORE_DATA", "ADCORE_WEIGHTS", "ADCORE_CACHE", "ADCORE_RUNS", "TORCH_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(paths.platformdirs, "user_data_dir", lambda name: str(tmp_path / name))
    assert paths.data_folders() == [tmp_path / "adcore" / "data"]
    assert paths.weight_folders() == [tmp_path / "adcore" / "weights", Path.home() / ".cache/torch/hub/checkpoints"]
    assert paths.cache_folder().name == "adcore"
    assert paths.runs_folder() == Path(__file__).resolve().parents[2] / "runs"
    monkeypatch.setattr(paths, "repository", lambda: None)
    monkeypatch.chdir(tmp_path)
    assert paths.runs_folder() == tmp_path / "runs"


@pytest.mark.parametrize("sizes", [(2, 1), (0, 3), (1,)])
def test_blocks_on_disk_are_one_array_without_a_file_that_stays(tmp_path, monkeypatch, sizes):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    blocks = [np.arange(6 * b, dtype=np.float32).reshape(b, 2, 3) + b for b in sizes]
    found = on_disk(block.transpose(0, 2, 1) for block in blocks)       # not contiguous
    assert isinstance(found, np.memmap) and found.dtype == np.float32 and list(tmp_path.iterdir()) == []
    assert np.array_equal(found, np.concatenate(blocks).transpose(0, 2, 1))
    found[0] = 0                                                        # of one's own, as any array


def test_no_block_on_disk_is_an_empty_array():
    assert on_disk([]).shape == (0,) and on_disk([np.zeros((0, 4), bool)]).shape == (0, 4)


def test_a_full_temporary_folder_raises_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    blocks = (np.zeros(2**17) for _ in range(9))                        # of one MB
    with no_file_above(2**22), pytest.raises(StoreError, match=rf"^cannot write to the temporary folder {tmp_path} \(.*\): "):
        on_disk(blocks)
