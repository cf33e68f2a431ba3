"""The rooms of DESIGN.md: a module uses only what stands below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import adcore

ROOT = Path(adcore.__file__).parent

# Bottom up. Rooms of one floor do not use each other, and whoever adds a room says here on which floor it stands.
FLOORS = (
    {"__init__", "errors"},
    {"distributed"},
    {"files", "memory", "paths", "progress", "switch"},
    {"source"},
    {"data"},
    {"kernels", "losses", "metrics", "receptive_field", "training"},
    {"color", "density", "features"},
    {"models"},
    {"complexity", "figures", "papers"},
    {"experiments"},
    {"interact", "notebook"},
    {"doctor", "grids", "notebook_outputs", "report"},
    {"plan", "reproduce"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def rooms_used(source: str) -> Iterator[str]:
    """The rooms that a module imports, at its head or inside a function; imports for type checkers do not count."""
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2].partition(".")[0] or "__init__" for alias in node.names
                        if alias.name.partition(".")[0] == "adcore")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports from the root, adcore.room.module"
            if node.module == "adcore":
                yield from (alias.name if alias.name in FLOOR else "__init__" for alias in node.names)
            elif node.module and node.module.startswith("adcore."):
                yield node.module.split(".")[1]


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_stands_in_a_room_with_a_floor():
    assert {room_of(path) for path in ROOT.rglob("*.py")} <= set(FLOOR)


def test_a_module_uses_only_rooms_below_its_own():
    upwards = [f"{path.relative_to(ROOT)} uses {used}" for path in sorted(ROOT.rglob("*.py"))
               for used in rooms_used(path.read_text(encoding="utf-8"))
               if used != room_of(path) and FLOOR.get(used, 99) >= FLOOR.get(room_of(path), 0)]
    assert not upwards


def test_the_floors_are_those_of_the_house_plan():
    for above, below in [("cli", "report"), ("report", "experiments"), ("experiments", "papers"), ("papers", "models"),
                         ("models", "losses"), ("models", "training"), ("models", "density"),
                         ("density", "kernels"), ("color", "kernels"), ("features", "kernels"), ("losses", "data"),
                         ("metrics", "data"), ("features", "data"), ("kernels", "data"), ("data", "files")]:
        assert FLOOR[above] > FLOOR[below]


def test_the_search_sees_imports_in_functions_and_not_those_for_type_checkers():
    source = ("import adcore.data.mtd\nfrom adcore import report, __version__\nfrom typing import TYPE_CHECKING\n"
              "if TYPE_CHECKING:\n    from adcore.models import UniAD\ndef f():\n    from adcore.cli import main\n")
    assert list(rooms_used(source)) == ["data", "report", "__init__", "cli"]


def test_no_module_ends_the_process_unless_run_as_a_script():
    """A library that exits takes a notebook's kernel with it."""
    calls = {"sys.exit", "exit", "quit", "os._exit"}
    for path in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        main = [node for node in tree.body if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)]
        inside = {id(node) for block in main for node in ast.walk(block)}
        exits = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and id(node) not in inside
                 and ast.unparse(node.func) in calls]
        assert not exits, f"{path.relative_to(ROOT)}, line {exits[0]}"
