"""Two processes on a CPU against one: the same batches, the same weights, the same files."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest import approx
from support import two_processes
from support.tiny import write_tiny
from support.two_processes import DENSE, NOISY, STILL, UNIAD, draws, ds2, ds2_branch, norms, shallow, uniad
from torch import Tensor, nn

from adcore import distributed
from adcore.cli import main as main_of_adcore
from adcore.distributed import Share, gathered, joined, rank, sharing, summed, synced_norms, whole, world_size
from adcore.errors import ParameterError
from adcore.models import UniAD, UniADConfig
from adcore.papers.ds2.dense_pretraining import DS2Pretraining, DS2PretrainingConfig
from adcore.papers.ds2.instance_ssl import BRANCHES
from adcore.training import seeded, train

PATIENCE = 400  # seconds; it takes twenty, more where others work, too


def environment(folder: Path, number: int, port: int) -> dict[str, str]:
    """What torchrun tells each process."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "ADCORE_RUNS": str(folder / "runs"), "ADCORE_DATA": str(folder), "RANK": str(number),
            "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


Found = Callable[[str], list[Any]]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The name of a job -> what each of two processes has found."""
    folder, port = tmp_path_factory.mktemp("two"), free_port()
    running = [subprocess.Popen([sys.executable, two_processes.__file__, str(folder)], env=environment(folder, number, port),
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for number in range(2)]
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(said)
    return lambda name: [torch.load(folder / f"{name}.{number}", weights_only=True) for number in range(2)]


def assert_equal(found: dict[str, Any], wanted: dict[str, Any], **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, msg=lambda said, name=name: f"{name}: {said}", **tolerance)
        else:
            assert found[name] == value, name


def test_ds2_in_two_processes_ends_with_the_weights_averages_and_statistics_of_one(two, tmp_path):
    """Batches of five are shared two to three. Crops, colors and batch norms are those of the whole batch."""
    mine, other = two("ds2")
    assert mine["same"] and other["same"]
    with seeded(3), shallow():
        start = DS2Pretraining(DS2PretrainingConfig(**DENSE)).state_dict()
    wanted = ds2(tmp_path)
    assert_equal(mine, wanted, rtol=1e-4, atol=2e-5)
    for name in ("encoder.conv1.weight", "key_encoder.conv1.weight", "propagation.value.weight", "encoder.bn1.running_mean",
                 "key_encoder.bn1.running_var"):
        assert (wanted[name] - start[name]).abs().max() > 5e-4, name


@pytest.mark.parametrize("instance", BRANCHES[1:])
def test_so_does_ds2_with_each_instance_branch_but_for_rounding(two, tmp_path, instance):
    mine, other = two(f"ds2 {instance}")
    assert mine["same"] and other["same"]
    wanted = ds2_branch(tmp_path, instance)
    assert wanted["encoder.conv1.weight"].dtype == torch.float64
    assert_equal(mine, wanted, rtol=1e-8, atol=1e-10)


def test_ds2_in_two_processes_goes_on_exactly_where_it_was_interrupted(two):
    mine, other = two("ds2 resumed")
    assert other["same"]
    assert_equal(mine, two("ds2")[0], rtol=0, atol=0)


def test_uniad_without_noise_ends_with_the_weights_of_one_process(two, tmp_path):
    mine, other = two("uniad")
    assert mine["same"] and other["same"]
    wanted = uniad(tmp_path, **STILL)
    for state in (mine, wanted):
        for name, value in state.items():
            if name.endswith("in_bias"):                # of keys: attention does not feel it, Adam makes steps of its rounding
                value[len(value) // 3:2 * len(value) // 3] = 0
    assert_equal(mine, wanted, rtol=1e-4, atol=1e-5)
    with seeded(0):
        start = UniAD(UniADConfig(**{**UNIAD, **STILL})).network.state_dict()
    assert (wanted["expand.weight"] - start["expand.weight"]).abs().max() > 2e-3


def test_uniad_with_noise_goes_on_exactly_in_two_processes_and_learns_as_one_does(two, tmp_path):
    mine, other = two("noisy uniad")
    assert mine["same"] and other["same"]
    assert_equal(two("noisy uniad resumed")[0], mine, rtol=0, atol=0)
    wanted = uniad(tmp_path, **NOISY)["losses"]
    assert mine["losses"].tolist() == approx(wanted.tolist(), rel=0.1) and not torch.equal(mine["losses"], wanted)


def test_an_encoder_is_trained_by_both_processes_and_written_by_one(two):
    first, second = two("encoder")
    assert first == second and first["files"] == [".json", ".pth"] and len(first["digest"]) > 7


def test_cutpaste_s_processes_keep_one_network(two):
    mine, other = two("cutpaste")
    assert mine["same"] and other["same"] and all(math.isfinite(loss) for loss in mine["losses"])


def test_batch_norm_in_shares_is_torch_s_of_the_whole_batch_forward_backward_and_in_its_statistics(two, tmp_path):
    wanted = norms(tmp_path)
    assert {"1d.x", "1d.weight.gradient", "2d.running_var", "long.running_mean", "bare.x"} <= wanted.keys()
    for found in two("norms"):
        assert_equal(found, wanted, rtol=1e-9, atol=1e-12)


def test_shares_are_parts_of_the_batches_that_one_process_draws(two, tmp_path):
    alone = draws(tmp_path)["whole draws"]
    first, second = two("draws")
    for how in ("own draws", "whole draws"):
        pairs = list(zip(first[how]["seen"], second[how]["seen"], strict=True))
        assert [(len(a), len(b)) for a, b in pairs] == [(2, 2), (2, 2), (1, 1)]
        batches = [*(torch.cat(pair) for pair in pairs[:2]), pairs[2][0]]
        assert torch.equal(*pairs[2]) and all(len(set(batch.tolist())) == len(batch) for batch in batches)
        if how == "whole draws":
            assert all(torch.equal(a, b) for a, b in zip(batches, alone["seen"], strict=True))


def test_each_process_has_random_numbers_of_its_own_unless_it_draws_for_the_whole_batch(two, tmp_path):
    first, second = two("draws")
    for a, b in zip(first["own draws"]["drawn"][:2], second["own draws"]["drawn"][:2], strict=True):
        assert not torch.isin(a, b).any()
    alone = draws(tmp_path)
    for how in ("none", "whole draws"):
        for name in ("seen", "drawn") if how == "none" else ("drawn",):
            for a, b, c in zip(first[how][name], second[how][name], alone[how][name], strict=True):
                assert torch.equal(a, b) and torch.equal(a, c)


def test_the_first_process_works_where_one_is_enough_and_all_know_what_came_out(two):
    first, second = two("agreement")
    assert (first["calls"], second["calls"]) == ([0], []) and first["number"] == second["number"] == 1
    assert (first["mine"], second["mine"]) == (True, False)
    assert first["alone"] == second["alone"] == (1, 0, 3.0) and first["sum"] == second["sum"] == 3
    assert first["nobody_s"] == second["nobody_s"] == (0, 1, 1, 0.5)


def test_everyone_s_rows_are_gathered_in_order_and_gradients_go_back_to_whom_they_belong(two):
    first, second = two("agreement")
    for found in (first, second):                       # one row to two; the second process doubles its own
        assert found["everyone"].tolist() == [0, 2, 4]
        assert found["refused"] == f"7 images are not this process's share of the batch, which has {1 if found is first else 2}"
        assert found["unknown"].startswith("BatchNorm3d cannot be trained in shares")
    assert first["gradient"].tolist() == [2, 0, 0] and second["gradient"].tolist() == [0, 8, 16]    # both losses are summed


def test_a_checkpoint_that_only_some_processes_see_is_refused(two):
    assert all(said.startswith("training: not all processes see checkpoint") for said in two("astray"))


def test_a_process_alone_shares_with_nobody():
    with joined(), sharing(3) as share:
        assert (world_size(), rank(), distributed.first()) == (1, 0, True) and share == Share(0, 3, 3, 1.0)
        assert whole(3).all and whole(8) == Share(0, 8, 8)
        x = torch.rand(3)
        assert gathered(x) is x and summed(x) is x
    module = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm3d(2))
    with synced_norms(module):
        assert type(module[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_only_torchrun_s_variables_all_together_mean_several_processes(monkeypatch, missing):
    for name, value in environment(Path(), 0, 1).items():
        monkeypatch.setenv(name, value)
    assert distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(missing)
    assert not distributed.launched()


def test_a_share_that_does_not_exist_is_refused():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 1.0)
    with pytest.raises(ParameterError, match="share is one of none, own draws, whole draws, not 'all'"):
        train(nn.Linear(1, 1), torch.sum, torch.ones(1, 1), optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), epochs=1,
              batch_size=1, seed=0, share="all")


def test_measure_behind_torchrun_prints_and_stores_one_result_which_is_one_process_s(two, tmp_path, monkeypatch):
    from adcore.experiments import grid, run
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    write_tiny(tmp_path / "mvtec_ad", train=11, categories=("bottle",))
    (alone,) = run(grid("uniad", dataset="mvtec_ad", jitter=False, epochs=2), out=tmp_path, device="cpu").results
    first, second = two("measure")
    assert first["printed"].count("image_auroc, per cent") == 1 and second["printed"] == ""
    assert first["files"] == second["files"] == ["maps.npz", "params.yaml", "result.json", "scores.csv"]
    assert first["stored"]["provenance"]["processes"] == 2 and alone.provenance["processes"] == 1
    for a, b in zip(first["stored"]["measures"], alone.measures, strict=True):
        assert (a["category"], a["metric"], a["value"]) == (b["category"], b["metric"], approx(b["value"], abs=0.005))


def test_processes_of_one_run_wait_together_for_another_run_and_then_work_together(two):
    first, second = two("waited")
    assert min(first["seconds"], second["seconds"]) > 0.9 and first["values"] == second["values"] != []
    for weight in (*first["weights"], *second["weights"]):
        assert torch.equal(weight, first["weights"][0])
    assert first["there"] and second["there"] and second["locks"] == []


def test_a_notebook_is_refused_behind_torchrun(monkeypatch, capsys):
    for name, value in environment(Path(), 0, 1).items():
        monkeypatch.setenv(name, value)
    assert main_of_adcore(["run", "uniad2022/01_architecture"]) == 2
    assert capsys.readouterr().err.startswith("adcore: a notebook runs in one process: under torchrun use `adcore measure`")
