"""The five parts: their experiments, and which of them have results. `python parts.py N` prints part N's state as JSON.

A part is a grid, part_N.yaml. An experiment has a result when its key is in results/borrowed_gpu.csv or in the results store.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKED = HERE / "packed"
RECORD = ROOT / "results" / "borrowed_gpu.csv"
DATASET, CATEGORIES = "mvtec_256", ("bottle", "grid", "screw")      # what the grids name, and `pack.py` makes
PARTS = {int(path.stem.partition("_")[2]): path for path in sorted(HERE.glob("part_*.yaml"))}

sys.path.insert(0, str(ROOT))  # the checkout need not be installed


@contextmanager
def listed_data() -> Iterator[None]:
    """A block in which experiments on `DATASET` can be listed, also before it is packed: empty folders stand in for it."""
    from adcore.data import find_dataset
    if find_dataset(DATASET) is not None:
        yield
        return
    before = os.environ.get("ADCORE_DATA", "")
    with tempfile.TemporaryDirectory() as folder:
        for category in CATEGORIES:
            (Path(folder) / DATASET / category / "train" / "good").mkdir(parents=True)
        os.environ["ADCORE_DATA"] = os.pathsep.join(filter(None, (before, folder)))
        try:
            yield
        finally:
            os.environ["ADCORE_DATA"] = before


def experiments(grid: Path) -> list[Any]:
    """The experiments of a grid file, each once, in their order.

    Raises:
        ParameterError: the experiments of a notebook cannot be listed.
    """
    from adcore.errors import ParameterError
    from adcore.grids import load_grid
    from adcore.notebook import read_parameters
    from adcore.plan import asked
    found: dict[str, Any] = {}
    with listed_data():
        for job in load_grid(str(grid)):
            wanted = asked(job.notebook, {**read_parameters(job.path), **job.parameters})
            if wanted.problem:
                raise ParameterError(f"the experiments of {job.id} in {grid} cannot be listed: {wanted.problem}")
            found |= {one.key: one for one in wanted.experiments if one.key not in found}
    return list(found.values())


def on_record() -> set[str]:
    """Keys of the experiments in results/borrowed_gpu.csv; none before the first `merge.py`."""
    from adcore.experiments.record import records
    return {key for one in records(RECORD.parent) if one.name == RECORD.stem for key in one.frame["key"]}


def done(grid: Path) -> tuple[int, int]:
    """How many experiments of a grid have a result, on record or in the store, and how many there are."""
    from adcore.experiments import Store
    wanted, known, store = experiments(grid), on_record(), Store()
    return sum(one.key in known or store.load(one) is not None for one in wanted), len(wanted)


def listing() -> str:
    """Every part in a line: its first comment, how many of its results there are, and which part is next."""
    counts = {number: done(path) for number, path in PARTS.items()}
    following = next((number for number, (here, wanted) in counts.items() if here < wanted), None)
    lines = []
    for number, (here, wanted) in counts.items():
        state = "has its results" if here == wanted else f"{here} of {wanted} experiments have results"
        lines.append(f"part {number}: {state}{', next' if number == following else ''}")
    return "\n".join(lines)


def state(grid: Path) -> dict[str, Any]:
    """What the machine is and how far the grid is, as plain values."""
    import torch
    import torchvision

    from adcore.experiments.provenance import machine
    from adcore.training import resolve_device
    here, wanted = done(grid)
    return {"machine": machine(resolve_device("auto")), "gpu": torch.cuda.is_available(), "python": platform.python_version(),
            "torch": torch.__version__, "torchvision": torchvision.__version__, "cuda": torch.version.cuda, "done": here,
            "wanted": wanted}


if __name__ == "__main__":
    print(json.dumps(state(Path(sys.argv[1]))))
