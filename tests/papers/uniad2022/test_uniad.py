"""UniAD as a detector: jitter and loss, training and resuming, anomaly map and score."""

from __future__ import annotations

import itertools
import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.by_hand import normal
from support.tiny import texture, write_tiny
from torch import Tensor, nn

from adcore import training
from adcore.data.mvtec import load_mvtec
from adcore.errors import ParameterError
from adcore.models import UniAD, UniADConfig
from adcore.papers.uniad2022.uniad import jitter_features
from adcore.training import seeded

pytestmark = pytest.mark.usefixtures("one_backbone")

SMALL = {"backbone": "efficientnet_lite0", "taps": (2, 4), "image_size": 64, "hidden": 32, "heads": 4, "ffn": 48,
         "encoder_layers": 1, "decoder_layers": 2, "neighbors": 3, "epochs": 3, "batch_size": 4, "lr": 1e-3, "lr_drop": 2}


def detector(seed: int = 0, **changes: object) -> UniAD:
    return UniAD(UniADConfig(**{**SMALL, **changes}), seed=seed)


def test_a_window_that_hides_the_whole_grid_is_refused_when_the_detector_is_built():
    with pytest.raises(ParameterError, match="neighbors=7 hides the whole 4x4 grid"):
        detector(neighbors=7)


# --- jitter and loss ----------------------------------------------------------------------------------------------------

def test_the_standard_deviation_of_jitter_is_20_times_the_tokens_norm_over_its_channels():
    tokens = normal(1, 3, 40) * torch.tensor([0.1, 1.0, 7.0]).double()[:, None]
    with seeded(0):
        noise = jitter_features(tokens.expand(4000, 3, 40), 20.0) - tokens
    for token in range(3):
        wanted = 20 * math.sqrt(float((tokens[0, token] ** 2).sum())) / 40
        assert float(noise[:, token].std()) == pytest.approx(wanted, rel=0.01)
        assert float(noise[:, token].std(0).max()) < 1.06 * wanted and float(noise[:, token].std(0).min()) > 0.94 * wanted
        assert float(noise[:, token].mean(0).abs().max()) < 5 * wanted / math.sqrt(4000)


def test_jitter_is_independent_for_every_channel_and_token():
    with seeded(0):
        noise = jitter_features(torch.ones(4000, 2, 20), 20.0) - 1
    correlations = np.corrcoef(noise.flatten(1).T.numpy())
    assert np.abs(correlations - np.eye(40)).max() < 5.5 / math.sqrt(4000)


def test_jitter_with_probability_0_changes_no_batch_and_with_one_half_changes_half_of_the_batches():
    tokens = torch.ones(3, 4, 5)
    with seeded(0):
        untouched = [torch.equal(jitter_features(tokens, 20.0, 0.5), tokens) for _ in range(400)]
        assert all(torch.equal(jitter_features(tokens, 20.0, 0.0), tokens) for _ in range(20))
        assert not any(torch.equal(jitter_features(tokens, 20.0, 1.0), tokens) for _ in range(20))
    assert 160 < sum(untouched) < 240


