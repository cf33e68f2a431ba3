"""The training loop on networks small enough to check by hand: seeds, exact resumption, clipping and losses."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from torch import Tensor, nn

from adcore import training
from adcore.errors import AdcoreError, ParameterError
from adcore.training import Run, checked_seed, epoch_seed, full_precision, resolve_device, seeded, train

DATA = torch.randn(10, 4, generator=torch.Generator().manual_seed(5))


class PowerCutError(Exception):
    """The training stops here."""


def network() -> nn.Module:
    with seeded(0):
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture(autouse=True)
def save_every_epoch(monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", -1.0)


def run(module: nn.Module, *, epochs: int = 6, stop_in: int | None = None, seed: int = 1,
        checkpoint: Path | None = None, scheduled: bool = True) -> list[float]:
    """Train to rebuild noisy data; `stop_in` interrupts in that epoch, counted from this call's first."""
    calls = itertools.count()

    def loss_of(batch: Tensor) -> Tensor:
        if stop_in is not None and next(calls) == 3 * stop_in + 1:      # three batches an epoch: in the middle of one
            raise PowerCutError
        return F.mse_loss(batch, module(batch + 0.1 * torch.randn_like(batch)))

    optimizer = torch.optim.AdamW(module.parameters(), 0.05)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3) if scheduled else None
    return train(module, loss_of, DATA, optimizer, scheduler, epochs=epochs, batch_size=4, seed=seed, clip_norm=1.0,
                 run=Run(checkpoint=checkpoint))


@pytest.mark.parametrize("scheduled", [True, False])
@pytest.mark.parametrize("stop_in", [1, 3, 5])
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, stop_in, scheduled):
    whole, parts = network(), network()
    losses = run(whole, scheduled=scheduled)
    with pytest.raises(PowerCutError):
        run(parts, stop_in=stop_in, checkpoint=tmp_path / "checkpoint", scheduled=scheduled)
    resumed = network()
    resumed_losses = run(resumed, checkpoint=tmp_path / "checkpoint", scheduled=scheduled)
    assert resumed_losses == losses and len(losses) == 6
    for (name, wanted), found in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(wanted, found), name


def test_resuming_a_finished_training_takes_no_further_step(tmp_path):
    first, second = network(), network()
    losses = run(first, checkpoint=tmp_path / "checkpoint")
    assert run(second, checkpoint=tmp_path / "checkpoint", stop_in=0) == losses
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not second.training


