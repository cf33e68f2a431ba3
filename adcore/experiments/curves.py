"""Training curves on record: the loss of each epoch of some trainings of a record, in results/NAME_losses.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from adcore.errors import StoreError
from adcore.experiments.experiment import Experiment
from adcore.experiments.record import record_rows
from adcore.experiments.store import Store
from adcore.files import write_text
from adcore.paths import repository


def save_losses(experiments: Iterable[Experiment], path: Path, out: str | Path | None = None) -> str:
    """Write the losses of stored trainings to a file, with what tells them apart and the commit. Returns a line about it.

    Raises:
        StoreError: an experiment is not stored, or its result has no losses: it trains no network, or was measured before
            results kept them.
    """
    store, curves = Store(out), []
    for experiment in experiments:
        result = store.load(experiment)
        losses = result.provenance.get("losses") if result is not None else None
        if result is None or not losses:
            raise StoreError(f"no losses of '{experiment.title}' are stored in {store.root}: run it anew")
        curves.append({"method": experiment.method, "seed": experiment.seed, "key": experiment.key,
                       "commit": result.provenance["commit"], "losses": [round(loss, 4) for loss in losses]})
    # One curve per line: a change of one training changes one line.
    write_text(path, "[\n" + ",\n".join(json.dumps(curve) for curve in curves) + "\n]\n")
    return f"{path}: {len(curves)} curves"


def recorded_losses(name: str) -> dict[str, list[float]]:
    """Method -> loss of each epoch, of the trainings in results/NAME.csv whose curves are on record, first seed first.

    Raises:
        StoreError: there is no such record or no such file, or a curve of a training that the record does not have.
    """
    path = (repository() or Path.cwd()) / "results" / f"{name}_losses.json"
    keys = set(record_rows(name, {})["key"])
    try:
        curves = json.loads(path.read_text(encoding="utf-8"))
        other = [curve["key"] for curve in curves if curve["key"] not in keys]
        found: dict[str, list[float]] = {}
        for curve in sorted(curves, key=lambda one: int(one["seed"])):
            found.setdefault(curve["method"], [float(loss) for loss in curve["losses"]])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{path} has no training curves ({type(error).__name__}): write them again by save_losses") from error
    if other:
        raise StoreError(f"{path} has a curve of {other[0]}, which {name}.csv does not have: write both again")
    return found
