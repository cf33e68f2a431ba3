"""Work through one part on a GPU machine for some minutes, without a network, and leave what it measured in one folder.

    python workflow/borrowed_gpu/run.py --list                           which parts have results, and which is next
    python workflow/borrowed_gpu/run.py 1 --minutes 9 --out measured

Needs the checkout with `packed/` (see pack.py), and torch, torchvision, timm, scikit-learn, scikit-image, pandas, psutil, tqdm,
requests, filelock, PyYAML, pytest and hypothesis. Nothing is installed, and nothing outside --out and --work is written. A step
that fails or reaches its limit stops no other step; the exit status is 1 then, and 2 when nothing could be run.

    log.txt          what all steps printed                  results.tar.gz   results but for their maps
    summary.json     machine, versions, seconds per step     maps.tar         maps of as many results as fit
    junit.xml, kernels.csv, losses.csv   of part 1           checkpoints.tar  trainings that are not finished, if they fit

This file imports nothing but Python's own library, so that it can say in a sentence what a machine lacks.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import parts

MIB = 1 << 20
ENDING = 20.0  # seconds that are kept for the archives
GRACE = 15.0   # seconds that a grid may take beyond its minutes, to save what it trains


class Log:
    """Runs commands, whose output goes to one file, and keeps their seconds and exit statuses."""

    def __init__(self, path: Path, environment: dict[str, str], end: float) -> None:
        self.path, self.environment, self.end = path, environment, end
        self.steps: list[dict[str, Any]] = []

    def left(self) -> float:
        """Seconds until the archives must be made."""
        return self.end - ENDING - time.monotonic()

    def run(self, name: str, words: Sequence[str], seconds: float, **variables: str) -> int:
        """Run a command for at most so many seconds; returns its exit status, 124 when it was stopped."""
        start = time.monotonic()
        with self.path.open("ab") as file:
            file.write(f"\n== {name}: {' '.join(words)}\n".encode())
            file.flush()
            process = subprocess.Popen(words, cwd=parts.ROOT, env=self.environment | variables, stdout=file,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(max(1.0, min(seconds, self.left() + GRACE)))
            except subprocess.TimeoutExpired:
                code = 124
            finally:  # also when this process is interrupted
                stop(process)
        self.steps.append({"step": name, "seconds": round(time.monotonic() - start, 1), "status": code})
        print(f"{name}: {self.steps[-1]['seconds']:.0f} s, " + {0: "done", 124: "stopped at its limit"}.get(
            code, f"failed with status {code}, see {self.path}"), flush=True)
        return code


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a command and its children: first as Ctrl-C does, so that files are completed, then for good."""
    for number, patience in ((signal.SIGINT, 5.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def environment(work: Path, packed: Path, device: str) -> dict[str, str]:
    """Variables for the steps: the packed packages and data, and all that is written below `work`."""
    about = json.loads((packed / "packed.json").read_text(encoding="utf-8"))
    path = [str(parts.ROOT), str(packed / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(path), "ADCORE_DATA": str(packed / "data"), "ADCORE_COMMIT": about["commit"],
           "ADCORE_CACHE": str(work / "cache"), "ADCORE_RUNS": str(work / "runs"), "ADCORE_PROGRESS": "0",
           "TRITON_CACHE_DIR": str(work / "triton"), "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"),
           "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
    if device == "cpu":
        own |= {"CUDA_VISIBLE_DEVICES": "", "ADCORE_GPU_TESTS": "cpu", "TRITON_INTERPRET": "1"}
    return {**os.environ, **own}


def state(grid: Path, variables: dict[str, str]) -> dict[str, Any] | str:
    """What `parts.state` returns in the steps' environment, or why it cannot be had."""
    words = [sys.executable, str(parts.HERE / "parts.py"), str(grid)]
    done = subprocess.run(words, env=variables, capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip() or "no reason given").splitlines()[-1]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def driver() -> str:
    """The GPU driver's version; '' without one."""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return ""


def grid_of(part: int, work: Path, tiny: bool) -> Path:
    """The part's grid; with `tiny` a copy in the quick profile, to try everything in minutes."""
    path = work / parts.PARTS[part].name
    text = parts.PARTS[part].read_text(encoding="utf-8")
    path.write_text(text.replace("profile: open", "profile: quick") if tiny else text, encoding="utf-8")
    return path


def first_steps(log: Log, out: Path, work: Path, device: str, tiny: bool) -> None:
    """The steps of part 1 before its grid: tests on the GPU, the kernel table, UniAD's first training steps."""
    several = ["-n", "6"] if importlib.util.find_spec("xdist") and device != "cpu" else []
    chosen = ["-k", "nearest or brightness"] if tiny else []
    log.run("tests", [sys.executable, "-m", "pytest", "-m", "gpu", "tests/workflow", "-p", "no:cacheprovider", *several,
                      *chosen, "--basetemp", str(work / "pytest"), "--junitxml", str(out / "junit.xml")], 60)
    of = ["--device", "cpu" if device == "cpu" else "cuda"]
    log.run("kernels", [sys.executable, "benchmarks/bench_gpu_kernels.py", "--minutes", "1", *of, "--out",
                        str(out / "kernels.csv")], 90)
    log.run("losses", [sys.executable, "benchmarks/bench_gpu_uniad.py", "--minutes", "0.8", "--dataset", parts.DATASET, *of,
                       "--out", str(out / "losses.csv")], 75)


def archive(path: Path, files: Iterable[Path], root: Path, limit: int, mode: str = "w") -> list[Path]:
    """Put files into a tar, those that fit into `limit` bytes, named by their place below `root`. Returns those left out."""
    left: list[Path] = []
    size = 0
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for file in files:
            needed = -(-file.stat().st_size // 512) * 512 + 1536  # headers for long names
            if size + needed + 20480 > limit:
                left.append(file)
            else:
                tar.add(file, str(file.relative_to(root)), recursive=False)
                size += needed
    if not size:
        path.unlink()
    return left


def collect(runs: Path, before: set[Path], out: Path, limit: int) -> tuple[int, list[str]]:
    """Archive the new results, their maps and the unfinished trainings.

    before  folders of results that were packed

    Returns the number of new results, and sentences about what is left out.
    """
    folders = sorted(path.parent for path in runs.glob("*/*/result.json") if path.parent not in before)
    small = [folder / name for folder in folders for name in ("result.json", "params.yaml", "scores.csv")]
    said = []
    if archive(out / "results.tar.gz", small, runs, limit, "w:gz"):
        said.append(f"results.tar.gz would be larger than {limit // MIB} MiB: some results are left out, raise --most")
    maps = archive(out / "maps.tar", [folder / "maps.npz" for folder in folders], runs, limit)
    if maps:
        said.append(f"the maps of {len(maps)} of {len(folders)} results did not fit")
    unfinished = sorted(path for path in runs.glob("*/*/checkpoint-*") if path.is_file() and path.suffix != ".lock"
                        and not (path.parent / "result.json").exists())
    said += [f"the unfinished training {path.parent.relative_to(runs)} has {path.stat().st_size / MIB:.0f} MiB and did not fit"
             for path in archive(out / "checkpoints.tar", unfinished, runs, limit)]
    return len(folders), said


def work_through(part: int, minutes: float, out: Path, work: Path, arguments: argparse.Namespace) -> int:
    """Set up, run the part's steps, archive. Returns the exit status."""
    begin = time.monotonic()
    packed: Path = arguments.packed
    if not (packed / "packed.json").is_file():
        return refuse(f"{packed} is not packed: run `python workflow/borrowed_gpu/pack.py` where the data sets are, and copy "
                      f"the folder with the checkout")
    variables = environment(work, packed, arguments.device)
    shutil.copytree(packed / "runs", work / "runs", dirs_exist_ok=True)
    before = {path.parent for path in (work / "runs").glob("*/*/result.json")}
    grid = grid_of(part, work, arguments.tiny)
    machine = state(grid, variables)
    if isinstance(machine, str):
        return refuse(f"adcore cannot be used here ({machine}): this machine needs the packages that run.py lists at its head")
    if machine["done"] == machine["wanted"] and not arguments.again:
        return refuse(f"all {machine['wanted']} experiments of part {part} have results: choose another part (--list), or "
                      f"--again for the steps before them")
    if arguments.device == "auto" and not machine["gpu"]:
        return refuse("torch finds no GPU here: use --device cpu to try everything without one")
    log = Log(out / "log.txt", variables, begin + 60 * minutes)
    ready = round(time.monotonic() - begin, 1)
    print(f"{machine['machine']}, torch {machine['torch']}; set up in {ready} s", flush=True)
    if part == 1 and not arguments.only_grid:
        first_steps(log, out, work, arguments.device, arguments.tiny)
    seconds = log.left() - ready  # importing and listing take as long again, before the minutes count
    if seconds > 5:
        log.run("experiments", [sys.executable, "-m", "adcore", "reproduce", "--grid", str(grid), "--minutes",
                                f"{seconds / 60:.2f}"], log.left() + GRACE)
    new, said = collect(work / "runs", before, out, int(arguments.most * MIB))
    summary = {**machine, "driver": driver(), "part": part, "minutes": minutes, "set_up_seconds": ready, "steps": log.steps,
               "done": machine["done"] + new, "left_out": said, "tiny": arguments.tiny,
               "packed": json.loads((packed / "packed.json").read_text(encoding="utf-8")),
               "seconds": round(time.monotonic() - begin, 1)}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for sentence in said:
        print(sentence)
    print(f"{summary['done']} of {summary['wanted']} experiments of part {part} have results; {out} is ready for merge.py")
    return int(any(step["status"] != 0 for step in log.steps))


def refuse(sentence: str) -> int:
    print(f"run.py: {sentence}", file=sys.stderr)
    return 2


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", type=int, choices=sorted(parts.PARTS), help="which part to work through")
    parser.add_argument("--list", action="store_true", help="say which parts have results, and which is next")
    parser.add_argument("--minutes", type=float, default=9, help="in all (default 9)")
    parser.add_argument("--out", type=Path, help="new folder for what comes back")
    parser.add_argument("--packed", type=Path, default=parts.PACKED, help="what pack.py wrote (default: packed, beside this)")
    parser.add_argument("--work", type=Path, help="folder of the cache and the store (default: a temporary one, removed)")
    parser.add_argument("--most", type=float, default=16, help="MiB of each file that comes back (default 16)")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto", help="cpu tries everything without a GPU")
    parser.add_argument("--tiny", action="store_true", help="experiments of the quick profile, few tests: to try everything")
    parser.add_argument("--only-grid", action="store_true", help="part 1 without its tests and timings")
    parser.add_argument("--again", action="store_true", help="also when the part has its results")
    arguments = parser.parse_args(words)
    if arguments.list:
        print(parts.listing())
        return 0
    if arguments.part is None or arguments.out is None:
        parser.error("name a part and a folder (--out), or --list")
    if not arguments.minutes > 1:
        return refuse(f"--minutes {arguments.minutes:g} is too short: one minute is needed to set up and to end")
    out = arguments.out.absolute()
    if out.exists() and any(out.iterdir()):
        return refuse(f"{out} is not empty: name another folder (--out)")
    out.mkdir(parents=True, exist_ok=True)
    arguments.packed = arguments.packed.absolute()
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adcore-")))
        work.mkdir(parents=True, exist_ok=True)
        return work_through(arguments.part, arguments.minutes, out, work.absolute(), arguments)


if __name__ == "__main__":
    sys.exit(main())
