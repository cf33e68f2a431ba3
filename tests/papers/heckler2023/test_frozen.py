"""The base class of detectors on frozen taps: taps that do not exist or are too deep, image sizes, cached maps."""

from __future__ import annotations

import pytest
import torch

from adcore.data import read_images
from adcore.errors import ParameterError
from adcore.features import FeatureExtractor
from adcore.models import AsymST, AsymSTConfig, FastFlow, FastFlowConfig, PatchCore, PatchCoreConfig

pytestmark = pytest.mark.usefixtures("one_backbone")

LITE = {"backbone": "efficientnet_lite0"}
ALL = [(PatchCore, PatchCoreConfig, {**LITE, "crop": None}), (FastFlow, FastFlowConfig, {**LITE, "steps": 1}),
       (AsymST, AsymSTConfig, {**LITE, "kernels": (3,), "teacher_hidden": 4, "student_hidden": 4})]


@pytest.mark.parametrize(("method", "config", "settings"), ALL)
def test_an_image_smaller_than_a_tap_s_stride_is_refused(method, config, settings):
    with pytest.raises(ParameterError, match=r"^image_size 32x24 is smaller than the stride 32 of tap 5 of "
                                             r"efficientnet_lite0: use larger images or a shallower tap$"):
        method(config(**settings, taps=(2, 5), image_size=(32, 24)))
    assert method(config(**settings, taps=(2, 5), image_size=(32, 64))).shapes == [(24, 8, 16), (320, 1, 2)]


@pytest.mark.parametrize(("method", "config", "settings"), ALL)
def test_a_tap_that_does_not_exist_is_refused_with_those_that_exist(method, config, settings):
    with pytest.raises(ParameterError, match=r"has no stage 7; it has 1, 2, 3, 4, 5$"):
        method(config(**settings, taps=(7,)))
    with pytest.raises(ParameterError, match=r"has no tap 'blocks\.2\.9'; similar are blocks\.2\.\d"):
        method(config(**settings, taps=("blocks.2.9",)))


@pytest.mark.parametrize("size", [(64, 64), (67, 93), (96, 160)])
def test_shapes_computed_in_advance_equal_the_maps_shapes(size):
    extractor = FeatureExtractor("efficientnet_lite0", (5, "blocks.1", 3))
    maps = extractor(torch.rand(2, 3, *size))
    assert extractor.shapes(size) == [tuple(m.shape[1:]) for m in maps]


@pytest.mark.parametrize(("method", "config", "settings"), ALL[1:])
def test_images_of_another_size_are_resized_for_the_flow_and_maps_have_the_images_size(method, config, settings):
    detector = method(config(**settings, taps=(4,), image_size=(64, 96)))
    images = torch.rand(2, 3, 48, 120, generator=torch.Generator().manual_seed(0))
    prediction = detector.predict(images)
    assert prediction.map.shape == (2, 48, 120) and prediction.score.shape == (2,)
    resized = torch.nn.functional.interpolate(images, (64, 96), mode="bilinear", antialias=True)
    cells = torch.nn.functional.interpolate(detector.predict(resized).map[:, None], (48, 120), mode="bilinear")[:, 0]
    # Both are upsampled from the same few cells and differ only in the filter.
    assert torch.corrcoef(torch.stack([cells.flatten(), prediction.map.flatten()]))[0, 1] > 0.98


def test_each_choice_of_taps_and_size_gives_maps_of_its_own_though_all_share_one_cache(tiny):
    for taps, size in (((3,), 64), ((4,), 64), ((3, 4), 64), ((4, 3), 64), ((3,), (64, 96)), ((3,), (96, 64))):
        detector = FastFlow(FastFlowConfig(**LITE, steps=1, taps=taps, image_size=size))
        expected = detector.extractor(next(read_images(tiny.train, detector.view)))
        maps = detector.cached_maps(tiny.train)
        assert [m.shape for m in maps] == [e.shape for e in expected], (taps, size)
        assert all(torch.allclose(m.float(), e, rtol=1e-3, atol=1e-3) for m, e in zip(maps, expected, strict=True)), taps


def test_the_maps_of_several_taps_are_computed_in_one_pass_and_equal_the_extractor_s(tiny, monkeypatch):
    detector, passes = FastFlow(FastFlowConfig(**LITE, steps=1, taps=(3, 4), image_size=(64, 96))), []
    forward = detector.extractor.forward
    monkeypatch.setattr(detector.extractor, "forward", lambda images: passes.append(len(images)) or forward(images))
    maps = detector.cached_maps(tiny.train)
    assert sum(passes) == len(tiny.train) and [tuple(m.shape[1:]) for m in maps] == detector.shapes
    expected = forward(torch.cat(list(read_images(tiny.train, detector.view))))
    assert all(torch.allclose(m.float(), e, rtol=1e-3, atol=1e-3) for m, e in zip(maps, expected, strict=True))
