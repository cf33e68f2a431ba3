"""The decoder from features to pictures: shapes and parameters counted on paper, and what it learns."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from pytest import approx
from support.tiny import shared_extractor, write_tiny
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from adcore.data.mvtec import load_mvtec
from adcore.errors import ParameterError
from adcore.features.backbones import IMAGENET
from adcore.models import UniAD, UniADConfig
from adcore.papers.uniad2022 import feature_decoder, reconstruction
from adcore.papers.uniad2022.feature_decoder import (
    FeatureDecoder,
    FeatureDecoderConfig,
    UpBlock,
    decoder_for,
    render,
    train_decoder,
)

SMALL = FeatureDecoderConfig(widths=(16, 16, 8, 8), blocks=(1, 2, 1, 1), epochs=2, batch_size=2, lr=1e-2, lr_drop=100)


def pair(n: int = 2) -> tuple[Tensor, Tensor]:
    """Random features on a 2x3 grid, and for each a 32x48 picture with a color gradient of its own."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(n, 6, 2, 3, generator=generator)
    colors, slope = torch.rand(n, 3, 1, 1, generator=generator), torch.linspace(0, 1, 48).expand(32, 48)
    return features, 0.2 + 0.3 * colors + 0.5 * colors.flip(0) * slope


@pytest.mark.parametrize("upsample", ["bilinear", "transposed"])
@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (5, 1)])
def test_a_picture_is_16_times_its_grid_in_both_variants(upsample, grid):
    decoder = FeatureDecoder(6, replace(SMALL, upsample=upsample))
    assert decoder(torch.randn(2, 6, *grid)).shape == (2, 3, 16 * grid[0], 16 * grid[1])


@pytest.mark.parametrize("upsample", ["bilinear", "transposed"])
def test_stages_keep_the_grid_then_double_it_twice_and_the_head_doubles_it_twice_again(upsample):
    decoder = FeatureDecoder(6, replace(SMALL, upsample=upsample, blocks=(1, 1, 1, 1)))
    sides, x = [], torch.randn(2, 6, 3, 3)
    for layer in (*decoder.stages, *decoder.head):
        x = layer(x)
        sides.append(x.shape[-1])
    assert [side // 3 for side, _ in itertools.groupby(sides)] == [1, 2, 4, 8, 16]
    assert sides[:4] == [3, 6, 12, 12]


@pytest.mark.parametrize(("c", "d"), [(8, 8), (6, 8)])
def test_a_block_that_keeps_its_grid_is_the_basic_block_of_torchvision(c, d):
    mine, theirs = UpBlock(c, d, 1, "bilinear").eval(), BasicBlock(c, d, downsample=None if c == d else nn.Sequential(
        nn.Conv2d(c, d, 1, bias=False), nn.BatchNorm2d(d))).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), mine.state_dict().values(), strict=True)))
    x = torch.randn(2, c, 4, 5)
    assert torch.allclose(mine(x), theirs(x), atol=1e-6)


@pytest.mark.parametrize("upsample", ["bilinear", "transposed"])
def test_a_block_that_doubles_its_grid_does_so_after_its_first_relu_and_on_the_shortcut_before_the_norm(upsample):
    block, x = UpBlock(6, 8, 2, upsample).eval(), torch.randn(2, 6, 4, 5)
    conv_1, norm_1, _, double_1, conv_2, norm_2 = block.body
    conv_3, double_3, norm_3 = block.shortcut

    def twice(maps: Tensor, double: nn.Module) -> Tensor:
        if upsample == "bilinear":
            return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False)
        return F.conv_transpose2d(maps, double.weight, stride=2)

    expected = norm_2(conv_2(twice(norm_1(conv_1(x)).clamp_min(0), double_1))) + norm_3(twice(conv_3(x), double_3))
    assert torch.allclose(block(x), expected.clamp_min(0), atol=1e-6)


def test_the_default_decoder_has_the_parameters_counted_on_paper():
    def block(c: int, d: int) -> int:               # two 3x3 convolutions, each with a batch norm; no bias
        return 9 * c * d + 2 * d + 9 * d * d + 2 * d

    def shortcut(c: int, d: int) -> int:            # 1x1 convolution and batch norm
        return c * d + 2 * d

    stages = (block(272, 512) + shortcut(272, 512) + 2 * block(512, 512)
              + block(512, 256) + shortcut(512, 256) + 5 * block(256, 256)
              + block(256, 128) + shortcut(256, 128) + 3 * block(128, 128)
              + 3 * block(128, 128))                # neither width nor grid changes: no 1x1 convolution
    head = 49 * 128 * 128 + 2 * 128 + 128 * 3       # 7x7 convolution, batch norm, 1x1 convolution to RGB
    assert parameters(FeatureDecoder(272)) == stages + head
    # 2x2 kernels: in two stages on the main path and on the shortcut, and twice in the head.
    transposed = 4 * (2 * 256 * 256 + 2 * 128 * 128 + 2 * 128 * 128)
    assert parameters(FeatureDecoder(272, FeatureDecoderConfig(upsample="transposed"))) == stages + head + transposed


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_convolutions_start_with_a_standard_deviation_of_0_01():
    for upsample in ("bilinear", "transposed"):
        decoder = FeatureDecoder(64, FeatureDecoderConfig(upsample=upsample, widths=(64, 64, 64, 64), blocks=(1, 1, 1, 1)))
        weights = [m.weight for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d) and m.out_channels > 3]
        assert [float(w.detach().std()) for w in weights] == approx([0.01] * len(weights), rel=0.1)


