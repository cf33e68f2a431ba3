"""Digests of source code, by which what was computed is told from what other code would compute."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from adcore.files import digest_text


def code_digest(paths: Iterable[Path]) -> str:
    """16 digits that change when the code in these files changes; comments and docstrings do not count."""
    return digest_text("\n".join(_bones(path) for path in paths if path.is_file()))


def with_imports(path: Path, package: str) -> list[Path]:
    """A file and those beside it that it imports from `package`, directly or not, sorted."""
    found: list[Path] = []
    waiting = [path]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
                waiting.append(path.with_name(f"{str(node.module).rpartition('.')[2]}.py"))
    return sorted(found)


def imports(paths: Iterable[Path], module: str) -> bool:
    """True when one of these files imports `module` or something in it."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in paths)
    return any(isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{module}.")
               for tree in trees for node in ast.walk(tree))


def _bones(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    return ast.dump(tree)
