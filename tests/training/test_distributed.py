"""Two processes compared with one: the same batches, the same weights, the same files."""

from __future__ import annotations

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
from support.two_processes import NOISY, STILL, UNIAD, Norms, draws, norms, uniad
from torch import Tensor, nn

from adcore import distributed
from adcore.cli import main as main_of_adcore
from adcore.distributed import all_gather, batch_slice, process_group, rank, run_on_rank_zero, world_size
from adcore.errors import ParameterError
from adcore.models import UniAD, UniADConfig
from adcore.training import _averaged, seeded

TIMEOUT = 400  # seconds; the jobs take twenty, and longer on a busy machine


def environment(folder: Path, number: int, port: int, device: str = "cpu") -> dict[str, str]:
    """The variables that torchrun sets for each process."""
    visible = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    return {**os.environ, **visible, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
            "ADCORE_RUNS": str(folder / "runs"), "ADCORE_DATA": str(folder), "RANK": str(number), "LOCAL_RANK": str(number),
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


Found = Callable[[str], list[Any]]


def results(folder: Path, device: str) -> Found:
    """Run two processes. Returns: name of a job -> results of both ranks."""
    port = free_port()
    command = [sys.executable, two_processes.__file__, str(folder), device]
    running = [subprocess.Popen(command, env=environment(folder, number, port, device), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True) for number in range(2)]
    try:
        printed = [process.communicate(timeout=TIMEOUT)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], "\n".join(printed)
    return lambda name: [torch.load(folder / f"{name}.{number}", weights_only=True) for number in range(2)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Found:
    return results(tmp_path_factory.mktemp("two"), "cpu")


@pytest.fixture(scope="module")
def two_on_gpu(tmp_path_factory: pytest.TempPathFactory) -> Found:
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    return results(tmp_path_factory.mktemp("gpu"), "cuda")


def assert_equal(found: dict[str, Any], wanted: dict[str, Any], **tolerance: float) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(found[name], value, msg=lambda said, name=name: f"{name}: {said}", **tolerance)
        else:
            assert found[name] == value, name


def test_uniad_without_noise_ends_with_the_weights_of_one_process(two, tmp_path):
    mine, other = two("uniad")
    assert mine["same"] and other["same"]
    wanted = uniad(tmp_path, **STILL)
    for state in (mine, wanted):
        for name, value in state.items():
            # The bias of keys has no effect on attention: its gradient is rounding error, which Adam scales up.
            if name.endswith("in_bias"):
                value[len(value) // 3:2 * len(value) // 3] = 0
    assert_equal(mine, wanted, rtol=1e-4, atol=1e-5)
    with seeded(0):
        start = UniAD(UniADConfig(**{**UNIAD, **STILL})).network.state_dict()
    assert (wanted["expand.weight"] - start["expand.weight"]).abs().max() > 2e-3


def test_uniad_with_noise_resumes_exactly_in_two_processes_and_learns_as_in_one(two, tmp_path):
    mine, other = two("noisy uniad")
    assert mine["same"] and other["same"]
    assert_equal(two("noisy uniad resumed")[0], mine, rtol=0, atol=0)
    wanted = uniad(tmp_path, **NOISY)["losses"]
    assert mine["losses"].tolist() == approx(wanted.tolist(), rel=0.1) and not torch.equal(mine["losses"], wanted)


def test_a_network_with_a_group_norm_and_a_frozen_batch_norm_ends_with_the_weights_of_one_process(two, tmp_path):
    mine, other = two("frozen norm")
    assert mine["same"] and other["same"]
    wanted = norms(tmp_path, frozen=True)
    assert_equal(mine, wanted, rtol=1e-9, atol=1e-12)
    assert (wanted["head.weight"] - Norms(frozen=True).head.weight).abs().max() > 0.05


def test_a_batch_norm_in_training_mode_is_refused_on_a_cpu(two):
    said = "norms: several processes cannot train BatchNorm2d on device cpu: train in one process, without torchrun"
    assert two("batch norm") == [said] * 2


def test_a_subclass_of_batch_norm_that_torch_would_replace_is_refused_on_any_device():
    class Activated(nn.BatchNorm2d):
        pass

    with pytest.raises(ParameterError, match="toy: several processes cannot train Activated on device cuda"):
        _averaged(nn.Sequential(Activated(2)), torch.sum, torch.device("cuda"), "toy")


def test_on_a_gpu_batch_norms_are_synchronized_and_end_with_the_weights_of_one_process(two_on_gpu, tmp_path):
    mine, other = two_on_gpu("batch norm")
    assert mine["same"] and other["same"]
    assert_equal(mine, norms(tmp_path, frozen=False, device="cuda"), rtol=1e-9, atol=1e-12)


def test_on_a_gpu_two_processes_train_one_encoder_and_rank_zero_writes_it(two_on_gpu):
    first, second = two_on_gpu("encoder")
    assert first["same"] and second["same"] and first["digest"] == second["digest"] != ""
    assert first["files"] == second["files"] == [".json", ".pth"]
    keys = first["branch.queue"]
    assert len(keys.unique(dim=0)) == len(keys)                     # the keys of both ranks, none of them twice


@pytest.mark.parametrize("count", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_weighted_losses_of_slices_average_to_the_loss_of_the_batch(count, size):
    losses = torch.rand(count, dtype=torch.float64)
    parts = [batch_slice(count, number, size) for number in range(size)]
    assert sum(float(losses[part].mean()) * weight for part, weight in parts) / size == approx(float(losses.mean()))
    lengths = [len(losses[part]) for part, _ in parts]
    assert lengths == [count] * size if count < size else sum(lengths) == count and max(lengths) - min(lengths) <= 1


def test_ranks_draw_the_same_batches_and_take_their_slices(two):
    first, second = (found["parallel"] for found in two("draws"))
    pairs = list(zip(first["seen"], second["seen"], strict=True))
    assert [(len(a), len(b)) for a, b in pairs] == [(2, 2), (2, 2), (1, 1)]
    for a, b in pairs[:2]:
        assert len(set(torch.cat([a, b]).tolist())) == 4
    assert torch.equal(*pairs[2])


def test_each_rank_draws_its_own_random_numbers_unless_it_trains_on_whole_batches(two, tmp_path):
    first, second = two("draws")
    for a, b in zip(first["parallel"]["drawn"], second["parallel"]["drawn"], strict=True):
        assert not torch.isin(a, b).any()
    assert len(torch.cat(first["parallel"]["drawn"]).unique()) == 9
    one = draws(tmp_path)["alone"]
    for name in ("seen", "drawn"):
        for a, b, c in zip(first["alone"][name], second["alone"][name], one[name], strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)


def test_rank_zero_runs_a_function_by_itself_and_both_ranks_get_the_result(two):
    first, second = two("agreement")
    assert (first["calls"], second["calls"]) == ([0], []) and first["number"] == second["number"] == 1
    assert (first["wrote"], second["wrote"]) == (True, False)


def test_rows_are_gathered_in_the_order_of_ranks_and_gradients_return_to_their_rank(two):
    first, second = two("agreement")
    for found in (first, second):                       # rank 0 has one row, rank 1 has two and doubles them
        assert found["gathered"].tolist() == [0, 2, 4]
    assert first["gradient"].tolist() == [2, 0, 0] and second["gradient"].tolist() == [0, 8, 16]    # both losses are summed


def test_a_checkpoint_that_only_some_ranks_see_is_refused(two):
    assert all(said.startswith("training: not all processes see checkpoint") for said in two("astray"))


def test_one_process_without_torchrun_communicates_nothing():
    with process_group():
        assert (world_size(), rank(), distributed.is_rank_zero()) == (1, 0, True)
        x = torch.rand(3)
        assert all_gather(x) is x and run_on_rank_zero(lambda: 5) == 5


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_only_all_of_torchrun_s_variables_together_mean_several_processes(monkeypatch, missing):
    for name, value in environment(Path(), 0, 1).items():
        monkeypatch.setenv(name, value)
    assert distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not distributed.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv(missing)
    assert not distributed.launched()


def test_measure_under_torchrun_prints_and_stores_one_result_equal_to_that_of_one_process(two, tmp_path, monkeypatch):
    from adcore.experiments import grid, run
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    write_tiny(tmp_path / "mvtec_ad", train=11, categories=("bottle",))
    (alone,) = run(grid("uniad", dataset="mvtec_ad", jitter=False, epochs=2), out=tmp_path, device="cpu").results
    first, second = two("measure")
    assert first["printed"].count("image_auroc, percent") == 1 and second["printed"] == ""
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


def test_a_notebook_is_refused_under_torchrun(monkeypatch, capsys):
    for name, value in environment(Path(), 0, 1).items():
        monkeypatch.setenv(name, value)
    assert main_of_adcore(["run", "uniad2022/01_architecture"]) == 2
    assert capsys.readouterr().err.startswith("adcore: a notebook runs in one process: under torchrun use `adcore measure`")
