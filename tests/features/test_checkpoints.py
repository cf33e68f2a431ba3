"""Checkpoints of self-supervised training: files with the names of their trainers load completely or are refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adcore.errors import WeightsError
from adcore.features import BACKBONES, FeatureExtractor
from adcore.features.checkpoints import translate
from adcore.features.weights import load_weights

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
