"""The last run of `make test-slurm`, as the report shows it: a grid on a real SLURM cluster, disturbed and compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adcore.errors import StoreError
from adcore.paths import repository

CLUSTER_TEST = "slurm.json"  # in results/

# What the report says of a run, and so what the file has to hold.
FIELDS: dict[str, type] = {
    "finished": str, "commit": str, "slurm": str, "snakemake": str, "plugin": str, "notebooks": int, "failed_notebooks": int,
    "jobs": int, "killed_jobs": int, "killed_drivers": int, "finished_before_restart": int, "experiments": int, "numbers": int,
    "equal": bool, "seconds": int}


def cluster_test(folder: Path | None = None) -> dict[str, Any] | None:
    """What is on record of the last run, or None when there is nothing.

    Raises:
        StoreError: the file is damaged.
    """
    path = (folder or (repository() or Path.cwd()) / "results") / CLUSTER_TEST
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if [name for name, kind in FIELDS.items() if type(found[name]) is not kind]:
            raise TypeError
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreError(f"{path} is no record of a run on SLURM: make it again by `make test-slurm`") from error
    return {name: found[name] for name in FIELDS}
