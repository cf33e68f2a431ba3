"""Frozen features from OpenVINO and from Winograd convolutions against torch's."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest
import torch
from torch import fx, nn

from adcore.errors import ParameterError
from adcore.features import FeatureExtractor, engine
from adcore.features.engines import ENGINE, chosen_engine, compiled_maps
from adcore.features.folded import _added, folded
from adcore.kernels.cpu.winograd import WinogradConv2d

INSTALLED = importlib.util.find_spec("openvino") is not None
OPENVINO = pytest.param("openvino", marks=pytest.mark.skipif(not INSTALLED, reason="the extra 'fast' is not installed"))
each_engine = pytest.mark.parametrize("choice", ["winograd", OPENVINO])


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 80, 96, generator=torch.Generator().manual_seed(0))


def both(extractor: FeatureExtractor, images: torch.Tensor, choice: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    with engine("torch"):
        plain = extractor(images)
    with engine(choice):
        return extractor(images), plain


@each_engine
@pytest.mark.parametrize(("name", "taps"), [
    ("efficientnet_lite0", (1, 2, 3, 4)),
    ("resnet18", (3, 1, "layer2.0.relu")),                    # not in the order of the network, and one inside a block
    ("timm:efficientnet_b0", ("blocks.1", "blocks.3", "blocks.1")),  # squeeze-and-excitation; one tap twice
    ("timm:tf_efficientnet_lite0", ("blocks.1", "blocks.3")),         # padding that depends on the images' size
])
def test_an_engine_gives_torchs_features_for_any_image_and_batch_size(
        name: str, taps: tuple[int | str, ...], choice: str, images: torch.Tensor) -> None:
    extractor = FeatureExtractor(name, taps, "random")
    for batch in (images, images[:1], torch.nn.functional.interpolate(images, (65, 127))):
        fast, plain = both(extractor, batch, choice)
        assert len(fast) == len(plain) == len(taps)
        for ours, theirs in zip(fast, plain, strict=True):
            assert ours.shape == theirs.shape
            if choice == "openvino" or name == "resnet18":            # in the others there is nothing to fold
                assert not torch.equal(ours, theirs), "the same bits: both may come from torch"
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


class Padded(nn.Module):
    """Padding that a trace treats as a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, int(x.shape[3]) % 5))


@each_engine
def test_values_that_depend_on_the_image_size_are_computed_again_for_another_size(choice: str) -> None:
    graph = fx.Graph()
    graph.output({"maps": graph.call_module("layer", (graph.placeholder("x"),))})
    network = fx.GraphModule({"layer": Padded()}, graph).eval()
    for width in (6, 8, 6):
        (maps,) = compiled_maps(choice, network, ["maps"], torch.rand(1, 3, 4, width))
        assert maps.shape == (1, 3, 4, width + width % 5)


@each_engine
def test_features_of_one_call_are_not_overwritten_by_the_next(choice: str, images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (1,), "random")
    with engine(choice):
        first = extractor(images)[0]
        kept = first.clone()
        extractor(1 - images)
    assert torch.equal(first, kept)


@each_engine
def test_new_weights_are_compiled_again(choice: str, images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (2,), "random")
    before = both(extractor, images, choice)[0][0]
    extractor.load_state_dict(FeatureExtractor("resnet18", (2,), "random", seed=1).state_dict())
    after, plain = both(extractor, images, choice)
    torch.testing.assert_close(after[0], plain[0], rtol=0, atol=1e-4)
    assert (after[0] - before).abs().max() > 0.1


@each_engine
def test_a_backbone_that_is_trained_uses_torch(choice: str, images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (1,), "random", frozen=False)
    with engine(choice):
        features = extractor(images)[0]
    assert features.requires_grad


@each_engine
def test_the_key_of_the_cache_and_the_versions_of_a_result_contain_the_engine(choice: str, monkeypatch) -> None:
    from adcore.experiments.provenance import versions
    extractor = FeatureExtractor("resnet18", (1,), "random")
    assert choice not in extractor.key and choice not in versions()
    monkeypatch.setenv(ENGINE.variable, choice)
    assert extractor.key.endswith(f"-{choice}") and versions()[choice]
    with engine("torch"):                                     # the block overrides the environment variable
        assert chosen_engine() == "torch" and choice not in extractor.key


@each_engine
def test_networks_that_always_use_torch_are_named_so_under_every_engine(choice: str, images: torch.Tensor) -> None:
    from adcore.experiments.provenance import versions
    trained, double = FeatureExtractor("resnet18", (1,), "random", frozen=False), FeatureExtractor("resnet18", (1,), "random")
    double.double()
    with engine(choice):
        assert choice not in trained.key and choice not in double.key
        assert choice not in versions(torch.device("cuda")) and choice in versions(torch.device("cpu"))
        assert double(images.double())[0].dtype == torch.float64


