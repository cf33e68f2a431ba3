"""Digests of source code, computed by several threads."""

from __future__ import annotations

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import adcore
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

    expected = code_digest(paths)
    monkeypatch.setattr(ast, "parse", slow)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda _: code_digest(paths), range(8)))
    assert set(digests) == {expected}
    assert len(most) == 16 and max(most) == 1
