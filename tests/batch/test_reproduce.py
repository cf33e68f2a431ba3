"""What `adcore reproduce` runs and where: exhibits, profiles, grids with needs, Snakemake's settings for each place."""

from __future__ import annotations

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
from adcore.grids import SHORT, Job, Needs, jobs_for, load_grid
from adcore.notebook import run_notebook
from adcore.papers import exhibits
from adcore.paths import repository
from adcore.reproduce import grid_named, snakemake_profile

ROOT = repository()
PROFILES = ROOT / "workflow" / "profiles"


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "toy.ipynb")


def settings(place: str) -> dict[str, object]:
    return yaml.safe_load((PROFILES / place / "config.yaml").read_text(encoding="utf-8"))


# Exhibits.

def test_the_papers_grid_runs_the_notebook_of_every_exhibit():
    there = {job.notebook for job in load_grid("paper")}
    assert set(exhibits()["notebook"]) - {""} == there


def test_an_exhibits_jobs_are_its_notebook_and_the_sets_that_it_gathers():
    jobs = load_grid("paper")
    *sets, whole = jobs_for(jobs, ["uniad2022.table_s2"])
    assert whole.id == "uniad2022/02_ablations" and whole.after == tuple(job.id for job in sets) and len(sets) == 5
    two = jobs_for(jobs, ["uniad2022.table_s4", "uniad2022.table_s2", "uniad2022.table_s5"])
    assert {job.notebook for job in two} == {"uniad2022/02_ablations", "uniad2022/04_losses_and_backbones"}
    assert jobs_for(jobs, []) == jobs


