"""How long experiments take, from results that say how long they took. What was not measured is not estimated."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from adcore.errors import AdcoreError
from adcore.experiments import Experiment, Store
from adcore.experiments.profiles import data_options
from adcore.experiments.record import parse_settings, records


@dataclass(frozen=True)
class Measured:
    """One experiment's seconds, where they were spent, and where that is written down.

    gpu     True when it computed on one
    data    name of the data set, and how much of it
    source  'runs' for the store, or a file of results/
    """

    seconds: float
    machine: str
    gpu: bool
    data: str
    source: str


class Clock:
    """All measured seconds, by method and complete settings: no other experiment is comparable, because epochs, sizes and the
    backbone decide the time."""

    def __init__(self, store: Store) -> None:
        self._known: dict[str, list[Measured]] = defaultdict(list)
        self._keys: dict[tuple[object, ...], str] = {}
        for experiment, measured in [*self._stored(store), *self._on_record()]:
            try:
                self._known[self._like(experiment)].append(measured)
            except AdcoreError:  # a method or a setting that is no more
                continue

    def estimate(self, experiment: Experiment) -> Measured | None:
        """The mean over comparable results of one machine, or None. On the same data if there are any, on a GPU if there are
        any, from the store rather than from results/, from the machine with most of them."""
        found = self._known.get(self._like(experiment), [])
        for better in (lambda m: m.data == _data(experiment), lambda m: m.gpu, lambda m: m.source == "runs"):
            found = [one for one in found if better(one)] or found
        if not found:
            return None
        machines = [one.machine for one in found]
        first = next(one for one in found if machines.count(one.machine) == max(map(machines.count, machines)))
        alike = [one for one in found if (one.machine, one.data, one.gpu) == (first.machine, first.data, first.gpu)]
        return Measured(sum(one.seconds for one in alike) / len(alike), first.machine, first.gpu, first.data, first.source)

    def _like(self, experiment: Experiment) -> str:
        """Equal for experiments that differ in data, category and seed alone."""
        kind = experiment.method, experiment.profile, repr(experiment.settings)
        if kind not in self._keys:
            self._keys[kind] = json.dumps([experiment.method, experiment.config().values()], sort_keys=True, default=str)
        return self._keys[kind]

    def _stored(self, store: Store) -> Iterator[tuple[Experiment, Measured]]:
        for result in store.results():
            origin = result.provenance
            if isinstance(origin.get("seconds"), (int, float)):
                yield result.experiment, Measured(origin["seconds"], str(origin.get("machine")), origin.get("device") == "cuda",
                                                  _data(result.experiment), "runs")

    def _on_record(self) -> Iterator[tuple[Experiment, Measured]]:
        for record in records():
            once = record.frame.drop_duplicates("key")
            once = once.assign(settings=once["settings"].astype(object).fillna(""))
            for row in once[once["seconds"].notna()].itertuples():
                own = parse_settings(row.settings)
                one = Experiment(row.method, row.dataset, row.category, int(row.seed), row.profile, own)
                yield one, Measured(row.seconds, row.machine, row.device == "cuda", _data(one), f"results/{record.name}.csv")


def _data(experiment: Experiment) -> str:
    options = data_options(experiment.dataset, experiment.profile)
    return f"{experiment.dataset}, {options['train']} images" if options else experiment.dataset
