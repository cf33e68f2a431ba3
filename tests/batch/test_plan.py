"""The plan: which experiments a notebook asks for, without running it, what of them is here, and what is known of the time."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from support.notebooks import write_notebook

from adcore import cli
from adcore.experiments import Experiment, Result, Store, grid
from adcore.experiments.provenance import fingerprint
from adcore.experiments.record import COLUMNS
from adcore.grids import Job, Needs, load_grid
from adcore.plan import asked, estimate, plan, rows
from adcore.plan.asked import needed
from adcore.plan.estimate import Clock, Measured

HEAD = """\
profile = "quick"
categories = ["brick", "gear"]
seeds = [0]
out = ""
"""
IMPORTS = "from adcore.experiments import fitted, grid, run\nfrom adcore.models import PatchCore, UniAD\n"


def notebook(tmp_path: Path, *code: str) -> Path:
    return write_notebook(tmp_path / "toy.ipynb", HEAD, IMPORTS, *code)


def kept(source: str) -> list[str]:
    return [ast.unparse(statement) for statement in needed(ast.parse(source).body)]


def stored(store: Store, experiment: Experiment, seconds: float = 36.0, machine: str = "a chip", device: str = "cpu",
           code: str | None = "today") -> None:
    code = fingerprint(experiment.method) if code == "today" else code
    made = Result(experiment, ({"category": "all", "metric": "image_auroc", "value": 0.5},),
                  {"seconds": seconds, "machine": machine, "device": device, "code": code})
    store.save(made, pd.DataFrame({"score": [1.0]}), {})


@pytest.fixture(autouse=True)
def no_records(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "records", lambda: [])


# The part of a notebook that lists its experiments.

@pytest.mark.parametrize(("source", "expected"), [
    ("a = 1\nb = 2\nrun(a)", ["a = 1", "run(a)"]),
    ("a = 1\nrun(a)\na = 2", ["a = 1", "run(a)"]),                                            # what comes later does not count
    ("a = 1\na = 2\nrun(a)", ["a = 2", "run(a)"]),                                            # nor what is overwritten
    ("a = 1\na += 2\nrun(a)", ["a = 1", "a += 2", "run(a)"]),
    ("a = []\na.append(b)\nb = 1\nrun(a)", ["a = []", "a.append(b)", "run(a)"]),
    ("a = {}\na['x'] = c\nrun(**a)", ["a = {}", "a['x'] = c", "run(**a)"]),
    ("def f(x):\n    return run(x)\nshow(f)", []),                                            # only when somebody calls it
    ("def f(x):\n    return x\nt = run(f(1))", ["def f(x):\n    return x", "t = run(f(1))"]),
    ("show(lambda: run(1))", []),
    ("d = 1\nx = [d for d in y]\nrun(d)", ["d = 1", "run(d)"]),                                # a comprehension's d is another
    ("for a in b:\n    show(a)\n    run(a)", ["for a in b:\n    run(a)"]),
    ("c = 1\nfor a in b:\n    run(c)\n    c = a\n    d = c", ["c = 1", "for a in b:\n    run(c)\n    c = a"]),
    ("if quick:\n    a = 1\nelse:\n    a = 2\n    b = 3\nrun(a)", ["if quick:\n    a = 1\nelse:\n    a = 2", "run(a)"]),
    ("a = 0\nif quick:\n    a = 1\nrun(a)", ["a = 0", "if quick:\n    a = 1", "run(a)"]),     # it may not be taken
    ("with open(x) as f:\n    a = f.read()\n    b = 1\nrun(a)", ["with open(x) as f:\n    a = f.read()", "run(a)"]),
    ("from m import a as b, c\nimport d.e\nrun(b, d)", ["from m import a as b, c", "import d.e", "run(b, d)"]),
    ("t = run(1)\nu = run(t.results)", ["t = run(1)", "u = run(t.results)"])])
def test_of_a_notebook_only_what_leads_to_its_experiments_is_kept(source, expected):
    assert kept(source) == expected


def test_a_notebook_says_what_it_would_run_with_the_parameters_of_a_job(tmp_path):
    path = notebook(tmp_path, "common = dict(categories=categories, seeds=seeds, profile=profile)\nprint(1 / 0)",
                    "table = run(grid(UniAD, nma=[False, True], **common), out=out)\ntable.frame.show()",
                    "model = fitted(grid(PatchCore, **common)[0], out=out)")
    found = asked(path, {"seeds": [0, 1]})
    common = {"categories": ["brick", "gear"], "seeds": [0, 1], "profile": "quick"}
    assert found.problem == ""
    assert found.experiments == tuple(grid("uniad", nma=[False, True], **common)) and len(found.experiments) == 4
    assert found.models == tuple(grid("patchcore", **common)[:1])
    assert len(asked(path, {}).experiments) == 2 and not list((tmp_path).glob("runs/*"))


def test_an_experiment_that_is_asked_for_twice_counts_once(tmp_path):
    path = notebook(tmp_path, "run(grid(UniAD))\nagain = run([r.experiment for r in run(grid(UniAD, loss='mse')).results])")
    assert asked(path, {}).experiments == tuple(grid("uniad"))


@pytest.mark.parametrize(("code", "problem"), [
    ("scores = run(grid(UniAD)).frame\nrun(grid(UniAD, nma=scores))", r"^AttributeError: .*frame"),
    ("run(grid(UniAD, nam=1))", r"UniADConfig has no setting 'nam'"),
    ("run(grid(PatchCore, dataset='mvtec_lcoo'))", r"unknown data set 'mvtec_lcoo'")])
def test_what_cannot_be_listed_is_said_to_be_so(tmp_path, code, problem):
    found = asked(notebook(tmp_path, code), {})
    assert re.search(problem, found.problem) and not found.experiments
    text = plan([Job("toy", tmp_path / "toy.ipynb")], tmp_path / "runs")
    assert "cannot be listed: " in text and re.search(r"^toy +\? +\? +\? +\?", text, re.MULTILINE)


def test_the_categories_of_a_published_data_set_are_known_without_it(tmp_path, nothing_here):
    found = asked(notebook(tmp_path, "run(grid(PatchCore, dataset='mvtec_ad', profile='paper'))"), {})
    assert len(found.experiments) == 15 and found.experiments[0].category == "bottle"


@pytest.mark.parametrize("name", ["quick", "paper"])
def test_every_notebook_of_a_committed_grid_can_be_listed_without_its_data(name, nothing_here):
    found = {job.id: asked(job.path, job.parameters) for job in load_grid(name) if not job.id.count("@")}
    assert {key: one.problem for key, one in found.items() if one.problem} == {}
    if name == "paper":
        # Nine rows of Table S2 and five seeds; one query, six wirings, three with both (S3); three losses, a backbone trained
        # or not, eight of them, and one without ImageNet (S4 to S6), of which MSE, frozen and b4 are three names of one.
        counts = {key.partition("/")[2][:2]: len(one.experiments) for key, one in found.items() if key.startswith("uniad")}
        assert counts == {"01": 5, "02": 9 * 5, "03": 10 * 5, "04": 12 * 5, "05": (4 + 10) * 5, "06": 0}
        assert len(found["heckler2023/03_image_size"].experiments) == 1440


def test_sets_ask_together_for_what_the_whole_asks_for():
    jobs = [job for job in load_grid("paper") if job.notebook in ("uniad2022/02_ablations", "ds2/02_ablations")]
    for whole in (job for job in jobs if job.after):
        of_sets = {one.key for job in jobs if job.id in whole.after for one in asked(job.path, job.parameters).experiments}
        assert of_sets == {one.key for one in asked(whole.path, whole.parameters).experiments} and len(of_sets) > 40


# What is here and what is missing.

def test_the_plan_counts_what_is_in_the_store_and_what_an_earlier_row_brings(tmp_path):
    path = notebook(tmp_path, "run(grid(UniAD, seeds=seeds))")
    store = Store(tmp_path / "runs")
    (here,) = grid("uniad", seeds=[1])
    stored(store, here)
    jobs = [Job("toy@0", path, {"seeds": [0, 1]}), Job("toy", path, {"seeds": [0, 1, 2]}, ("toy@0",))]
    first, last = rows(jobs, store.root)
    assert (len(first.asked.experiments), first.here, len(first.estimates)) == (2, 1, 1)
    assert (len(last.asked.experiments), last.here, len(last.estimates)) == (3, 1, 1)
    stored(store, here, code="older code")
    assert rows(jobs, store.root)[0].here == 0, "the quick profile computes it again"


def test_a_model_counts_as_here_when_what_is_kept_of_it_is_todays(tmp_path):
    path = notebook(tmp_path, "fitted(grid(UniAD)[0])")
    store = Store(tmp_path / "runs")
    folder = store.folder(grid("uniad")[0])
    folder.mkdir(parents=True)
    (folder / "fitted-00000000").touch()
    assert rows([Job("toy", path)], store.root)[0].here == 0
    (folder / f"fitted-{fingerprint('uniad')[:8]}").touch()
    assert rows([Job("toy", path)], store.root)[0].here == 1


def test_data_and_weights_that_are_not_here_are_named_once_with_the_way_to_get_them(tmp_path, nothing_here):
    jobs = [job for job in load_grid("paper") if job.notebook == "uniad2022/02_ablations"]
    text = plan(jobs, tmp_path)
    assert text.count("mvtec_ad, efficientnet_b4_lukemelas") == len(jobs)
    assert text.count("`adcore data fetch mvtec_ad`") == text.count("`adcore weights fetch efficientnet_b4_lukemelas`") == 1
    assert "45 experiments and models to run: not measured." in text and "seeds=[4]" in text and "1 GPU, 16 GB, 24 h" in text
    quick = [job for job in load_grid("quick") if job.notebook == "uniad2022/02_ablations"]
    assert rows(quick, tmp_path)[0].missing == []


# Time.

def test_seconds_count_for_the_same_settings_alone_and_best_for_the_same_data(tmp_path):
    store = Store(tmp_path)
    stored(store, Experiment("uniad", "mtd", seed=1), 100)
    stored(store, Experiment("uniad", "mini", seed=1), 10)
    stored(store, Experiment("uniad", "mini", seed=2), 20)
    stored(store, Experiment("uniad", "mini", settings=(("epochs", 7),)), 1)
    clock = Clock(store)
    assert clock.estimate(Experiment("uniad", "mini")) == Measured(15, "a chip", False, "mini, 40 images", "runs")
    assert clock.estimate(Experiment("uniad", "mtd")) == Measured(100, "a chip", False, "mtd", "runs")
    assert clock.estimate(Experiment("uniad", "elpv")).seconds in (15, 100)
    assert clock.estimate(Experiment("uniad", "mini", settings=(("epochs", 8),))) is None
    assert clock.estimate(Experiment("uniad", "mini", profile="paper")) is None
    assert clock.estimate(Experiment("patchcore", "mini")) is None


def test_hours_are_called_gpu_hours_only_when_a_gpu_was_measured(tmp_path):
    path = notebook(tmp_path, "run(grid(UniAD, seeds=[3, 4]))\nrun(grid(UniAD, epochs=3))")
    store = Store(tmp_path / "runs")
    stored(store, Experiment("uniad", seed=1), 360, "a chip")
    assert "0.20 hours on a chip; 1 not measured" in plan([Job("toy", path)], store.root)
    stored(store, Experiment("uniad", seed=2), 36, "a big chip", "cuda")
    text = plan([Job("toy", path)], store.root)
    assert "0.02 GPU-hours on a big chip; 1 not measured" in text and " hours on a chip" not in text
    assert "time: 2 from runs on mini, 40 images, a big chip" in text


def test_what_results_has_on_record_counts_with_its_file_and_its_machine(tmp_path, monkeypatch):
    row = {"method": "uniad", "dataset": "mtd", "category": "all", "profile": "paper", "settings": "epochs=3", "seed": 0,
           "metric": "image_auroc", "value": 0.5, "seconds": 7200.0, "peak_bytes": 1, "device": "cpu",
           "machine": "AMD EPYC, 2 cores", "commit": "", "data": "", "weights_digest": "", "finished": "", "key": "k"}
    frame = pd.DataFrame([row, {**row, "metric": "image_ap"}, {**row, "key": "l", "method": "gone"}])[COLUMNS]
    monkeypatch.setattr(estimate, "records", lambda: [SimpleNamespace(name="some", frame=frame)])
    path = notebook(tmp_path, "run(grid(UniAD, dataset='mtd', profile='paper', epochs=3))")
    text = plan([Job("toy", path, needs=Needs(1, 16, 2))], tmp_path / "runs")
    assert "2.00 hours on AMD EPYC, 2 cores" in text and "time: 1 from results/some.csv on mtd, AMD EPYC, 2 cores" in text


def test_the_command_prints_the_plan_and_runs_nothing(tmp_path, monkeypatch, capsys, nothing_here):
    monkeypatch.setenv("ADCORE_RUNS", str(tmp_path / "runs"))
    assert cli.main(["reproduce", "--exhibit", "uniad2022.table_s2", "--profile", "paper", "--plan"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("notebook run") and "6 notebook runs, 45 experiments and models to run: not measured." in printed
    assert not (tmp_path / "runs").exists()
