"""`adcore reproduce`: run a grid with Snakemake, then write the report. `adcore bench`: run the scripts in benchmarks/."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from adcore.deadline import TimeUp, deadline, remaining
from adcore.errors import AdcoreError, ParameterError, did_you_mean
from adcore.files import digest_text, write_text
from adcore.grids import Job, jobs_for, load_grid
from adcore.notebook import is_current as run_is_current
from adcore.paths import repository, runs_folder
from adcore.run_digest import RunDigests

PROFILES = ("quick", "open", "paper")  # profiles of experiments; each has a grid with the same name
PLACES = ("local", "slurm", "kubernetes")  # folders in workflow/profiles
# A failed notebook does not stop the others. A run writes its record last and in one step, so an existing record is complete,
# even if Snakemake or another notebook of the same job was killed: Snakemake must neither delete it nor run it again.
ALWAYS = ("--keep-going", "--keep-incomplete", "--ignore-incomplete", "--nolock")
SOURCES = "sources.txt"  # beside index.html: digest of the files from which the report was written


def _checkout() -> Path:
    root = repository()
    if root is None:
        raise AdcoreError("this command needs the checkout: clone the repository and run it from there")
    return root


def grid_named(grid: str | None, profile: str | None) -> str:
    """The grid that the options --grid and --profile select; 'quick' without either.

    --profile selects the grid with the profile's name, --grid any grid.

    Raises:
        ParameterError: unknown profile, or two different grids.
    """
    if profile is not None and profile not in PROFILES:
        raise ParameterError(f"unknown profile '{profile}'{did_you_mean(profile, PROFILES)}: --profile takes "
                             f"{', '.join(PROFILES)}; use --on for a cluster or a Snakemake profile")
    if grid is not None and profile is not None and grid != profile:
        raise ParameterError(f"--profile {profile} and --grid {grid} name two grids: use only one of the options")
    chosen = grid or profile or "quick"
    return str(Path(chosen).absolute()) if Path(chosen).suffix == ".yaml" else chosen  # Snakemake runs elsewhere


def snakemake_profile(on: str, root: Path) -> Path:
    """The folder of the Snakemake profile for `on`: one of `PLACES`, or the path of any other profile.

    Raises:
        ParameterError: `on` is neither a place nor a folder with a config.yaml.
        AdcoreError: the place needs a package that is not installed.
    """
    named = root / "workflow" / "profiles" / on
    folder = named if on in PLACES else Path(on).absolute()
    if not any((folder / f"config{suffix}").is_file() for suffix in (".yaml", ".v8+.yaml", ".v9+.yaml")):
        raise ParameterError(f"unknown place '{on}': --on takes {', '.join(PLACES)}, or a folder with a config.yaml for "
                             f"Snakemake")
    if on in ("slurm", "kubernetes") and importlib.util.find_spec(f"snakemake_executor_plugin_{on}") is None:
        raise AdcoreError(f"--on {on} needs Snakemake's executor plugin (Python 3.11 or later): pip install 'adcore[{on}]'")
    return folder


def reproduce(grid: str = "quick", cores: str | None = None, on: str = "local", exhibits: Sequence[str] = (), *,
              dry_run: bool = False, minutes: float | None = None) -> int:
    """Run the missing notebook runs of a grid, write the report and print the score card.

    on        one of `PLACES`, or the folder of a Snakemake profile
    exhibits  run only the notebooks that regenerate these exhibits
    minutes   stop in time: first all experiments (`adcore.budget`), then the notebooks that show them; 0 is returned when the
              time is up, and the same call goes on

    A failed notebook does not stop the others; its executed copy keeps the traceback, and the report lists it.

    Returns Snakemake's exit status: 0 when every notebook succeeded.

    Raises:
        ParameterError: unknown grid, notebook, parameter, exhibit or place, or a runs folder with a brace in its path.
        AdcoreError: not in a checkout, or Snakemake is not installed.
    """
    root = _checkout()
    if re.search("[{}]", str(runs_folder())):
        raise ParameterError(f"the runs folder {runs_folder()} has a brace in its path, which Snakemake cannot write to: set "
                             f"ADCORE_RUNS to another folder")
    jobs = jobs_for(load_grid(grid), exhibits)
    if minutes is not None:
        if on != "local":
            raise ParameterError(f"--minutes works on this machine only: leave out --on {on}, where `needs` limits each job")
        return _within(minutes, grid, jobs, cores, exhibits)
    profile = snakemake_profile(on, root)
    print(f"adcore: grid {grid}, {len(jobs)} notebook runs, results in {runs_folder()}", flush=True)
    # The targets are the records of the runs: Snakemake then runs those whose record is missing.
    targets = [str(runs_folder() / "notebooks" / f"{job.id}.json") for job in jobs] if exhibits else []
    words = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(root / "workflow" / "Snakefile"), "--directory",
             str(root), "--profile", str(profile), *ALWAYS, "--quiet", "rules", "--config",
             f"grid={quote(grid)}"]  # Snakemake strips quotes and reads the rest as YAML; the Snakefile decodes it
    outdated = _outdated(jobs)
    words += ["--forcerun", *outdated] if outdated else []
    words += ["--cores", cores] if cores else []
    words += ["--dry-run"] if dry_run else []
    environment = {**os.environ, "ADCORE_PROGRESS": "0", "ADCORE_RUNS": str(runs_folder())}  # absolute: it runs elsewhere
    code = _snakemake(words, environment, root)
    if dry_run:
        return code
    if code and subprocess.run([sys.executable, "-c", "import snakemake"], capture_output=True).returncode:
        raise AdcoreError("Snakemake is not installed: run `make setup`, or pip install 'adcore[workflow]'")

    from adcore.report import score_card, write_report
    path, digest = root / "report" / "index.html", sources(root)
    if not is_current(path, root):
        path = write_report()
        # The digest from before writing: if a file has changed since, the next command writes the report again.
        write_text(path.with_name(SOURCES), digest)
    print(score_card())
    print(f"report: {path}")
    return code


def _snakemake(words: Sequence[str], environment: dict[str, str], root: Path) -> int:
    """Exit status of Snakemake; 130 after an interruption by a person. Raises TimeUp after it has ended its notebooks."""
    if remaining() == math.inf:
        try:
            return subprocess.run(words, env=environment, cwd=root).returncode
        except KeyboardInterrupt:
            return 130
    with subprocess.Popen(words, env=environment, cwd=root, start_new_session=True) as process:
        try:
            return process.wait()
        except BaseException:
            for number in (signal.SIGINT, signal.SIGKILL):     # of the whole group: Snakemake, its notebooks, their kernels
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(20)
            raise


def _within(minutes: float, grid: str, jobs: Sequence[Job], cores: str | None, exhibits: Sequence[str]) -> int:
    from adcore.budget import work_through
    end = time.monotonic() + 60 * minutes
    outcome = work_through(jobs, minutes)
    print(f"adcore: grid {grid}, {outcome}", flush=True)
    if outcome.left or outcome.problems:
        return int(bool(outcome.problems))
    if importlib.util.find_spec("snakemake") is None:
        print("adcore: the notebooks that show them need Snakemake, which is not installed here")
        return 0
    try:
        with deadline(end - time.monotonic()):
            return reproduce(grid, cores, exhibits=exhibits)
    except TimeUp:
        print("adcore: the time was up while notebooks ran: the same command goes on")
        return 0


def _outdated(jobs: Sequence[Job]) -> list[str]:
    """Records of runs whose notebook, parameters, data or package have changed since.

    Snakemake compares the same digests, but only while its own metadata exist, and `make clean` removes them.
    """
    digests = RunDigests()
    records = {runs_folder() / "notebooks" / f"{job.id}.json": job for job in jobs}
    return [str(record) for record, job in records.items()
            if record.exists() and not run_is_current(record, job.path, job.parameters, digests)]


def is_current(report: Path, root: Path) -> bool:
    """True when no source of the report has changed since the report was written."""
    stored = report.with_name(SOURCES)
    return report.is_file() and stored.is_file() and stored.read_text(encoding="utf-8") == sources(root)


def sources(root: Path) -> str:
    """A digest of the names, sizes and times of all files from which the report is written.

    It only shows whether a time has changed, never which of two is later: a clock may have been set back.
    """
    runs = runs_folder()
    files = [*(runs / "exhibits").glob("*"), *(runs / "notebooks").rglob("*.*"), *(root / "results").glob("*"),
             *(root / "benchmarks").glob("*.csv"), *(root / "adcore").rglob("*.*")]
    found = []
    for path in sorted(path for path in files if "__pycache__" not in path.parts):
        with contextlib.suppress(FileNotFoundError):  # a temporary file of another process
            stat = path.stat()
            found.append(f"{path} {stat.st_size} {stat.st_mtime_ns} {stat.st_ino}")
    return digest_text("\n".join(found))


def bench(names: list[str]) -> int:
    """Run benchmark scripts in turn, all of them when `names` is empty; return the last non-zero exit status, or 0.

    A script that needs a GPU exits with 2 on a machine without one; this counts as an error only if the script was named.

    Raises:
        ParameterError: unknown benchmark.
    """
    folder = _checkout() / "benchmarks"
    known = {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}
    for name in names:
        if name not in known:
            raise ParameterError(f"there is no benchmark '{name}'; there are {', '.join(known)}")
    code = 0
    for name in names or known:
        status = subprocess.run([sys.executable, str(known[name])]).returncode
        code = (0 if status == 2 and not names else status) or code
    return code
