"""Grids: their jobs, the resources of each job, and the jobs of an exhibit."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from support.notebooks import write_grid, write_notebook

from adcore import cli
from adcore.errors import ParameterError
from adcore.grids import SHORT, Job, Needs, jobs_for, load_grid
from adcore.notebook import all_notebooks
from adcore.papers import exhibits
from adcore.paths import repository
from adcore.reproduce import grid_named

pytestmark = pytest.mark.usefixtures("nothing_here")


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    return write_notebook(tmp_path / "toy.ipynb")


def test_a_grid_runs_each_parameter_set_and_then_the_whole_table(notebook, tmp_path):
    row = {"notebook": str(notebook), "parameters": {"profile": "paper", "seeds": [0, 1, 2]},
           "each": {"seeds": [[0], [1], [2]], "rate": [0.5, 1]}}
    jobs = load_grid("toy", write_grid(tmp_path, {"notebooks": [row]}))
    *sets, last = jobs
    assert last.id == "toy" and last.parameters == {"profile": "paper", "seeds": [0, 1, 2]}
    assert last.after == tuple(job.id for job in sets) and len(set(last.after)) == 6
    assert [(job.parameters["seeds"], job.parameters["rate"]) for job in sets] == [
        ([seed], rate) for seed in (0, 1, 2) for rate in (0.5, 1.0)]
    assert all(re.fullmatch(r"toy@[0-9a-f]{8}", job.id) and job.parameters["profile"] == "paper" for job in sets)
    assert [job.id for job in load_grid("toy", tmp_path)] == [job.id for job in jobs], "the ids of two loads differ"
    row["each"] = {"seeds": [3, [0]]}
    three, zero, last = load_grid("toy", write_grid(tmp_path, {"notebooks": [row]}))
    assert three.parameters["seeds"] == [3] and zero.id not in (three.id, last.id)


def test_the_parameters_of_a_grid_are_read_by_the_types_of_the_notebooks_defaults(tmp_path):
    path = write_notebook(tmp_path / "toy.ipynb", "dataset = 'mini'\ncategories = ['brick']\nrate = 0.5\nsettings = {}")
    job, last = load_grid("toy", write_grid(tmp_path, f"""
        notebooks:
          - notebook: {path}
            parameters: {{categories: [no, 01, "1"], rate: 1e-5, settings: {{lr: 1e-3, name: "1", on: true}}}}
            each:
              dataset:
                - 2024-01-02
            needs: {{gpu: 1, hours: .5}}
        """))
    assert last.parameters == {"categories": ["no", "01", "1"], "rate": 1e-5, "settings": {"lr": 1e-3, "name": "1", "on": True}}
    assert job.parameters["dataset"] == "2024-01-02" and {type(name) for name in job.parameters} == {str}
    assert last.needs == Needs(gpu=1, hours=0.5)


def test_a_grid_that_lists_a_run_twice_is_refused(notebook, tmp_path):
    row = {"notebook": str(notebook)}
    for rows in ([row, {**row, "parameters": {"seed": 1}}], [{**row, "each": {"seeds": [[0], 0]}}]):
        with pytest.raises(ParameterError, match=r"toy\.yaml lists toy(@\w{8})? twice: put the differing parameters under"):
            load_grid("toy", write_grid(tmp_path, {"notebooks": rows}))


@pytest.mark.parametrize("key", ["parameters", "each"])
def test_a_grid_with_an_unknown_parameter_or_notebook_is_refused(notebook, tmp_path, key):
    row = {"notebook": str(notebook), key: {"sed": [1]}}
    with pytest.raises(ParameterError, match=r"^unknown parameter 'sed' for toy \(did you mean 'seed'\?\)"):
        load_grid("toy", write_grid(tmp_path, {"notebooks": [row]}))
    with pytest.raises(ParameterError, match=r"^there is no notebook 'nowhere'"):
        load_grid("toy", write_grid(tmp_path, {"notebooks": [{"notebook": "nowhere"}]}))


@pytest.mark.parametrize("text", [
    "", "notebooks: [", "- a", "notebooks: toy", "notebooks: [toy]", "notebooks: [{parameters: {}}]", "notebooks: 3",
    "notebooks: [{notebook: 3}]", "notebooks: [{notebook: toy, each: [1]}]", "notebooks: [{notebook: toy, each: {seeds: 3}}]",
    "notebooks: [{notebook: toy, parameters: [seed]}]", "notebooks: [{notebook: toy, paramters: {seed: 1}}]"])
def test_a_malformed_grid_is_refused_with_its_file(tmp_path, text):
    with pytest.raises(ParameterError, match=rf"^{tmp_path}/toy\.yaml is not a grid \(\w+\): expected notebooks, a list of"):
        load_grid("toy", write_grid(tmp_path, text))


BOMB = "\n".join(["a: &a [x, x]", *(f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]"
                                     for before, name in zip("abcdefgh", "bcdefghi", strict=True))])


@pytest.mark.parametrize("text", [
    f"{BOMB}\nnotebooks: []", "notebooks: &a [*a]", f"notebooks: {'[' * 21}{']' * 21}", "notebooks: []" + " " * 200_000,
    "a: &a {x: 1}\nb: &b {<<: [*a, *a, *a, *a]}\nc: &c {<<: [" + ", ".join(["*b"] * 50) + "]}\nd: {<<: [" +
    ", ".join(["*c"] * 50) + "]}\nnotebooks: []", f"notebooks: [{'a,' * 10_000}]"])
def test_a_grid_that_is_too_large_too_deep_or_grows_by_aliases_is_refused(tmp_path, text):
    with pytest.raises(ParameterError, match=r"/toy\.yaml is too large for a grid: it may have 200 kB and 10,000 values, each"):
        load_grid("toy", write_grid(tmp_path, text))


def test_aliases_and_merged_mappings_in_a_grid_are_read(notebook, tmp_path):
    jobs = load_grid("toy", write_grid(tmp_path, f"""
        notebooks:
          - notebook: {notebook}
            parameters: &common {{seed: 3}}
          - notebook: {write_notebook(tmp_path / "other.ipynb")}
            parameters: {{<<: *common, rate: 2}}
        """))
    assert [job.parameters for job in jobs] == [{"seed": 3}, {"seed": 3, "rate": 2.0}]


@pytest.mark.parametrize("text", ["[" * 3000, "notebooks: [{notebook: !!int " + "9" * 5000 + "}]", b"\xff"])
def test_an_absurd_grid_ends_in_a_short_sentence(tmp_path, text):
    (tmp_path / "toy.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ParameterError, match=r"toy\.yaml is not a grid \(\w+\): expected notebooks") as caught:
        load_grid("toy", tmp_path)
    assert len(str(caught.value)) < 400


def test_a_grid_that_is_no_file_or_may_not_be_read_is_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in (str(tmp_path / "pipe.yaml"), "/dev/zero"):
        with pytest.raises(ParameterError, match=r"^there is no grid "):
            load_grid(name)
    (tmp_path / "toy.yaml").touch()
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(ParameterError, match=r"toy\.yaml is not a grid \(PermissionError\)"):
        load_grid("toy", tmp_path)


def test_more_runs_of_a_notebook_than_anyone_wants_are_refused(notebook, tmp_path):
    each = {name: list(range(22)) for name in ("seed", "seeds", "rate")}
    with pytest.raises(ParameterError, match=r"^the lists under 'each' of toy make more than 10,000 runs: shorten them$"):
        load_grid("toy", write_grid(tmp_path, {"notebooks": [{"notebook": str(notebook), "each": each}]}))


@pytest.mark.parametrize("path", sorted((repository() / "workflow" / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_committed_grid_names_existing_notebooks_and_parameters(path):
    jobs = load_grid(path.stem)
    assert jobs and len({job.id for job in jobs}) == len(jobs)
    assert {job.path for job in jobs} <= set(all_notebooks())
    if path.stem == "quick":
        assert {job.path for job in jobs} == set(all_notebooks()), "the quick grid runs every notebook"


def test_a_grid_may_also_be_given_as_a_file(notebook, tmp_path, monkeypatch):
    write_grid(tmp_path, {"notebooks": [{"notebook": str(notebook)}]})
    assert [job.id for job in load_grid(str(tmp_path / "toy.yaml"))] == ["toy"]
    monkeypatch.chdir(tmp_path)
    assert grid_named("toy.yaml", None) == str(tmp_path / "toy.yaml"), "Snakemake runs in another folder"
    with pytest.raises(ParameterError, match=r"^there is no grid file nowhere\.yaml: grids in workflow/grids are named"):
        load_grid("nowhere.yaml")


# --- needs ------------------------------------------------------------------------------------------------------------------

def test_a_notebook_overrides_single_values_of_the_grids_needs_for_all_its_parameter_sets(notebook, tmp_path):
    other = write_notebook(tmp_path / "other.ipynb")
    rows = [{"notebook": str(notebook), "each": {"seeds": [0, 1]}, "needs": {"hours": 2.5}}, {"notebook": str(other)}]
    jobs = load_grid("toy", write_grid(tmp_path, {"needs": {"gpu": 1, "memory_gb": 16}, "notebooks": rows}))
    assert [job.needs for job in jobs] == [Needs(1, 16, 2.5)] * 3 + [Needs(1, 16, Needs().hours)]
    assert (jobs[0].needs.memory_mb, jobs[0].needs.minutes) == (16000, 150)


@pytest.mark.parametrize(("needs", "message"), [
    ({"gpus": 1}, r"unknown 'gpus' \(did you mean 'gpu'\?\); they are gpu, memory_gb, hours$"),
    ({"hours": 1e300}, r"hours takes a number below 1e\+06, not 1e\+300$"),
    ({"memory_gb": "1e999"}, "memory_gb takes a number above 0, not '1e999'$"),
    ({"gpu": int("9" * 300)}, r"gpu takes a number below 1e\+06, not 9+\.\.\. \(300 characters\)$"),
    ({"gpu": 0.5}, "gpu takes an integer, not 0.5$"), ({"gpu": -1}, "gpu takes an integer, not -1$"),
    ({"gpu": True}, "gpu takes an integer, not True$"), ({"hours": 0}, "hours takes a number above 0, not 0$"),
    ({"hours": "2"}, "hours takes a number above 0, not '2'$"),
    ({"hours": float("inf")}, "takes a number above 0, not '.inf'$"),
    ({"memory_gb": float("nan")}, "takes a number above 0, not '.nan'$"), ({1: 2}, "unknown '1'; they are gpu, memory_gb")])
@pytest.mark.parametrize("place", ["all notebooks", "toy.ipynb"])
def test_invalid_needs_are_refused_with_the_file_and_the_notebook(notebook, tmp_path, needs, message, place):
    row = {"notebook": str(notebook)}
    grid = {"needs": needs, "notebooks": [row]} if place == "all notebooks" else {"notebooks": [{**row, "needs": needs}]}
    with pytest.raises(ParameterError, match=rf"^{tmp_path}/toy\.yaml, needs of [^:]*{re.escape(place)}: .*{message}"):
        load_grid("toy", write_grid(tmp_path, grid))


@pytest.mark.parametrize("needs", [[1], 3, "gpu"])
def test_needs_that_are_not_a_mapping_are_refused(notebook, tmp_path, needs):
    with pytest.raises(ParameterError, match="is not a grid"):
        load_grid("toy", write_grid(tmp_path, {"needs": needs, "notebooks": [{"notebook": str(notebook)}]}))


def test_runs_of_up_to_half_an_hour_without_a_gpu_are_short():
    assert SHORT == 0.5 and Needs(hours=0.5).short
    assert not Needs(hours=0.51).short and not Needs(gpu=1, hours=0.1).short
    assert all(job.needs.short for job in load_grid("quick"))
    assert {job.notebook for job in load_grid("paper") if not job.needs.gpu} == {
        "artola2024/01_color_transport", "artola2024/03_gradient_analysis", "heckler2023/01_receptive_field"}


def test_the_notebook_of_a_job_is_its_id_without_the_digits_of_the_parameter_set():
    assert [Job(name, Path("x")).notebook for name in ("a/b", "a/b@0123abcd")] == ["a/b", "a/b"]


# --- exhibits ---------------------------------------------------------------------------------------------------------------

def test_the_papers_grid_runs_the_notebook_of_every_exhibit():
    assert set(exhibits()["notebook"]) - {""} == {job.notebook for job in load_grid("paper")}


def test_the_jobs_of_an_exhibit_are_its_notebook_and_the_parameter_sets():
    jobs = load_grid("paper")
    *sets, whole = jobs_for(jobs, ["uniad2022.table_s2"])
    assert whole.id == "uniad2022/02_ablations" and whole.after == tuple(job.id for job in sets) and len(sets) == 5
    two = jobs_for(jobs, ["uniad2022.table_s4", "uniad2022.table_s2", "uniad2022.table_s5"])
    assert {job.notebook for job in two} == {"uniad2022/02_ablations", "uniad2022/04_losses_and_backbones"}
    assert jobs_for(jobs, []) == jobs


def test_an_exhibit_that_is_unknown_or_not_in_the_grid_is_refused(capsys):
    jobs = load_grid("quick")
    with pytest.raises(ParameterError, match=r"^unknown exhibit 'uniad2022\.table_2' \(did you mean 'uniad2022\.table_s2'\?\)"):
        jobs_for(jobs, ["uniad2022.table_2"])
    with pytest.raises(ParameterError, match=r"^exhibit 'uniad2022\.table_s2' needs notebook uniad2022/02_ablations, which"):
        jobs_for([job for job in jobs if job.notebook != "uniad2022/02_ablations"], ["uniad2022.table_s2"])
    assert cli.main(["reproduce", "--exhibit", "nothing", "--dry-run"]) == 2
    assert capsys.readouterr().err.startswith("adcore: unknown exhibit 'nothing'")
