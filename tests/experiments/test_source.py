"""Digests of source code, computed by several threads."""

from __future__ import annotations

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import adcore
from adcore import source
from adcore.source import code_digest

ROOT = Path(adcore.__file__).parent


def test_only_one_thread_at_a_time_parses(monkeypatch):
    """In Python 3.11 all threads have one counter of recursion depth, so that parsing in two threads sometimes fails."""
    paths, parse, inside, most = [ROOT / "errors.py", ROOT / "detector.py"], ast.parse, [], []

    def slow(text: str, *others: object) -> ast.Module:
        inside.append(text)
        most.append(len(inside))
        time.sleep(0.002)
        inside.remove(text)
        return parse(text, *others)

    class Forgetful(dict):
        def __contains__(self, key: object) -> bool:
            return False

    expected = code_digest(paths)
    monkeypatch.setattr(source, "_known", Forgetful())
    monkeypatch.setattr(ast, "parse", slow)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda _: code_digest(paths), range(8)))
    assert set(digests) == {expected}
    assert len(most) == 16 and max(most) == 1


def test_files_are_parsed_once_until_one_of_them_changes(tmp_path, monkeypatch):
    paths, parse, parsed = [tmp_path / "a.py", tmp_path / "b.py"], ast.parse, []
    for path in paths:
        path.write_text("x = 1")
    monkeypatch.setattr(ast, "parse", lambda text: parsed.append(text) or parse(text))
    first = code_digest(paths)
    assert code_digest(paths) == first and len(parsed) == 2
    paths[1].write_text("x = 1  # why")
    assert code_digest(paths) == first
    paths[1].write_text("x = 2")
    assert code_digest(paths) != first and parsed == ["x = 1", "x = 1", "x = 1", "x = 1  # why", "x = 1", "x = 2"]
