"""The plan: what a grid asks for before anything runs. Experiments, what is here, what is missing, about how long it takes.

    adcore reproduce --exhibit uniad2022.table_s2 --profile paper --plan

The experiments of a notebook are listed by functions of its paper's `experiments` module, one per exhibit, which the notebook
calls too: `table_s2(profile=..., seeds=...)` for those whose results it needs, `table_s2_models(...)` for those whose fitted
networks it looks into. Of the notebook itself only the parameters cell is read, as literals; none of its code is executed.
Times come only from measured results with the same settings.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adcore.data import find_dataset
from adcore.data.manifest import load_manifest
from adcore.errors import AdcoreError, ParameterError, WeightsError
from adcore.experiments import Experiment, Store
from adcore.experiments.profiles import data_options
from adcore.experiments.provenance import fingerprint
from adcore.experiments.record import parse_settings, records
from adcore.features import find_weights
from adcore.grids import Job, Needs
from adcore.notebook import read_parameters
from adcore.papers import exhibits

NOT_MEASURED = "not measured"
EMBEDDED = "mini"

# Returns the experiments, or the experiments of each row of a table.
Listing = Callable[..., list[Experiment] | dict[str, list[Experiment]]]


@dataclass(frozen=True)
class Asked:
    """What a notebook run asks for.

    experiments  experiments whose results it needs
    models       experiments whose fitted networks it looks into
    problem      why they cannot be listed; '' when they can
    """

    experiments: tuple[Experiment, ...] = ()
    models: tuple[Experiment, ...] = ()
    problem: str = ""


def listings(notebook: str) -> list[tuple[Listing, Listing | None]]:
    """The functions that list a notebook's experiments: pairs (experiments, models or None), one pair per exhibit.

    notebook  its name, such as 'uniad2022/02_ablations'; '00_start_here' belongs to no paper and has one function, start_here

    Raises:
        ParameterError: a notebook that is not of this collection.
    """
    paper, _, section = notebook.rpartition("/")
    table = exhibits()
    names = [name.partition(".")[2] for name in table.index[table["notebook"] == notebook]]
    if paper and not names:
        raise ParameterError(f"no exhibit of adcore/papers/exhibits.csv belongs to a notebook '{notebook}'")
    module = importlib.import_module(f"adcore.papers.{paper}.experiments" if paper else "adcore.papers.experiments")
    found = [(getattr(module, name, None), getattr(module, f"{name}_models", None))
             for name in names or [section.partition("_")[2]]]
    # What the module only imports is no listing: a notebook called `00_grid` would call `grid`.
    if not paper and getattr(found[0][0], "__module__", "") != module.__name__:
        raise ParameterError(f"'{notebook}' is not a notebook of the collection")
    return [(results or _none, models) for results, models in found if results or models]


def _none() -> list[Experiment]:
    return []


def asked(notebook: str, parameters: Mapping[str, Any]) -> Asked:
    """What a notebook asks for with these parameters. Trains nothing and reads no image."""
    try:
        pairs = listings(notebook)
        results = [one for listing, _ in pairs for one in _listed(listing, parameters)]
        models = [one for _, listing in pairs if listing for one in _listed(listing, parameters)]
    except AdcoreError as error:
        return Asked(problem=str(error))
    return Asked(_distinct(results), _distinct(models))


def _listed(listing: Listing, parameters: Mapping[str, Any]) -> list[Experiment]:
    taken = inspect.signature(listing).parameters
    found = listing(**{name: value for name, value in parameters.items() if name in taken})
    return [one for row in found.values() for one in row] if isinstance(found, dict) else found


def _distinct(experiments: Iterable[Experiment]) -> tuple[Experiment, ...]:
    """Without repetitions under another name: `loss="mse"` is UniAD's default."""
    return tuple({one.key: one for one in reversed(list(experiments))}.values())[::-1]


# How long an experiment takes.

@dataclass(frozen=True)
class Duration:
    """How long one experiment took.

    gpu     True when it ran on a GPU
    data    name of the data set, and how much of it
    source  'runs' for the store, or a file of results/
    """

    seconds: float
    machine: str
    gpu: bool
    data: str
    source: str