def test_the_checkpoint_waits_for_its_interval_but_not_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 3600.0)
    with pytest.raises(PowerCutError):
        run(network(), stop_in=3, checkpoint=tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()
    run(network(), checkpoint=tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint").is_file()


def test_the_same_seed_gives_the_same_losses_and_another_seed_others():
    assert run(network()) == run(network()) != run(network(), seed=2)


@pytest.mark.parametrize(("images", "batch_size", "expected"), [(7, 3, [3, 3]), (6, 3, [3, 3]), (3, 3, [3]), (2, 3, [2]),
                                                                (4, 3, [3]), (1, 1, [1])])
def test_an_incomplete_last_batch_is_left_out_on_demand_unless_it_is_the_only_one(images, batch_size, expected):
    batches: list[list[float]] = []
    module = nn.Linear(1, 1)

    def loss_of(batch: Tensor) -> Tensor:
        batches.append(batch[:, 0].tolist())
        return module(batch).sum()

    def epochs(**more: bool) -> list[list[list[float]]]:
        batches.clear()
        optimizer = torch.optim.SGD(module.parameters(), 0.0)
        train(module, loss_of, torch.arange(float(images))[:, None], optimizer, epochs=6, batch_size=batch_size, seed=0, **more)
        size = len(batches) // 6
        return [batches[i * size:(i + 1) * size] for i in range(6)]

    dropped, whole = epochs(drop_last=True), epochs()
    assert [len(batch) for batch in dropped[0]] == expected
    assert all(sum(map(len, epoch)) == images for epoch in whole)
    assert all(a == b[:len(a)] for a, b in zip(dropped, whole, strict=True))         # the same images in the same order
    seen = {value for epoch in dropped for batch in epoch for value in batch}
    assert seen == set(range(images))                                                # others are left out in every epoch


def test_training_restores_every_global_random_state():
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    run(network())
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_random_numbers_drawn_before_a_training_do_not_change_it():
    losses = run(network())
    torch.rand(17)
    assert run(network()) == losses


def test_all_epochs_of_all_seeds_have_different_seeds():
    seeds = [epoch_seed(seed, epoch) for seed in range(20) for epoch in range(1000)]
    assert len(set(seeds)) == 20 * 1000 and min(seeds) >= 0
    assert 0 <= epoch_seed(2**62, 5) < 2**63


def test_every_epoch_shows_every_sample_once_in_another_order():
    seen: list[list[float]] = []
    module = nn.Linear(1, 1)

    def loss_of(batch: Tensor) -> Tensor:
        seen.append(batch[:, 0].tolist())
        return module(batch).sum()

    optimizer = torch.optim.SGD(module.parameters(), 0.0)
    train(module, loss_of, torch.arange(7.0)[:, None].half(), optimizer, epochs=4, batch_size=3, seed=0)
    epochs = [seen[3 * i:3 * i + 3] for i in range(4)]
    assert all(sorted(itertools.chain(*epoch)) == list(range(7)) for epoch in epochs)
    assert [len(batch) for batch in epochs[0]] == [3, 3, 1]
    assert len({str(epoch) for epoch in epochs}) == 4


def test_the_loss_of_an_epoch_is_the_mean_over_samples_though_the_last_batch_is_short():
    module = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(module.parameters(), 0.0)
    values = torch.arange(10.0)[:, None]
    losses = train(module, lambda batch: batch.mean() + 0 * module(batch).sum(), values, optimizer, epochs=1, batch_size=4,
                   seed=0)
    assert losses == pytest.approx([4.5])


@pytest.mark.parametrize(("clip", "length"), [(0.1, 0.1), (None, 5 * 2**0.5), (100.0, 5 * 2**0.5)])
def test_a_step_is_as_long_as_the_gradient_clipped_at_the_norm_given(clip, length):
    module = nn.Linear(2, 1, bias=False)
    before = module.weight.detach().clone()
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    train(module, lambda batch: module(batch).sum(), torch.full((1, 2), 5.0), optimizer, epochs=1, batch_size=1, seed=0,
          clip_norm=clip)                                                                      # the gradient is (5, 5)
    assert float((module.weight - before).norm().detach()) == pytest.approx(length, rel=1e-4)


def test_a_function_may_draw_the_batches_of_an_epoch_and_the_scheduler_may_step_after_each():
    module, seen, rates = nn.Linear(1, 1), [], []
    optimizer = torch.optim.SGD(module.parameters(), 1.0)

    def loss_of(batch: Tensor) -> Tensor:
        seen.append(batch[:, 0].tolist())
        rates.append(optimizer.param_groups[0]["lr"])
        return 0 * module(batch).sum() + batch.mean()

    def batches():
        yield torch.full((1, 1), 3.0),
        yield torch.zeros(2, 1),

    halves = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert train(module, loss_of, batches, optimizer, halves, epochs=2, each_step=True, seed=0) == approx([1.0, 1.0])
    assert seen == [[3.0], [0.0, 0.0]] * 2 and rates == approx([1, 0.5, 0.25, 0.125])


def test_tensors_without_a_batch_size_are_refused():
    optimizer = torch.optim.SGD(nn.Linear(4, 1).parameters(), 1.0)
    with pytest.raises(ParameterError, match="training: batch_size=0 must be at least 1"):
        train(nn.Linear(4, 1), F.mse_loss, DATA, optimizer, epochs=1, seed=0)


def test_the_scheduler_steps_once_per_epoch():
    module = nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.SGD(module.parameters(), 1.0)
    weights = []

    def loss_of(batch: Tensor) -> Tensor:
        weights.append(float(module.weight.detach()))
        return module(batch).sum()                                                            # the gradient is 1

    train(module, loss_of, torch.ones(1, 1), optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2), epochs=5, batch_size=1,
          seed=0)
    assert np.diff(weights) == pytest.approx([-1, -1, -0.1, -0.1], abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training_with_one_sentence(tmp_path, bad):
    module = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    with pytest.raises(AdcoreError, match=r"^toy: the loss became (nan|inf) in epoch 1: lower the learning rate$"):
        train(module, lambda batch: module(batch).sum() * bad, DATA, optimizer, epochs=2, batch_size=4, seed=0,
              run=Run(checkpoint=tmp_path / "checkpoint", desc="toy"))
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("damage", [b"", b"no checkpoint at all", None], ids=["empty", "text", "half"])
def test_a_damaged_checkpoint_is_named_in_one_sentence(tmp_path, damage):
    path = tmp_path / "checkpoint"
    run(network(), checkpoint=path)
    path.write_bytes(path.read_bytes()[:700] if damage is None else damage)
    with pytest.raises(AdcoreError) as caught:
        run(network(), checkpoint=path)
    message = str(caught.value)
    assert message.startswith(f"checkpoint {path} cannot be resumed from (") and message.endswith("delete it to start again")
    assert "\n" not in message


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    run(network(), checkpoint=tmp_path / "checkpoint")
    with pytest.raises(AdcoreError, match="cannot be resumed from"):
        run(nn.Sequential(nn.Linear(4, 4)), checkpoint=tmp_path / "checkpoint")


def test_a_training_killed_while_it_writes_a_checkpoint_keeps_the_previous_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint"
    run(network(), epochs=2, checkpoint=path)
    before = path.read_bytes()

    def killed(state: object, target: Path) -> None:
        target.write_bytes(b"half of it")
        raise PowerCutError

    monkeypatch.setattr(training.torch, "save", killed)
    with pytest.raises(PowerCutError):
        run(network(), checkpoint=path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["checkpoint"]


def test_full_precision_computes_in_float32_under_autocast_and_changes_nothing_without_it():
    @full_precision
    def products(pair: tuple[Tensor, Tensor], third: Tensor) -> tuple[Tensor, Tensor]:
        return pair[0] @ pair[1], pair[1] @ third

    a, b, c = torch.rand(3, 7, 7, generator=torch.Generator().manual_seed(1))
    exact = a @ b, b.bfloat16().float() @ c
    with torch.autocast("cpu", torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        assert torch.equal(products((a, b), c)[0], exact[0])
        assert torch.equal(products((a, b.bfloat16()), third=c)[1], exact[1])
        assert products((a.double(), b.double()), c.double())[0].dtype == torch.float64
        assert (a @ b).dtype == torch.bfloat16
    assert products((a.bfloat16(), b.bfloat16()), c.bfloat16())[0].dtype == torch.bfloat16


def test_a_seeded_block_is_repeatable_and_restores_the_caller_s_state():
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    with seeded(7):
        first = torch.rand(4)
    assert torch.equal(torch.rand(2), wanted)
    with seeded(7):
        assert torch.equal(torch.rand(4), first)


@pytest.fixture
def one_gpu(monkeypatch):
    """A machine with one CUDA device and one of Apple's, as far as torch says."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)


def test_devices_that_are_here_are_resolved(one_gpu):
    assert resolve_device("auto") == torch.device("cuda")
    for name in ("cpu", "cpu:0", "cuda", "cuda:0", "mps", "mps:0"):
        assert resolve_device(name) == resolve_device(torch.device(name)) == torch.device(name)


@pytest.mark.parametrize(("name", "message"), [
    ("gpu", "unknown device 'gpu': use auto, cpu, cuda, cuda:0 or mps"), ("", "unknown device ''"),
    (None, "unknown device 'None'"),
    ("cuda:99", "device 'cuda:99' is not here: use cuda"), ("cpu:3", "device 'cpu:3' is not here: use cpu"),
    ("cuda:-1", "unknown device 'cuda:-1'"), ("mps:1", "device 'mps:1' is not here: use mps"),
    *((name, f"device '{name}' is not supported: use auto, cpu, cuda or mps") for name in ("meta", "xpu", "hpu", "vulkan"))])
def test_other_devices_are_refused_in_a_sentence(one_gpu, name, message):
    with pytest.raises(ParameterError, match=f"^{message}"):
        resolve_device(name)


def test_a_device_that_this_machine_does_not_have_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    for name, kind in (("cuda", "CUDA"), ("cuda:1", "CUDA"), ("mps", "MPS")):
        with pytest.raises(ParameterError, match=f"^device '{name}' is not here: this torch sees no {kind} device, use"):
            resolve_device(name)


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
def test_a_seed_is_a_plain_integer(seed):
    assert checked_seed(seed) == seed and type(checked_seed(seed)) is int


@pytest.mark.parametrize("seed", [-1, 2**32, True, np.True_, 1.0, 1.5, np.float64(1), "1", None, np.int64(-1), np.arange(2)])
def test_another_seed_is_refused(seed):
    with pytest.raises(ParameterError, match=r"^seed .* must be an integer from 0 to 2\*\*32 - 1$"):
        checked_seed(seed)
