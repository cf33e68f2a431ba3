"""Grids: which notebooks to run with which parameters. Files in workflow/grids.

    notebooks:
      - notebook: uniad2022/01_architecture
        parameters: {profile: paper, dataset: mvtec_ad, seeds: [0, 1, 2, 3, 4]}
        each: {seeds: [[0], [1], [2], [3], [4]]}       # one run for each first, then one that draws the table
"""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from adcore.errors import AdcoreError, ParameterError
from adcore.files import digest_text
from adcore.notebook import check_parameters, find_notebook, notebook_name
from adcore.paths import repository


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

    def words(self) -> str:
        """The parameters as options of `adcore run`, quoted for a shell."""
        return " ".join(f"-p {shlex.quote(f'{name}={json.dumps(value)}')}" for name, value in self.parameters.items())


def load_grid(name: str, folder: Path | None = None) -> list[Job]:
    """The jobs of a grid file, parameter sets before the notebook that gathers them.

    Raises:
        ParameterError: no such grid, a malformed file, an unknown notebook, a parameter it does not take.
    """
    root = repository()
    if folder is None and root is None:
        raise AdcoreError("grids are part of the checkout: clone the repository and run this from there")
    folder = folder or root / "workflow" / "grids"  # type: ignore[operator]
    path = folder / f"{name}.yaml"
    if not path.is_file():
        there = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise ParameterError(f"there is no grid '{name}'; there are {there}")
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))["notebooks"]
        entries = [_entry(**row) for row in rows]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ParameterError(f"{path} is not a grid ({type(error).__name__}): expected notebooks, a list of "
                             f"notebook, parameters, each") from error
    jobs: dict[str, Job] = {}
    for notebook, parameters, each in entries:
        for job in _jobs(find_notebook(notebook), parameters, each):
            if job.id in jobs:
                raise ParameterError(f"{path} asks for {job.id} twice: put what differs under each")
            jobs[job.id] = job
    return list(jobs.values())


def _entry(notebook: str, parameters: Any = None, each: Any = None) -> tuple[str, dict[str, Any], dict[str, list[Any]]]:
    """A row of the file, made sure to be of its types. Raises TypeError."""
    parameters, each = parameters or {}, each or {}
    if not isinstance(notebook, str) or not isinstance(parameters, dict) or not isinstance(each, dict):
        raise TypeError
    if not all(isinstance(values, list) for values in each.values()):
        raise TypeError
    return notebook, parameters, each


def _jobs(path: Path, parameters: dict[str, Any], each: dict[str, list[Any]]) -> list[Job]:
    name = notebook_name(path)
    sets = []
    for values in itertools.product(*each.values()) if each else ():
        chosen = check_parameters(path, {**parameters, **dict(zip(each, values, strict=True))})
        sets.append(Job(f"{name}@{digest_text(json.dumps(chosen, sort_keys=True), 8)}", path, chosen))
    return [*sets, Job(name, path, check_parameters(path, parameters), tuple(job.id for job in sets))]
