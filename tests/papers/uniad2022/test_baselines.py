"""The three baselines of UniAD's supplement: architectures counted on paper, training, prediction and trainable backbone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adcore.errors import ParameterError
from adcore.features import FeatureExtractor
from adcore.models import CNN, METHODS, MLP, Transformer, UniAD, UniADConfig
from adcore.papers.uniad2022 import reconstruction
from adcore.papers.uniad2022.baselines import CNNConfig, CNNNetwork, MLPConfig, MLPNetwork, TransformerConfig
from adcore.papers.uniad2022.transformer import Attention, VanillaDecoderLayer
from adcore.papers.uniad2022.uniad import UniADNetwork
from adcore.training import seeded

pytestmark = pytest.mark.usefixtures("one_backbone")

SMALL = {"backbone": "efficientnet_lite0", "taps": (2, 4), "image_size": 64, "hidden": 32, "epochs": 2, "batch_size": 4,
         "lr": 1e-3, "lr_drop": 2}
LAYERS = {"ffn": 48, "encoder_layers": 1, "decoder_layers": 2}
EXTRA = {MLP: LAYERS, CNN: {"blocks": (1, 1, 1, 1)}, Transformer: {**LAYERS, "heads": 4, "neighbors": 3},
         UniAD: {**LAYERS, "heads": 4, "neighbors": 3}}
each = pytest.mark.parametrize("method", EXTRA, ids=lambda method: method.name)


def detector(method, seed: int = 0, **changes):
    return method(method.Config(**{**SMALL, **EXTRA[method], **changes}), seed=seed)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tokens_of(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# --- architecture -------------------------------------------------------------------------------------------------------

def test_the_cnn_has_the_parameters_of_a_resnet34_without_stem_and_with_stages_of_256_128_128_256_channels():
    def block(inputs, outputs):
        plain = 9 * inputs * outputs + 9 * outputs * outputs + 4 * outputs
        return plain + (inputs * outputs + 2 * outputs if inputs != outputs else 0)
    body = (3 * block(256, 256) + block(256, 128) + 3 * block(128, 128) + 6 * block(128, 128)
            + block(128, 256) + 2 * block(256, 256))
    ends = 272 * 256 + 256 + 256 * 272 + 272
    assert count(CNNNetwork(272, (14, 14), CNNConfig())) == body + ends


def test_the_cnn_has_no_strides_and_the_32_convolutions_of_a_resnet34_without_stem():
    network = CNNNetwork(272, (14, 14), CNNConfig())
    convolutions = [m for m in network.blocks.modules() if isinstance(m, nn.Conv2d)]
    assert {m.stride for m in convolutions} == {(1, 1)}
    assert sum(m.kernel_size == (3, 3) for m in convolutions) == 2 * (3 + 4 + 6 + 3)
    shapes = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    network.eval()(tokens_of(1, 196, 272))
    assert [c for c, _, _ in shapes] == [256] * 3 + [128] * 4 + [128] * 6 + [256] * 3
    assert {(h, w) for _, h, w in shapes} == {(14, 14)}


def test_the_mlp_has_the_parameters_of_the_transformer_with_projections_for_attentions():
    d, inner, channels, n = 256, 1024, 272, 196
    own, both = d * d + d + 2 * d, 2 * d * d + d + 2 * d
    ffn, norm = 2 * d * inner + inner + d, 2 * d
    layers = 4 * (own + ffn + 2 * norm) + 4 * (own + both + ffn + 3 * norm)
    ends = channels * d + d + d * channels + channels + norm + n * d
    assert count(MLPNetwork(channels, (14, 14), MLPConfig())) == layers + ends


def test_a_token_of_the_mlp_depends_on_itself_alone_and_a_cell_of_the_cnn_on_its_neighbors_too():
    mlp = MLPNetwork(6, (4, 5), MLPConfig(hidden=16, ffn=24)).eval()
    cnn = CNNNetwork(6, (4, 5), CNNConfig(hidden=16, blocks=(1, 1, 1, 1))).eval()
    tokens = tokens_of(1, 20, 6)
    changed = tokens.clone()
    changed[0, 7] += 1
    moved = (mlp(changed) - mlp(tokens))[0].abs().amax(1) > 0
    assert moved.nonzero().flatten().tolist() == [7]
    assert int(((cnn(changed) - cnn(tokens))[0].abs().amax(1) > 0).sum()) > 1


def test_the_cnn_puts_tokens_into_rows_and_columns_of_the_map():
    # With symmetric convolutions a flip of the input map flips the output map, unless h and w are mixed up.
    cnn = CNNNetwork(6, (4, 5), CNNConfig(hidden=16, blocks=(1, 1, 1, 1))).eval()
    with torch.no_grad():
        for module in cnn.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_((module.weight + module.weight.flip(-1)) / 2)
    tokens = tokens_of(1, 20, 6)

    def mirrored(x):
        return x.unflatten(1, (4, 5)).flip(2).flatten(1, 2)
    torch.testing.assert_close(cnn(mirrored(tokens)), mirrored(cnn(tokens)), rtol=1e-4, atol=1e-5)


def test_the_transformer_is_uniad_with_one_query_and_no_mask():
    with seeded(0):
        vanilla = UniADNetwork(6, (3, 4), TransformerConfig(hidden=8, heads=2, ffn=12))
    with seeded(0):
        row = UniADNetwork(6, (3, 4), UniADConfig(hidden=8, heads=2, ffn=12, query="one", nma=False))
    assert torch.equal(vanilla.eval()(tokens_of(2, 12, 6)), row.eval()(tokens_of(2, 12, 6)))
    assert vanilla.visible is None and all(isinstance(layer, VanillaDecoderLayer) for layer in vanilla.decoder)
    assert not any(isinstance(module, Attention) for module in MLPNetwork(6, (3, 4), MLPConfig(hidden=8)).modules())


def test_baselines_have_no_jitter_and_no_mask_by_default_and_share_uniads_training_settings():
    uniad = UniADConfig()
    for method in (MLP, CNN, Transformer):
        config = method.Config()
        assert not config.jitter and not getattr(config, "nma", False)
        for name in ("backbone", "taps", "image_size", "hidden", "epochs", "batch_size", "lr", "lr_drop", "weight_decay",
                     "clip_norm", "loss"):
            assert getattr(config, name) == getattr(uniad, name)
        assert METHODS[method.name] is method


# --- fit and predict ----------------------------------------------------------------------------------------------------

@each
def test_a_baseline_trains_reproducibly_and_its_map_has_the_size_of_the_images(method, tiny):
    first, again = (detector(method, seed=2).fit(tiny.train) for _ in range(2))
    assert first.losses == again.losses and first.losses[1] < first.losses[0]
    images = torch.rand(2, 3, 50, 70, generator=torch.Generator().manual_seed(0))
    found = first.predict(images)
    assert found.map.shape == (2, 50, 70) and torch.equal(found.map, again.predict(images).map)


@each
def test_gradients_of_a_baseline_are_finite_under_bfloat16_autocast(method):
    uni = detector(method)
    with torch.autocast("cpu", torch.bfloat16):
        loss = uni.loss(torch.randn(4, sum(uni.extractor.channels), 4, 4))
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in uni.network.parameters() if p.grad is not None)


@pytest.mark.parametrize("score", ["max", "mean"])
def test_the_score_is_the_largest_window_or_the_mean_of_the_map(score):
    uni = detector(UniAD, score=score, score_window=1)
    found = uni.predict(torch.rand(2, 3, 64, 64))
    wanted = found.map.amax((1, 2)) if score == "max" else found.map.mean((1, 2))
    torch.testing.assert_close(found.score, wanted)


@each
def test_rebuild_returns_features_and_the_networks_reconstruction_of_them(method):
    uni = detector(method)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, after = uni.rebuild(images)
    assert before.shape == after.shape == (2, sum(uni.extractor.channels), 4, 4)
    torch.testing.assert_close(before, uni.features(uni.extractor(images)))
    tokens = before.flatten(2).transpose(1, 2)
    torch.testing.assert_close(after.flatten(2).transpose(1, 2), uni.network(tokens))


# --- trainable backbone (Table S5) --------------------------------------------------------------------------------------

def trainable(monkeypatch, **changes):
    monkeypatch.setattr(reconstruction, "FeatureExtractor", FeatureExtractor)   # not the shared one: training changes it
    return detector(UniAD, train_backbone=True, **changes)


def test_a_trained_backbone_changes_with_the_network_and_a_frozen_one_does_not(tiny, monkeypatch):
    uni = trainable(monkeypatch)
    before = {name: p.clone() for name, p in uni.extractor.state_dict().items()}
    uni.fit(tiny.train)
    used = [name for name, p in uni.extractor.named_parameters() if p.grad is not None]
    assert used and all(not torch.equal(dict(uni.extractor.named_parameters())[name], before[name]) for name in used)
    assert any("running_mean" in name and not torch.equal(value, before[name])
               for name, value in uni.extractor.state_dict().items())
    frozen = detector(UniAD)
    kept = {name: p.clone() for name, p in frozen.extractor.state_dict().items()}
    frozen.fit(tiny.train)
    assert all(torch.equal(value, kept[name]) for name, value in frozen.extractor.state_dict().items())
    assert not any(p.requires_grad for p in frozen.extractor.parameters())


def test_a_trained_backbone_predicts_in_eval_mode_and_is_saved_in_the_checkpoint(tiny, tmp_path, monkeypatch):
    uni = trainable(monkeypatch).fit(tiny.train, checkpoint=tmp_path / "checkpoint")
    assert not any(module.training for module in uni.extractor.modules())
    saved = torch.load(tmp_path / "checkpoint", weights_only=True)["module"]
    assert {name.partition(".")[0] for name in saved} == {"extractor", "network"}
    resumed = trainable(monkeypatch).fit(tiny.train, checkpoint=tmp_path / "checkpoint")
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(resumed.predict(images).map, uni.predict(images).map)


def test_an_unknown_score_is_refused():
    with pytest.raises(ParameterError, match="score is one of max, mean"):
        CNNConfig(score="sum")
