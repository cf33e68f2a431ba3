"""Training, evaluation, papermill and Snakemake are killed at random times: restarted, they end with the same numbers.

Six kills by default; with ADCORE_KILLS=50 (`make test-faults`) at least 50, about a third of them of notebooks.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

KILLS = int(os.environ.get("ADCORE_KILLS", 0))
MANY = pytest.mark.skipif(KILLS == 0, reason="slow: run make test-faults")
CHECKOUT = Path(__file__).resolve().parents[2]
HERE = {**os.environ, "OMP_NUM_THREADS": "1", "ADCORE_PROGRESS": "0",
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(CHECKOUT / "tests")])}

COUNT = """
import time
from pathlib import Path
from adcore.files import write_json
for step in range(5):
    total = sum(range(1000 * (seed + step)))
    time.sleep(0.1)
with (Path(out) / "log").open("a") as log:
    log.write(f"{seed}\\n")
write_json(Path(out) / f"{seed}.json", {"total": total})
print(total)
"""


def test_a_grid_killed_during_training_and_evaluation_repeats_nothing_and_ends_with_the_same_numbers(tmp_path):
    kills = max(6, KILLS * 35 // 50)
    words = [sys.executable, str(Path(__file__).parents[1] / "support" / "faults.py"), str(tmp_path), str(kills), "0"]
    done = subprocess.run(words, env=HERE, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    print(outcome)
    assert outcome["wrong"] == []
    assert sum(outcome["kills"].values()) >= kills and outcome["kills"].get("test", 0) >= kills // 4 and outcome["numbers"] > 20


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A notebook that computes sums for half a second, then writes a file and a line of a log."""
    parameters = new_code_cell(f"seed = 0\nout = {str(tmp_path)!r}", metadata={"tags": ["parameters"]})
    cells = new_notebook(cells=[parameters, new_code_cell(COUNT)], metadata={
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    nbformat.write(cells, tmp_path / "sum.ipynb")
    return tmp_path / "sum.ipynb"


def until_done(words: list[str], folder: Path, kills: int, rng: random.Random, check: Callable[[], None],
               forget: Callable[[], None]) -> list[int]:
    """Run a command, kill it with all its children at random times until there were `kills` kills, then let it finish.

    check   called after each kill and after each complete run: inspects the files
    forget  called when a run finished before its kill: deletes the files, so that the next run starts again

    Returns the time from start to kill of each kill, in tenths of a second.
    """
    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(words, cwd=folder, env={**HERE, "ADCORE_RUNS": str(folder / "runs")}, start_new_session=True,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    began = time.monotonic()
    assert start().wait(300) == 0
    whole = time.monotonic() - began
    check()
    kill_times: list[int] = []
    forget()
    while len(kill_times) < kills:
        process, wait = start(), rng.uniform(0, whole)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kill_times.append(int(10 * wait))
        else:
            assert process.returncode == 0, process.stderr.read() if process.stderr else ""
            check()
            forget()
        process.wait()
        check()
    process = start()
    _, message = process.communicate(timeout=300)
    assert process.returncode == 0, message.decode()
    check()
    return kill_times


@MANY
def test_a_killed_notebook_leaves_no_partial_file_and_runs_again(tmp_path, notebook):
    output, record = tmp_path / "runs" / "sum.ipynb", tmp_path / "runs" / "sum.json"
    code = ("import sys; from pathlib import Path; from adcore.notebook import run_notebook as run; "
            "run(sys.argv[1], {'seed': 3}, Path(sys.argv[2]), record=Path(sys.argv[3]))")

    def check() -> None:
        if output.is_file():
            assert "total = " in nbformat.read(output, as_version=4).cells[-1].source
        if record.is_file():                                                      # written last: all other files exist
            assert json.loads(record.read_text())["parameters"] == {"seed": 3}
            assert nbformat.read(output, as_version=4).cells[-1].outputs[0].text == f"{sum(range(7000))}\n"
        if (tmp_path / "3.json").is_file():
            assert json.loads((tmp_path / "3.json").read_text()) == {"total": sum(range(7000))}

    def forget() -> None:
        for path in (output, record, tmp_path / "3.json"):
            path.unlink(missing_ok=True)

    words = [sys.executable, "-c", code, str(notebook), str(output), str(record)]
    print(until_done(words, tmp_path, max(1, KILLS // 5), random.Random(1), check, forget))
    assert record.is_file()


@MANY
def test_a_killed_snakemake_runs_the_missing_notebooks_and_no_finished_one(tmp_path, notebook):
    (tmp_path / "workflow").mkdir()
    (tmp_path / "workflow" / "Snakefile").write_text((CHECKOUT / "workflow" / "Snakefile").read_text())
    (tmp_path / "tiny.yaml").write_text(json.dumps({"notebooks": [{"notebook": str(notebook), "parameters": {"seed": 0},
                                                                   "each": {"seed": [1, 2]}}]}))
    records, log = tmp_path / "runs" / "notebooks", tmp_path / "log"
    stamps: dict[str, int] = {}

    def check() -> None:
        for path in sorted(records.glob("*.json")) if records.is_dir() else ():
            seed = json.loads(path.read_text())["parameters"]["seed"]
            assert json.loads((tmp_path / f"{seed}.json").read_text()) == {"total": sum(range(1000 * (seed + 4)))}
            assert stamps.setdefault(path.name, path.stat().st_mtime_ns) == path.stat().st_mtime_ns, "a finished run repeated"

    def forget() -> None:
        for path in (*records.glob("*"), *(tmp_path / f"{seed}.json" for seed in range(3))):
            path.unlink(missing_ok=True)
        stamps.clear()
        log.unlink(missing_ok=True)

    words = [sys.executable, "-m", "snakemake", "--snakefile", str(tmp_path / "workflow" / "Snakefile"), "--directory",
             str(tmp_path), "--rerun-incomplete", "--nolock", "--quiet", "rules", "--cores", "1", "--config",
             f"grid={tmp_path / 'tiny'}"]
    print(until_done(words, tmp_path, max(1, KILLS // 8), random.Random(2), check, forget))
    assert len(list(records.glob("*.json"))) == 3 and len(stamps) == 3
    assert sorted(set(log.read_text().split())) == ["0", "1", "2"]
