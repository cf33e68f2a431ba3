"""Grids: which notebooks to run with which parameters, and what a run needs. Files in workflow/grids.

    needs: {gpu: 1, memory_gb: 16, hours: 24}          # of one run, unless its row says otherwise
    notebooks:
      - notebook: uniad2022/01_architecture
        parameters: {profile: paper, dataset: mvtec_ad, seeds: [0, 1, 2, 3, 4]}
        each: {seeds: [[0], [1], [2], [3], [4]]}       # one run for each first, then one that draws the table
        needs: {hours: 48}
"""

from __future__ import annotations

import itertools
import json
import math
import shlex
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adcore.errors import AdcoreError, ParameterError, did_you_mean
from adcore.files import digest_text
from adcore.notebook import check_parameters, find_notebook, notebook_name
from adcore.paths import repository

SHORT = 0.5  # hours: runs that need no more, and no GPU, share a cluster's job


@dataclass(frozen=True)
class Needs:
    """What one run asks a scheduler for; it is stopped when it takes more.

    gpu        how many
    memory_gb  of the whole process tree
    hours      of wall-clock time
    """

    gpu: int = 0
    memory_gb: float = 3
    hours: float = 1 / 6

    @property
    def memory_mb(self) -> int:
        return math.ceil(1000 * self.memory_gb)

    @property
    def minutes(self) -> int:
        return math.ceil(60 * self.hours)

    @property
    def short(self) -> bool:
        return self.hours <= SHORT and not self.gpu


@dataclass(frozen=True)
class Job:
    """One execution of a notebook.

    id     its name in the runs folder: 'uniad2022/01_architecture', with '@' and eight digits for one of a grid's sets
    after  ids of the jobs whose results it gathers
    """

    id: str
    path: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    needs: Needs = Needs()

    @property
    def notebook(self) -> str:
        """The notebook's name: the id without what tells a set from the others."""
        return self.id.partition("@")[0]

    def words(self) -> str:
        """The parameters as options of `adcore run`, quoted for a shell."""
        return " ".join(f"-p {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in self.parameters.items())


def load_grid(name: str, folder: Path | None = None) -> list[Job]:
    """The jobs of a grid, parameter sets before the notebook that gathers them.

    name  a file of workflow/grids without its .yaml, or the path of any other that ends so

    Raises:
        ParameterError: no such grid, a malformed file, an unknown notebook, a parameter it does not take.
    """
    path = _grid_file(name, folder)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = [_entry(**row) for row in content["notebooks"]]
        usual = _mapping(content.get("needs"))
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ParameterError(f"{path} is not a grid ({type(error).__name__}): expected notebooks, a list of "
                             f"notebook, parameters, each, needs") from error
    default = _needs(path, "all notebooks", usual, Needs())
    jobs: dict[str, Job] = {}
    for notebook, parameters, each, needs in entries:
        for job in _jobs(find_notebook(notebook), parameters, each, _needs(path, notebook, needs, default)):
            if job.id in jobs:
                raise ParameterError(f"{path} asks for {job.id} twice: put what differs under each")
            jobs[job.id] = job
    return list(jobs.values())


def jobs_for(jobs: Collection[Job], exhibits: Collection[str]) -> list[Job]:
    """The jobs whose notebooks regenerate some exhibits, with the parameter sets that they gather; all, when none is named.

    Raises:
        ParameterError: an unknown exhibit, one that no notebook regenerates yet, or one whose notebook the grid does not run.
    """
    from adcore.papers import exhibits as all_exhibits

    known = all_exhibits()["notebook"]
    for exhibit in exhibits:
        if exhibit not in known.index:
            raise ParameterError(f"unknown exhibit '{exhibit}'{did_you_mean(exhibit, known.index)}: adcore/papers/exhibits.csv "
                                 f"lists all {len(known)}")
        if not known[exhibit]:
            raise ParameterError(f"exhibit '{exhibit}' has no notebook yet: it cannot be regenerated")
        if known[exhibit] not in {job.notebook for job in jobs}:
            raise ParameterError(f"exhibit '{exhibit}' is made by {known[exhibit]}, which this grid does not run: name another "
                                 f"grid, or add the notebook to its file")
    wanted = {known[exhibit] for exhibit in exhibits}
    return [job for job in jobs if not exhibits or job.notebook in wanted]


def _grid_file(name: str, folder: Path | None) -> Path:
    if Path(name).suffix == ".yaml":
        if not Path(name).is_file():
            raise ParameterError(f"there is no grid file {name}: a name without .yaml is looked for in workflow/grids")
        return Path(name).absolute()
    root = repository()
    if folder is None and root is None:
        raise AdcoreError("grids are part of the checkout: clone the repository and run this from there")
    folder = folder or root / "workflow" / "grids"  # type: ignore[operator]
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise ParameterError(f"there is no grid '{name}'; there are {there}")
    return path


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping with words for keys, {} for nothing. Raises TypeError."""
    if not isinstance(value or {}, dict) or not all(isinstance(key, str) for key in value or {}):
        raise TypeError
    return value or {}


def _entry(notebook: str, parameters: Any = None, each: Any = None,
           needs: Any = None) -> tuple[str, dict[str, Any], dict[str, list[Any]], dict[str, Any]]:
    """A row of the file, made sure to be of its types. Raises TypeError."""
    if not isinstance(notebook, str) or not all(isinstance(values, list) for values in _mapping(each).values()):
        raise TypeError
    return notebook, _mapping(parameters), _mapping(each), _mapping(needs)


def _needs(path: Path, whose: str, given: Mapping[str, Any], default: Needs) -> Needs:
    values = asdict(default)
    for name, value in given.items():
        if name not in values:
            raise ParameterError(f"{path}, needs of {whose}: unknown '{name}'{did_you_mean(name, values)}; they are "
                                 f"{', '.join(values)}")
        whole = name == "gpu"
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)) or not (
                0 <= value < math.inf and (whole or value)):
            raise ParameterError(f"{path}, needs of {whose}: {name} takes {'a whole number' if whole else 'a number above 0'}, "
                                 f"not {value!r}")
        values[name] = value
    return Needs(**values)


def _jobs(path: Path, parameters: dict[str, Any], each: dict[str, list[Any]], needs: Needs) -> list[Job]:
    name = notebook_name(path)
    sets = []
    for values in itertools.product(*each.values()) if each else ():
        chosen = check_parameters(path, {**parameters, **dict(zip(each, values, strict=True))})
        sets.append(Job(f"{name}@{digest_text(json.dumps(chosen, sort_keys=True), 8)}", path, chosen, needs=needs))
    return [*sets, Job(name, path, check_parameters(path, parameters), tuple(job.id for job in sets), needs)]
