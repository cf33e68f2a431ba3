"""Run a tiny grid in a child process, kill it at random times, and start it again until all experiments are finished.

    python tests/support/faults.py FOLDER KILLS SEED        -> one JSON object on stdout

The children are forked from a process that has imported everything, because an import takes longer than the grid. Half of the
kills happen during the evaluation of an experiment, the others at any time.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adcore import training
from adcore.experiments import Store, grid, load_results, provenance, run, runner
from adcore.papers.heckler2023 import frozen
from adcore.papers.uniad2022 import reconstruction
from support.tiny import shared_extractor, write_tiny

UNIAD = {"image_size": 64, "hidden": 16, "epochs": 4, "neighbors": 3, "heads": 2, "ffn": 16}
CUTPASTE = {"side": 32, "epochs": 3, "steps": 2, "batch_size": 4, "pretraining_size": 40, "image_size": 48, "stride": 16}


def experiments() -> list[Any]:
    """Three experiments with a training and one without."""
    return [*grid("uniad", dataset="tiny", categories=["cloth"], seeds=[0, 1], **UNIAD),
            *grid("cutpaste", dataset="tiny", categories=["cloth"], **CUTPASTE),
            *grid("patchcore", dataset="tiny", categories=["cloth"], image_size=64, coreset=20)]


def numbers(out: Path) -> dict[str, float]:
    """All numbers in a store: 'key category metric' -> value."""
    frame = load_results(out)
    return {} if frame.empty else {f"{row.key} {row.category} {row.metric}": row.value for row in frame.itertuples()}


@contextlib.contextmanager
def logged(log: Path) -> Iterator[None]:
    """Log the start of each fit and test, and each stored epoch and result, with its experiment."""
    def write(event: str, key: str) -> None:
        with log.open("a") as file:
            file.write(f"{event} {key}\n")

    run_one, tested, save = runner.run_one, runner._tested, training._save

    def run_one_logged(experiment: Any, store: Store, *rest: Any) -> Any:
        again = (store.folder(experiment) / "result.json").exists()
        write("again" if again else "fit", experiment.key)
        return run_one(experiment, store, *rest)

    def tested_logged(detector: Any, experiment: Any, *rest: Any) -> Any:
        write("test", experiment.key)
        made = tested(detector, experiment, *rest)
        write("done", experiment.key)
        return made

    def save_logged(path: Path, *state: Any) -> None:
        save(path, *state)
        losses = state[-1]
        write(f"epoch {len(losses)}", f"{path.parent.name}/{path.name}")

    runner.run_one, runner._tested, training._save = run_one_logged, tested_logged, save_logged
    try:
        yield
    finally:
        runner.run_one, runner._tested, training._save = run_one, tested, save


def child(folder: Path) -> int:
    """Start a process that runs the grid in `folder`; return its id."""
    identity = os.fork()
    if identity:
        return identity
    code = 1
    try:
        os.environ["ADCORE_CACHE"] = str(folder / "cache")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "stderr").open("a") as file:
            os.dup2(file.fileno(), 2)
        with logged(folder / "log"):
            run(experiments(), out=folder / "runs", device="cpu", progress=False)
        code = 0
    except BaseException as error:
        print(repr(error), file=sys.stderr)
    finally:
        os._exit(code)


def lines(folder: Path) -> list[str]:
    """The lines of the log."""
    log = folder / "log"
    return log.read_text().splitlines() if log.is_file() else []


def ended(process: int) -> int | None:
    """The exit status of a child process, None while it runs."""
    found, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def disturbed(folder: Path, whole: float, rng: random.Random, in_test: bool) -> tuple[str, int | None]:
    """Run the grid for a random time and kill it; return the last event before the kill ('fit', 'test', ...) and its status."""
    before = len(lines(folder))
    process = child(folder)
    wait = rng.uniform(0, whole / 2)
    start = time.monotonic()
    status = None
    while status is None and time.monotonic() - start < wait + (10 * whole if in_test else 0):
        if in_test and any(line.startswith("test") for line in lines(folder)[before:]):
            time.sleep(rng.uniform(0, whole / 40))
            break
        time.sleep(0.002)
        status = ended(process)
    if status is None:
        os.kill(process, signal.SIGKILL)
        _, raw = os.waitpid(process, 0)
        status = os.waitstatus_to_exitcode(raw)
    now = lines(folder)[before:]
    return (now[-1].split()[0] if now else "start"), status


def main() -> None:
    root, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.environ |= {"ADCORE_DATA": str(root / "data"), "ADCORE_PROGRESS": "0"}
    write_tiny(root / "data" / "tiny")
    training.SAVE_EVERY = 0.0                                 # seconds: a checkpoint after every epoch
    for module in (frozen, reconstruction):                   # built once, before the children start
        module.FeatureExtractor = shared_extractor  # type: ignore[misc]
    # Cached here, so that no child computes them again.
    provenance.commit()
    provenance.versions()
    for experiment in experiments():
        experiment.detector()
        provenance.fingerprint(experiment.method)
    rng = random.Random(seed)
    start = time.monotonic()
    code = os.waitstatus_to_exitcode(os.waitpid(child(root / "undisturbed"), 0)[1])
    assert code == 0, (root / "undisturbed" / "stderr").read_text()
    whole = time.monotonic() - start
    expected = numbers(root / "undisturbed" / "runs")
    kills_at: Counter[str] = Counter()
    wrong: list[str] = []
    rounds = 0
    while sum(kills_at.values()) < kills:
        rounds += 1
        folder = root / f"round{rounds}"
        status: int | None = None
        while status != 0:
            if sum(kills_at.values()) < kills:
                where, status = disturbed(folder, whole, rng, in_test=sum(kills_at.values()) % 2 == 1)
                kills_at[where] += status == -signal.SIGKILL
            else:
                status = os.waitstatus_to_exitcode(os.waitpid(child(folder), 0)[1])
            if status not in (0, -signal.SIGKILL):
                wrong.append(f"exit status {status}: {(folder / 'stderr').read_text()}")
                break
            if not numbers(folder / "runs").items() <= expected.items():
                wrong.append(f"round {rounds}: other numbers after a kill in {where}")
        if numbers(folder / "runs") != expected:
            wrong.append(f"round {rounds}: other numbers at the end")
        log = lines(folder)
        wrong += [line for line in log if line.startswith("again")]
        kept = [line for line in log if line.startswith(("epoch", "done"))]
        wrong += [f"twice: {line}" for line, count in Counter(kept).items() if count > 1]
        wrong += [path.name for path in folder.rglob("*.corrupt-*")]
        wrong += [str(path) for path in (folder / "runs").rglob("checkpoint*")]
        wrong += (folder / "stderr").read_text().splitlines()
    print(json.dumps({"kills": kills_at, "rounds": rounds, "numbers": len(expected), "seconds": round(whole, 2),
                      "wrong": wrong}))


if __name__ == "__main__":
    main()
