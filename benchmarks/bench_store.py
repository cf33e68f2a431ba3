"""Time `load_results` on a store of 100,000 results against parsing the same files and nothing else.

    python benchmarks/bench_store.py --count 100000

The store is generated: four methods, sixteen settings, one seed per result, five numbers each. It is written to a temporary
folder (TMPDIR). `load_results` should take less than 10 s; parsing the files as JSON is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from side_by_side import RESULTS, alternate, merge, row

from adcore.experiments import Experiment, Result, load_results
from adcore.experiments.provenance import fingerprint, versions
from adcore.experiments.store import body_of, sealed

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")
SWITCHES = [(a, b) for a in (False, True) for b in (False, True)]
KINDS = [*(Experiment("uniad", settings=(("jitter", a), ("nma", b))) for a, b in SWITCHES),
         *(Experiment("patchcore", settings=(("neighbors", n),)) for n in (1, 2, 3, 4)),
         *(Experiment("ds2", settings=(("epochs", n),)) for n in (1, 2, 3, 4)),
         *(Experiment("cutpaste", settings=(("epochs", n),)) for n in (1, 2, 3, 4))]


def write_store(root: Path, count: int) -> None:
    """Write `count` results without scores and maps."""
    origin = {"versions": versions(), "commit": "", "device": "cpu", "machine": "made up", "seconds": 1.0, "peak_bytes": 10**9,
              "fit_seconds": 0.9, "test_seconds": 0.1, "weights_digest": "0" * 16, "data": "0" * 16, "train_images": 40,
              "test_images": 30, "processes": 1, "finished": "2020-01-01T00:00:00Z"}
    for i in range(count):
        experiment = replace(KINDS[i % len(KINDS)], seed=i)
        measures = tuple({"category": "all", "metric": metric, "value": (7 * i + n) % 97 / 97}
                         for n, metric in enumerate(METRICS))
        result = Result(experiment, measures, {**origin, "code": fingerprint(experiment.method)})
        folder = root / experiment.method / experiment.key
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(sealed(body_of(result)), encoding="utf-8")


def read_alone(root: Path) -> int:
    """Parse every file; returns their number."""
    return sum(bool(json.loads(path.read_text(encoding="utf-8"))) for path in root.glob("*/*/result.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="how many results")
    parser.add_argument("--rounds", type=int, default=3, help="how often each is timed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the csv")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_store(Path(folder), arguments.count)
        print(f"{arguments.count} results written in {time.perf_counter() - start:.0f} s")
        numbers = len(load_results(folder))
        assert numbers == arguments.count * len(METRICS), f"{numbers} numbers were loaded"
        ours, floor = alternate(lambda: load_results(folder), lambda: read_alone(Path(folder)), arguments.rounds)
    print(f"load_results: {ours:.1f} s for {numbers} numbers; parsing the files alone: {floor:.1f} s")
    merge(arguments.out, [row("experiments.load_results", "json alone: the files parsed, no table", ours, floor,
                              arguments.rounds, f"{arguments.count} results", ["pandas", "numpy"])])


if __name__ == "__main__":
    main()
