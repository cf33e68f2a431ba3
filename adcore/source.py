"""Digests of source code: they tell whether a stored number was computed by the code that is here now."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterable
from pathlib import Path

import adcore
from adcore.files import digest_file, digest_text

# Shared code on which every method's numbers rest: files and folders of the package.
SHARED = ("data", "detector.py", "distributed.py", "experiments/evaluation.py", "experiments/runner.py", "features",
          "kernels", "metrics.py", "training.py")

_parsing = threading.Lock()
_known: dict[str, str] = {}     # digest of the files as they are -> digest of their code: reading them is fast, parsing is slow


def code_digest(paths: Iterable[Path]) -> str:
    """16 digits that change when the code in these files changes; comments and docstrings do not count."""
    texts = [path.read_text(encoding="utf-8") for path in paths if path.is_file()]
    as_they_are = digest_text("\0".join(texts))
    if as_they_are not in _known:
        _known[as_they_are] = digest_text("\n".join(map(_bones, texts)))
    return _known[as_they_are]


def paper_digest(paper: str) -> str:
    """16 digits that change when the code behind a paper's numbers changes: its folder below adcore/papers, and `SHARED`.

    Its `experiments.py` does not count: it selects experiments and computes nothing.
    """
    root = Path(adcore.__file__).parent
    own = [path for path in (root / "papers" / paper).rglob("*.py") if path.name != "experiments.py"] if paper else []
    shared = [path for name in SHARED for path in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))]
    return code_digest(sorted([*own, *shared]))


def package_digest() -> str:
    """16 digits that change when the package's code or one of its tables changes.

    The report does not count: it only reads what runs have stored.
    """
    root = Path(adcore.__file__).parent
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.suffix in (".py", ".csv")]
    files = [path for path in files if path.parts[0] != "report"]
    code = code_digest(root / path for path in files if path.suffix == ".py")
    return digest_text("\n".join([code, *(f"{path.as_posix()} {digest_file(root / path) if path.suffix == '.csv' else ''}"
                                         for path in files)]))


def _bones(text: str) -> str:
    with _parsing:      # one at a time: Python 3.11 may fail when two threads parse at once
        tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    return ast.dump(tree)
