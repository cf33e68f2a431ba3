"""Work through the experiments of a grid for some minutes: for spot machines and borrowed ones.

    adcore reproduce --grid open --minutes 9

Experiments run in the grid's order, without notebooks. A training that the time interrupts has saved its state, and the same
command goes on with it. What trains no network cannot be interrupted without loss: it is not started when its seconds, as
measured earlier on such a device, would not be enough.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adcore.deadline import TimeUp, deadline, remaining
from adcore.errors import AdcoreError, ParameterError
from adcore.experiments import Experiment, Store, fitted, run
from adcore.grids import Job
from adcore.notebook import read_parameters
from adcore.plan import Clock, asked, is_stored
from adcore.training import resolve_device


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    wanted    experiments and networks that the grid asks for
    left      titles of those that are not finished
    problems  what could not be run, each with its reason
    """

    wanted: int
    left: tuple[str, ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        first = f"; {len(self.left)} left, next '{self.left[0]}': the same command goes on" if self.left else ""
        return "\n".join([f"{self.wanted - len(self.left)} of {self.wanted} experiments are finished{first}", *self.problems])


def work_through(jobs: Sequence[Job], minutes: float, *, out: str | Path | None = None, device: str = "auto") -> Outcome:
    """Run the unfinished experiments of the jobs, in their order, then fit the networks into which the notebooks look, for at
    most so many minutes.

    Raises:
        ParameterError: `minutes` is not a positive number, or the experiments of a notebook cannot be listed.
    """
    if not minutes > 0:
        raise ParameterError(f"minutes={minutes} must be a positive number")
    end, store = time.monotonic() + 60 * minutes, Store(out)
    results: dict[tuple[str, bool], Experiment] = {}    # (key, whether the fitted network is wanted)
    networks: dict[tuple[str, bool], Experiment] = {}
    for job in jobs:
        found = asked(job.notebook, {**read_parameters(job.path), **job.parameters})
        if found.problem:
            raise ParameterError(f"the experiments of {job.id} cannot be listed: {found.problem}")
        results |= {(one.key, False): one for one in found.experiments}
        networks |= {(one.key, True): one for one in found.models}
    wanted = results | networks     # numbers first: networks are for the figures
    problems = []
    finished = {kind for kind, one in wanted.items() if not kind[1] and is_stored(one, store)}
    try:
        with deadline(end - time.monotonic()):
            clock, on_gpu = Clock(store), resolve_device(device).type == "cuda"
            for kind, one in wanted.items():
                if kind in finished or _too_long(one, clock, on_gpu):
                    continue
                try:
                    # A finished network is only read: its folder does not tell it from one whose training was interrupted.
                    (fitted if kind[1] else run)(one, out=out, device=device)
                    finished.add(kind)
                except AdcoreError as error:
                    problems.append(f"'{one.title}' could not run: {error}")
    except TimeUp:
        pass
    left = [one.title for kind, one in wanted.items() if kind not in finished]
    return Outcome(len(wanted), tuple(left), tuple(problems))


def _too_long(experiment: Experiment, clock: Clock, on_gpu: bool) -> bool:
    """True for one that cannot be resumed and whose measured seconds on such a device are not left."""
    if hasattr(experiment.config(), "epochs"):      # a training, which saves its state
        return False
    measured = clock.estimate(experiment)
    return measured is not None and measured.gpu == on_gpu and measured.seconds > remaining()
