"""A time budget: a grid that is stopped again and again ends with the numbers of one that is not."""

from __future__ import annotations

import itertools
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.notebooks import write_notebook
from support.tiny import write_tiny

from adcore import budget, cli, plan, reproduce, training
from adcore.budget import work_through
from adcore.deadline import TimeUp, deadline, remaining
from adcore.errors import DataError, ParameterError
from adcore.experiments import Experiment, Store, grid
from adcore.grids import Job
from adcore.plan import Duration

HEAD = 'profile = "quick"\nseeds = [0]\nout = ""\n'
TINY = {"backbone": "efficientnet_lite0", "image_size": 32, "taps": (4,)}


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """A function that writes a notebook which asks for the given experiments and networks."""
    def make(*experiments: Experiment, models: tuple[Experiment, ...] = ()) -> list[Job]:
        monkeypatch.setattr(plan, "listings", lambda notebook: [(lambda: list(experiments), lambda: list(models))])
        return [Job("toy", write_notebook(tmp_path / "toy.ipynb", HEAD))]
    return make


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    write_tiny(tmp_path / "data" / "tiny", side=32)
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    return "tiny"


def numbers(folder: Path, experiments: list[Experiment]) -> list[list[object]]:
    found = [Store(folder).load(one) for one in experiments]
    return [[(one["metric"], one["value"]) for one in result.measures] for result in found if result is not None]


def test_a_grid_stopped_five_times_ends_with_the_numbers_of_an_undisturbed_one(jobs, images, tmp_path, monkeypatch):
    trained = [*grid("fastflow", dataset=images, **TINY, epochs=8, steps=2, batch_size=2, seeds=[0, 1])]
    work = jobs(*trained, *grid("patchcore", dataset=images, **TINY), models=(trained[0],))
    whole = work_through(work, 5, out=tmp_path / "whole")
    assert (whole.wanted, whole.left, whole.problems) == (4, (), ())
    assert str(whole) == "4 of 4 experiments are finished"

    clock = itertools.count(1)
    monkeypatch.setattr(training, "remaining", lambda: 0.0 if next(clock) % 4 == 0 else math.inf)    # every fourth epoch
    left = [work_through(work, 5, out=tmp_path / "parts") for _ in range(6)]
    assert not left[-1].left and all(one.left for one in left[:-1])
    assert [len(one.left) for one in left] == sorted((len(one.left) for one in left), reverse=True)
    assert "left, next 'fastflow tiny cloth seed 0" in str(left[0])
    everything = [*trained, *grid("patchcore", dataset=images, **TINY)]
    assert numbers(tmp_path / "parts", everything) == numbers(tmp_path / "whole", everything) and len(everything) == 3
    curves = [Store(tmp_path / name).load(trained[0]).provenance["losses"] for name in ("parts", "whole")]
    assert curves[0] == curves[1] and len(curves[0]) == 8


def test_a_training_that_would_overrun_saves_its_state_before_it_stops(jobs, images, tmp_path):
    (one,) = grid("fastflow", dataset=images, **TINY, epochs=1000, steps=2, batch_size=2)
    began = time.monotonic()
    outcome = work_through(jobs(one), 4 / 60, out=tmp_path)
    assert outcome.left == (one.title,) and time.monotonic() - began < 60
    assert list((tmp_path / "fastflow" / one.key).glob("checkpoint-*")), "no checkpoint"


@pytest.mark.parametrize(("seconds", "gpu", "starts"), [(50.0, False, True), (70.0, False, False), (70.0, True, True)])
def test_what_cannot_be_resumed_starts_only_if_its_measured_seconds_on_such_a_device_are_left(
        jobs, images, tmp_path, monkeypatch, seconds, gpu, starts):
    asked_for = [*grid("patchcore", dataset=images, **TINY), *grid("fastflow", dataset=images, **TINY, epochs=1, steps=1)]
    monkeypatch.setattr(budget.Clock, "estimate", lambda self, one: Duration(seconds, "a chip", gpu, "", "runs"))
    ran = []
    monkeypatch.setattr(budget, "run", lambda one, **_: ran.append(one.method))
    work_through(jobs(*asked_for), 1, out=tmp_path, device="cpu")
    assert ran == (["patchcore", "fastflow"] if starts else ["fastflow"])     # a training goes on the next time


