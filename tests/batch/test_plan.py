"""The plan: the experiments of each notebook run, which of them are stored, and estimated hours for the others."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from support.notebooks import write_notebook

from adcore import cli, plan
from adcore.experiments import Experiment, Result, Store, grid
from adcore.experiments.provenance import fingerprint
from adcore.experiments.record import COLUMNS
from adcore.grids import Job, Needs, load_grid
from adcore.notebook import all_notebooks, notebook_name, read_parameters
from adcore.plan import asked

HEAD = """\
profile = "quick"
dataset = "mini"
categories = ["brick", "gear"]
seeds = [0]
out = ""
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes a notebook whose experiments are listed by the given functions."""
    def make(*results: plan.Listing, models: plan.Listing | None = None) -> Path:
        pairs = [(listing, None) for listing in results] + ([(lambda: [], models)] if models else [])
        monkeypatch.setattr(plan, "listings", lambda notebook: pairs)
        return write_notebook(tmp_path / "toy.ipynb", HEAD)
    return make


def uniad(*, seeds: Sequence[int]) -> list[Experiment]:
    return grid("uniad", seeds=seeds)


def stored(store: Store, experiment: Experiment, seconds: float = 36.0, machine: str = "a chip", device: str = "cpu",
           code: str | None = "today") -> None:
    code = fingerprint(experiment.method) if code == "today" else code
    made = Result(experiment, ({"category": "all", "metric": "image_auroc", "value": 0.5},),
                  {"seconds": seconds, "machine": machine, "device": device, "code": code})
    store.save(made, pd.DataFrame({"score": [1.0]}), {})


@pytest.fixture(autouse=True)
def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "records", lambda: [])


# --- the experiments of a notebook ------------------------------------------------------------------------------------------

def test_a_listing_function_gets_the_notebooks_parameters_that_its_signature_names(toy):
    def switch(*, profile, categories, seeds, side=64):
        return grid("uniad", nma=[False, True], categories=categories, seeds=seeds, profile=profile, image_size=side)

    def one(*, categories):
        return grid("patchcore", categories=categories[:1])

    toy(switch, models=one)
    values = {"profile": "paper", "dataset": "mini", "categories": ["brick", "gear"], "seeds": [0, 1], "out": ""}
    found = asked("toy", values)
    assert found.problem == ""
    assert found.experiments == tuple(switch(profile="paper", categories=["brick", "gear"], seeds=[0, 1]))
    assert len(found.experiments) == 4 and found.models == tuple(grid("patchcore", categories=["brick"]))


def test_an_experiment_that_is_listed_twice_counts_once(toy):
    toy(lambda: grid("uniad"), lambda: grid("uniad", loss="mse"))
    assert asked("toy", {}).experiments == tuple(grid("uniad"))


@pytest.mark.parametrize(("listing", "problem"), [
    (lambda: grid("uniad", nam=1), r"UniADConfig has no setting 'nam'"),
    (lambda: grid("patchcore", dataset="mvtec_lcoo"), r"unknown data set 'mvtec_lcoo'")])
def test_the_plan_shows_why_experiments_cannot_be_listed(toy, tmp_path, listing, problem):
    path = toy(listing)
    found = asked("toy", {})
    assert re.search(problem, found.problem) and not found.experiments
    text = plan.plan([Job("toy", path)], tmp_path / "runs")
    assert "cannot be listed: " in text and re.search(r"^toy +\? +\? +\? +\?", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["toy", "uniad2022/09_toy", "nobody/01_toy"])
def test_a_notebook_without_exhibits_has_no_listing_function(name):
    assert re.search(rf"'{name}'", asked(name, {}).problem)


def test_the_start_notebook_has_a_listing_function_although_it_belongs_to_no_paper():
    values = {"profile": "quick", "dataset": "mini", "categories": ["brick", "gear"], "seeds": [3]}
    methods = [one.method for one in asked("00_start_here", values).experiments]
    assert methods == ["patchcore", "patchcore", "uniad"]


def test_the_categories_of_a_published_data_set_are_known_without_its_files(toy, nothing_here):
    toy(lambda: grid("patchcore", dataset="mvtec_ad", profile="paper"))
    found = asked("toy", {})
    assert len(found.experiments) == 15 and found.experiments[0].category == "bottle"


def code_of(path: Path) -> str:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("path", all_notebooks(), ids=notebook_name)
def test_a_notebook_runs_what_the_plan_lists_and_nothing_else(path):
    """The notebook calls all listing functions that the plan calls, and creates no experiment itself."""
    code = code_of(path)
    listings = [listing for pair in plan.listings(notebook_name(path)) for listing in pair if listing]
    functions = {getattr(listing, "func", listing).__name__ for listing in listings} - {"_none"}  # `func` of a partial
    assert functions == {name for name in functions if re.search(rf"\b{name}\(", code)}
    assert not re.search(r"\b(grid|Experiment)\(", code)
    assert bool(functions) == bool(re.search(r"\b(run|fitted)\(", code))


@pytest.mark.parametrize("path", all_notebooks(), ids=notebook_name)
def test_a_listing_function_takes_only_parameters_of_its_notebook(path):
    parameters = read_parameters(path)
    for pair in plan.listings(notebook_name(path)):
        for listing in filter(None, pair):
            assert set(inspect.signature(listing).parameters) <= set(parameters), listing.__name__


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_every_notebook_of_a_committed_grid_can_be_listed_without_its_data(name, nothing_here):
    found = {job.id: of_job(job) for job in load_grid(name) if not job.id.count("@")}
    assert {key: one.problem for key, one in found.items() if one.problem} == {}
    if name == "paper":
        # Five seeds each. S2: nine rows. S3: one query, six wirings, and three rows with both. S4 to S6: three losses, a frozen
        # or a trained backbone, eight backbones, one without ImageNet weights; MSE, frozen and b4 are the same experiment.
        counts = {key.partition("/")[2][:2]: len(one.experiments) for key, one in found.items() if key.startswith("uniad")}
        assert counts == {"01": 5, "02": 9 * 5, "03": 10 * 5, "04": 12 * 5, "05": (4 + 10) * 5, "06": 0}
        assert len(found["heckler2023/03_image_size"].experiments) == 1440


def of_job(job: Job) -> plan.Asked:
    return asked(job.notebook, {**read_parameters(job.path), **job.parameters})


def test_the_parameter_sets_of_a_run_have_together_the_experiments_of_the_whole_run():
    jobs = [job for job in load_grid("paper") if job.notebook in ("uniad2022/02_ablations", "ds2/02_ablations")]
    for whole in (job for job in jobs if job.after):
        of_sets = {one.key for job in jobs if job.id in whole.after for one in of_job(job).experiments}
        assert of_sets == {one.key for one in of_job(whole).experiments} and len(of_sets) > 40


# --- stored and missing -----------------------------------------------------------------------------------------------------

def test_the_plan_counts_stored_experiments_and_those_of_earlier_rows_once(toy, tmp_path):
    path = toy(uniad)
    store = Store(tmp_path / "runs")
    (here,) = grid("uniad", seeds=[1])
    stored(store, here)
    jobs = [Job("toy@0", path, {"seeds": [0, 1]}), Job("toy", path, {"seeds": [0, 1, 2]}, ("toy@0",))]
    first, last = plan.rows(jobs, store.root)
    assert (len(first.asked.experiments), first.here, len(first.estimates)) == (2, 1, 1)
    assert (len(last.asked.experiments), last.here, len(last.estimates)) == (3, 1, 1)
    stored(store, here, code="older code")
    assert plan.rows(jobs, store.root)[0].here == 0, "the quick profile computes it again"


def test_a_model_counts_as_stored_when_the_current_code_fitted_it(toy, tmp_path):
    path = toy(models=lambda: grid("uniad"))
    store = Store(tmp_path / "runs")
    folder = store.folder(grid("uniad")[0])
    folder.mkdir(parents=True)
    (folder / "fitted-00000000-00000000").touch()
    assert plan.rows([Job("toy", path)], store.root)[0].here == 0
    (folder / f"fitted-{fingerprint('uniad')[:8]}-00000000").touch()
    assert plan.rows([Job("toy", path)], store.root)[0].here == 1


def test_missing_data_and_weights_are_listed_once_with_the_commands_that_fetch_them(tmp_path, nothing_here):
    jobs = [job for job in load_grid("paper") if job.notebook == "uniad2022/02_ablations"]
    text = plan.plan(jobs, tmp_path)
    assert text.count("mvtec_ad, efficientnet_b4_lukemelas") == len(jobs)
    assert text.count("`adcore data fetch mvtec_ad`") == text.count("`adcore weights fetch efficientnet_b4_lukemelas`") == 1
    assert "45 experiments and models to run: not measured." in text and "seeds=[4]" in text and "1 GPU, 16 GB, 24 h" in text
    quick = [job for job in load_grid("quick") if job.notebook == "uniad2022/02_ablations"]
    assert plan.rows(quick, tmp_path)[0].missing == []


# --- time -------------------------------------------------------------------------------------------------------------------

def test_an_estimate_needs_equal_settings_and_prefers_the_same_data_set(tmp_path):
    store = Store(tmp_path)
    stored(store, Experiment("uniad", "mtd", seed=1), 100)
    stored(store, Experiment("uniad", "mini", seed=1), 10)
    stored(store, Experiment("uniad", "mini", seed=2), 20)
    stored(store, Experiment("uniad", "mini", settings=(("epochs", 7),)), 1)
    clock = plan.Clock(store)
    assert clock.estimate(Experiment("uniad", "mini")) == plan.Duration(15, "a chip", False, "mini, 40 images", "runs")
    assert clock.estimate(Experiment("uniad", "mtd")) == plan.Duration(100, "a chip", False, "mtd", "runs")
    assert clock.estimate(Experiment("uniad", "elpv")).seconds in (15, 100)
    assert clock.estimate(Experiment("uniad", "mini", settings=(("epochs", 8),))) is None
    assert clock.estimate(Experiment("uniad", "mini", profile="paper")) is None
    assert clock.estimate(Experiment("patchcore", "mini")) is None


def test_estimates_are_in_gpu_hours_only_when_they_were_measured_on_a_gpu(toy, tmp_path):
    path = toy(lambda: grid("uniad", seeds=[3, 4]), lambda: grid("uniad", epochs=3))
    store = Store(tmp_path / "runs")
    stored(store, Experiment("uniad", seed=1), 360, "a chip")
    assert "0.20 hours on a chip; 1 not measured" in plan.plan([Job("toy", path)], store.root)
    stored(store, Experiment("uniad", seed=2), 36, "a big chip", "cuda")
    text = plan.plan([Job("toy", path)], store.root)
    assert "0.02 GPU-hours on a big chip; 1 not measured" in text and " hours on a chip" not in text
    assert "time: 2 from runs on mini, 40 images, a big chip" in text


def test_an_estimate_from_results_names_its_file_and_machine(toy, tmp_path, monkeypatch):
    row = {"method": "uniad", "dataset": "mtd", "category": "all", "profile": "paper", "settings": "epochs=3", "seed": 0,
           "metric": "image_auroc", "value": 0.5, "seconds": 7200.0, "peak_bytes": 1, "device": "cpu",
           "machine": "AMD EPYC, 2 cores", "commit": "", "data": "", "weights_digest": "", "finished": "", "version": 1,
           "key": "k"}
    frame = pd.DataFrame([row, {**row, "metric": "image_ap"}, {**row, "key": "l", "method": "gone"}])[COLUMNS]
    monkeypatch.setattr(plan, "records", lambda: [SimpleNamespace(name="some", frame=frame)])
    path = toy(lambda: grid("uniad", dataset="mtd", profile="paper", epochs=3))
    text = plan.plan([Job("toy", path, needs=Needs(1, 16, 2))], tmp_path / "runs")
    assert "2.00 hours on AMD EPYC, 2 cores" in text and "time: 1 from results/some.csv on mtd, AMD EPYC, 2 cores" in text


def test_the_plan_option_prints_the_plan_and_runs_nothing(tmp_path, monkeypatch, capsys, nothing_here):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    assert cli.main(["reproduce", "--exhibit", "uniad2022.table_s2", "--profile", "paper", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("notebook run") and "6 notebook runs, 45 experiments and models to run: not measured." in printed
    assert not (tmp_path / "runs").exists()
