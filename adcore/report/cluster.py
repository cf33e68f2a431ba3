"""The outcome of the last `make test-slurm`, which runs a grid on a real SLURM cluster and kills jobs on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adcore.errors import StoreError
from adcore.paths import repository

CLUSTER_TEST = "slurm.json"  # in results/

# The fields that the report shows, and their types.
FIELDS: dict[str, type] = {
    "finished": str, "commit": str, "slurm": str, "snakemake": str, "plugin": str, "notebooks": int, "failed_notebooks": int,
    "jobs": int, "killed_jobs": int, "killed_drivers": int, "finished_before_restart": int, "experiments": int, "numbers": int,
    "equal": bool, "seconds": int}


def cluster_test(folder: Path | None = None) -> dict[str, Any] | None:
    """Read the stored outcome, or return None when there is none.

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
        raise StoreError(f"{path} is not a valid outcome of `make test-slurm`: run it again") from error
    return {name: found[name] for name in FIELDS}
