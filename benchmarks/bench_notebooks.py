"""Time every notebook at its defaults: cold (empty store and cache) and warm (all its results stored).

    python benchmarks/bench_notebooks.py [NAME ...]

Writes benchmarks/notebooks.csv, from which the table of `00_start_here` is checked. Run it while nothing else runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch

from adcore.experiments.provenance import commit, machine
from adcore.files import write_text
from adcore.notebook import all_notebooks, notebook_name

TABLE = Path(__file__).parent / "notebooks.csv"


def seconds_of(name: str, folder: Path) -> float:
    """Wall-clock seconds of one run in a process of its own, whose store and cache are in the folder."""
    own = {"ADCORE_RUNS": str(folder / "runs"), "ADCORE_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "adcore", "run", name, "-o", str(folder / "run.ipynb")], env={**os.environ, **own},
                   check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="which notebooks (default: all)")
    known = [notebook_name(path) for path in all_notebooks()]
    for name in parser.parse_args().names or known:
        with tempfile.TemporaryDirectory() as folder:
            cold, warm = (round(seconds_of(name, Path(folder))) for _ in range(2))
        rows = pd.read_csv(TABLE).to_dict("records") if TABLE.is_file() else []
        rows = [row for row in rows if row["notebook"] in known and row["notebook"] != name]
        rows.append({"notebook": name, "cold": cold, "warm": warm, "machine": machine(torch.device("cpu")), "commit": commit()})
        write_text(TABLE, pd.DataFrame(rows).sort_values("notebook").to_csv(index=False))
        print(f"{name:<40} {cold:>4} s cold {warm:>4} s warm", flush=True)


if __name__ == "__main__":
    main()