class Clock:
    """All measured durations, by method and complete settings: epochs, sizes and the backbone decide the time."""

    def __init__(self, store: Store) -> None:
        self._known: dict[str, list[Duration]] = defaultdict(list)
        self._keys: dict[tuple[object, ...], str] = {}
        for experiment, duration in [*_stored_durations(store), *_recorded_durations()]:
            try:
                self._known[self._like(experiment)].append(duration)
            except AdcoreError:  # a method or a setting that no longer exists
                continue

    def estimate(self, experiment: Experiment) -> Duration | None:
        """The mean over comparable experiments of one machine, or None.

        Preferred, in this order: the same data, a GPU, the store rather than results/, the machine with most of them.
        """
        found = self._known.get(self._like(experiment), [])
        for better in (lambda one: one.data == _data(experiment), lambda one: one.gpu, lambda one: one.source == "runs"):
            found = [one for one in found if better(one)] or found
        if not found:
            return None
        machines = [one.machine for one in found]
        first = next(one for one in found if machines.count(one.machine) == max(map(machines.count, machines)))
        alike = [one for one in found if (one.machine, one.data, one.gpu) == (first.machine, first.data, first.gpu)]
        return Duration(sum(one.seconds for one in alike) / len(alike), first.machine, first.gpu, first.data, first.source)

    def _like(self, experiment: Experiment) -> str:
        """Equal for experiments that differ only in data, category and seed."""
        kind = experiment.method, experiment.profile, repr(experiment.settings)
        if kind not in self._keys:
            self._keys[kind] = json.dumps([experiment.method, experiment.config().values()], sort_keys=True, default=str)
        return self._keys[kind]


def _stored_durations(store: Store) -> Iterator[tuple[Experiment, Duration]]:
    for result in store.results():
        origin = result.provenance
        if isinstance(origin.get("seconds"), (int, float)):
            yield result.experiment, Duration(origin["seconds"], str(origin.get("machine")), origin.get("device") == "cuda",
                                              _data(result.experiment), "runs")


def _recorded_durations() -> Iterator[tuple[Experiment, Duration]]:
    for record in records():
        once = record.frame.drop_duplicates("key")
        once = once.assign(settings=once["settings"].astype(object).fillna(""))
        for row in once[once["seconds"].notna()].itertuples():
            one = Experiment(row.method, row.dataset, row.category, int(row.seed), row.profile, parse_settings(row.settings))
            yield one, Duration(row.seconds, row.machine, row.device == "cuda", _data(one), f"results/{record.name}.csv")


def _data(experiment: Experiment) -> str:
    options = data_options(experiment.dataset, experiment.profile)
    return f"{experiment.dataset}, {options['train']} images" if options else experiment.dataset


# The plan as a table.

@dataclass
class Row:
    """What one notebook run asks for.

    here       how many of its experiments and models are in the store
    missing    data sets and weights that are not on this machine
    estimates  of the experiments to run that no earlier row asks for; None where nothing comparable was measured
    """

    job: Job
    asked: Asked
    here: int = 0
    missing: list[str] = field(default_factory=list)
    estimates: list[Duration | None] = field(default_factory=list)


def rows(jobs: Sequence[Job], out: str | Path | None = None) -> list[Row]:
    """One row per job, in their order. Trains nothing and reads no image."""
    store = Store(out)
    clock, found = Clock(store), []
    planned: set[tuple[str, bool]] = set()
    for job in jobs:
        row = Row(job, asked(job.notebook, {**read_parameters(job.path), **job.parameters}))
        # A fitted network is stored apart from the result of the same experiment.
        wanted = [(one, False) for one in row.asked.experiments] + [(one, True) for one in row.asked.models]
        todo = [(one, fits) for one, fits in wanted if not (_fitted if fits else is_stored)(one, store)]
        row.here = len(wanted) - len(todo)
        row.missing = _missing(job, [one for one, _ in wanted])
        row.estimates = [clock.estimate(one) for one, fits in todo if (one.key, fits) not in planned]
        planned.update((one.key, fits) for one, fits in todo)
        found.append(row)
    return found


