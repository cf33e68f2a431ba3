"""`adcore reproduce`: a grid through Snakemake, then the report. `adcore bench`: the scripts in benchmarks/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from adcore.errors import AdcoreError, ParameterError
from adcore.grids import load_grid
from adcore.paths import repository, runs_folder


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
    path = root / "report" / "index.html"
    if not _is_current(path, root):
        path = write_report()
    print(score_card())
    print(f"report: {path}")
    return code


def _is_current(report: Path, root: Path) -> bool:
    """True when nothing that the report is made of has changed since it was written."""
    if not report.is_file():
        return False
    runs = runs_folder()
    sources = [*(runs / "exhibits").glob("*"), *(runs / "notebooks").rglob("*.*"), *(root / "results").glob("*"),
               *(root / "benchmarks").glob("*.csv"), *(root / "adcore").rglob("*.*")]
    written = report.stat().st_mtime
    return all(path.stat().st_mtime <= written for path in sources if "__pycache__" not in path.parts)


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
