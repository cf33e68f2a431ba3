"""The rooms of DESIGN.md: a module uses only what stands below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import adcore

ROOT = Path(adcore.__file__).parent

# Bottom up. Rooms of one floor do not use each other. A paper's folder is a room of its own: `papers.uniad2022`; its list of
# experiments, `papers.uniad2022.experiments`, stands above the experiments that it lists.
PAPERS = {f"papers.{path.parent.name}" for path in ROOT.glob("papers/*/__init__.py")}
FLOORS = (
    {"__init__", "errors"},
    {"distributed"},
    {"ahead", "claims", "deadline", "executor", "files", "memory", "parameters", "paths", "progress", "switch"},
    {"digests", "source"},
    {"cache"},
    {"data"},
    {"kernels", "metrics", "training"},
    {"features"},
    {"settings"},
    {"detector", "papers"},
    PAPERS,
    {"models"},
    {"figures"},
    {"experiments"},
    {"run_digest"},
    {"interact", "notebook", "papers.experiments", *(f"{paper}.experiments" for paper in PAPERS)},
    {"doctor", "grids", "report"},
    {"plan"},
    {"budget"},
    {"reproduce"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """The room of 'adcore.data.mtd' is 'data', that of 'adcore.papers.ds2.views' is 'papers.ds2'."""
    parts = module.split(".")[1:]
    if not parts:
        return "__init__"
    if parts[0] != "papers":
        return parts[0]
    if "experiments" in parts[1:3]:
        return ".".join(parts[:parts.index("experiments") + 1])
    return ".".join(parts[:2]) if ".".join(parts[:2]) in PAPERS else "papers"


def rooms_used(source: str) -> Iterator[str]:
    """The rooms that a module imports, at its head or inside a function; imports for type checkers do not count."""
    for node in _nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (room_of(alias.name) for alias in node.names if alias.name.partition(".")[0] == "adcore")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports from the root, adcore.room.module"
            if node.module and node.module.partition(".")[0] == "adcore":
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                yield from (room_of(name if room_of(name) in FLOOR else node.module) for name in names)


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _nodes(child)


def own_room(path: Path) -> str:
    return room_of(".".join(("adcore", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"))


def test_every_module_stands_in_a_room_with_a_floor():
    assert {own_room(path) for path in ROOT.rglob("*.py")} <= set(FLOOR)


def test_a_module_uses_only_rooms_below_its_own():
    upwards = [f"{path.relative_to(ROOT)} uses {used}" for path in sorted(ROOT.rglob("*.py"))
               for used in rooms_used(path.read_text(encoding="utf-8"))
               if used != own_room(path) and FLOOR.get(used, 99) >= FLOOR.get(own_room(path), 0)]
    assert not upwards


def test_no_paper_uses_another():
    assert len(PAPERS) == 5 and len({FLOOR[paper] for paper in PAPERS}) == 1
    for path in ROOT.glob("papers/*/**/*.py"):
        paper = f"papers.{path.relative_to(ROOT).parts[1]}"
        used = {room.removesuffix(".experiments") for room in rooms_used(path.read_text(encoding="utf-8"))} & PAPERS
        assert used <= {paper}, f"{path.relative_to(ROOT)} uses {used - {paper}}"


def test_the_floors_are_those_of_the_house_plan():
    for above, below in [("cli", "report"), ("report", "experiments"), ("experiments", "models"), ("models", "papers.ds2"),
                         ("papers.ds2", "training"), ("papers.ds2", "features"), ("papers.ds2", "papers"),
                         ("papers.ds2.experiments", "experiments"), ("features", "kernels"), ("metrics", "data"),
                         ("features", "data"), ("kernels", "data"), ("data", "files")]:
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