def test_an_exhibit_that_is_unknown_or_that_the_grid_does_not_run_is_refused(capsys):
    jobs = load_grid("quick")
    with pytest.raises(ParameterError, match=r"^unknown exhibit 'uniad2022\.table_2' \(did you mean 'uniad2022\.table_s2'\?\)"):
        jobs_for(jobs, ["uniad2022.table_2"])
    with pytest.raises(ParameterError, match=r"^exhibit 'uniad2022\.table_s2' is made by uniad2022/02_ablations, which this "):
        jobs_for([job for job in jobs if job.notebook != "uniad2022/02_ablations"], ["uniad2022.table_s2"])
    assert cli.main(["reproduce", "--exhibit", "nothing", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("adcore: unknown exhibit 'nothing'")


def test_a_dry_run_of_one_exhibit_names_its_six_runs_and_no_other(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path))
    assert cli.main(["reproduce", "--exhibit", "uniad2022.table_s2", "--profile", "paper", "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert "grid paper, 6 notebook runs" in printed.out
    assert re.search(r"^notebook +6$", printed.out + printed.err, re.MULTILINE)
    assert not list(tmp_path.rglob("*.ipynb"))


# Profiles and grids by name.

def test_profile_and_grid_name_the_same_thing_or_one_is_left_away(tmp_path):
    assert (grid_named(None, None), grid_named(None, "paper"), grid_named("paper", "paper")) == ("quick", "paper", "paper")
    with pytest.raises(ParameterError, match="--profile paper and --grid quick name two grids: leave one away"):
        grid_named("quick", "paper")
    with pytest.raises(ParameterError, match=r"^unknown profile 'papr' \(did you mean 'paper'\?\): --profile takes quick or"):
        grid_named(None, "papr")


def test_a_grid_is_also_named_by_its_file(notebook, tmp_path, monkeypatch):
    write_grid(tmp_path, {"notebooks": [{"notebook": str(notebook)}]})
    assert [job.id for job in load_grid(str(tmp_path / "toy.yaml"))] == ["toy"]
    monkeypatch.chdir(tmp_path)
    assert grid_named("toy.yaml", None) == str(tmp_path / "toy.yaml"), "Snakemake runs in another folder"
    with pytest.raises(ParameterError, match=r"^there is no grid file nowhere\.yaml: a name without \.yaml is looked for in"):
        load_grid("nowhere.yaml")


# What a run needs.

def test_a_row_says_what_differs_from_the_grids_usual_needs_and_sets_need_what_their_notebook_does(notebook, tmp_path):
    other = write_notebook(tmp_path / "other.ipynb")
    rows = [{"notebook": str(notebook), "each": {"seeds": [0, 1]}, "needs": {"hours": 2.5}}, {"notebook": str(other)}]
    jobs = load_grid("toy", write_grid(tmp_path, {"needs": {"gpu": 1, "memory_gb": 16}, "notebooks": rows}))
    assert [job.needs for job in jobs] == [Needs(1, 16, 2.5)] * 3 + [Needs(1, 16, Needs().hours)]
    assert (jobs[0].needs.memory_mb, jobs[0].needs.minutes) == (16000, 150)


@pytest.mark.parametrize(("needs", "message"), [
    ({"gpus": 1}, r"unknown 'gpus' \(did you mean 'gpu'\?\); they are gpu, memory_gb, hours$"),
    ({"gpu": 0.5}, "gpu takes a whole number, not 0.5$"), ({"gpu": -1}, "gpu takes a whole number, not -1$"),
    ({"gpu": True}, "gpu takes a whole number, not True$"), ({"hours": 0}, "hours takes a number above 0, not 0$"),
    ({"hours": "2"}, "hours takes a number above 0, not '2'$"), ({"hours": float("inf")}, "takes a number above 0, not inf$"),
    ({"memory_gb": float("nan")}, "takes a number above 0, not nan$")])
@pytest.mark.parametrize("place", ["all notebooks", "toy.ipynb"])
def test_needs_that_no_scheduler_could_meet_are_refused_with_file_and_name(notebook, tmp_path, needs, message, place):
    row = {"notebook": str(notebook)}
    grid = {"needs": needs, "notebooks": [row]} if place == "all notebooks" else {"notebooks": [{**row, "needs": needs}]}
    with pytest.raises(ParameterError, match=rf"^{tmp_path}/toy\.yaml, needs of [^:]*{re.escape(place)}: .*{message}"):
        load_grid("toy", write_grid(tmp_path, grid))


@pytest.mark.parametrize("needs", [[1], 3, "gpu", {1: 2}])
def test_needs_that_are_no_mapping_are_refused(notebook, tmp_path, needs):
    with pytest.raises(ParameterError, match="is not a grid"):
        load_grid("toy", write_grid(tmp_path, {"needs": needs, "notebooks": [{"notebook": str(notebook)}]}))


def test_only_what_is_over_in_half_an_hour_and_wants_no_gpu_shares_a_job():
    assert SHORT == 0.5 and Needs(hours=0.5).short
    assert not Needs(hours=0.51).short and not Needs(gpu=1, hours=0.1).short
    assert all(job.needs.short for job in load_grid("quick"))
    assert {job.notebook for job in load_grid("paper") if not job.needs.gpu} == {
        "artola2024/01_color_transport", "artola2024/03_gradient_analysis", "heckler2023/01_receptive_field"}


def test_a_jobs_notebook_is_its_id_without_what_tells_sets_apart():
    assert [Job(name, Path("x")).notebook for name in ("a/b", "a/b@0123abcd")] == ["a/b", "a/b"]


# Places.

def test_every_place_has_settings_and_any_folder_with_some_is_a_place(tmp_path):
    assert set(reproduce.PLACES) == {path.name for path in PROFILES.iterdir()}
    assert snakemake_profile("local", ROOT) == PROFILES / "local"
    (tmp_path / "mine").mkdir()
    with pytest.raises(ParameterError, match=r"to run on: --on takes local, slurm, kubernetes, or a folder with a config"):
        snakemake_profile(str(tmp_path / "mine"), ROOT)
    (tmp_path / "mine" / "config.yaml").write_text("cores: 1\n")
    assert snakemake_profile(str(tmp_path / "mine"), ROOT) == tmp_path / "mine"


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_a_cluster_whose_executor_is_not_installed_is_refused_with_the_way_to_get_it(place, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AdcoreError, match=rf"^--on {place} needs Snakemake's executor.*pip install 'adcore\[{place}\]'$"):
        snakemake_profile(place, ROOT)


def test_snakemake_is_told_to_keep_what_is_finished_and_to_go_on_after_a_failure_here_and_inside_a_clusters_job(monkeypatch):
    told = []
    monkeypatch.setattr(reproduce.importlib.util, "find_spec", lambda name: name)    # an extra that not everyone installs
    monkeypatch.setattr(reproduce.subprocess, "run", lambda words, **_: told.append(words) or SimpleNamespace(returncode=0))
    assert reproduce.reproduce("quick", on="slurm", cores="3", dry_run=True) == 0
    assert {"--keep-going", "--keep-incomplete", "--ignore-incomplete"} <= set(told[0])
    assert told[0][told[0].index("--profile") + 1] == str(PROFILES / "slurm") and told[0][-3:] == ["--cores", "3", "--dry-run"]
    snakefile = (ROOT / "workflow" / "Snakefile").read_text(encoding="utf-8")
    assert "workflow.execution_settings.keep_going = True" in snakefile, "make test-slurm says whether that is enough"


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_on_a_cluster_short_runs_share_jobs_one_after_the_other_and_what_was_stopped_gets_a_second_try(place):
    found = settings(place)
    assert found["executor"] == place and found["retries"] == 1
    assert found["resources"] == ["turn=1"] and found["set-resource-scopes"] == ["turn=local"]
    (group,) = found["group-components"]
    assert re.fullmatch(r"short=([2-9]|\d\d)", group)


@pytest.mark.parametrize("place", ["slurm", "kubernetes"])
def test_snakemake_takes_a_clusters_settings_as_far_as_a_dry_run(place, notebook, tmp_path, monkeypatch, capfd):
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


# The exercise on a real cluster, which `make test-slurm` runs.

def test_the_grid_for_a_real_cluster_has_twelve_runs_that_go_well_and_one_that_fails():
    jobs = load_grid(str(ROOT / "tests" / "slurm" / "grid.yaml"))
    assert len(jobs) == 13 and all(job.needs.short for job in jobs)
    assert [job.notebook for job in jobs if job.parameters.get("dataset") == "nowhere"] == ["atacnet/02_ablation"]


def test_the_exercise_refuses_to_install_anything_without_being_root(monkeypatch):
    if not hasattr(__import__("os"), "geteuid"):
        pytest.skip("no such users on this system")
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "slurm"))
    import exercise
    monkeypatch.setattr(exercise.os, "geteuid", lambda: 1000)
    assert "runs as root" in (exercise.refusal() or "")
    monkeypatch.setattr(exercise.os, "geteuid", lambda: 0)
    monkeypatch.setattr(exercise.shutil, "which", lambda name: None)
    assert "Debian" in (exercise.refusal() or "")


# What a run is made of.

def test_content_decides_what_runs_again_and_no_time_of_a_file(notebook, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    grid = str(write_grid(tmp_path, {"notebooks": [{"notebook": str(notebook)}]}) / "toy.yaml")
    record = tmp_path / "runs" / "notebooks" / "toy.json"
    notebook_once = notebook.read_text(encoding="utf-8")
    run_notebook(notebook, {}, record.with_suffix(".ipynb"), record=record)

    def asked_again() -> bool:
        assert cli.main(["reproduce", "--grid", grid, "--dry-run"]) == 0
        printed = capfd.readouterr()
        return re.search(r"^notebook +1$", printed.out + printed.err, re.MULTILINE) is not None

    future, past = (record.stat().st_mtime + hours * 3600 for hours in (5, -5))
    os.utime(notebook, (future, future))                        # as after a fresh checkout
    assert not asked_again()
    notebook.write_text(notebook_once.replace("A title", "Another title"), encoding="utf-8")
    os.utime(notebook, (past, past))                            # as after a clock was set back
    assert asked_again()
    notebook.write_text(notebook_once, encoding="utf-8")
    assert not asked_again()
    record.write_text("{damaged", encoding="utf-8")
    assert asked_again()
