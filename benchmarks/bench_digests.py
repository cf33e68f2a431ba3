"""Time the comparison of a data set with the digests of a stored result against reading every file again.

    python benchmarks/bench_digests.py --files 5000

The files are random bytes in fifteen folders below a temporary one (TMPDIR). Ours is what `run` does before it uses a stored
result, in a new process: digests are remembered on disk, and a file whose size and times are the same is not read.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import RESULTS, alternate, merge, row

from adcore import digests
from adcore.digests import file_digests
from adcore.files import digest_file


def write_files(root: Path, count: int, size: int) -> list[Path]:
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        path = root / f"{i % 15:02}" / f"{i:05}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(rng.bytes(size))
        paths.append(path)
    return sorted(paths)


def compared(paths: list[Path]) -> list[str]:
    digests._known.clear()  # as in a new process
    return file_digests(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=5000, help="how many files")
    parser.add_argument("--bytes", type=int, default=400_000, help="size of each")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the csv")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ADCORE_CACHE"] = str(Path(folder) / "cache")
        paths = write_files(Path(folder), arguments.files, arguments.bytes)
        time.sleep(digests.AT_REST + 0.5)
        assert compared(paths) == [digest_file(path, "blake2b")[:32] for path in paths]
        ours, peer = alternate(lambda: compared(paths), lambda: [digest_file(path, "blake2b") for path in paths],
                               arguments.rounds)
    print(f"{arguments.files} files: compared in {ours:.3f} s, read in {peer:.2f} s")
    merge(arguments.out, [row("digests.file_digests", "hashlib: every file read", ours, peer, arguments.rounds,
                              f"{arguments.files} files of {arguments.bytes / 1e3:.0f} KB", ["numpy"])])


if __name__ == "__main__":
    main()
