"""`adcore reproduce`: a grid through Snakemake, then the report. `adcore bench`: the scripts in benchmarks/."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from adcore.errors import AdcoreError, ParameterError
from adcore.files import digest_text, write_text
from adcore.grids import load_grid
from adcore.paths import repository, runs_folder

SOURCES = "sources.txt"  # beside index.html: what the report was made of


def _checkout() -> Path:
    root = repository()
    if root is None:
        raise AdcoreError("this needs the checkout: clone the repository and run it from there")
    return root


def reproduce(grid: str, cores: str = "all", profile: str | None = None, *, dry_run: bool = False) -> int:
    """Run what is missing of a grid, write the report, print the score card; 0 when every notebook ran well.

    A failed notebook does not stop the others: it keeps its traceback, and the report lists it.

    Raises:
        ParameterError: unknown grid, notebook or parameter.
        AdcoreError: not in a checkout, or Snakemake is not installed.
    """
    root, jobs = _checkout(), load_grid(grid)
    print(f"adcore: grid {grid}, {len(jobs)} notebook runs, results in {runs_folder()}")
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "workflow" / "Snakefile"), "--directory", str(root),
             "--keep-going", "--rerun-incomplete", "--nolock", "--quiet", "rules", "--config", f"grid={grid}"]
    words += ["--profile", profile] if profile else ["--cores", cores]
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
