"""Frozen features from OpenVINO against torch's."""

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

INSTALLED = importlib.util.find_spec("openvino") is not None
needs_openvino = pytest.mark.skipif(not INSTALLED, reason="the extra 'fast' is not installed")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 80, 96, generator=torch.Generator().manual_seed(0))


def both(extractor: FeatureExtractor, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    with engine("torch"):
        plain = extractor(images)
    with engine("openvino"):
        return extractor(images), plain


@needs_openvino
@pytest.mark.parametrize(("name", "taps"), [
    ("efficientnet_lite0", (1, 2, 3, 4)),
    ("resnet18", (3, 1, "layer2.0.relu")),                    # not in the order of the network, and one inside a block
    ("timm:efficientnet_b0", ("blocks.1", "blocks.3", "blocks.1")),  # squeeze-and-excitation; one tap twice
    ("timm:tf_efficientnet_lite0", ("blocks.1", "blocks.3")),         # padding that depends on the images' size
])
def test_openvino_gives_torchs_features_for_any_image_and_batch_size(
        name: str, taps: tuple[int | str, ...], images: torch.Tensor) -> None:
    extractor = FeatureExtractor(name, taps, "random")
    for batch in (images, images[:1], torch.nn.functional.interpolate(images, (65, 127))):
        fast, plain = both(extractor, batch)
        assert len(fast) == len(plain) == len(taps)
        for ours, theirs in zip(fast, plain, strict=True):
            assert ours.shape == theirs.shape
            assert not torch.equal(ours, theirs), "the same bits: both may come from torch"
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


class Padded(nn.Module):
    """Padding that a trace treats as a constant."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x, (0, int(x.shape[3]) % 5))


@needs_openvino
def test_values_that_depend_on_the_image_size_are_computed_again_for_another_size() -> None:
    graph = fx.Graph()
    graph.output({"maps": graph.call_module("layer", (graph.placeholder("x"),))})
    network = fx.GraphModule({"layer": Padded()}, graph).eval()
    for width in (6, 8, 6):
        (maps,) = compiled_maps(network, ["maps"], torch.rand(1, 3, 4, width))
        assert maps.shape == (1, 3, 4, width + width % 5)


@needs_openvino
def test_features_of_one_call_are_not_overwritten_by_the_next(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (1,), "random")
    with engine("openvino"):
        first = extractor(images)[0]
        kept = first.clone()
        extractor(1 - images)
    assert torch.equal(first, kept)


@needs_openvino
def test_new_weights_are_compiled_again(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (2,), "random")
    before = both(extractor, images)[0][0]
    extractor.load_state_dict(FeatureExtractor("resnet18", (2,), "random", seed=1).state_dict())
    after, plain = both(extractor, images)
    torch.testing.assert_close(after[0], plain[0], rtol=0, atol=1e-4)
    assert (after[0] - before).abs().max() > 0.1


@needs_openvino
def test_a_backbone_that_is_trained_uses_torch(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (1,), "random", frozen=False)
    with engine("openvino"):
        features = extractor(images)[0]
    assert features.requires_grad


@needs_openvino
def test_the_key_of_the_cache_and_the_versions_of_a_result_contain_the_engine(monkeypatch) -> None:
    from adcore.experiments.provenance import versions
    extractor = FeatureExtractor("resnet18", (1,), "random")
    assert "openvino" not in extractor.key and "openvino" not in versions()
    monkeypatch.setenv(ENGINE.variable, "openvino")
    assert extractor.key.endswith("-openvino") and versions()["openvino"]
    with engine("torch"):                                     # the block overrides the environment variable
        assert chosen_engine() == "torch" and "openvino" not in extractor.key


@needs_openvino
def test_networks_that_always_use_torch_are_named_so_under_openvino(images: torch.Tensor) -> None:
    from adcore.experiments.provenance import versions
    trained, double = FeatureExtractor("resnet18", (1,), "random", frozen=False), FeatureExtractor("resnet18", (1,), "random")
    double.double()
    with engine("openvino"):
        assert "openvino" not in trained.key and "openvino" not in double.key
        assert "openvino" not in versions(torch.device("cuda")) and "openvino" in versions(torch.device("cpu"))
        assert double(images.double())[0].dtype == torch.float64


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match=r"'openvin' for engine \(did you mean 'openvino'\?\): use"), engine("openvin"):
        pass
    monkeypatch.setenv(ENGINE.variable, "tensorrt")
    with pytest.raises(ParameterError, match="unknown choice 'tensorrt' for ADCORE_ENGINE: use torch or openvino"):
        chosen_engine()


def test_openvino_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.features.engines._openvino_error", lambda: "ModuleNotFoundError: No module named 'openvino'")
    with engine("openvino"), pytest.raises(ParameterError, match=r"pip install 'adcore\[fast\]', or set ADCORE_ENGINE=torch"):
        chosen_engine()


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
