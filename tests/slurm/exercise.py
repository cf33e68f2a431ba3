"""Run a grid on a SLURM cluster of one node, kill jobs and the driver, and start the driver again; then compare the numbers
with those of the same grid run without SLURM.

    python tests/slurm/exercise.py [FOLDER]        (root, on Debian; `make test-slurm`)

It works in FOLDER, a temporary folder by default, on a copy of the checkout: an edit of the checkout during the test would make
Snakemake run notebooks again. It writes the outcome to results/slurm.json, which the report shows.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import yaml
from cluster import CPUS, Cluster, install

from adcore.experiments import load_results
from adcore.experiments.provenance import commit
from adcore.files import write_json
from adcore.grids import load_grid
from adcore.notebook import read_parameters
from adcore.plan import asked
from adcore.report.cluster import CLUSTER_TEST

CHECKOUT = Path(__file__).resolve().parents[2]
GRID = Path("tests") / "slurm" / "grid.yaml"
FAILS = "atacnet/02_ablation"  # the run that must fail, because its data set does not exist
PATIENCE = 1500  # seconds to wait for any event


def refusal() -> str | None:
    """Why this test cannot run here, or None."""
    if os.geteuid() != 0:
        return "this test installs packages and starts daemons: it runs as root, preferably in a container"
    if not Path("/etc/debian_version").is_file() or shutil.which("apt-get") is None:
        return "this test installs slurm-wlm and munge: it runs on Debian only"
    return None


def copied(to: Path) -> Path:
    """Copy the checkout as it is now, without ignored files and without the benchmarks, which are not needed."""
    words = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(words, cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (CHECKOUT / name).is_file() and not name.startswith("benchmarks/"):  # git also lists deleted files
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CHECKOUT / name, to / name)
    return to


def settings(root: Path, to: Path) -> Path:
    """Write the SLURM profile with the changes that a cluster of one node without accounting needs."""
    content = yaml.safe_load((root / "workflow" / "profiles" / "slurm" / "config.yaml").read_text())
    content |= {"slurm-status-command": "squeue", "slurm-no-account": True, "slurm-init-seconds-before-status-checks": 5,
                "group-components": ["short=2"], "latency-wait": 5}
    to.mkdir()
    (to / "config.yaml").write_text(yaml.safe_dump(content))
    return to


class Driver:
    """`adcore reproduce`, started in the background in its own session."""

    started: ClassVar[list[Driver]] = []

    def __init__(self, root: Path, runs: Path, on: list[str], environment: dict[str, str], log: Path) -> None:
        words = [sys.executable, "-m", "adcore", "reproduce", "--grid", str(root / GRID), "--on", *on]
        # Its own cache, so that the numbers are not equal only because files of the other run were used.
        own = {"PYTHONPATH": str(root), "ADCORE_RUNS": str(runs), "ADCORE_CACHE": str(runs.with_name(f"{runs.name}-cache")),
               "OMP_NUM_THREADS": "1", "ADCORE_PROGRESS": "0"}
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(words, cwd=root, env={**environment, **own}, stdout=file, stderr=file,
                                            start_new_session=True)
        self.started.append(self)

    def kill(self) -> None:
        """Kill the driver and its Snakemake without a chance to clean up, like a crash."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def running(self) -> bool:
        return self.process.poll() is None


