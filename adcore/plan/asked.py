"""Which experiments a notebook asks for, found without running them.

A notebook lists its experiments in code: `run(grid(UniAD, nma=[False, True], **common))`. Of its top-level statements those are
kept that call `run` or `fitted`, and backwards from them those that define a name which a kept one uses; in a loop's body
likewise. What is left is imports, parameters and lists of settings. It is executed with the parameters of a batch run and with
`run` and `fitted` replaced by functions that write down what they are given and hand out empty tables.

    categories = []                       kept: a parameter, with the run's value
    images = read_images(...)             not kept: nothing kept uses it
    rows = [dict(nma=False), ...]         kept: `experiments` uses it
    experiments = [e for row in rows ...] kept: `run` uses it
    table = run(experiments)              kept: a call of `run`
    figures.show(chart(table))            not kept
"""

from __future__ import annotations

import ast
import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from adcore.data.verify import PUBLISHED
from adcore.errors import AdcoreError, DataError
from adcore.experiments import Experiment, grid
from adcore.notebook import read_parameters

CALLS = ("run", "fitted")
GROWS = ("add", "append", "extend", "insert", "setdefault", "update")  # methods by which a list, set or dict is defined further


@dataclass(frozen=True)
class Asked:
    """What a notebook asks for with some parameters.

    experiments  whose results it wants
    models       that it wants to look into, and so fits itself
    problem      why they cannot be listed, '' when they can
    """

    experiments: tuple[Experiment, ...] = ()
    models: tuple[Experiment, ...] = ()
    problem: str = ""


def asked(path: Path, parameters: Mapping[str, Any]) -> Asked:
    """The experiments and models of a notebook with these parameters, and its own for the others. Trains nothing.

    Raises:
        ParameterError: the notebook cannot be read.
    """
    values = {**read_parameters(path), **parameters}
    experiments: list[Experiment] = []
    models: list[Experiment] = []

    def run(some: Iterable[Experiment], **_: Any) -> Any:
        some = list(some)
        experiments.extend(some)
        return SimpleNamespace(results=[SimpleNamespace(experiment=one) for one in some])

    def fitted(one: Experiment, **_: Any) -> Any:
        models.append(one)
        return SimpleNamespace()

    names: dict[str, Any] = {"__name__": "__main__"}
    try:
        for statement in needed(_statements(path)):
            exec(compile(ast.Module([statement], []), path.name, "exec"), names)
            names |= {"run": run, "fitted": fitted, "grid": _grid}  # an import may just have brought the real ones
            names |= {name: copy.deepcopy(value) for name, value in values.items() if name in _bound(statement)}
    except AdcoreError as error:
        return Asked(problem=str(error))
    except Exception as error:  # code of a notebook, cut to pieces: anything may be missing
        return Asked(problem=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return Asked(_once(experiments), _once(models))


def _once(experiments: Iterable[Experiment]) -> tuple[Experiment, ...]:
    """Without those that are another one written down in another way: `loss="mse"` is UniAD's default."""
    return tuple({one.key: one for one in reversed(list(experiments))}.values())[::-1]


def _grid(method: Any, *, dataset: str = "mini", categories: Any = None, **settings: Any) -> list[Experiment]:
    """`grid`, which also knows the categories of a published data set that is not here."""
    try:
        return grid(method, dataset=dataset, categories=categories, **settings)
    except DataError:
        if dataset not in PUBLISHED:
            raise
        return grid(method, dataset=dataset, categories=sorted(PUBLISHED[dataset]), **settings)


def _statements(path: Path) -> list[ast.stmt]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [statement for source in sources for statement in ast.parse(source).body]


def needed(statements: list[ast.stmt], wanted: set[str] | None = None) -> list[ast.stmt]:
    """The statements that call `run` or `fitted`, or define a name that a kept one further down uses or that is in `wanted`; of
    loops and conditions only such a part. `wanted` becomes the names that have to be there before the first statement."""
    wanted = set() if wanted is None else wanted
    kept: list[ast.stmt] = []
    for statement in reversed(statements):
        if _calls(statement) or _bound(statement) & wanted:
            kept.insert(0, _shortened(statement, wanted))
    return kept


def _shortened(statement: ast.stmt, wanted: set[str]) -> ast.stmt:
    """The statement with only what is needed of its body; `wanted` becomes what it needs to be there before."""
    if isinstance(statement, (ast.For, ast.While, ast.If, ast.With)):
        statement = copy.copy(statement)
        if isinstance(statement, ast.With):
            statement.body = needed(statement.body, wanted)
        else:
            before = set(wanted)
            while True:  # the next round of a loop may use what this one defines further down
                around, orelse = set(wanted), set(before)
                body = needed(statement.body, around)
                statement_orelse = needed(statement.orelse, orelse)
                if around | orelse <= wanted:
                    break
                wanted |= around | orelse
            statement.body, statement.orelse = body, statement_orelse
        statement.body = statement.body or [ast.copy_location(ast.Pass(), statement)]
    elif isinstance(statement, ast.Assign):  # what a name was before no longer matters
        wanted -= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    wanted |= {node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return statement


def _nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A statement's parts, but not the inside of functions, which runs when called, nor a comprehension's own names."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.comprehension):
            yield from (part for inner in (child.iter, *child.ifs) for part in _nodes(inner))
        elif not isinstance(child, (ast.FunctionDef, ast.Lambda)):
            yield from _nodes(child)


def _calls(statement: ast.stmt) -> bool:
    return not isinstance(statement, ast.FunctionDef) and any(
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS for node in _nodes(statement))


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement defines, or defines further: x = 1, x[0] = 1, x.append(1), import x, def x."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    names = set()
    for node in _nodes(statement):
        if isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            names.add(node.value.id)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in GROWS and isinstance(
                node.func.value, ast.Name):
            names.add(node.func.value.id)
    return names
