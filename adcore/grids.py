"""Grids: files in workflow/grids that list notebooks to run, their parameters, and the resources of each run.

    needs: {gpu: 1, memory_gb: 16, hours: 24}          # of each run; a notebook's own `needs` override single values
    notebooks:
      - notebook: uniad2022/01_architecture
        parameters: {profile: paper, dataset: mvtec_ad, seeds: [0, 1, 2, 3, 4]}
        each: {seeds: [[0], [1], [2], [3], [4]]}       # one run for each value, then one run that draws the table
        needs: {hours: 48}

Parameters are read by the types of the notebook's defaults, as on the command line.
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
from adcore.parameters import DEEPEST, Word, plain, short, text_of
from adcore.paths import repository


class Words(yaml.SafeLoader):
    """Reads what has no quotes as a `Word`, because YAML itself makes False of `no` and text of `1e-5`."""

    def word(self, node: yaml.ScalarNode) -> str:
        return Word(node.value) if node.style is None else str(node.value)


Words.yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # of its types only the merge key, <<
Words.add_constructor("tag:yaml.org,2002:str", Words.word)

LONGEST = 200_000  # bytes of a file
MOST = 10_000  # values of a file, each counted as often as aliases repeat it; runs of a notebook
LARGEST = 1e6  # of each need
SHORT = 0.5  # hours; runs up to this length that need no GPU share a cluster job


@dataclass(frozen=True)
class Needs:
    """Resources of one run. The scheduler stops a run that exceeds its memory or time.

    gpu        number of GPUs
    memory_gb  memory of all processes of the run together
    hours      wall-clock time
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

    id     name in the runs folder: 'uniad2022/01_architecture', for a parameter set followed by '@' and eight digits
    after  ids of the jobs that must run first, because this one shows their results
    """

    id: str
    path: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, ...] = ()
    needs: Needs = Needs()

    @property
    def notebook(self) -> str:
        """The notebook's name: the id without '@' and the digits of a parameter set."""
        return self.id.partition("@")[0]

    def words(self) -> str:
        """The parameters as options of `adcore run`, quoted for a shell."""
        return " ".join(f"-p {shlex.quote(f'{name}={text_of(value)}')}" for name, value in self.parameters.items())


def load_grid(name: str, folder: Path | None = None) -> list[Job]:
    """The jobs of a grid; parameter sets come before the run that shows their results together.

    name  a file name in workflow/grids without '.yaml', or the path of any .yaml file

    Raises:
        ParameterError: no such grid, a malformed file, an unknown notebook or parameter.
    """
    path = _grid_file(name, folder)
    try:
        content = _content(path)
        entries = [_entry(**row) for row in content["notebooks"]]
        common = plain(_mapping(content.get("needs")))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ParameterError(f"{path} is not a grid ({type(error).__name__}): expected notebooks, a list of "
                             f"notebook, parameters, each, needs") from error
    default = _needs(path, "all notebooks", common, Needs())
    jobs: dict[str, Job] = {}
    for notebook, parameters, each, needs in entries:
        for job in _jobs(find_notebook(notebook), parameters, each, _needs(path, notebook, needs, default)):
            if job.id in jobs:
                raise ParameterError(f"{path} lists {job.id} twice: put the differing parameters under 'each'")
            jobs[job.id] = job
    return list(jobs.values())


def jobs_for(jobs: Collection[Job], exhibits: Collection[str]) -> list[Job]:
    """The jobs, parameter sets included, whose notebooks regenerate the given exhibits; all jobs when `exhibits` is empty.

    Raises:
        ParameterError: an unknown exhibit, an exhibit without a notebook, or one whose notebook is not in the grid.
    """
    from adcore.papers import exhibits as all_exhibits

    known = all_exhibits()["notebook"]
    for exhibit in exhibits:
        if exhibit not in known.index:
            raise ParameterError(f"unknown exhibit '{exhibit}'{did_you_mean(exhibit, known.index)}: adcore/papers/exhibits.csv "
                                 f"lists all {len(known)}")
        if not known[exhibit]:
            raise ParameterError(f"exhibit '{exhibit}' has no notebook: it cannot be regenerated yet")
        if known[exhibit] not in {job.notebook for job in jobs}:
            raise ParameterError(f"exhibit '{exhibit}' needs notebook {known[exhibit]}, which is not in this grid: use another "
                                 f"grid, or add the notebook to it")
    wanted = {known[exhibit] for exhibit in exhibits}
    return [job for job in jobs if not exhibits or job.notebook in wanted]


