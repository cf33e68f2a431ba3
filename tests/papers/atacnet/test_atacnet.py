"""ATAC-Net and the steps of its ablation: batches, both looks, losses and Grad-CAM, each computed a second time by hand."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from adcore.data import read_images
from adcore.features import FeatureExtractor
from adcore.models import ATACNet, ATACNetConfig
from adcore.papers.atacnet import atacnet
from adcore.papers.atacnet.atacnet import STEPS, Look, gradcam
from adcore.papers.atacnet.cropping import attention_boxes, crop
from adcore.papers.atacnet.deviation import deviation_loss, deviation_loss_printed
from adcore.training import seeded

SMALL = {"backbone": "efficientnet_lite0", "taps": (3,), "image_size": 64, "epochs": 1, "steps": 2, "batch_size": 6, "lr": 1e-3,
         "smallest": 16, "window": 3, "share": 4, "statistics": "weights", "contrast": "none"}
SCORES, LABELS = torch.tensor([-3.0, 0.2, 1.5, 9.0]), torch.tensor([0, 1, 0, 1])


def detector(step: str = "atacnet", seed: int = 0, **changes: object) -> ATACNet:
    return ATACNet(ATACNetConfig(**{**SMALL, "step": step, **changes}), seed=seed)


@pytest.fixture(scope="module")
def few(tiny):
    return [*tiny.train[:4], *[sample for sample in tiny.test if sample.label][:2]]


@pytest.fixture(scope="module")
def untrained():
    """Detectors for non-square images that no test changes. They have a training image, so that `predict` accepts them."""
    def made(step: str) -> ATACNet:
        one = detector(step, image_size=(64, 96), threshold=0.9)
        one.normal = torch.zeros(1, 3, 64, 96, dtype=torch.uint8)
        return one

    return functools.cache(made)


def images(count: int, h: int = 64, w: int = 96) -> Tensor:
    """Smooth noise with bright and dark regions."""
    noise = torch.rand(count, 3, 5, 7, generator=torch.Generator().manual_seed(2))
    return F.interpolate(noise ** 3, (h, w), mode="bicubic").clamp(0, 1)


# Batches.

def batch_of(**changes: object) -> tuple[Tensor, Tensor]:
    """A batch from normal images with values near 10 and 20 and anomalies with value 250, of 255."""
    one = detector(rotation=0.0, **changes)
    noise = torch.randint(5, (64, 64), generator=torch.Generator().manual_seed(0)).byte()
    one.normal = torch.tensor([10, 20], dtype=torch.uint8).view(2, 1, 1, 1) + noise.expand(2, 3, 64, 64)
    if changes.get("anomalies") != 0:
        one.anomalous = torch.full((2, 3, 64, 64), 250, dtype=torch.uint8)
    with seeded(1):
        found, labels = one.batch()
    return (found * 255).flatten(1), labels


@pytest.mark.parametrize(("made_share", "size"), [(0.0, 6), (1.0, 6), (0.5, 200), (0.2, 201)])
def test_half_of_a_batch_is_normal_and_cutmix_makes_its_fraction_of_the_other_half(made_share, size):
    found, labels = batch_of(made_share=made_share, batch_size=size)
    half = size // 2
    assert labels.tolist() == [0] * half + [1] * half and len(found) == 2 * half
    assert (found[:half].amax(1) < 25).all()
    made = found[half:].amin(1) < 200
    assert (found[half:][~made].round() == 250).all() and (found[half:][made].amax(1) < 30).all()
    if size < 100:
        assert int(made.sum()) == half * made_share
    else:
        assert float(made.float().mean()) == approx(made_share, abs=0.12) and made.any() and not made.all()


def test_without_cutmix_all_anomalies_are_labeled_ones_and_without_labeled_ones_cutmix_makes_all():
    assert (batch_of(cutmix="none", made_share=1.0)[0][3:].round() == 250).all()
    assert (batch_of(anomalies=0, made_share=0.0)[0][3:].amax(1) < 30).all()


def test_yun_s_cutmix_pastes_one_normal_image_into_another():
    found, _ = batch_of(cutmix="yun", made_share=1.0, batch_size=60)
    low, high = (found[30:].round() < 15).float().mean(1), (found[30:].round() >= 20).float().mean(1)
    both = (low > 0) & (high > 0)          # only one value where an image is pasted into itself
    assert torch.allclose(low + high, torch.ones(30)) and 5 < int(both.sum()) < 25
    in_image, _ = batch_of(cutmix="in_image", made_share=1.0, batch_size=60)
    assert (in_image[30:].amax(1) - in_image[30:].amin(1) < 10).all()


def test_cutmix_alone_is_enough_to_train_without_labeled_anomalies(few):
    one = detector(steps=1).fit([sample for sample in few if not sample.label])
    assert len(one.anomalous) == 0 and np.isfinite(one.losses).all() and torch.isfinite(one.predict(images(1)).score).all()


# The network.

def test_new_layers_have_he_initialization_and_the_backbone_keeps_its_weights():
    one = detector()
    new = [part for part in (*one.network.attention.modules(), *one.network.mapping.modules())
           if isinstance(part, (nn.Conv2d, nn.Linear))]
    assert len(new) == 8 and all(part.bias is None or not part.bias.any() for part in new)
    drawn = torch.cat([part.weight.detach().flatten() * (part.weight[0].numel() / 2) ** 0.5 for part in new])
    assert float(drawn.std()) == approx(1, rel=0.08)
    fresh = FeatureExtractor("efficientnet_lite0", (3,)).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in one.extractor.state_dict().items())
    assert all(p.requires_grad for p in one.network.parameters())


def test_only_the_last_step_has_attention_and_only_the_first_two_have_a_classification_head():
    networks = {step: detector(step).network for step in STEPS}
    assert [step for step in STEPS if not isinstance(networks[step].attention, nn.Identity)] == ["atacnet"]
    assert [step for step in STEPS if isinstance(networks[step].head, nn.Linear)] == ["cutmix", "weighted_ce"]


@pytest.mark.parametrize("step", ["weighted_ce", "deviation", "atacnet"])
def test_a_look_holds_the_score_the_anomaly_map_and_the_channel_wise_mean(untrained, step):
    one, x = untrained(step), images(3)
    with torch.no_grad():
        look = one.network(x)
        features = one.network.attention(one.extractor(x)[0]).double()
    weight, bias = (p.detach().double() for p in one.network.mapping.combine.parameters())
    combined = (features * weight).sum(1) + bias
    assert torch.allclose(look.where.double(), features.mean(1), atol=1e-4)
    if step == "weighted_ce":          # a linear layer after global average pooling, and the head
        pooled = features.mean((2, 3)) @ weight[0, :, 0, 0] + bias
        by_hand = pooled * float(one.network.head.weight.detach()) + float(one.network.head.bias.detach())
        assert torch.allclose(look.anomaly.double(), combined, atol=1e-4)
    else:
        by_hand = combined.abs().flatten(1).sort(1, descending=True).values[:, :9].mean(1)     # a tenth of 8 x 12 cells
        assert torch.allclose(look.anomaly.double(), combined.abs(), atol=1e-4)
    assert look.anomaly.shape == look.where.shape == (3, 8, 12) and torch.allclose(look.score.double(), by_hand, rtol=1e-4)


# Losses.

def test_cross_entropy_and_weighted_cross_entropy_equal_their_formulas():
    p = 1 / (1 + np.exp(-SCORES.double().numpy()))
    each = [-np.log(chance if label else 1 - chance) for chance, label in zip(p, LABELS.tolist(), strict=True)]
    weights = np.array([0.5, 20, 0.5, 20])
    assert float(detector("cutmix").criterion(SCORES, LABELS)) == approx(np.mean(each), rel=1e-5)
    assert float(detector("weighted_ce").criterion(SCORES, LABELS)) == approx(np.mean(weights * each), rel=1e-5)
    other = detector("weighted_ce", anomaly_weight=3.0, genuine_weight=2.0).criterion(SCORES, LABELS)
    assert float(other) == approx(np.mean(np.array([2, 3, 2, 3]) * each), rel=1e-5)


@pytest.mark.parametrize(("name", "loss"), [("clamped", deviation_loss), ("as_printed", deviation_loss_printed)])
def test_the_later_steps_use_the_selected_deviation_loss_and_margin(name, loss):
    for step in ("deviation", "atacnet"):
        one = detector(step, loss=name, margin=3.0)
        with seeded(0):
            found = one.criterion(SCORES, LABELS)
        with seeded(0):
            assert float(found) == float(loss(SCORES, LABELS, 3.0))


@pytest.mark.parametrize("step", ["cutmix", "deviation"])
def test_steps_without_a_crop_train_on_the_score_of_the_image(untrained, step):
    one, x = untrained(step), images(4)
    with seeded(0), torch.no_grad():
        found = one.loss(x, LABELS)
    with seeded(0), torch.no_grad():
        assert float(found) == float(one.criterion(one.network(x).score, LABELS))


def test_the_loss_uses_the_mean_score_and_its_gradient_flows_through_both_looks_but_not_the_box():
    one, x = detector(image_size=(64, 96), threshold=0.9), images(4)
    parameters, looks = list(one.network.parameters()), []
    one.network.register_forward_hook(lambda module, inputs, look: (look.where.retain_grad(), looks.append(look))[0])
    boxes = attention_boxes(one.network(x).where, (64, 96), 0.9, "relative", 16)
    assert (boxes != torch.tensor([0, 0, 64, 96])).any(1).all()
    first, second = one.network(x).score, one.network(crop(x, boxes)).score
    with seeded(0):
        by_hand = deviation_loss((first + second) / 2, LABELS)
    both = torch.autograd.grad(by_hand, parameters, retain_graph=True, allow_unused=True)
    with seeded(0):
        of_first = torch.autograd.grad(deviation_loss((first + second.detach()) / 2, LABELS), parameters, allow_unused=True)
    looks.clear()
    with seeded(0):
        loss = one.loss(x, LABELS)
    loss.backward()
    assert float(loss.detach()) == approx(float(by_hand.detach()), rel=1e-5) and len(looks) == 2
    assert all(look.where.grad is None for look in looks)
    found = [p.grad for p in parameters]
    assert all((a is None) is (b is None) and (a is None or torch.allclose(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max())))
               for a, b in zip(found, both, strict=True))
    assert not torch.allclose(found[0], of_first[0], rtol=1e-2)


# Two looks.

@pytest.mark.parametrize("step", ["gradcam", "atacnet"])
def test_the_score_is_the_mean_of_both_looks_and_inside_the_box_the_map_is_too(untrained, step):
    one, x = untrained(step), images(3)
    boxes = one.boxes(x)
    assert (boxes != torch.tensor([0, 0, 64, 96])).any(1).all()
    with torch.no_grad():
        first = one.network(x)
        parts = [F.interpolate(x[i:i + 1, :, t:b, left:r], (64, 96), mode="bilinear")
                 for i, (t, left, b, r) in enumerate(boxes.tolist())]
        second = one.network(torch.cat(parts))
    prediction = one.predict(x)
    assert prediction.score.tolist() == approx(((first.score + second.score) / 2).tolist(), rel=1e-4)
    for i, (t, left, b, r) in enumerate(boxes.tolist()):
        wanted = F.interpolate(first.anomaly[i][None, None], (64, 96), mode="bilinear")[0, 0]
        near = F.interpolate(second.anomaly[i][None, None], (b - t, r - left), mode="bilinear")[0, 0]
        wanted[t:b, left:r] = (wanted[t:b, left:r] + near) / 2
        assert torch.allclose(prediction.map[i], wanted, rtol=1e-3, atol=1e-4)


def test_with_zero_attention_the_crop_is_the_whole_image_and_both_looks_are_equal(untrained):
    one, x = detector(image_size=(64, 96)), images(3)
    one.network.register_forward_hook(lambda module, inputs, look: look._replace(where=torch.zeros_like(look.where)))
    one.normal = untrained("atacnet").normal
    assert one.boxes(x).tolist() == [[0, 0, 64, 96]] * 3
    first = untrained("atacnet").network(x)
    prediction = one.predict(x)
    assert torch.allclose(prediction.score, first.score, rtol=1e-5)
    whole = F.interpolate(first.anomaly[:, None], (64, 96), mode="bilinear")[:, 0]
    assert torch.allclose(prediction.map, whole, rtol=1e-4, atol=1e-5)


def test_the_settings_of_the_crop_are_used(untrained):
    x = images(2)
    where = untrained("atacnet").network(x).where
    for changes in ({}, {"threshold": 0.9}, {"smallest": 60}, {"reading": "as_printed"}):
        one = detector(image_size=(64, 96), **changes)
        settings = {"threshold": 0.5, "reading": "relative", "smallest": 16, **changes}
        assert torch.equal(one.boxes(x, Look(where, where, where)), attention_boxes(where, (64, 96), **settings))


# Grad-CAM.

def gradcam_by_hand(one: ATACNet, x: Tensor) -> Tensor:
    """Each channel weighted by its mean gradient, summed; negative sums become 0."""
    features = one.extractor(x)[0].detach().requires_grad_()
    weight, bias = one.network.mapping.combine.parameters()
    cells = ((features * weight.detach()).sum(1) + bias.detach()).abs().flatten(1)
    cells.sort(1, descending=True).values[:, :max(1, cells.shape[1] // 10)].mean(1).sum().backward()
    return (features * features.grad.mean((2, 3), keepdim=True)).sum(1).clamp(min=0).detach()


def test_grad_cam_weights_channels_by_their_mean_gradient_and_leaves_no_gradient_in_the_parameters(untrained):
    one, x = untrained("gradcam"), images(4)
    by_hand = gradcam_by_hand(one, x)
    with torch.no_grad():                 # as in predict
        found = gradcam(one.network, x)
    assert found.shape == (4, 8, 12) and torch.allclose(found, by_hand, rtol=1e-3, atol=1e-5 * float(by_hand.max()))
    assert found.amax((1, 2)).min() > 0 and found.min() == 0
    assert all(p.grad is None for p in one.network.parameters()) and not found.requires_grad
    assert torch.equal(one.boxes(x), attention_boxes(by_hand, (64, 96), 0.9, "relative", 16))


def test_the_grad_cam_step_trains_on_whole_images_first_and_on_grad_cam_crops_in_the_second_half(few, monkeypatch):
    one, crops, inputs = detector("gradcam", epochs=2, steps=3), [], {}

    def recorded(x: Tensor, boxes: Tensor) -> Tensor:
        crops.append((int(one.network.steps_taken), crop(x, boxes)))
        return crops[-1][1]

    monkeypatch.setattr(atacnet, "crop", recorded)
    one.network.register_forward_pre_hook(lambda net, x: inputs.update({int(net.steps_taken): x[0]}))  # last of each step
    one.fit(few)
    assert [step for step, _ in crops] == [4, 5, 6] and int(one.network.steps_taken) == 6
    assert all(torch.equal(inputs[step], x) for step, x in crops)


def test_only_the_last_step_crops_and_it_does_so_from_the_first_batch_on(few, monkeypatch):
    calls: list[str] = []
    for step in ("cutmix", "weighted_ce", "deviation", "atacnet"):
        monkeypatch.setattr(atacnet, "crop", lambda x, boxes, step=step: (calls.append(step), crop(x, boxes))[1])
        detector(step, steps=2).fit(few).predict(images(1, 64, 64))
    assert calls == ["atacnet"] * 3           # two steps and one prediction


# Diagnosis.

def test_the_diagnosis_measures_box_areas_defects_inside_the_boxes_and_the_first_look_s_auroc(tiny, monkeypatch):
    one = detector()
    labels = torch.tensor([sample.label for sample in tiny.test])
    whole, upper = torch.tensor([0, 0, 64, 64]), torch.tensor([0, 0, 32, 16])
    monkeypatch.setattr(one, "boxes", lambda x, first: torch.where(labels[:, None] == 1, upper, whole))
    with torch.no_grad():
        scores = one.network(next(read_images(tiny.test, one.view))).score
    masks = [sample.mask for sample in tiny.test if sample.label]
    assert one.diagnose(tiny.test) == approx({
        "box_normal": 1.0, "box_anomalous": 1 / 8, "first_look_auroc": roc_auc_score(labels, scores),
        "defect_inside": np.mean([mask[:32, :16].sum() / mask.sum() for mask in masks])})
    unmasked = one.diagnose([dataclasses.replace(sample, mask_path=None) for sample in tiny.test])
    assert set(unmasked) == {"box_normal", "box_anomalous", "first_look_auroc"}
    assert detector("deviation").diagnose(tiny.test) == {} and len(detector("gradcam").diagnose(tiny.test)) == 4
