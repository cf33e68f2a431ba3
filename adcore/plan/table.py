"""The plan as a table: one row a notebook run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adcore.data import find_dataset
from adcore.data.manifest import load_manifest
from adcore.errors import WeightsError
from adcore.experiments import Experiment, Store
from adcore.experiments.provenance import fingerprint
from adcore.features import find_weights
from adcore.grids import Job, Needs
from adcore.papers import exhibits
from adcore.plan.asked import Asked, asked
from adcore.plan.estimate import Clock, Measured

NOT_MEASURED = "not measured"
EMBEDDED = "mini"


@dataclass
class Row:
    """What a notebook run asks for, and of that what nothing before it in the plan asks for and is not here.

    missing    data sets and weights that are not here
    estimates  of the experiments to run; None where nothing comparable was measured
    """

    job: Job
    asked: Asked
    here: int = 0
    missing: list[str] = field(default_factory=list)
    estimates: list[Measured | None] = field(default_factory=list)


def rows(jobs: Sequence[Job], out: str | Path | None = None) -> list[Row]:
    """A row for each job, in their order. Trains nothing and reads no image."""
    store = Store(out)
    clock, found = Clock(store), []
    planned: set[tuple[str, bool]] = set()
    for job in jobs:
        row = Row(job, asked(job.path, job.parameters))
        # A model that is looked into is fitted apart from the experiment of the same name.
        wanted = [(one, False) for one in row.asked.experiments] + [(one, True) for one in row.asked.models]
        todo = [(one, fits) for one, fits in wanted if not (_fitted if fits else _stored)(one, store)]
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
    all_estimates = [one for row in found for one in row.estimates]
    text += ["", f"{len(found)} notebook runs, {len(all_estimates)} experiments and models to run: {_time(all_estimates)}."]
    text += [f"time: {line}" for line in _sources(all_estimates)]
    text += _ways(dict.fromkeys(name for row in found for name in row.missing))
    return "\n".join(text)


def _name(job: Job, whole: Mapping[str, Any]) -> str:
    """The job's id and, for a parameter set, what it has of the whole: 'uniad2022/02_ablations@0b27f7c7 seeds=[0]'."""
    own = [f"{name}={value}" for name, value in job.parameters.items() if "@" in job.id and whole.get(name) != value]
    return " ".join([job.id, *own])


def _stored(experiment: Experiment, store: Store) -> bool:
    """True when `run` would take the result from the store."""
    result = store.load(experiment)
    return result is not None and (experiment.profile != "quick" or result.made_by_this_code)


def _fitted(model: Experiment, store: Store) -> bool:
    """True when `fitted` would find what it keeps, whole or in part."""
    kept = store.folder(model).glob(f"fitted-{fingerprint(model.method)[:8]}*")
    return any(path.suffix != ".lock" for path in kept)


def _missing(job: Job, experiments: Iterable[Experiment]) -> list[str]:
    """Data sets and weights that are not here: those of the experiments, and for the paper's settings what
    adcore/papers/exhibits.csv says."""
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


def _time(estimates: Sequence[Measured | None]) -> str:
    """'2.5 GPU-hours on NVIDIA H200; 3 not measured'."""
    if not estimates:
        return "nothing of its own"
    seconds: Counter[tuple[str, bool]] = Counter()
    for one in estimates:
        if one is not None:
            seconds[one.machine, one.gpu] += one.seconds  # type: ignore[assignment]
    parts = [f"{value / 3600:.2f} {'GPU-hours' if gpu else 'hours'} on {machine}" for (machine, gpu), value in seconds.items()]
    unknown = estimates.count(None)
    if unknown:
        parts.append(f"{unknown} {NOT_MEASURED}" if parts else NOT_MEASURED)
    return "; ".join(parts)


def _sources(estimates: Sequence[Measured | None]) -> list[str]:
    counts = Counter(f"{one.source} on {one.data}, {one.machine}" for one in estimates if one is not None)
    lines = [f"{count} from {source}" for source, count in counts.items()]
    if None in estimates:
        lines.append("not measured means that neither the store nor results/ has the method with the same settings")
    return lines


def _ways(names: Iterable[str]) -> list[str]:
    """How to get each of what is missing."""
    return [_not_here(name) if load_manifest()[name].kind == "weights" else
            f"data set '{name}' is not here: `adcore data fetch {name}` places it, or says how to get it" for name in names
            if name in load_manifest()]