def _grid_file(name: str, folder: Path | None) -> Path:
    if Path(name).suffix == ".yaml":
        if not Path(name).is_file():
            raise ParameterError(f"there is no grid file {name}: grids in workflow/grids are named without .yaml")
        return Path(name).absolute()
    root = repository()
    if folder is None and root is None:
        raise AdcoreError("grids are part of the checkout: clone the repository and run this from there")
    folder = folder or root / "workflow" / "grids"  # type: ignore[operator]
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise ParameterError(f"there is no grid '{name}'; there are {known}")
    return path


def _content(path: Path) -> Any:
    """The file's content, with words. Raises OSError, yaml.YAMLError, ValueError; ParameterError when it is too large."""
    with path.open("rb") as file:
        text = file.read(LONGEST + 1)
    loader = Words(text.decode("utf-8"))
    try:
        node = loader.get_single_node() if len(text) <= LONGEST else None
        if len(text) > LONGEST or _extent(node, {})[0] > MOST:
            raise ParameterError(f"{path} is too large for a grid: it may have {LONGEST // 1000} kB and {MOST:,} values, each "
                                 f"counted as often as aliases (*name) repeat it, at most {DEEPEST} in each other")
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _extent(node: yaml.Node | None, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node has, itself included, and how deep they are nested.

    known  extents of nodes: an alias is the node that it repeats, which is looked at once but counted each time
    """
    if node is None or id(node) in known:
        return known.get(id(node), (0, 0))
    known[id(node)] = (MOST + 1, 0)  # for an alias of a node inside itself
    value = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = [_extent(one, known) for item in value for one in (item if isinstance(item, tuple) else (item,))]
    depth = 1 + max((depth for _, depth in parts), default=0)
    known[id(node)] = (1 + sum(count for count, _ in parts) if depth <= DEEPEST else MOST + 1, depth)
    return known[id(node)]


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping with string keys; {} for nothing. Raises TypeError."""
    if not isinstance(value or {}, dict) or not all(isinstance(key, str) for key in value or {}):
        raise TypeError
    return {str(key): item for key, item in (value or {}).items()}


def _entry(notebook: str, parameters: Any = None, each: Any = None,
           needs: Any = None) -> tuple[str, dict[str, Any], dict[str, list[Any]], dict[str, Any]]:
    """One item under `notebooks`, with its types checked. Raises TypeError."""
    notebook = plain(notebook)
    if not isinstance(notebook, str) or not all(isinstance(values, list) for values in _mapping(each).values()):
        raise TypeError
    return notebook, _mapping(parameters), _mapping(each), plain(_mapping(needs))


def _needs(path: Path, scope: str, given: Mapping[str, Any], default: Needs) -> Needs:
    values = asdict(default)
    for name, value in given.items():
        if name not in values:
            raise ParameterError(f"{path}, needs of {scope}: unknown '{name}'{did_you_mean(name, values)}; they are "
                                 f"{', '.join(values)}")
        integer = name == "gpu"
        if isinstance(value, bool) or not isinstance(value, int if integer else (int, float)) or not (
                0 <= value < math.inf and (integer or value)):
            raise ParameterError(f"{path}, needs of {scope}: {name} takes {'an integer' if integer else 'a number above 0'}, "
                                 f"not {short(repr(value))}")
        if value >= LARGEST:
            raise ParameterError(f"{path}, needs of {scope}: {name} takes a number below {LARGEST:g}, not {short(repr(value))}")
        values[name] = value
    return Needs(**values)


def _jobs(path: Path, parameters: dict[str, Any], each: dict[str, list[Any]], needs: Needs) -> list[Job]:
    name = notebook_name(path)
    sets = []
    if math.prod(map(len, each.values())) > MOST:
        raise ParameterError(f"the lists under 'each' of {name} make more than {MOST:,} runs: shorten them")
    for values in itertools.product(*each.values()) if each else ():
        chosen = check_parameters(path, {**parameters, **dict(zip(each, values, strict=True))})
        sets.append(Job(f"{name}@{digest_text(json.dumps(chosen, sort_keys=True), 8)}", path, chosen, needs=needs))
    return [*sets, Job(name, path, check_parameters(path, parameters), tuple(job.id for job in sets), needs)]
