"""`adcore reproduce`: a grid through Snakemake, then the report. `adcore bench`: the scripts in benchmarks/."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from adcore.errors import AdcoreError, ParameterError, did_you_mean
from adcore.files import digest_text, write_text
from adcore.grids import Job, jobs_for, load_grid
from adcore.notebook import is_current as run_is_current
from adcore.paths import repository, runs_folder
from adcore.source import package_digest

PROFILES = ("quick", "paper")  # of experiments; each is a grid of that name
PLACES = ("local", "slurm", "kubernetes")  # folders of workflow/profiles
# A notebook that fails stops no other. A record is written last and whole, so one that is there is good, whatever became of
# Snakemake or of the other notebooks of its job: it is neither deleted nor made again.
ALWAYS = ("--keep-going", "--keep-incomplete", "--ignore-incomplete", "--nolock")
SOURCES = "sources.txt"  # beside index.html: what the report was made of


def _checkout() -> Path:
    root = repository()
    if root is None:
        raise AdcoreError("this needs the checkout: clone the repository and run it from there")
    return root


def grid_named(grid: str | None, profile: str | None) -> str:
    """The grid that two options mean: --profile names the one of its experiments' profile, --grid any. 'quick' without either.

    Raises:
        ParameterError: they name two, or a profile that there is not.
    """
    if profile is not None and profile not in PROFILES:
        raise ParameterError(f"unknown profile '{profile}'{did_you_mean(profile, PROFILES)}: --profile takes "
                             f"{' or '.join(PROFILES)}; a place to run on, or a folder of Snakemake's, is named by --on")
    if grid is not None and profile is not None and grid != profile:
        raise ParameterError(f"--profile {profile} and --grid {grid} name two grids: leave one away")
    chosen = grid or profile or "quick"
    return str(Path(chosen).absolute()) if Path(chosen).suffix == ".yaml" else chosen  # Snakemake runs in the checkout


def snakemake_profile(on: str, root: Path) -> Path:
    """The folder of Snakemake's settings for a place to run at.

    Raises:
        ParameterError: neither a place of workflow/profiles nor a folder with a config.yaml.
        AdcoreError: the place needs a package that is not installed.
    """
    named = root / "workflow" / "profiles" / on
    folder = named if on in PLACES else Path(on).absolute()
    if not any((folder / f"config{suffix}").is_file() for suffix in (".yaml", ".v8+.yaml", ".v9+.yaml")):
        raise ParameterError(f"there is no '{on}' to run on: --on takes {', '.join(PLACES)}, or a folder with a config.yaml of "
                             f"Snakemake's")
    if on in ("slurm", "kubernetes") and importlib.util.find_spec(f"snakemake_executor_plugin_{on}") is None:
        raise AdcoreError(f"--on {on} needs Snakemake's executor for it, on Python 3.11 or later: pip install 'adcore[{on}]'")
    return folder


def reproduce(grid: str = "quick", cores: str | None = None, on: str = "local", exhibits: Sequence[str] = (), *,
              dry_run: bool = False) -> int:
    """Run what is missing of a grid, write the report, print the score card; 0 when every notebook ran well.

    on        local, slurm, kubernetes, or a folder of Snakemake's settings
    exhibits  only the notebooks that regenerate these

    A failed notebook does not stop the others: it keeps its traceback, and the report lists it.

    Raises:
        ParameterError: unknown grid, notebook, parameter, exhibit or place.
        AdcoreError: not in a checkout, or Snakemake is not installed.
    """
    root = _checkout()
    jobs = jobs_for(load_grid(grid), exhibits)
    settings = snakemake_profile(on, root)
    print(f"adcore: grid {grid}, {len(jobs)} notebook runs, results in {runs_folder()}", flush=True)
    # Everything is asked for by the file it leaves, so that Snakemake runs what of it is missing and nothing else.
    targets = [str(runs_folder() / "notebooks" / f"{job.id}.json") for job in jobs] if exhibits else []
    words = [sys.executable, "-m", "snakemake", *targets, "--snakefile", str(root / "workflow" / "Snakefile"), "--directory",
             str(root), "--profile", str(settings), *ALWAYS, "--quiet", "rules", "--config", f"grid={grid}"]
    again = _changed(jobs)
    words += ["--forcerun", *again] if again else []
    words += ["--cores", cores] if cores else []
    words += ["--dry-run"] if dry_run else []
    environment = {**os.environ, "ADCORE_PROGRESS": "0"}
    try:
        code = subprocess.run(words, env=environment, cwd=root).returncode
    except KeyboardInterrupt:
        code = 130
    if dry_run:
        return code
    if code and subprocess.run([sys.executable, "-c", "import snakemake"], capture_output=True).returncode:
        raise AdcoreError("Snakemake is not installed: run `make setup`, or pip install 'adcore[workflow]'")

    from adcore.report import score_card, write_report
    path, now = root / "report" / "index.html", sources(root)
    if not is_current(path, root):
        path = write_report()
        write_text(path.with_name(SOURCES), now)  # what there was before: what came meanwhile makes the next run write again
    print(score_card())
    print(f"report: {path}")
    return code


def _changed(jobs: Sequence[Job]) -> list[str]:
    """Records of runs that were made of something else than is here today. Snakemake compares the same, but only as long as its
    own notes are there, which `make clean` removes."""
    package = package_digest()
    records = {runs_folder() / "notebooks" / f"{job.id}.json": job for job in jobs}
    return [str(record) for record, job in records.items()
            if record.exists() and not run_is_current(record, job.path, job.parameters, package)]


def is_current(report: Path, root: Path) -> bool:
    """True when nothing that the report is made of has changed since it was written."""
    kept = report.with_name(SOURCES)
    return report.is_file() and kept.is_file() and kept.read_text(encoding="utf-8") == sources(root)


def sources(root: Path) -> str:
    """A digest of the state of all files that a report is made of. Their times are compared for equality and none is held to be
    later than another: a clock may have been set back in between."""
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
    """Run benchmark scripts one after the other; the last non-zero exit status, or 0. One that needs a GPU says so and ends
    with 2, which counts where it was asked for by name.

    Raises:
        ParameterError: a benchmark that is not there.
    """
    folder = _checkout() / "benchmarks"
    there = {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}
    for name in names:
        if name not in there:
            raise ParameterError(f"there is no benchmark '{name}'; there are {', '.join(there)}")
    code = 0
    for name in names or there:
        status = subprocess.run([sys.executable, str(there[name])]).returncode
        code = (0 if status == 2 and not names else status) or code
    return code
