"""Frozen features by OpenVINO against those by torch."""

from __future__ import annotations

import pytest
import torch

from adcore.errors import ParameterError
from adcore.features import FeatureExtractor, engine
from adcore.features.engines import ENGINE, chosen_engine

pytest.importorskip("openvino", reason="the extra 'fast' is not installed")


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 3, 80, 96, generator=torch.Generator().manual_seed(0))


def both(extractor: FeatureExtractor, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    with engine("torch"):
        plain = extractor(images)
    with engine("openvino"):
        return extractor(images), plain


@pytest.mark.parametrize(("name", "taps"), [
    ("efficientnet_lite0", (1, 2, 3, 4)),
    ("resnet18", (3, 1, "layer2.0.relu")),                    # not in the network's order, and one inside a block
    ("timm:efficientnet_b0", ("blocks.1", "blocks.3", "blocks.1")),  # squeeze-and-excitation; one tap twice
])
def test_openvino_gives_torchs_features_at_any_size_and_batch(
        name: str, taps: tuple[int | str, ...], images: torch.Tensor) -> None:
    extractor = FeatureExtractor(name, taps, "random")
    for batch in (images, images[:1], torch.nn.functional.interpolate(images, (65, 127))):
        fast, plain = both(extractor, batch)
        assert len(fast) == len(plain) == len(taps)
        for ours, theirs in zip(fast, plain, strict=True):
            assert ours.shape == theirs.shape
            assert not torch.equal(ours, theirs), "the same bits: was it torch that computed both?"
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * float(theirs.abs().max()))


def test_features_of_one_call_outlive_the_next(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (1,), "random")
    with engine("openvino"):
        first = extractor(images)[0]
        kept = first.clone()
        extractor(1 - images)
    assert torch.equal(first, kept)


def test_new_weights_are_compiled_anew(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (2,), "random")
    before = both(extractor, images)[0][0]
    extractor.load_state_dict(FeatureExtractor("resnet18", (2,), "random", seed=1).state_dict())
    after, plain = both(extractor, images)
    torch.testing.assert_close(after[0], plain[0], rtol=0, atol=1e-4)
    assert (after[0] - before).abs().max() > 0.1


def test_a_backbone_that_is_trained_stays_with_torch(images: torch.Tensor) -> None:
    extractor = FeatureExtractor("resnet18", (1,), "random", frozen=False)
    with engine("openvino"):
        features = extractor(images)[0]
    assert features.requires_grad


def test_the_key_of_the_cache_and_a_results_versions_name_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from adcore.experiments.provenance import versions
    extractor = FeatureExtractor("resnet18", (1,), "random")
    assert "openvino" not in extractor.key and "openvino" not in versions()
    monkeypatch.setenv(ENGINE.variable, "openvino")
    assert extractor.key.endswith("-openvino") and versions()["openvino"]
    with engine("torch"):                                     # the block is stronger than the variable
        assert chosen_engine() == "torch" and "openvino" not in extractor.key


def test_where_torch_computes_whatever_is_chosen_the_names_say_torch(images: torch.Tensor) -> None:
    from adcore.experiments.provenance import versions
    trained, double = FeatureExtractor("resnet18", (1,), "random", frozen=False), FeatureExtractor("resnet18", (1,), "random")
    double.double()
    with engine("openvino"):
        assert "openvino" not in trained.key and "openvino" not in double.key
        assert "openvino" not in versions(torch.device("cuda")) and "openvino" in versions(torch.device("cpu"))
        assert double(images.double())[0].dtype == torch.float64


def test_an_unknown_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match=r"'openvin' for engine \(did you mean 'openvino'\?\): use"), engine("openvin"):
        pass
    monkeypatch.setenv(ENGINE.variable, "tensorrt")
    with pytest.raises(ParameterError, match="unknown choice 'tensorrt' for ADCORE_ENGINE: use torch or openvino"):
        chosen_engine()


def test_openvino_that_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adcore.features.engines._openvino_error", lambda: "ModuleNotFoundError: No module named 'openvino'")
    with engine("openvino"), pytest.raises(ParameterError, match=r"pip install 'adcore\[fast\]', or set ADCORE_ENGINE=torch"):
        chosen_engine()