@pytest.mark.parametrize("upsample", ["bilinear", "transposed"])
def test_a_decoder_learns_two_images_by_heart(upsample):
    features, images = pair()
    decoder = train_decoder(features, images, replace(SMALL, upsample=upsample, widths=(16,) * 4, epochs=120), seed=1)
    assert len(decoder.losses) == 120 and decoder.losses[-1] < decoder.losses[0] / 30
    # A decoder that ignored its features would draw the mean of the two images, at half of their difference from both.
    apart = float((images[0] - images[1]).abs().mean())
    assert float((render(decoder, features) - images).abs().mean()) < 0.3 * apart


def test_the_loss_is_measured_on_pixels_normalized_as_imagenet():
    features, images = pair()
    torch.manual_seed(0)
    decoder = train_decoder(features, images, replace(SMALL, epochs=1, lr=1e-30, batch_size=2), seed=1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    with torch.no_grad():                           # lr 0: the weights do not change in the one step
        expected = ((decoder.train()(features) - (images - mean) / std) ** 2).mean()
    assert decoder.losses == approx([float(expected)], rel=1e-5)


def test_equal_seeds_give_equal_decoders_and_other_seeds_different_ones():
    features, images = pair()
    once, again, other = (train_decoder(features, images, SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["head.5.weight"], other["head.5.weight"])


def test_a_training_resumes_from_its_checkpoint(tmp_path):
    features, images = pair()
    whole = train_decoder(features, images, replace(SMALL, epochs=3), seed=1)
    train_decoder(features, images, replace(SMALL, epochs=2), seed=1, checkpoint=tmp_path / "decoder")
    assert (tmp_path / "decoder").is_file()
    parts = train_decoder(features, images, replace(SMALL, epochs=3), seed=1, checkpoint=tmp_path / "decoder")
    assert parts.losses == whole.losses
    assert all(torch.equal(mine, parts.state_dict()[name]) for name, mine in whole.state_dict().items())


def test_rendered_pictures_are_denormalized_and_clipped_and_do_not_depend_on_their_batch():
    class ConstantPicture(FeatureDecoder):
        def forward(self, features: Tensor) -> Tensor:
            levels = torch.tensor([0.0, 100.0, -100.0]).view(3, 1, 1)       # normalized: mean red, all green, no blue
            return levels.expand(len(features), 3, 32, 48)

    features, images = pair(4)
    assert render(ConstantPicture(6, SMALL), features)[0, :, 0, 0].tolist() == approx([IMAGENET[0][0], 1.0, 0.0])
    decoder = train_decoder(features, images, SMALL, seed=1).train()
    together = render(decoder, features.half())     # half precision, as features are cached
    assert together.dtype == torch.float32 and together.shape == images.shape and not together.requires_grad
    assert torch.allclose(together[1:2], render(decoder, features.half()[1:2]), atol=1e-5)


def test_a_wrong_setting_is_named_in_the_message():
    with pytest.raises(ParameterError, match=r"^FeatureDecoderConfig: upsample is one of bilinear, transposed, not 'nearest'$"):
        replace(SMALL, upsample="nearest")
    with pytest.raises(ParameterError, match=r"^FeatureDecoderConfig: blocks=\(3, 6\) must have 4 items$"):
        replace(SMALL, blocks=(3, 6))


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 3, 48, 32), (1, 3, 32, 48), (2, 1, 32, 48)])
def test_images_that_do_not_belong_to_the_features_are_refused(shape):
    features, _ = pair()
    with pytest.raises(ParameterError) as caught:
        train_decoder(features, torch.rand(shape), SMALL)
    assert str(caught.value) == ("features of 2 images on a 2x3 grid are drawn at 16 pixels per cell: images must be "
                                 f"(2, 3, 32, 48), not {shape}")


def test_no_images_are_refused():
    features, images = pair()
    with pytest.raises(ParameterError, match="feature decoder: data must be"):
        train_decoder(features[:0], images[:0], SMALL)


def test_a_detectors_decoder_is_trained_once_for_equal_images_and_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(reconstruction, "FeatureExtractor", shared_extractor)
    samples = list(load_mvtec(write_tiny(tmp_path / "data"), "tiny").test)
    detector = UniAD(UniADConfig.make({**UniAD.quick, "image_size": (48, 64), "neighbors": 3}))
    features, images = detector.extract(samples)
    assert features.shape == (len(samples), sum(detector.extractor.channels), 3, 4) and images.shape[1:] == (3, 48, 64)
    torch.testing.assert_close(features[:2].flatten(2).transpose(1, 2), detector.tokens(images[:2]))

    first = decoder_for(detector, samples, SMALL, folder=tmp_path / "kept")
    (kept,) = (tmp_path / "kept").iterdir()
    written = kept.stat().st_mtime_ns
    again = decoder_for(detector, samples, SMALL, folder=tmp_path / "kept")
    assert kept.stat().st_mtime_ns == written and again.losses == first.losses
    assert torch.equal(render(again, features), render(first, features))
    decoder_for(detector, samples, replace(SMALL, widths=(16, 16, 8, 4)), folder=tmp_path / "kept")
    decoder_for(detector, samples[1:], SMALL, folder=tmp_path / "kept")
    decoder_for(detector, samples, SMALL, folder=tmp_path / "kept", seed=1)
    assert len(list((tmp_path / "kept").iterdir())) == 4
    monkeypatch.setattr(feature_decoder, "VERSION", feature_decoder.VERSION + 1)      # a decoder of older code is not reused
    decoder_for(detector, samples, SMALL, folder=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 5