class Recorder(nn.Module):
    """Returns a given output for every input, and keeps the input."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer, self.seen = answer, torch.empty(0)

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen = tokens
        return self.answer


@pytest.mark.parametrize("jitter", [True, False])
def test_the_networks_input_is_jittered_and_the_target_of_the_loss_is_not(jitter):
    uni = detector(jitter=jitter)
    features = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    clean = torch.stack([features[:, :, y, x] for y in range(4) for x in range(4)], dim=1)        # (B, N, C)
    uni.network = Recorder(clean)
    assert float(uni.loss(features).detach()) == 0
    assert torch.equal(uni.network.seen, clean) is not jitter


def test_gradients_are_finite_under_bfloat16_autocast():
    uni = detector()
    with torch.autocast("cpu", torch.bfloat16):
        loss = uni.loss(torch.randn(4, sum(uni.extractor.channels), 4, 4))
    loss.backward()
    gradients = [p.grad for p in uni.network.parameters()]
    assert all(g is not None and bool(torch.isfinite(g).all()) for g in gradients)
    assert sum(float(g.norm()) for g in gradients) > 0


# --- fit ----------------------------------------------------------------------------------------------------------------

def test_the_same_seed_gives_the_same_losses_and_weights_and_another_seed_different_ones(tiny):
    torch.manual_seed(0)
    first = detector(seed=3).fit(tiny.train)
    torch.manual_seed(1)
    again, other = detector(seed=3).fit(tiny.train), detector(seed=4).fit(tiny.train)
    assert first.losses == again.losses != other.losses
    assert all(torch.equal(a, b) for a, b in zip(first.network.parameters(), again.network.parameters(), strict=True))


def test_building_fitting_and_predicting_do_not_change_the_global_random_state(tiny):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    detector().fit(tiny.train).predict(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@pytest.mark.parametrize("epochs_done", [1, 3])
def test_a_killed_fit_resumes_from_its_checkpoint_and_ends_with_the_same_weights(tiny, tmp_path, monkeypatch, epochs_done):
    monkeypatch.setattr(training, "time", SimpleNamespace(monotonic=itertools.count(0, 100).__next__))   # saves every epoch
    whole = detector(epochs=5).fit(tiny.train)
    killed, loss, batches = detector(epochs=5), UniAD.loss, itertools.count()

    def dies(features: Tensor) -> Tensor:
        if next(batches) == 2 * epochs_done + 1:             # six images are two batches an epoch
            raise KeyboardInterrupt
        return loss(killed, features)

    killed.loss = dies
    with pytest.raises(KeyboardInterrupt):
        killed.fit(tiny.train, checkpoint=tmp_path / "checkpoint")
    assert len(torch.load(tmp_path / "checkpoint")["losses"]) == epochs_done
    resumed = detector(epochs=5).fit(tiny.train, checkpoint=tmp_path / "checkpoint")
    assert resumed.losses == whole.losses
    assert all(torch.equal(a, b) for a, b in zip(resumed.network.parameters(), whole.network.parameters(), strict=True))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(resumed.predict(images).map, whole.predict(images).map)


def test_a_fitted_detector_predicts_without_dropout(tiny):
    images = torch.rand(2, 3, 64, 64)
    uni = detector().fit(tiny.train)
    assert torch.equal(uni.predict(images).map, uni.predict(images).map)


# --- predict ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("image_size", [64, (64, 96), (70, 100)])
@pytest.mark.parametrize("size", [(64, 64), (64, 96), (37, 131), (200, 40)])
def test_maps_have_the_size_of_the_images_whatever_image_size_is_set(image_size, size):
    found = detector(image_size=image_size).predict(torch.rand(2, 3, *size))
    assert found.map.shape == (2, *size) and found.score.shape == (2,)
    assert bool(torch.isfinite(found.map).all()) and bool((found.map >= 0).all())


def test_an_image_has_the_same_score_alone_and_in_a_batch():
    uni, images = detector(), torch.rand(3, 3, 64, 64)
    together = uni.predict(images)
    for i in range(3):
        alone = uni.predict(images[i:i + 1])
        torch.testing.assert_close(alone.score[0], together.score[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.map[0], together.map[i], rtol=1e-4, atol=1e-4)


def test_the_map_is_the_error_of_each_token_interpolated_with_aligned_corners():
    uni, image = detector(image_size=(48, 80), neighbors=3), torch.rand(1, 3, 48, 80)
    tokens = uni.features(uni.extractor(image)).flatten(2).transpose(1, 2)
    errors = (tokens - uni.network(tokens)).detach().double().square().sum(-1).sqrt().reshape(3, 5).numpy()
    rows, columns = np.linspace(0, 2, 48), np.linspace(0, 4, 80)
    along = np.stack([np.interp(columns, np.arange(5), row) for row in errors])
    wanted = np.stack([np.interp(rows, np.arange(3), along[:, x]) for x in range(80)], axis=1)
    np.testing.assert_allclose(uni.predict(image).map[0].numpy(), wanted, rtol=1e-4)


@pytest.mark.parametrize("window", [1, 16, 50])
def test_the_score_is_the_largest_mean_of_a_window_of_the_map(window):
    uni = detector(score_window=window, image_size=(64, 96))
    found = uni.predict(torch.rand(2, 3, 64, 96))
    for score, plane in zip(found.score, found.map.double().numpy(), strict=True):
        windows = np.lib.stride_tricks.sliding_window_view(plane, (window, window))
        assert windows.shape[:2] == (64 - window + 1, 96 - window + 1)
        assert float(score) == pytest.approx(windows.mean((2, 3)).max(), rel=1e-5)


@pytest.mark.parametrize("size", [8, 15, (8, 64), (64, 15)])
def test_an_image_size_below_one_token_is_refused(size):
    with pytest.raises(ParameterError, match="is smaller than one token of 16 pixels"):
        detector(image_size=size)


@pytest.mark.parametrize("images", [torch.rand(3, 64, 64), torch.rand(1, 1, 64, 64),
                                    torch.zeros(1, 3, 64, 64, dtype=torch.uint8)])
def test_anything_but_a_batch_of_float_rgb_images_is_refused(images):
    with pytest.raises(ParameterError, match=r"images must be \(B, 3, H, W\) floats in \[0, 1\], not"):
        detector().predict(images)


def test_images_with_nan_pixels_are_refused():
    with pytest.raises(ParameterError, match="NaN or infinite pixels"):
        detector().predict(torch.full((1, 3, 64, 64), torch.nan))


def test_after_a_short_training_a_pasted_defect_stands_out_in_map_and_score(tmp_path):
    dataset = load_mvtec(write_tiny(tmp_path / "data", side=96, train=12, good=1, blobs=1), "tiny")
    uni = detector(image_size=96, epochs=25, hidden=64, lr=2e-3, lr_drop=20).fit(dataset.train)
    assert uni.losses[-1] < 0.8 * uni.losses[0]
    rng = np.random.default_rng(99)
    pictures = np.stack([texture(rng, 96) for _ in range(4)])
    inside = np.zeros((4, 96, 96), bool)
    for i, (top, left) in enumerate([(10, 12), (50, 40), (30, 60), (60, 10)]):
        inside[i, top:top + 24, left:left + 24] = True
    defective = pictures.copy()
    defective[inside] = (20, 20, 90)
    clean, found = (uni.predict(torch.from_numpy(p).permute(0, 3, 1, 2) / 255) for p in (pictures, defective))
    for i in range(4):
        plane = found.map[i].numpy()
        assert plane[inside[i]].mean() > 1.2 * plane[~inside[i]].mean()
    assert float(found.score.min()) > float(clean.score.max())


def test_the_papers_settings_are_the_defaults():
    paper = UniADConfig()
    assert (paper.backbone, paper.taps, paper.image_size) == ("efficientnet_b4", (1, 2, 3, 4), 224)
    assert (paper.hidden, paper.heads, paper.ffn, paper.encoder_layers, paper.decoder_layers) == (256, 8, 1024, 4, 4)
    assert (paper.neighbors, paper.jitter_scale, paper.jitter_probability, paper.score_window) == (7, 20.0, 1.0, 16)
    assert (paper.epochs, paper.lr, paper.lr_drop, paper.weight_decay, paper.clip_norm) == (1000, 1e-4, 801, 1e-4, 0.1)


def test_the_checkpoint_file_loads_with_weights_only(tiny, tmp_path):
    path: Path = tmp_path / "checkpoint"
    detector().fit(tiny.train, checkpoint=path)
    assert set(torch.load(path, weights_only=True)) == {"module", "optimizer", "scheduler", "losses", "inputs"}
