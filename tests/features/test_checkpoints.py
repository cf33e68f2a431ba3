"""Checkpoints of self-supervised training: files with the names of their trainers load completely or are refused."""

from __future__ import annotations

import argparse
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adcore.errors import WeightsError
from adcore.features import BACKBONES, FeatureExtractor, find_backbone
from adcore.features.checkpoints import translate
from adcore.features.weights import load_weights, read_checkpoint

RESNET = BACKBONES["resnet50"]


def few(*shape: int) -> Tensor:
    return torch.zeros(shape)


@pytest.fixture(scope="module")
def backbone() -> dict[str, Tensor]:
    """ResNet-50 without its classifier, each tensor filled with another number; memory for one number per tensor."""
    with torch.device("meta"):
        names = RESNET.build().state_dict()
    return {name: torch.full((), i, dtype=value.dtype).expand(value.shape)
            for i, (name, value) in enumerate(names.items()) if not name.startswith("fc.")}


def norm(name: str, width: int) -> dict[str, Tensor]:
    """The tensors of a batch norm."""
    return {f"{name}.{part}": few(width) for part in ("weight", "bias", "running_mean", "running_var")} | {
        f"{name}.num_batches_tracked": few()}


def moco(b: dict[str, Tensor], *, training: bool = False) -> object:
    """facebookresearch/moco: DataParallel around encoder_q with an MLP head; in training also encoder_k and the queue."""
    head = {"fc.0.weight": few(8, 8), "fc.0.bias": few(8), "fc.2.weight": few(4, 8), "fc.2.bias": few(4)}
    state = {f"module.encoder_q.{key}": value for key, value in {**b, **head}.items()}
    if training:
        state |= {f"module.encoder_k.{key}": value for key, value in {**b, **head}.items()}
        state |= {"module.queue": few(4, 16), "module.queue_ptr": few(1)}
    return {"epoch": 800, "arch": "resnet50", "state_dict": state}


def swav(b: dict[str, Tensor], *, heads: int = 0) -> object:
    """facebookresearch/swav: no wrapper; a projection head of two layers, one set of prototypes or, in SeLa, several."""
    head = {"projection_head.0.weight": few(8, 8), "projection_head.0.bias": few(8), **norm("projection_head.1", 8),
            "projection_head.3.weight": few(4, 8), "projection_head.3.bias": few(4)}
    sets = {f"prototypes.prototypes{i}.weight": few(6, 4) for i in range(heads)} or {"prototypes.weight": few(6, 4)}
    return {f"module.{key}": value for key, value in {**b, **head, **sets}.items()}


def simclr(b: dict[str, Tensor]) -> object:
    """tonylins/simclr-converter: torchvision's names, classifier included."""
    return {"state_dict": {**b, "fc.weight": few(1000, 2048), "fc.bias": few(1000)}}


def supervised(b: dict[str, Tensor]) -> object:
    return {**b, "fc.weight": few(1000, 2048), "fc.bias": few(1000)}


WRITTEN = {"MoCo": moco, "MoCo, in training": lambda b: moco(b, training=True), "SwAV": swav,
           "SeLa": lambda b: swav(b, heads=3), "SimCLR": simclr, "supervised": supervised}


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("trainer", WRITTEN)
def test_every_tensor_of_the_backbone_is_loaded_from_the_names_of_its_trainer(trainer, backbone, tmp_path):
    network = RESNET.build()
    load_weights(network, RESNET, save(WRITTEN[trainer](backbone), tmp_path / "x.pth"))
    loaded = network.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in backbone.items())
    # A checkpoint trained without labels has no classifier, so the network has no random one either.
    assert isinstance(network.fc, nn.Linear if trainer in ("SimCLR", "supervised") else nn.Identity)
    assert trainer not in ("SimCLR", "supervised") or not network.fc.weight.any()


@pytest.mark.parametrize("trainer", WRITTEN)
@pytest.mark.parametrize(("change", "complaint"), [
    (lambda key: None if key.endswith("layer3.4.bn2.running_var") else key, "1 missing (first: layer3.4.bn2.running_var)"),
    (lambda key: key.replace("layer4.0.downsample.0", "layer4.0.shortcut.0"),
     "1 missing (first: layer4.0.downsample.0.weight), 1 unexpected (first: layer4.0.shortcut.0.weight)")])