@pytest.mark.skipif(not INSTALLED, reason="the extra 'fast' is not installed")
def test_the_compiled_networks_of_two_engines_are_not_confused(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (3,), "random")
    by_winograd, by_openvino = both(extractor, images, "winograd")[0][0], both(extractor, images, "openvino")[0][0]
    assert not torch.equal(by_winograd, by_openvino)
    assert torch.equal(both(extractor, images, "winograd")[0][0], by_winograd)


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match=r"'openvin' for engine \(did you mean 'openvino'\?\): use"), engine("openvin"):
        pass
    monkeypatch.setenv(ENGINE.variable, "tensorrt")
    with pytest.raises(ParameterError, match="unknown choice 'tensorrt' for ADCORE_ENGINE: use torch, winograd or openvino"):
        chosen_engine()


def test_openvino_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.features.engines._openvino_error", lambda: "ModuleNotFoundError: No module named 'openvino'")
    with engine("openvino"), pytest.raises(ParameterError, match=r"pip install 'adcore\[fast\]', or set ADCORE_ENGINE=torch"):
        chosen_engine()


# --- folding ------------------------------------------------------------------------------------------------------------

def calls(network: nn.Module) -> set[str]:
    return {type(layer).__name__ for layer in network.modules()}


def test_folding_does_not_change_the_network_and_leaves_no_batch_norm_in_its_copy(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (1, 2, 3), "random")
    before = {name: value.clone() for name, value in extractor.network.state_dict().items()}
    light = folded(extractor.network)
    assert {"BatchNorm2d", "WinogradConv2d"} & calls(light) == {"WinogradConv2d"}
    assert "BatchNorm2d" in calls(extractor.network) and "WinogradConv2d" not in calls(extractor.network)
    light(images)
    after = extractor.network.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


class Odd(nn.Module):
    """A convolution whose output is used twice, one that is called twice, a norm without weights and one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.third = (nn.Conv2d(a, 96, 3, padding=1, bias=a == 3) for a in (3, 96, 96))
        self.last = nn.Conv2d(96, 5, 3, padding=1, padding_mode="reflect")
        self.norms = nn.ModuleList(nn.BatchNorm2d(96) for _ in range(3))
        self.bare, self.own = nn.BatchNorm2d(96, affine=False), nn.BatchNorm2d(5, track_running_stats=False)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.first(x)
        x = torch.relu(self.norms[0](x) + x)
        x = self.norms[2](self.twice(self.norms[1](self.twice(x))))
        x = self.bare(self.third(x))
        return {"third": x, "last": self.own(self.last(x))}


def test_layers_that_cannot_be_folded_are_not_changed() -> None:
    torch.manual_seed(0)
    network = Odd().double().train()
    for _ in range(3):
        network(torch.randn(2, 3, 12, 9, dtype=torch.float64))             # so that the statistics are not 0 and 1
    graph = fx.symbolic_trace(network.eval()).eval()
    x = torch.randn(2, 3, 13, 11, dtype=torch.float64)
    light = folded(graph)
    for name, expected in network(x).items():
        torch.testing.assert_close(light(x)[name], expected)
    left = [name for name, layer in light.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    assert sorted(left) == ["norms.0", "norms.1", "norms.2", "own"]
    assert [name for name, layer in light.named_modules() if isinstance(layer, WinogradConv2d)] == ["third"]


class Sums(nn.Module):
    """One sum of each kind: sums that can be in place, and sums whose operands are used again."""

    def __init__(self) -> None:
        super().__init__()
        self.alone, self.seen, self.second = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.narrow, self.one = (nn.Conv2d(4, 1, 1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        alone = self.alone(x) + x
        seen = self.seen(x)
        twice = (seen + x) * seen
        second = x + self.second(x)
        return {"alone": alone, "twice": twice, "second": second, "wide": self.narrow(x) + x, "number": self.one(alone) + 1}


def test_sums_are_in_place_where_no_other_layer_uses_the_operand() -> None:
    torch.manual_seed(0)
    network, x = Sums().double().eval(), torch.randn(2, 4, 5, 3, dtype=torch.float64)
    light, kept = folded(fx.symbolic_trace(network).eval()), x.clone()
    with torch.no_grad():
        found = light(x)
        for name, expected in network(kept).items():
            torch.testing.assert_close(found[name], expected)
    assert torch.equal(x, kept)
    assert sum(node.target is _added for node in light.graph.nodes) == 3       # alone, number, and wide (other shape)


INTERRUPTED = """\
import gc, os, signal, torch
from adcore.features import FeatureExtractor, engine
extractors = [FeatureExtractor("resnet18", (1,), "random") for _ in range(3)]
with engine("openvino"):
    for extractor in extractors:
        extractor(torch.zeros(1, 3, 32, 32))
del extractor
while extractors:
    del extractors[0]           # the first first
    gc.collect()
try:
    os.kill(os.getpid(), signal.SIGINT)
    torch.zeros(1)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(not INSTALLED or sys.platform == "win32", reason="needs OpenVINO, and signals between processes")
def test_a_process_survives_ctrl_c_after_networks_were_compiled_and_deleted() -> None:
    words = [sys.executable, "-X", "faulthandler", "-c", INTERRUPTED]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done
