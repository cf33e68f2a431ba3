"""Digests of source code asked for by many threads."""

from __future__ import annotations

import ast
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import adcore
from adcore.source import code_digest, with_imports

MODELS = Path(adcore.__file__).parent / "models"


def test_of_many_threads_one_parses_at_a_time(monkeypatch):
    """Python 3.11 counts the depth of syntax trees for all threads together, and now and then fails when two of them parse."""
    paths, parse, inside, most = [MODELS / "pretraining" / "lars.py", MODELS / "detector.py"], ast.parse, [], []

    def slow(text: str, *others: object) -> ast.Module:
        inside.append(text)
        most.append(len(inside))
        time.sleep(0.002)
        inside.remove(text)
        return parse(text, *others)

    expected = code_digest(paths), with_imports(MODELS / "frozen.py", "adcore.models")
    monkeypatch.setattr(ast, "parse", slow)
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(lambda _: code_digest(paths), range(8)))
        imported = list(pool.map(lambda _: with_imports(MODELS / "frozen.py", "adcore.models"), range(8)))
    assert set(digests) == {expected[0]} and all(found == expected[1] for found in imported)
    assert len(most) >= 24 and max(most) == 1


def test_a_method_is_made_of_what_it_imports_in_folders_too_by_whichever_form_and_of_no_whole_package():
    files = {path.relative_to(MODELS).as_posix() for path in with_imports(MODELS / "ds2.py", "adcore.models")}
    assert {"ds2.py", "detector.py", "pretrained.py", "pretraining/dense.py", "pretraining/photometric.py"} <= files
    assert not {name for name in files if name.endswith("__init__.py")} and "uniad.py" not in files
