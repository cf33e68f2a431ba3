"""`adcore reproduce`: the grid that its options select, Snakemake's profiles and dry runs, and which runs it repeats."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support.notebooks import write_grid, write_notebook

from adcore import cli, reproduce
from adcore.errors import AdcoreError, ParameterError
from adcore.grids import load_grid
from adcore.notebook import run_notebook
from adcore.paths import repository
from adcore.reproduce import grid_named, snakemake_profile

ROOT = repository()
PROFILES = ROOT / "workflow" / "profiles"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "toy.ipynb")


def settings(place: str) -> dict[str, object]:
    return yaml.safe_load((PROFILES / place / "config.yaml").read_text(encoding="utf-8"))


# --- dry runs ---------------------------------------------------------------------------------------------------------------

def test_snakemake_accepts_the_paper_grid_in_a_dry_run(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path))
    assert reproduce.reproduce("paper", cores="1", dry_run=True) == 0
    printed = capfd.readouterr()
    assert f"{len(load_grid('paper'))} notebook runs" in printed.out
    assert not list(tmp_path.rglob("*.ipynb")), "a dry run runs nothing"


def test_a_dry_run_of_one_exhibit_lists_its_six_runs_only(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path))
    assert cli.main(["reproduce", "--exhibit", "uniad2022.table_s2", "--profile", "paper", "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert "grid paper, 6 notebook runs" in printed.out
    assert re.search(r"^notebook +6$", printed.out + printed.err, re.MULTILINE)
    assert not list(tmp_path.rglob("*.ipynb"))


# --- the grid ---------------------------------------------------------------------------------------------------------------

def test_profile_and_grid_may_not_name_two_grids():
    assert (grid_named(None, None), grid_named(None, "paper"), grid_named("paper", "paper")) == ("quick", "paper", "paper")
    with pytest.raises(ParameterError, match="--profile paper and --grid quick name two grids: use only one"):
        grid_named("quick", "paper")
    with pytest.raises(ParameterError, match=r"^unknown profile 'papr' \(did you mean 'paper'\?\): --profile takes quick,"):
        grid_named(None, "papr")


# --- places -----------------------------------------------------------------------------------------------------------------

def test_a_place_is_a_folder_of_workflow_profiles_or_any_folder_with_a_config(tmp_path):
    assert set(reproduce.PLACES) == {path.name for path in PROFILES.iterdir()}
    assert snakemake_profile("local", ROOT) == PROFILES / "local"
    (tmp_path / "mine").mkdir()
    with pytest.raises(ParameterError, match=r"^unknown place .*: --on takes local, slurm, kubernetes, or a folder with a"):
        snakemake_profile(str(tmp_path / "mine"), ROOT)
    (tmp_path / "mine" / "config.yaml").write_text("cores: 1\n")
    assert snakemake_profile(str(tmp_path / "mine"), ROOT) == tmp_path / "mine"


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_a_cluster_without_its_executor_plugin_is_refused_with_the_command_to_install_it(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AdcoreError, match=rf"^--on {place} needs Snakemake's executor plugin.*install 'adcore\[{place}\]'$"):
        snakemake_profile(place, ROOT)


def test_snakemake_keeps_finished_runs_and_continues_after_a_failure_also_inside_cluster_jobs(monkeypatch):
    calls = []
    plain = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name.startswith("snakemake_executor") or plain(name))
    monkeypatch.setattr(reproduce.subprocess, "run", lambda words, **_: calls.append(words) or SimpleNamespace(returncode=0))
    assert reproduce.reproduce("quick", on="slurm", cores="3", dry_run=True) == 0
    assert {"--keep-going", "--keep-incomplete", "--ignore-incomplete"} <= set(calls[0])
    assert calls[0][calls[0].index("--profile") + 1] == str(PROFILES / "slurm")
    assert calls[0][-3:] == ["--cores", "3", "--dry-run"]
    snakefile = (ROOT / "workflow" / "Snakefile").read_text(encoding="utf-8")
    assert "workflow.execution_settings.keep_going = True" in snakefile, "make test-slurm tests its effect"


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_on_a_cluster_short_runs_share_a_job_in_turn_and_a_stopped_job_is_repeated_once(place):
    found = settings(place)
    assert found["executor"] == place and found["retries"] == 1
    assert found["resources"] == ["turn=1"] and found["set-resource-scopes"] == ["turn=local"]
    (group,) = found["group-components"]
    assert re.fullmatch(r"short=([2-9]|\d\d)", group)


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_snakemake_accepts_the_profile_of_a_cluster_in_a_dry_run(place, notebook, tmp_path, monkeypatch, capfd):
    pytest.importorskip(f"snakemake_executor_plugin_{place}")
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    rows = [{"notebook": str(notebook), "each": {"seeds": [0, 1]}, "needs": {"hours": 0.25, "memory_gb": 2}},
            {"notebook": str(write_notebook(tmp_path / "long.ipynb")), "needs": {"gpu": 2, "memory_gb": 8, "hours": 3}}]
    write_grid(tmp_path, {"notebooks": rows})
    words = [sys.executable, "-m", "snakemake", "--snakefile", "workflow/Snakefile", "--nolock", "--dry-run", "--profile",
             str(PROFILES / place), "--config", f"grid={tmp_path / 'toy.yaml'}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text
    (group,) = re.findall(r"Group job short.*?(?=\n\[|\nrule|\Z)", text, re.DOTALL)
    assert group.count("notebook toy") == 3 and "notebook long" not in group and "notebook long" in text


# --- the test on a real cluster, `make test-slurm` --------------------------------------------------------------------------

def test_the_grid_of_the_cluster_test_has_thirteen_short_runs_of_which_one_must_fail():
    jobs = load_grid(str(ROOT / "tests" / "slurm" / "grid.yaml"))
    assert len(jobs) == 13 and all(job.needs.short for job in jobs)
    assert [job.notebook for job in jobs if job.parameters.get("dataset") == "nowhere"] == ["atacnet/02_ablation"]


def test_the_cluster_test_refuses_to_run_without_root_or_outside_debian(monkeypatch):
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has no root user")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "slurm"))
    import exercise
    monkeypatch.setattr(exercise.os, "geteuid", lambda: 1000)
    assert "runs as root" in (exercise.refusal() or "")
    monkeypatch.setattr(exercise.os, "geteuid", lambda: 0)
    monkeypatch.setattr(exercise.shutil, "which", lambda name: None)
    assert "Debian" in (exercise.refusal() or "")


# --- which runs are repeated ------------------------------------------------------------------------------------------------

def test_a_run_is_repeated_when_contents_change_and_not_when_times_change(notebook, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path / "weights"))
    grid = str(write_grid(tmp_path, {"notebooks": [{"notebook": str(notebook)}]}) / "toy.yaml")
    record = tmp_path / "runs" / "notebooks" / "toy.json"
    notebook_once = notebook.read_text(encoding="utf-8")
    run_notebook(notebook, {}, record.with_suffix(".ipynb"), record=record)

    def repeated() -> bool:
        assert cli.main(["reproduce", "--grid", grid, "--dry-run"]) == 0
        printed = capfd.readouterr()
        return re.search(r"^notebook +1$", printed.out + printed.err, re.MULTILINE) is not None

    future, past = (record.stat().st_mtime + hours * 3600 for hours in (5, -5))
    os.utime(notebook, (future, future))                        # as after a fresh checkout
    assert not repeated()
    notebook.write_text(notebook_once.replace("A title", "Another title"), encoding="utf-8")
    os.utime(notebook, (past, past))                            # as after a clock was set back
    assert repeated()
    notebook.write_text(notebook_once, encoding="utf-8")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "resnet18-f37072fd.pth").write_bytes(b"another checkpoint")
    assert repeated()
    (tmp_path / "weights" / "resnet18-f37072fd.pth").unlink()
    assert not repeated()                                       # though it was written, and things were there in between
    record.write_text("{damaged", encoding="utf-8")
    assert repeated()