def test_a_checkpoint_that_does_not_fit_completely_is_refused(trainer, change, complaint, backbone, tmp_path):
    written = WRITTEN[trainer](backbone)
    state = written.get("state_dict", written)
    changed = {change(key): value for key, value in state.items() if change(key) and "encoder_k" not in key}
    path = save({"state_dict": changed}, tmp_path / "x.pth")
    network = RESNET.build(5)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(WeightsError, match=rf"^{path} does not fit resnet50: tensors {re.escape(complaint)}$"):
        load_weights(network, RESNET, path)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(("state", "kept"), [
    ({"encoder_q.conv1.weight": few(1), "encoder_q.fc.0.weight": few(1), "encoder_q.fc.1.weight": few(1)},
     {"conv1.weight", "fc.1.weight"}),
    ({"encoder_q.conv1.weight": few(1), "optimizer": few(1)}, {"conv1.weight", "optimizer"}),
    ({"prototypes.weight": few(1), "projection_head.2.weight": few(1), "projection_head.3.bias": few(1)},
     {"projection_head.2.weight"}),
])
def test_only_the_known_extra_tensors_of_a_trainer_are_left_out(state, kept):
    assert set(translate(state)[0]) == kept


def test_a_pipe_in_place_of_a_checkpoint_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"x\.pth cannot be read \(it is no plain file\): fetch it again"):
        read_checkpoint(tmp_path / "x.pth")


def test_a_checkpoint_of_a_wider_network_is_refused(backbone, tmp_path):
    wide = {**backbone, "conv1.weight": few(128, 3, 7, 7)}
    with pytest.raises(WeightsError, match=r"1 of another shape \(first: conv1\.weight\)$"):
        load_weights(RESNET.build(), RESNET, save(moco(wide), tmp_path / "x.pth"))


def test_simclr_takes_pixels_in_0_to_1_and_the_others_imagenet_s_normalization(backbone, tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path))
    save(simclr(backbone), tmp_path / "resnet50-1x.pth")
    save(moco(backbone), tmp_path / "moco_v2_800ep_pretrain.pth.tar")
    plain = FeatureExtractor("resnet50", (1,), "simclr_v1_resnet50_1x")
    assert plain.mean.flatten().tolist() == [0, 0, 0] and plain.std.flatten().tolist() == [1, 1, 1]
    usual = FeatureExtractor("resnet50", (1,), "moco_v2_800ep")
    assert usual.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    # The same file given by its path has the backbone's normalization, so its cached features need another key.
    by_path = FeatureExtractor("resnet50", (1,), tmp_path / "resnet50-1x.pth")
    assert by_path.digest == plain.digest and by_path.key != plain.key and str(by_path.statistics) not in by_path.key
    assert plain.digest != usual.digest != FeatureExtractor("resnet50", (1,), "random").digest


# Other people's checkpoints of a whole network, for an extractor that ends at a tap.

SMALL = BACKBONES["resnet18"]


@pytest.fixture(scope="module")
def whole() -> dict[str, Tensor]:
    """ResNet-18 with other random weights than those that a network starts with."""
    return {key: value.clone() for key, value in SMALL.build(7).state_dict().items()}


def fits(extractor: FeatureExtractor, state: dict[str, Tensor]) -> bool:
    """Whether all weights of the extractor are those of the state dict, and its features finite."""
    own = extractor.network.state_dict()
    return all(torch.equal(value, state[key].to(value.dtype)) for key, value in own.items()) and bool(
        torch.isfinite(extractor(torch.rand(1, 3, 64, 64))[0]).all())


