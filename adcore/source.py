"""Digests of source code, by which what was computed is told from what other code would compute."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import adcore
from adcore.files import digest_file, digest_text

_parsing = threading.Lock()


def code_digest(paths: Iterable[Path]) -> str:
    """16 digits that change when the code in these files changes; comments and docstrings do not count."""
    return digest_text("\n".join(_bones(path) for path in paths if path.is_file()))


def package_digest() -> str:
    """16 digits that change when the package's code or one of its tables changes. The report counts not: it reads what runs
    have left."""
    root = Path(adcore.__file__).parent
    files = [path.relative_to(root) for path in sorted(root.rglob("*")) if path.suffix in (".py", ".csv")]
    files = [path for path in files if path.parts[0] != "report"]
    code = code_digest(root / path for path in files if path.suffix == ".py")
    return digest_text("\n".join([code, *(f"{path.as_posix()} {digest_file(root / path) if path.suffix == '.csv' else ''}"
                                         for path in files)]))


def run_digest(notebook: Path, parameters: Mapping[str, Any], package: str) -> str:
    """16 digits that change when a run of a notebook with these parameters could end otherwise: its cells, the parameters, or
    the package (a `package_digest`) have changed. What its cells gave out before, and what time files are of, counts not.

    Raises:
        OSError, ValueError, KeyError: it is no notebook.
    """
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = [[cell["cell_type"], "".join(cell["source"]), cell.get("metadata", {}).get("tags", [])] for cell in cells]
    return digest_text(json.dumps([source, dict(parameters), package], sort_keys=True))


def with_imports(path: Path, package: str) -> list[Path]:
    """A file of the folder of `package` and those in it and below that it imports, directly or not, sorted; whole packages do
    not count."""
    folder, found, waiting = path.parent, list[Path](), [path]
    while waiting:
        path = waiting.pop()
        if path in found or not path.is_file():
            continue
        found.append(path)
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{package}."):
                place = folder.joinpath(*str(node.module).removeprefix(package).split(".")[1:])
                waiting += [place.with_name(f"{place.name}.py"), *(place / f"{alias.name}.py" for alias in node.names)]
    return sorted(found)


def imports(paths: Iterable[Path], module: str) -> bool:
    """True when one of these files imports `module` or something in it."""
    trees = map(_parsed, paths)
    return any(isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(f"{module}.")
               for tree in trees for node in ast.walk(tree))


def _parsed(path: Path) -> ast.Module:
    """One thread at a time: Python 3.11 may fail where two of them parse."""
    with _parsing:
        return ast.parse(path.read_text(encoding="utf-8"))


def _bones(path: Path) -> str:
    tree = _parsed(path)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            del body[0]
    return ast.dump(tree)