def plan(jobs: Sequence[Job], out: str | Path | None = None) -> str:
    """The rows as text, with their sum, where the times come from, and how to get what is missing."""
    found = rows(jobs, out)
    whole = {job.id: job.parameters for job in jobs}
    lines = [["notebook run", "experiments", "models", "here", "to run", "asks for", "not here", "estimate"]]
    for row in found:
        count = ["?", "?", "?", "?"] if row.asked.problem else [
            len(row.asked.experiments), len(row.asked.models), row.here, len(row.estimates)]
        time = f"cannot be listed: {row.asked.problem}" if row.asked.problem else _time(row.estimates)
        lines.append([_name(row.job, whole.get(row.job.notebook, {})), *map(str, count), _asks(row.job.needs),
                      _some(row.missing), time])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    estimates = [one for row in found for one in row.estimates]
    text += ["", f"{len(found)} notebook runs, {len(estimates)} experiments and models to run: {_time(estimates)}."]
    text += [f"time: {line}" for line in _sources(estimates)]
    text += _ways(dict.fromkeys(name for row in found for name in row.missing))
    return "\n".join(text)


def _name(job: Job, whole: Mapping[str, Any]) -> str:
    """The job's id and, for a parameter set, how it differs from the whole: 'uniad2022/02_ablations@0b27f7c7 seeds=[0]'."""
    own = [f"{name}={value}" for name, value in job.parameters.items() if "@" in job.id and whole.get(name) != value]
    return " ".join([job.id, *own])


def is_stored(experiment: Experiment, store: Store) -> bool:
    """True when `run` would take the result from the store. Data and weights are not compared, a plan reads no image."""
    result = store.load(experiment)
    return result is not None and (experiment.profile != "quick" or result.made_by_this_code)


def _fitted(model: Experiment, store: Store) -> bool:
    """True when the store has a network of this code, or a part of its training; data and weights are not compared."""
    kept = store.folder(model).glob(f"fitted-{fingerprint(model.method)[:8]}-*")
    return any(path.suffix != ".lock" for path in kept)


def _missing(job: Job, experiments: Iterable[Experiment]) -> list[str]:
    """Data sets and weights that are not here: those of the experiments, and in the paper profile those of exhibits.csv."""
    data = {name for one in experiments for name in one.dataset.split("+")}
    weights: set[str] = set()
    if job.parameters.get("profile") == "paper":
        table = exhibits()
        mine = table[table["notebook"] == job.notebook]
        data |= {name for cell in mine["needs_data"] for name in cell.split(";") if name}
        weights |= {name for cell in mine["needs_weights"] for name in cell.split(";") if name}
    return [*sorted(name for name in data - {EMBEDDED} if find_dataset(name) is None),
            *sorted(name for name in weights if _not_here(name))]


def _not_here(weights: str) -> str:
    """The message about weights that are not here; '' when they are."""
    try:
        find_weights(weights)
    except WeightsError as error:
        return str(error)
    return ""


def _asks(needs: Needs) -> str:
    gpu = f"{needs.gpu} GPU, " if needs.gpu else ""
    return f"{gpu}{needs.memory_gb:g} GB, {_hours(3600 * needs.hours)}"


def _hours(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:g} h"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{names[0]} and {len(names) - 1} more"


def _time(estimates: Sequence[Duration | None]) -> str:
    """'2.5 GPU-hours on NVIDIA H200; 3 not measured'."""
    if not estimates:
        return "nothing to run"
    seconds: dict[tuple[str, bool], float] = defaultdict(float)
    for one in estimates:
        if one is not None:
            seconds[one.machine, one.gpu] += one.seconds
    parts = [f"{value / 3600:.2f} {'GPU-hours' if gpu else 'hours'} on {machine}" for (machine, gpu), value in seconds.items()]
    unknown = estimates.count(None)
    if unknown:
        parts.append(f"{unknown} {NOT_MEASURED}" if parts else NOT_MEASURED)
    return "; ".join(parts)


def _sources(estimates: Sequence[Duration | None]) -> list[str]:
    counts = Counter(f"{one.source} on {one.data}, {one.machine}" for one in estimates if one is not None)
    lines = [f"{count} from {source}" for source, count in counts.items()]
    if None in estimates:
        lines.append("not measured means that neither the store nor results/ has the method with the same settings")
    return lines


def _ways(names: Iterable[str]) -> list[str]:
    """How to get each thing that is missing."""
    return [_not_here(name) if load_manifest()[name].kind == "weights" else
            f"data set '{name}' is not here: `adcore data fetch {name}` places it, or says how to get it" for name in names
            if name in load_manifest()]