def prefixed(prefix: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {prefix + key: value for key, value in state.items()}


def without(*starts: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {key: value for key, value in state.items() if not key.startswith(starts)}


@pytest.mark.parametrize("written", [
    *map(prefixed, ("module.", "backbone.", "model.", "_orig_mod.", "encoder.", "net.", "module._orig_mod.", "model.backbone.",
                    "feature_extractor.", "a.b.c.")),
    *(lambda state, name=name: {name: state, "epoch": 3, "optimizer": {"lr": few(1)}} for name in (
        "state_dict", "model", "model_state_dict", "net", "weights", "state_dict_ema")),
    lambda state: {"state_dict": prefixed("model.")(state), "hyper_parameters": {"lr": 0.1}},
    lambda state: {"state_dict": prefixed("model.backbone.")(without("fc.")(state)) | {"model.head.weight": few(3, 512)}},
    lambda state: {"model": "resnet18", "state_dict": state, "model_ema": prefixed("x.")({"y": few(1)})},
    lambda state: {"state_dict": {**prefixed("backbone.")(state), "criterion.weight": few(2), "fc.weight": few(2, 512)}},
    without("fc."), without("fc.", "layer4."), lambda state: {**state, "fc.weight": few(10, 512), "fc.bias": few(10)},
    lambda state: {**state, "layer4.0.conv1.weight": few(1)},
    lambda state: {**without("fc.")(state), "projector.0.weight": few(8, 512)},
    lambda state: {**state, "layer4.1.bn2.weight": torch.full((512,), torch.nan), "fc.weight": few(1000, 512).to(torch.int8)},
], ids=itertools.count())
def test_an_extractor_needs_what_its_taps_use_and_finds_it_under_any_prefix(written, whole, tmp_path):
    extractor = FeatureExtractor("resnet18", (1, 2), save(written(whole), tmp_path / "x.pth"))
    assert fits(extractor, whole) and extractor.channels == (64, 128)


@pytest.mark.parametrize(("written", "complaint"), [
    (without("layer1.0.bn1.bias", "fc."), "1 missing (first: layer1.0.bn1.bias)"),
    (lambda state: {**state, "layer2.0.conv1.weight": few(1)}, "1 of another shape (first: layer2.0.conv1.weight)"),
    (lambda state: {**state, "layer1.0.se.weight": few(1), "fc2.weight": few(1)}, "1 unexpected (first: layer1.0.se.weight)"),
    # The stem has 5 tensors, a stage 4 convolutions with their norms, the second stage a fifth one.
    (lambda state: {**prefixed("student.")(state), **prefixed("teacher.")(state)}, "50 missing (first: bn1.bias)")])
def test_an_extractor_refuses_what_does_not_fit_up_to_its_taps(written, complaint, whole, tmp_path):
    path = save(written(whole), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=rf"^{path} does not fit resnet18: tensors {re.escape(complaint)}$"):
        FeatureExtractor("resnet18", (1, 2), path)


@pytest.mark.parametrize(("name", "tap", "head"), [
    ("torchvision:densenet121", "features.denseblock1", "classifier"), ("efficientnet_lite0", 1, "classifier"),
    ("torchvision:mobilenet_v3_small", "features.1", "classifier"), ("timm:resnet10t", "layer1", "fc"),
    ("timm:convnext_atto", "stages.0", "head")])
def test_the_classifier_of_every_family_may_be_missing_or_of_other_classes(name, tap, head, tmp_path):
    state = {key: torch.full_like(value, 0.5) for key, value in find_backbone(name).build().state_dict().items()}
    fewer = {key: value[:2] if key.startswith(f"{head}.") else value for key, value in state.items()}
    for written in (without(f"{head}.")(state), fewer, prefixed("backbone.")(fewer)):
        assert fits(FeatureExtractor(name, (tap,), save(written, tmp_path / "x.pth")), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_converted(dtype, whole, tmp_path):
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in whole.items()}
    extractor = FeatureExtractor("resnet18", (1, 2), save(state, tmp_path / "x.pth"))
    assert fits(extractor, state) and {p.dtype for p in extractor.network.parameters()} == {torch.float32}


@pytest.mark.parametrize(("change", "message"), [
    (lambda value: (value * 10).to(torch.int8), r"holds integers \(torch\.int8\) for bn1\.bias, as a quantized network does: "),
    (lambda value: value > 0, r"holds integers \(torch\.bool\) for bn1\.bias"),
    (lambda value: value * torch.nan, r"has NaN or infinite numbers in bn1\.bias: its training failed, use another "),
    (lambda value: value + torch.inf, "has NaN or infinite numbers in bn1.bias")])
def test_integers_and_numbers_that_are_not_finite_are_refused(change, message, whole, tmp_path):
    path = save({key: change(value) for key, value in whole.items()}, tmp_path / "x.pth")
    for load in (lambda: FeatureExtractor("resnet18", (2,), path), lambda: load_weights(SMALL.build(), SMALL, path)):
        with pytest.raises(WeightsError, match=rf"^{path} {message}"):
            load()


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(("beside", "names", "saved"), [
    (argparse.Namespace(lr=0.1), r"argparse\.Namespace", "checkpoint['model']"),
    ({"config": argparse.Namespace(), "at": Path("x"), "best": np.float64(1)}, r"argparse\.Names.+", "checkpoint['model']"),
    (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear", "network.state_dict()")])
def test_other_objects_beside_the_weights_get_one_sentence_on_saving_the_weights_alone(beside, names, saved, older, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"model": {"conv1.weight": few(2)}, "args": beside}, path, _use_new_zipfile_serialization=not older)
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    found = str(caught.value)
    assert "\n" not in found and "\x1b" not in found and "weights_only" not in found and len(found) < 400 + len(str(path))
    assert re.match(rf"{path} holds other Python objects than tensors \(({names}|argparse\.Namespace)\), which are not", found)
    assert found.endswith(f"save the weights alone, as in torch.save({saved}, 'weights.pth'), and give that file")