def until(event: str, happened: Callable[[], Any], driver: Driver | None = None) -> None:
    """Wait for an event. RuntimeError when it does not happen in time, or when the driver ends before."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        if driver is not None and not driver.running():
            raise RuntimeError(f"the driver ended with {driver.process.returncode} before this: {event}; see {driver.log}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"did not happen within {PATIENCE} s: {event}")
        time.sleep(0.5)


def finished(runs: Path) -> dict[str, int]:
    """The results in a store: key -> time of writing."""
    return {path.parent.name: path.stat().st_mtime_ns for path in runs.glob("*/*/result.json")}


def records(runs: Path) -> set[str]:
    """The ids of the successful notebook runs."""
    folder = runs / "notebooks"
    return {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.json")}


def numbers(runs: Path) -> dict[tuple[str, str, str], float]:
    frame = load_results(runs)
    return {(row.key, row.category, row.metric): row.value for row in frame.itertuples()}


def on_the_cluster(cluster: Cluster, root: Path, runs: Path, folder: Path) -> dict[str, Any]:
    """Run the grid, kill jobs and the driver, and run it again; return counts. AssertionError if finished work was repeated."""
    on, log = [str(settings(root, folder / "profile"))], folder / "driver.log"
    driver = Driver(root, runs, on, cluster.environment, log)
    until("two jobs ran and a result was stored", lambda: len(cluster.jobs("RUNNING")) == CPUS and finished(runs), driver)
    victim = cluster.jobs("RUNNING")[0]
    before, last = finished(runs), max(map(int, cluster.jobs()))
    cluster.ask("scancel", "--signal=KILL", "--full", victim)
    until("a killed job ended", lambda: victim in cluster.ended(), driver)
    until("the job was submitted again", lambda: any(int(job) > last for job in cluster.jobs()), driver)
    until("more results were stored, and two jobs ran", lambda: len(finished(runs)) > len(before) and records(runs) and
          len(cluster.jobs("RUNNING")) == CPUS, driver)
    driver.kill()
    # Of the dead driver's jobs, one is killed, waiting ones are cancelled, and the other running job continues: its results
    # count as finished.
    other = cluster.jobs("RUNNING")[-1]
    cluster.ask("scancel", "--state=PENDING", "--user=root")
    cluster.ask("scancel", "--signal=KILL", "--full", other)
    print(f"killed job {victim} with {len(before)} results stored, then the driver and job {other} with {len(finished(runs))}",
          flush=True)
    until("the dead driver's jobs ended", lambda: not cluster.jobs())
    kept, done = finished(runs), records(runs)
    assert 0 < len(done) < len(load_grid(str(root / GRID))) - 1, "the first driver had finished everything"
    stamps = {name: (runs / "notebooks" / f"{name}.json").stat().st_mtime_ns for name in done}
    driver = Driver(root, runs, on, cluster.environment, log)
    until("the second driver ended", lambda: not driver.running())
    now = finished(runs)
    again = [key for key, stamp in {**kept, **before}.items() if now.get(key) != stamp]
    assert not again, f"finished experiments ran again: {again}"
    again = [name for name, stamp in stamps.items() if (runs / "notebooks" / f"{name}.json").stat().st_mtime_ns != stamp]
    assert not again, f"finished notebooks ran again: {again}"
    # A job requests one core and the memory of one notebook, even for several notebooks; twice the memory when repeated.
    requested = {job["Tres"].partition(",node")[0] for job in cluster.over()}
    assert requested <= {"cpu=1,mem=3000M", "cpu=1,mem=6000M"}, requested
    assert driver.process.returncode != 0, "a notebook failed, but the driver reported success"
    return {"jobs": len(cluster.ended()), "killed_jobs": 2, "killed_drivers": 1, "finished_before_restart": len(done)}


def check_failure(root: Path, runs: Path) -> None:
    """Check that the run that must fail failed, kept its traceback, and is listed in the report."""
    expected = {job.id for job in load_grid(str(root / GRID))} - {FAILS}
    assert records(runs) == expected, f"missing: {expected - records(runs)}, surplus: {records(runs) - expected}"
    executed = json.loads((runs / "notebooks" / f"{FAILS}.ipynb").read_text())
    assert any(output["output_type"] == "error" and output["ename"] == "ParameterError" for cell in executed["cells"]
               for output in cell.get("outputs", ()))
    page = (root / "report" / "index.html").read_text()
    assert "unknown data set &#39;nowhere&#39;" in page, "the report does not show why the notebook failed"


@contextlib.contextmanager
def place(words: list[str]) -> Iterator[Path]:
    """The folder given on the command line, which is kept, or a temporary one, which is deleted after success."""
    if words:
        folder = Path(words[0]).absolute()
        folder.mkdir(parents=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="adcore-slurm-"))
    try:
        yield folder
    except BaseException:
        print(f"the files of this test are in {folder}", file=sys.stderr)
        raise
    shutil.rmtree(folder)


@contextlib.contextmanager
def no_driver_left() -> Iterator[None]:
    """Kill all running drivers after the block, also after an error or an interruption."""
    try:
        yield
    finally:
        for driver in Driver.started:
            if driver.running():
                driver.kill()


def main() -> int:
    reason = refusal()
    if reason:
        print(f"make test-slurm: {reason}", file=sys.stderr)
        return 2
    install()
    started, made_from = time.monotonic(), commit()
    with place(sys.argv[1:]) as folder, no_driver_left():
        root, runs, plain = copied(folder / "checkout"), folder / "runs", folder / "plain"
        with Cluster(folder / "cluster") as cluster:
            slurm = cluster.ask("sinfo", "--version").split()[-1]
            counts = on_the_cluster(cluster, root, runs, folder)
        check_failure(root, runs)
        seconds = round(time.monotonic() - started)
        driver = Driver(root, plain, ["local", "--cores", str(CPUS)], dict(os.environ), folder / "local.log")
        until("the run without SLURM ended", lambda: not driver.running())
        check_failure(root, plain)
        here, there = numbers(plain), numbers(runs)
    jobs = load_grid(str(CHECKOUT / GRID))
    planned = {one.key for job in jobs if job.id != FAILS
               for one in asked(job.notebook, {**read_parameters(job.path), **job.parameters}).experiments}
    assert {key for key, _, _ in there} == planned, "the plan lists other experiments than those in the store"
    outcome = {**counts, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "commit": made_from, "slurm": slurm,
               "snakemake": version("snakemake"), "plugin": version("snakemake-executor-plugin-slurm"),
               "notebooks": len(jobs), "failed_notebooks": 1, "experiments": len({key for key, _, _ in there}),
               "numbers": len(there), "equal": bool(there) and here == there, "seconds": seconds}
    write_json(CHECKOUT / "results" / CLUSTER_TEST, outcome)
    print(json.dumps(outcome, indent=2))
    return 0 if outcome["equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
