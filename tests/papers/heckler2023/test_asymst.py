"""AsymST: position encoding, teacher and student compared with slow loops, and the effect of training."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytest import approx
from support.by_hand import normal
from support.resizing import cubic, enlarged, linear
from torch import Tensor

from adcore.data import read_images
from adcore.errors import ParameterError
from adcore.models import AsymST, AsymSTConfig
from adcore.papers.heckler2023 import asymst
from adcore.papers.heckler2023.asymst import Student, Subnet, Teacher, position_encoding

pytestmark = pytest.mark.usefixtures("one_backbone")

SMALL = {"backbone": "efficientnet_lite0", "taps": (3,), "image_size": 64, "teacher_hidden": 8, "student_hidden": 16,
         "student_blocks": 1, "positions": 8, "epochs": 16, "batch_size": 3, "lr": 2e-3}


def detector(seed: int = 0, **changes: object) -> AsymST:
    return AsymST(AsymSTConfig(**{**SMALL, **changes}), seed=seed)


def test_a_position_is_encoded_by_sines_and_cosines_of_its_column_and_then_of_its_row():
    found = position_encoding(8, 3, 5)
    for y in range(3):
        for x in range(5):
            by_hand = [f(index / 10_000 ** (2 * i / 4)) for index in (x, y) for i in (0, 1) for f in (math.sin, math.cos)]
            assert found[:, y, x].tolist() == approx(by_hand, abs=1e-6)
    flat = position_encoding(32, 24, 24).flatten(1)
    assert torch.cdist(flat.T, flat.T).fill_diagonal_(9).min() > 0.3     # no two positions have similar codes


@pytest.mark.parametrize("positions", [6, 30])
def test_position_channels_that_are_not_a_multiple_of_4_are_refused(positions):
    with pytest.raises(ParameterError, match=rf"positions={positions} is not a multiple of 4"):
        AsymSTConfig(positions=positions)


def test_a_subnet_multiplies_both_its_outputs_by_one_number_for_all_channels():
    subnet = Subnet(2, 6, 4, 3)
    x = normal(1, 2, 5, 6).float()
    assert subnet.gain.shape == (1,) and subnet.gain.tolist() == [0]
    torch.nn.init.constant_(subnet.gain, -1.7)
    assert torch.allclose(subnet(x), -1.7 * subnet.second(torch.relu(subnet.first(x))), atol=1e-6)


@pytest.mark.parametrize("size", [3e5, 9e8])
def test_a_coupling_s_output_is_kept_within_a_million(size):
    teacher = Teacher((6, 3, 4), AsymSTConfig(teacher_hidden=4, positions=4, kernels=(3,)))
    x = size * torch.sign(normal(2, 6, 3, 4)).float()
    z, log_det = teacher(x, torch.rand(2, 4, 3, 4))
    assert sorted({abs(v) for v in z.flatten().tolist()}) == [min(size, 1e6)] and log_det.abs().max() == 0


def test_an_untrained_teacher_only_permutes_the_channels():
    teacher = Teacher((6, 3, 4), AsymSTConfig(teacher_hidden=4, positions=4))
    x = normal(2, 6, 3, 4).float()
    z, log_det = teacher(x, torch.rand(2, 4, 3, 4))
    assert sorted(z[0, :, 1, 2].tolist()) == sorted(x[0, :, 1, 2].tolist()) and log_det.abs().max() == 0
    assert not torch.equal(z, x)


def test_the_default_teacher_transforms_both_halves_with_kernels_3_3_3_5():
    teacher = Teacher((8, 2, 2), AsymSTConfig())
    couplings = [step for step in teacher.flow if hasattr(step, "subnet1")]
    assert [(c.subnet1.first.kernel_size[0], c.subnet2.second.kernel_size[0]) for c in couplings] == [(3, 3)] * 3 + [(5, 5)]
    assert {c.subnet1.first.in_channels for c in couplings} == {4 + 32} and couplings[0].subnet1.first.out_channels == 64


@pytest.mark.parametrize("s", [-50.0, -1.0, 0.3, 4.0])
def test_a_log_scale_is_an_arc_tangent_bounded_by_1_9(s):
    flow = Teacher((4, 1, 1), AsymSTConfig(teacher_hidden=2, positions=4)).flow
    coupling = next(step for step in flow if hasattr(step, "clamp"))
    found = float(coupling.clamp * coupling.f_clamp(torch.tensor(s, dtype=torch.float64)))
    assert found == approx(1.9 * 0.636 * math.atan(s / 1.9), rel=1e-12) and abs(found) < 1.9


def test_a_subnet_pads_by_repeating_the_border():
    subnet = Subnet(2, 3, 4, 3).double()
    torch.nn.init.ones_(subnet.gain)
    flat = torch.ones(1, 2, 5, 6, dtype=torch.float64) * normal(1, 2, 1, 1)
    found = subnet(flat)
    assert (found - found[:, :, :1, :1]).abs().max() < 1e-12   # zero padding would change the border


def test_the_student_has_four_residual_blocks_between_two_convolutions():
    with torch.device("meta"):
        student = Student(304, AsymSTConfig())
    weights = [tuple(p.shape) for name, p in student.named_parameters() if p.ndim == 4]
    assert weights == [(1024, 304 + 32, 3, 3), *[(1024, 1024, 3, 3)] * 8, (304, 1024, 3, 3)]


def test_the_distance_is_the_mean_over_channels_of_the_squared_difference():
    one = detector()
    features = normal(2, 40, 8, 8).float()
    positions = one.positions.expand(2, -1, -1, -1)
    z = one.teacher(features, positions)[0].detach().numpy()
    s = one.student(torch.cat([features, positions], 1)).detach().numpy()
    by_hand = np.array([[[sum((z[b, c, y, x] - s[b, c, y, x]) ** 2 for c in range(40)) / 40 for x in range(8)]
                         for y in range(8)] for b in range(2)])
    assert one.distances(features).detach().numpy() == approx(by_hand, rel=1e-4)
    assert float(one.student_loss(features)) == approx(by_hand.mean(), rel=1e-4)
    assert float(one.teacher_loss(features)) == approx((0.5 * z.astype(float) ** 2).sum() / (2 * 64), rel=1e-4)


def test_standardized_features_have_mean_0_and_variance_1_at_the_flow_s_input(tiny):
    one, seen = detector(standardize=True, epochs=1), []
    one.teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    one.fit(tiny.train)
    epoch = torch.cat(seen[:2])                  # two batches of three: every training image once
    assert epoch.mean((0, 2, 3)).abs().max() < 1e-3 and (epoch.var((0, 2, 3), unbiased=False) - 1).abs().max() < 5e-3
    plain, seen = detector(epochs=1), []
    plain.teacher.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    plain.fit(tiny.train)
    assert torch.cat(seen[:2]).std() > 2


def test_the_student_s_loss_gives_the_teacher_no_gradient():
    one = detector()
    one.student_loss(normal(2, 40, 8, 8).float()).backward()
    assert all(p.grad is None for p in one.teacher.parameters())
    assert all(p.grad is not None for p in one.student.parameters())


# At tap 2 the cells are a quarter of the image's side already; 94 pixels have a quarter of 23.
@pytest.mark.parametrize(("tap", "size"), [(3, (64, 64)), (3, (64, 94)), (1, (64, 64))])
@pytest.mark.parametrize("score", ["max", "mean"])
def test_the_map_grows_bicubically_to_a_quarter_and_the_score_is_its_maximum_or_the_mean_of_the_cells(tiny, score, tap, size):
    one = detector(score=score, taps=(tap,), image_size=size)
    images = next(iter(read_images(tiny.test[:3], one.view)))
    cells = one.distances(one.features(one.extractor(images))).detach().double().numpy()
    quarter = [max(side // 4, n) for side, n in zip(size, cells.shape[1:], strict=True)]
    prediction = one.predict(images)
    for plane, found, scored in zip(cells, prediction.map, prediction.score, strict=True):
        maps = enlarged(plane, cubic, *quarter)
        assert float(scored) == approx(maps.max() if score == "max" else plane.mean(), rel=1e-5)
        np.testing.assert_allclose(found, enlarged(maps, linear, *size), rtol=1e-4, atol=1e-4)


def test_taps_of_several_grids_are_concatenated_on_the_first_grid(tiny):
    one = detector(taps=(4, 3), epochs=1)
    assert one.shape == (112 + 40, 4, 4) and one.fit(tiny.train).predict(torch.rand(1, 3, 64, 64)).map.shape == (1, 64, 64)


def test_both_networks_are_trained_on_the_maps_of_their_taps_though_all_share_one_cache(tiny, monkeypatch):
    seen: list[Tensor] = []

    def received(module: object, loss_of: object, data: Tensor, *rest: object, **more: object) -> list[float]:
        seen.append(data)
        return [0.0]

    monkeypatch.setattr(asymst, "train", received)
    for taps in ((3,), (4,), (4, 3), (3, 4)):
        one = detector(taps=taps).fit(tiny.train)
        expected = one.features(one.extractor(next(read_images(tiny.train, one.view))))
        assert all(data.shape == expected.shape for data in seen[-2:]), taps
        assert all(torch.allclose(data.float(), expected, rtol=1e-3, atol=2e-3) for data in seen[-2:]), taps
    assert len(seen) == 8


def test_training_lowers_both_losses_and_defects_score_above_normal_images(tiny):
    one = detector().fit(tiny.train)
    assert one.teacher_losses[-1] < one.teacher_losses[0] - 5 and one.losses[-1] < 0.8 * one.losses[0]
    scores = torch.cat([one.predict(images).score for images in read_images(tiny.test, one.view)])
    labels = torch.tensor([sample.label for sample in tiny.test])
    assert scores[labels == 1].mean() > scores[labels == 0].max()


@pytest.mark.parametrize("kept", [("c-teacher",), ("c-teacher", "c")])
def test_a_run_resumed_after_the_teacher_or_within_the_student_ends_with_equal_weights(tiny, tmp_path, kept):
    whole = detector(epochs=3).fit(tiny.train, checkpoint=tmp_path / "c")
    detector(epochs=2).fit(tiny.train, checkpoint=tmp_path / "d")
    files = {"c-teacher": (tmp_path / "c-teacher").read_bytes(), "c": (tmp_path / "d").read_bytes()}
    (tmp_path / "e").mkdir()
    for name in kept:
        (tmp_path / "e" / name).write_bytes(files[name])
    resumed = detector(epochs=3).fit(tiny.train, checkpoint=tmp_path / "e" / "c")
    if kept == ("c-teacher",):
        for a, b in zip(whole.student.state_dict().values(), resumed.student.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert torch.equal(next(whole.teacher.parameters()), next(resumed.teacher.parameters())) and len(resumed.losses) == 3


def test_the_defaults_are_the_settings_of_the_published_code():
    c = AsymSTConfig()
    assert (c.backbone, c.taps, c.image_size) == ("efficientnet_b5", ("features.6.8.add",), 768)
    assert (c.kernels, c.teacher_hidden, c.clamp, c.student_hidden, c.student_blocks) == ((3, 3, 3, 5), 64, 1.9, 1024, 4)
    assert (c.epochs, c.batch_size, c.lr, c.weight_decay, c.positions) == (72, 8, 2e-4, 1e-5, 32)
