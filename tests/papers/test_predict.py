"""What `predict` does with images, the same for all methods: sizes, dtypes, ranges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from torch import Tensor

from adcore.detector import Detector
from adcore.errors import AdcoreError, ParameterError
from adcore.models import METHODS

H, W = 64, 96
FEW = {"image_size": (H, W), "epochs": 1, "batch_size": 4}
NETWORK = {**FEW, "hidden": 8}
LAYERS = {"ffn": 8, "encoder_layers": 1, "decoder_layers": 1}
PATCHES = {"image_size": (H, W), "density_images": 4}
SMALL: dict[str, dict[str, Any]] = {
    "uniad": {**NETWORK, **LAYERS, "heads": 2, "neighbors": 3}, "mlp": {**NETWORK, **LAYERS}, "cnn": NETWORK,
    "transformer": {**NETWORK, **LAYERS, "heads": 2, "backbone": "efficientnet_lite0", "taps": (3,)},
    "patchcore": {"image_size": (H, W), "coreset": 50, "sigma": 2.0}, "brightness": {"image_size": (H, W)},
    "fastflow": {**FEW, "steps": 1}, "asymst": {**FEW, "kernels": (3,), "teacher_hidden": 4, "student_hidden": 4},
    "contrastive": {**FEW, "components": 2}, "gde": PATCHES,
    "ds2": {**PATCHES, "pretraining_size": 64, "hidden": 16, "dim": 8, "epochs": 1, "batch_size": 2, "decay_epochs": ()},
    "cutpaste": {**PATCHES, "pretraining_size": 64, "epochs": 1, "steps": 1, "batch_size": 2},
    **{name: {**FEW, "anomalies": 1, "steps": 1} for name in ("devnet", "atacnet")},
    "dra": {**FEW, "anomalies": 1, "steps": 1, "batch_size": 6}}


@pytest.fixture(scope="module")
def trained(tiny) -> Callable[[str], Detector]:
    """A detector by its name, trained for as short as it can be."""
    known: dict[str, Detector] = {}

    def one(name: str) -> Detector:
        if name not in known:
            method = METHODS[name]
            config = method.Config.make({**method.quick, **SMALL[name]})
            known[name] = method(config).fit(method.protocol(tiny, config, 0).train)
        return known[name]
    return one


def images(h: int, w: int, seed: int = 0) -> Tensor:
    """Three colored gradients with noise, (3, 3, h, w) in [0, 1]."""
    random = torch.Generator().manual_seed(seed)
    slope = torch.linspace(0.2, 0.7, w) * torch.linspace(1, 0.6, h)[:, None]
    return (slope * torch.rand(3, 3, 1, 1, generator=random) + 0.3 * torch.rand(3, 3, h, w, generator=random)).clamp(0, 1)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [(H, W), (40, 120), (150, 110), (1, 1)])
def test_images_of_any_size_are_resized_to_the_view_and_maps_have_the_images_size(trained, name, size):
    detector, given = trained(name), images(*size)
    assert detector.view.shape == (H, W)
    by_hand = F.interpolate(given, (H, W), mode="bilinear", antialias=True)
    found, wanted = detector.predict(given), detector.predict(by_hand)
    assert found.score.shape == (3,) and torch.equal(found.score, wanted.score)
    assert (found.map is None) is (wanted.map is None) is (name == "brightness")
    if wanted.map is not None:
        assert found.map.shape == (3, *size) and wanted.map.shape == (3, H, W) and found.map.dtype == torch.float32
        # The mean of a map hardly changes when it is resized.
        assert size == (1, 1) or found.map.mean((1, 2)).tolist() == approx(wanted.map.mean((1, 2)).tolist(), rel=0.05, abs=0.02)
        assert not found.map.requires_grad
    assert not found.score.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_double_and_half_precision_are_converted(trained, name):
    given, detector = images(H, W).half().float(), trained(name)
    wanted = detector.predict(given)
    for dtype in (torch.float64, torch.float16):
        found = detector.predict(given.to(dtype))
        assert torch.equal(found.score, wanted.score) and found.score.dtype == wanted.score.dtype
        assert wanted.map is None or torch.equal(found.map, wanted.map)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("given", "message"), [
    (images(H, W) * 255, r"^images must be in \[0, 1\], not from [\d.]+ to 2\d\d(\.\d)?: divide pixels of 0\.\.255 by 255$"),
    ((images(H, W) - 0.45) / 0.22, r"^images must be in \[0, 1\], not from -[\d.]+ to [\d.]+: give them before they are norma"),
    (images(H, W) * 2 - 1, r"not from -[\d.]+ to [\d.]+: give them before they are normalized, which the method does itself$"),
    ((images(H, W) * 255).to(torch.uint8), r"^images must be .* in \[0, 1\], not torch\.uint8 \(3, 3, 64, 96\): divide pixels"),
    (images(H, W).long(), r"not torch\.int64 \(3, 3, 64, 96\)$"), (images(H, W)[:0], r"not torch\.float32 \(0, 3, 64, 96\)$"),
    (images(H, W)[0], r"not torch\.float32 \(3, 64, 96\)$"), (images(H, W)[:, :1], r"not torch\.float32 \(3, 1, 64, 96\)$"),
    (images(H, W)[..., :0], r"not torch\.float32 \(3, 3, 64, 0\)$"),
    (images(H, W).to(torch.complex64), r"not torch\.complex64"),
    (images(H, W).numpy(), r"^images must be a tensor \(B, 3, H, W\) of floats in \[0, 1\], not ndarray$"),
    (None, r"not NoneType$"),
    (torch.where(images(H, W) > 0.5, np.nan, 0.5), "images hold NaN or infinite pixels")])
def test_images_that_are_not_in_0_to_1_are_refused_with_what_was_found(trained, name, given, message):
    with pytest.raises(ParameterError, match=message):
        trained(name).predict(given)


def test_pixels_may_leave_the_range_by_as_much_as_resampling_overshoots(trained):
    detector, given = trained("brightness"), images(H, W)
    given[0, 0, 0, 0], given[1, 0, 0, 0] = -5e-4, 1 + 5e-4
    assert detector.predict(given).score.shape == (3,)
    given[0, 0, 0, 0] = -2e-3
    with pytest.raises(ParameterError, match=r"not from -0\.002 to 1"):
        detector.predict(given)


@pytest.mark.parametrize("name", METHODS)
def test_predict_before_fit_is_refused_or_uses_the_untrained_network(name):
    method = METHODS[name]
    detector = method(method.Config.make({**method.quick, **SMALL[name]}))
    try:
        assert torch.isfinite(detector.predict(images(H, W)).score).all()
    except AdcoreError as error:
        assert "call " in str(error)


@pytest.mark.parametrize(("given", "message"), [({"seed": -1}, "^seed -1 must be"), ({"seed": True}, "^seed True must be"),
                                                ({"device": "meta"}, "^device 'meta' is not supported")])
def test_a_detector_refuses_a_seed_or_a_device_that_cannot_be(given, message):
    with pytest.raises(ParameterError, match=message):
        METHODS["brightness"](**given)
    assert METHODS["brightness"](seed=np.int64(3)).seed == 3