def test_a_failure_is_named_and_stops_nothing_else(jobs, images, tmp_path, monkeypatch):
    first, second = grid("patchcore", dataset=images, **TINY, seeds=[0, 1])
    ran = []

    def run(one, **_):
        ran.append(one)
        raise DataError("no such image")

    monkeypatch.setattr(budget, "run", run)
    outcome = work_through(jobs(first, second), 1, out=tmp_path)
    assert ran == [first, second] and [text.split(": ")[-1] for text in outcome.problems] == ["no such image"] * 2
    assert outcome.left == (first.title, second.title)


@pytest.mark.parametrize("minutes", [0, -1, math.nan])
def test_minutes_must_be_positive(jobs, minutes):
    with pytest.raises(ParameterError, match=r"minutes=.* must be a positive number"):
        work_through(jobs(), minutes)


def test_experiments_that_cannot_be_listed_are_an_error(tmp_path):
    with pytest.raises(ParameterError, match="the experiments of toy cannot be listed: 'toy' is not a notebook"):
        work_through([Job("toy", write_notebook(tmp_path / "toy.ipynb", HEAD))], 1)


# --- the deadline -----------------------------------------------------------------------------------------------------------

def test_a_deadline_ends_its_block_and_nothing_after_it():
    began = time.monotonic()
    with pytest.raises(TimeUp), deadline(0.2):
        assert 0 < remaining() <= 0.2
        time.sleep(20)
    assert time.monotonic() - began < 10 and remaining() == math.inf
    with deadline(0.05):
        pass
    time.sleep(0.2)                         # the alarm is off


def test_an_inner_deadline_does_not_extend_the_outer_one():
    with deadline(60):
        with deadline(3600):
            assert remaining() <= 60
        assert 50 < remaining() <= 60


def test_after_an_inner_deadline_the_alarm_of_the_outer_one_rings():
    with pytest.raises(TimeUp), deadline(0.3):
        with deadline(3600):
            pass
        time.sleep(20)
    time.sleep(0.1)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_an_alarm_on_the_way_out_is_not_raised_and_the_timer_is_off():
    with deadline(3600):
        ring = signal.getsignal(signal.SIGALRM)
    ring(signal.SIGALRM, None)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


# --- the command ------------------------------------------------------------------------------------------------------------

def test_the_command_stops_with_0_and_says_what_is_left(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(budget, "work_through", lambda jobs, minutes: budget.Outcome(3, ("uniad x",), ()))
    assert cli.main(["reproduce", "--exhibit", "uniad2022.table_s2", "--minutes", "2"]) == 0
    assert "2 of 3 experiments are finished; 1 left, next 'uniad x': the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(budget, "work_through", lambda jobs, minutes: budget.Outcome(3, ("uniad x",), ("no data",)))
    assert cli.main(["reproduce", "--exhibit", "uniad2022.table_s2", "--minutes", "2"]) == 1


def test_notebooks_run_after_the_experiments_and_are_stopped_too(monkeypatch, capsys):
    monkeypatch.setattr(budget, "work_through", lambda jobs, minutes: budget.Outcome(1, (), ()))
    monkeypatch.setattr(reproduce, "_outdated", lambda jobs: [])
    started = time.monotonic()
    monkeypatch.setattr(reproduce.sys, "executable", "sleep")     # `sleep -m snakemake ...` would end with an error at once
    real = reproduce.subprocess.Popen
    monkeypatch.setattr(reproduce.subprocess, "Popen", lambda words, **options: real(["sleep", "60"], **options))
    assert reproduce.reproduce("quick", minutes=1 / 60) == 0
    assert "the time was up while notebooks ran" in capsys.readouterr().out and time.monotonic() - started < 40


def test_minutes_are_for_this_machine_only():
    with pytest.raises(ParameterError, match="--minutes works on this machine only: leave out --on slurm"):
        reproduce.reproduce("quick", on="slurm", minutes=3)
