"""Take what came back from a borrowed machine into the results store, results/ and benchmarks/.

    python workflow/borrowed_gpu/merge.py measured

Results go into the results store, with their digests checked; one that the store already has is kept as it is. All numbers
that came back are written to results/borrowed_gpu.csv, with the GPU's name in the column `machine`. The kernel table and the
losses of the first steps become benchmarks/gpu_kernels.csv and benchmarks/gpu_losses.csv. What was measured only to try it,
without a GPU or with --tiny, goes into the store alone.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import parts
import torch

from adcore.data.archives import unpack
from adcore.errors import AdcoreError, StoreError, tell
from adcore.experiments import Store
from adcore.experiments.record import exported, records
from adcore.experiments.store import DamagedError, Result, file_digest, read_result
from adcore.experiments.tidy import load_results
from adcore.files import atomic, write_text

TABLES = {"kernels.csv": "gpu_kernels.csv", "losses.csv": "gpu_losses.csv"}
ARCHIVES = ("results.tar.gz", "maps.tar", "checkpoints.tar")


def came_back(folder: Path) -> Iterator[tuple[Result, pd.DataFrame, dict[str, np.ndarray]]]:
    """The results below an unpacked folder, their scores, and maps, which may be missing. A damaged one is left out, and said.
    """
    for path in sorted(folder.glob("*/*/result.json")):
        try:
            yield checked(path, folder)
        except (StoreError, OSError) as error:
            tell(f"{error}; left out")


def checked(path: Path, folder: Path) -> tuple[Result, pd.DataFrame, dict[str, np.ndarray]]:
    """A result whose files have the digests that it lists.

    Raises:
        DamagedError: a file is damaged, or the result is not that of its folder.
    """
    result, digests = read_result(path)
    store = Store(folder)
    if store.folder(result.experiment) != path.parent:
        raise DamagedError(f"{path} is a result of another experiment, or of other code, than its folder")
    for name, digest in digests.items():
        beside = path.parent / name
        if beside.is_file() and file_digest(beside) != digest:
            raise DamagedError(f"{beside} is damaged (its digest does not fit)")
    if not (path.parent / "scores.csv").is_file():
        raise DamagedError(f"{path.parent} has no scores.csv")
    has_maps = (path.parent / "maps.npz").is_file()
    maps = {name: one.astype(np.float16) for name, one in store.maps(result.experiment).items()} if has_maps else {}
    return result, store.scores(result.experiment), maps


def take_checkpoints(folder: Path, store: Store) -> int:
    """Copy unfinished trainings of experiments without a result, unless the store's own got further. Returns their number."""
    taken = 0
    for path in sorted(folder.glob("*/*/checkpoint-*")):
        own = store.root / path.relative_to(folder)
        if not own.with_name("result.json").exists() and epochs(path) > epochs(own):
            with atomic(own) as temporary:
                shutil.copyfile(path, temporary)
            taken += 1
    return taken


def epochs(checkpoint: Path) -> int:
    """How many epochs a checkpoint has behind it; -1 when it is not there or damaged."""
    try:
        return len(torch.load(checkpoint, map_location="cpu", weights_only=True)["losses"])
    except Exception:  # torch raises many kinds of errors
        return -1


def write_record(path: Path, keys: set[str], store: Store) -> int:
    """Write the numbers of these experiments, and those that the file already has of others. Returns how many rows it has."""
    new = load_results(store.root)
    new = new[new["key"].isin(keys) & new["value"].notna()] if len(new) else new
    old = [one.frame[~one.frame["key"].isin(keys)] for one in records(path.parent) if one.name == path.stem]
    frame = pd.concat([*old, new], ignore_index=True) if old and len(old[0]) else new
    if len(frame):
        write_text(path, exported(frame))
    return len(frame)


def take_tables(folder: Path, benchmarks: Path) -> list[str]:
    """Copy the tables of part 1. Returns their names; one that replaces an earlier one says so."""
    said = []
    for name, to in TABLES.items():
        if (folder / name).is_file():
            text = (folder / name).read_text(encoding="utf-8")
            replaced = (benchmarks / to).is_file() and (benchmarks / to).read_text(encoding="utf-8") != text
            write_text(benchmarks / to, text)
            said.append(f"{to}{' (replaces an earlier one)' if replaced else ''}")
    return said


def read_summary(folder: Path) -> dict[str, Any]:
    """summary.json. Raises StoreError when the folder has none that can be read."""
    try:
        return dict(json.loads((folder / "summary.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{folder} has no summary.json that can be read ({type(error).__name__}): name the folder that run.py "
                         f"wrote (--out)") from error


def unpack_all(folder: Path, to: Path) -> int:
    """Unpack the archives into one folder. Returns how many are damaged, which are told and left out."""
    damaged = 0
    for name in ARCHIVES:
        if (folder / name).is_file():
            with tempfile.TemporaryDirectory() as temporary:
                try:
                    unpack(folder / name, Path(temporary))
                    shutil.copytree(temporary, to, dirs_exist_ok=True)
                except AdcoreError as error:
                    tell(str(error))
                    damaged += 1
    return damaged


def merge(folder: Path, record: Path, benchmarks: Path, store: Store) -> int:
    """Take everything in; what was measured without a GPU or with --tiny into the store only.

    Returns 1 when something was damaged, else 0.

    Raises:
        AdcoreError: it is no such folder, or something cannot be written.
    """
    summary = read_summary(folder)
    keys: set[str] = set()
    added = 0
    with tempfile.TemporaryDirectory() as temporary:
        unpacked = Path(temporary)
        damaged = unpack_all(folder, unpacked)
        whole = len(list(unpacked.glob("*/*/result.json")))
        for result, scores, maps in came_back(unpacked):
            one = result.experiment
            keys.add(one.key)
            if store.load(one) is not None:
                tell(f"the store has a result of '{one.title}' already, which is kept")
            else:
                store.save(result, scores, maps)
                added += 1
        trainings = take_checkpoints(unpacked, store)
    damaged += whole - len(keys)
    print(f"part {summary.get('part')} on {summary.get('machine')}, torch {summary.get('torch')}, driver "
          f"{summary.get('driver') or 'none'}: {added} results added, {len(keys) - added} kept, {damaged} damaged, {trainings} "
          f"unfinished trainings")
    if summary.get("tiny") or summary.get("gpu") is False:
        print("measured to try it (--tiny or no GPU): nothing is written to results/ and benchmarks/")
    else:
        print(f"{record}: {write_record(record, keys, store)} numbers")
        for name in take_tables(folder, benchmarks):
            print(benchmarks / name)
    return int(damaged > 0)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="what run.py wrote (its --out)")
    parser.add_argument("--record", type=Path, default=parts.RECORD, help="csv to write (default: results/borrowed_gpu.csv)")
    parser.add_argument("--benchmarks", type=Path, default=parts.ROOT / "benchmarks", help="folder of the tables")
    parser.add_argument("--runs", type=Path, help="the results store (default: ADCORE_RUNS, else runs)")
    arguments = parser.parse_args(words)
    try:
        return merge(arguments.folder, arguments.record, arguments.benchmarks, Store(arguments.runs))
    except AdcoreError as error:
        tell(str(error))
        return 2


if __name__ == "__main__":
    sys.exit(main())
