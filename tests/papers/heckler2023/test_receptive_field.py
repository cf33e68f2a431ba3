"""Receptive fields compared with arithmetic by hand, published layer tables, and networks of known geometry."""

import copy

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import SqueezeExcitation

from adcore.errors import ParameterError
from adcore.papers.heckler2023.receptive_field import TABLE_2, Field, analytic, linearized, measure, ungated
from adcore.papers.heckler2023.receptive_field.gradient import _cuts
from adcore.papers.heckler2023.receptive_field.network import extract

RESNET_18 = ("layer1.1.relu_1", "layer2.1.relu_1", "layer3.1.relu_1", "layer4.1.relu_1")
RESNET_50 = TABLE_2["wide_resnet50_2"]


def narrow_resnet(block=Bottleneck, layers=(3, 4, 6, 3), **kwargs):
    """A ResNet with the depth and geometry of ResNet-50, narrow bottlenecks, random weights from seed 0."""
    torch.manual_seed(0)
    return ResNet(block, list(layers), width_per_group=4, **kwargs)


class Toy(nn.Module):
    """conv 3 stride 1, conv 3 stride 2, pool 2, then two branches: conv 1, and conv 5 with dilation 2."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.act = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.narrow = nn.Conv2d(4, 4, 1)
        self.wide = nn.Conv2d(4, 4, 5, padding=4, dilation=2)

    def forward(self, x):
        x = self.pool(self.act(self.second(self.act(self.first(x)))))
        return torch.cat([self.narrow(x), self.wide(x)], 1)


# ---------------------------------------------------------------- arithmetic


def test_the_fields_of_a_toy_network_equal_those_by_hand():
    # size, stride: conv 3 -> 3, 1; conv 3 / 2 -> 5, 2; pool 2 / 2 -> 7, 4; conv 5 dilated by 2 -> 7 + 4 * 2 * 4 = 39
    fields = analytic(Toy(), ["first", "second", "pool", "narrow", "wide", "cat"])
    assert [(f.size, f.stride) for f in fields.values()] == [(3, 1), (5, 2), (7, 4), (7, 4), (39, 4), (39, 4)]
    assert [f.start for f in fields.values()] == [(-1, -1), (-2, -2), (-2, -2), (-2, -2), (-18, -18), (-18, -18)]
    assert fields["pool"].box((0, 0)) == (-2, -2, 5, 5) and fields["pool"].box((1, 2)) == (2, 6, 9, 13)
    assert fields["pool"].relative(70) == 0.1 and fields["pool"].relative((35, 70)) == 0.2


def test_a_list_of_layers_is_followed_in_order_with_separate_axes():
    layers = [nn.Conv2d(3, 8, (1, 7), padding="same"), nn.BatchNorm2d(8), nn.SiLU(),
              nn.Conv2d(8, 8, (3, 1), stride=(2, 1)), nn.Sequential(nn.AvgPool2d(2), nn.Dropout())]
    fields = analytic(layers)
    assert list(fields) == ["0", "1", "2", "3", "4"]
    assert fields["0"] == fields["2"] == Field(low=(0, -3), high=(0, 3), jump=(1, 1))
    assert fields["3"] == Field(low=(0, -3), high=(2, 3), jump=(2, 1))
    assert fields["4"] == Field(low=(0, -3), high=(4, 4), jump=(4, 2))
    assert fields["4"].size == 8 and fields["4"].stride == 4


@pytest.mark.parametrize(("name", "taps", "sizes"), [
    ("resnet18", RESNET_18, (43, 99, 211, 435)),
    ("resnet50", TABLE_2["resnet50"], (35, 91, 267, 427)),
    ("wide_resnet50_2", TABLE_2["wide_resnet50_2"], (35, 91, 267, 427)),
    ("densenet201", TABLE_2["densenet201"], (59, 255, 1799, 3863)),
    ("efficientnet_b5", TABLE_2["efficientnet_b5"], (51, 195, 851, 1939)),
])
def test_the_taps_of_table_2_have_the_known_sizes_and_strides(name, taps, sizes):
    with torch.device("meta"):                                          # geometry needs no weights
        fields = analytic(getattr(models, name)(), taps)
    assert tuple(field.size for field in fields.values()) == sizes
    assert tuple(field.stride for field in fields.values()) == (4, 8, 16, 32)


def test_timm_networks_are_followed_through_their_own_layers_and_gates():
    # EfficientNet-Lite0, kernels 3 / 2, 3 | 3 / 2, 3 | 5 / 2, 5: 3 7, 11 19, 35 67 (every k adds (k - 1) * stride)
    lite = analytic(timm.create_model("tf_efficientnet_lite0"), ["blocks.0", "blocks.1", "blocks.2"])
    assert [field.size for field in lite.values()] == [7, 19, 67]
    gated = analytic(timm.create_model("efficientnet_b0"), ["blocks.0", "blocks.1", "blocks.2"])
    assert [field.size for field in gated.values()] == [7, 19, 67]      # the same layers, with squeeze-and-excitation


def test_with_tensorflow_padding_the_field_is_where_the_gradient_is():
    network, taps = timm.create_model("tf_efficientnet_lite0"), ["blocks.0", "blocks.2"]
    fields = analytic(network, taps)
    for tap, field in measure(linearized(network), taps, 192, threshold=0, border=0).items():
        cell = (192 // field.stride - 1) // 2
        assert field.box == fields[tap].box((cell, cell))


# ---------------------------------------------------------------- gradient


@pytest.mark.parametrize(("network", "taps", "sizes"), [
    (lambda: models.resnet18(), RESNET_18, (43, 99, 211, 435)),
    (narrow_resnet, RESNET_50, (35, 91, 267, 427)),
], ids=["ResNet-18", "Wide ResNet-50, narrowed"])
def test_the_measured_box_of_a_linearized_resnet_equals_the_analytic_one(network, taps, sizes):
    network = network()
    measured = measure(linearized(network), taps, size=512, threshold=0, border=0)
    fields = analytic(network, taps)
    assert tuple(field.size for field in measured.values()) == sizes
    for tap, field in measured.items():
        cell = (512 // field.stride - 1) // 2                            # the first of the two middle ones
        assert field.box == fields[tap].box((cell, cell)) and not field.clipped


def test_the_measured_field_of_linearized_networks_with_gates_or_branches_equals_the_analytic_one():
    torch.manual_seed(0)
    for network, taps in [(models.DenseNet(4, (2, 2, 2, 2), 8), TABLE_2["densenet201"][:3]),
                          (models.efficientnet_b0(), ("features.2.1.add", "features.3.1.add")),
                          (Toy(), ("first", "pool", "cat"))]:
        measured = measure(linearized(network), taps, size=288, threshold=0, border=0, dtype=torch.float64)
        assert {t: f.size for t, f in measured.items()} == {t: f.size for t, f in analytic(network, taps).items()}


def test_only_squeeze_and_excitation_gives_a_gradient_outside_the_analytic_field():
    torch.manual_seed(0)
    network, tap = models.efficientnet_b0().eval(), "features.2.1.add"
    image = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(1))
    top, left, bottom, right = analytic(network, [tap])[tap].box((19, 19))
    inside = np.zeros((160, 160), bool)
    inside[top:bottom, left:right] = True
    gated, free = (measure(net, [tap], image=image, threshold=0, border=0)[tap] for net in (network, ungated(network)))
    assert (free.gradient[~inside] == 0).all() and free.box == (top, left, bottom, right)
    assert (gated.gradient[~inside] > 0).mean() > 0.95 and gated.clipped
    assert len([m for m in network.modules() if type(m).__name__ == "SqueezeExcitation"]) == 16, "not changed"


@pytest.mark.parametrize("network", [lambda: models.resnet18(), narrow_resnet], ids=["ResNet-18", "ResNet-50"])
def test_the_measured_field_of_a_resnet_lies_within_the_analytic_one(network):
    torch.manual_seed(0)
    network = network()
    taps = RESNET_18 if isinstance(network.layer1[0], BasicBlock) else RESNET_50
    image = torch.randn(1, 3, 512, 512, generator=torch.Generator().manual_seed(1))
    fields = analytic(network, taps)
    for tap, field in measure(network, taps, threshold=0, border=0, image=image).items():
        cell = (512 // field.stride - 1) // 2
        top, left, bottom, right = fields[tap].box((cell, cell))
        assert top <= field.box[0] and left <= field.box[1] and field.box[2] <= bottom and field.box[3] <= right
        assert 0.9 * fields[tap].size <= field.size                      # and is hardly smaller, without a threshold


def whole_image(network, tap, image):
    """Gradient norm of the center's channel mean computed on the whole image: (H, W), maximum 1."""
    pixels = image.clone().requires_grad_()
    features = extract(network, [tap])(pixels)[tap]
    y, x = ((n - 1) // 2 for n in features.shape[2:])
    (gradient,) = torch.autograd.grad(features[0, :, y, x].mean(), pixels)
    norm = torch.linalg.vector_norm(gradient[0], dim=0)
    return (norm / norm.max()).numpy()


@pytest.mark.parametrize(("network", "taps", "size"), [
    (lambda: models.resnet18(), RESNET_18, (448, 512)),
    (narrow_resnet, [*RESNET_50[:3], "layer3.2.add"], (384, 320)),
    (lambda: timm.create_model("tf_efficientnet_lite0"), ["blocks.0", "blocks.1", "blocks.2"], (256, 192)),
    (lambda: models.DenseNet(4, (2, 2, 2, 2), 8), TABLE_2["densenet201"][:3], (256, 256)),
    (Toy, ["first", "pool", "cat"], (64, 84)),
], ids=["ResNet-18", "ResNet-50", "TensorFlow's padding", "DenseNet", "branches"])
def test_computing_on_a_part_of_the_image_gives_the_gradient_of_the_whole_image(network, taps, size):
    torch.manual_seed(0)
    network = network().eval().double()
    image = torch.randn(1, 3, *size, dtype=torch.float64)
    cuts = _cuts(extract(network, taps), list(taps), size)
    assert cuts[taps[0]].is_part and cuts[taps[0]].box != (0, 0, *size)
    for tap, field in measure(network, taps, image=image, threshold=0, border=0, dtype=torch.float64).items():
        np.testing.assert_allclose(field.gradient, whole_image(network, tap, image), rtol=1e-6, atol=1e-12)


class Shuffled(nn.Module):
    def forward(self, x):
        return torch.roll(x, 3)


@pytest.mark.parametrize("layer", [lambda: nn.GroupNorm(1, 3), lambda: models.efficientnet_b0().features[1][0].block[1],
                                   lambda: nn.BatchNorm2d(3, track_running_stats=False), lambda: nn.Softmax(-1), Shuffled],
                         ids=["group norm", "gate", "batch statistics", "softmax", "unknown"])
def test_a_network_that_uses_statistics_of_the_map_is_measured_on_the_whole_image(layer):
    torch.manual_seed(0)
    layer = layer()
    channels = 32 if isinstance(layer, SqueezeExcitation) else 3
    network = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), layer, nn.Conv2d(channels, 2, 3, padding=1)).eval().double()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    tap = "2"
    assert not _cuts(extract(network, [tap]), [tap], (32, 32))[tap].is_part
    field = measure(network, [tap], image=image, threshold=0, border=0, dtype=torch.float64)[tap]
    np.testing.assert_allclose(field.gradient, whole_image(network, tap, image), rtol=1e-6, atol=1e-12)


def test_the_gradient_of_the_center_s_channel_mean_equals_finite_differences():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.BatchNorm2d(5), nn.SiLU(), nn.Conv2d(5, 4, 3))
    network[1].running_mean.uniform_(-1, 1), network[1].running_var.uniform_(0.5, 2)
    network.eval().double()
    field = measure(network, ["3"], size=(9, 12), border=0, threshold=0, relative=False, dtype=torch.float64)["3"]

    def center(image):
        return network(image).mean(1)[0, 1, 1].item()                    # 3 x 4 cells: 3 // 2 and 4 // 2 - 1

    expected = np.zeros((9, 12))
    for y in range(9):
        for x in range(12):
            slopes = []
            for color in range(3):
                step = torch.zeros(1, 3, 9, 12, dtype=torch.float64)
                step[0, color, y, x] = 1e-5
                slopes.append((center(step) - center(-step)) / 2e-5)
            expected[y, x] = np.linalg.norm(slopes)
    np.testing.assert_allclose(field.gradient, expected, atol=1e-8)
    rows, columns = np.nonzero(expected > 1e-9)
    assert field.box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    assert (field.channels, field.stride, field.size) == (4, 3, 7)


def weighted(weights):
    """One convolution with a known gradient: the same (k, k) weights for three colors."""
    layer = nn.Conv2d(3, 1, len(weights), padding=len(weights) // 2, bias=False)
    layer.weight.data[:] = torch.tensor(weights, dtype=torch.float32) / 3**0.5       # the norm over colors is |weight|
    return nn.Sequential(layer)


ROW_AND_COLUMN = [[0, 0, 0, 0, 0], [0, 0, 0.5, 0, 0], [0.004, 0.03, 2, 0.03, 0.004], [0, 0, 0.5, 0, 0], [0, 0, 0, 0, 0]]


def test_the_threshold_is_relative_to_the_largest_gradient_by_default():
    network = weighted(ROW_AND_COLUMN)
    field = measure(network, ["0"], 33)["0"]                              # 0.03 / 2 passes 1e-2, 0.004 / 2 does not
    assert field.box == (15, 15, 18, 18) and field.gradient.max() == 1
    assert measure(network, ["0"], 33, threshold=0.2)["0"].box == (15, 16, 18, 17)
    assert measure(network, ["0"], 33, threshold=0.2)["0"].size == 3      # the longer side
    assert measure(network, ["0"], 33, threshold=0.003, relative=False)["0"].box == (15, 14, 18, 19)
    assert measure(network, ["0"], 33, threshold=0.003, relative=False)["0"].gradient.max() == pytest.approx(2)


def test_a_field_that_reaches_the_border_is_marked_as_clipped():
    network = linearized(nn.Sequential(nn.Conv2d(3, 2, 21, padding=10)))
    assert measure(network, ["0"], 41, border=8)["0"].box == (10, 10, 31, 31)
    assert not measure(network, ["0"], 41, border=8)["0"].clipped
    clipped = measure(network, ["0"], 31, border=8)["0"]
    assert clipped.box == (8, 8, 23, 23) and clipped.clipped
    assert clipped.relative(31) == 15 / 31


def test_the_first_of_two_middle_cells_is_the_center():
    for n, center in [(8, 3), (9, 4)]:
        assert measure(weighted([[1.0]]), ["0"], n, border=0)["0"].box == (center, center, center + 1, center + 1)


def test_images_need_not_be_square():
    network = linearized(narrow_resnet())
    field = measure(network, RESNET_50[:2], size=(128, 192), threshold=0, border=0)[RESNET_50[1]]
    assert field.gradient.shape == (128, 192) and field.gradient.dtype == np.float32
    assert field.size == 91 and field.relative((128, 192)) == 91 / 128
    assert field.box == (11, 43, 102, 134)                               # centered on cells (7, 11) of 16 x 24, stride 8


def test_one_call_for_all_taps_equals_one_call_per_tap():
    network = narrow_resnet()
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    together = measure(network, RESNET_50[:3], image=image)
    for tap in RESNET_50[:3:2]:
        alone = measure(network, tap, image=image)[tap]
        assert alone.box == together[tap].box
        np.testing.assert_allclose(alone.gradient, together[tap].gradient, atol=1e-5)


def test_measuring_does_not_change_the_model():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 3)).train()
    before = copy.deepcopy(network.state_dict())
    assert measure(network, ["1"], 24, border=0)["1"].size == 3
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training and all(module.training for module in network)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert network[2].inplace and type(network[1]) is nn.BatchNorm2d


def test_an_in_place_layer_after_a_tap_does_not_change_the_tapped_map():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 2, 3))
    with torch.no_grad():
        network[0].bias[:] = torch.tensor([-1, 1, -1, 1, -1, 1])         # the ReLU closes every second channel
    alone, followed = measure(network, ["1"], 24)["1"], measure(network, ["1", "3"], 24)["1"]
    np.testing.assert_allclose(followed.gradient, alone.gradient, atol=1e-6)


def test_paths_that_cancel_in_a_network_add_up_in_its_linearized_copy():
    network = nn.Sequential(nn.Conv2d(3, 2, 3))
    with torch.no_grad():
        network[0].weight[1] = -network[0].weight[0]                     # the channel mean is 0 for every image
    with pytest.raises(ParameterError, match="is zero everywhere"):
        measure(network, ["0"], 24)
    assert measure(linearized(network), ["0"], 24, threshold=0)["0"].size == 3


# ---------------------------------------------------------------- messages


def test_a_tap_that_does_not_exist_is_refused_with_similar_names():
    for function in (lambda taps: analytic(narrow_resnet(), taps), lambda taps: measure(narrow_resnet(), taps, 64)):
        with pytest.raises(ParameterError, match=r"ResNet has no node 'layer1.2.relu_3': the nearest are .*layer1.2.relu_2"):
            function(["layer1.2.relu_3"])
    with pytest.raises(ParameterError, match=r"'layer1\.2' contains 'layer1\.2\.relu_2': name the node itself"):
        analytic(narrow_resnet(), ["layer1.2.relu_2", "layer1.2"])
    with pytest.raises(ParameterError, match="no taps given"):
        analytic(narrow_resnet(), [])
    with pytest.raises(ParameterError, match="analytic needs the taps of a network"):
        analytic(narrow_resnet())


def test_a_network_with_random_weights_and_an_empty_image_is_refused_with_what_to_do():
    with pytest.raises(ParameterError, match=r"gradient of 'layer1.2.relu_2' is zero everywhere.*image=torch.randn"):
        measure(narrow_resnet(), RESNET_50, 64)


def test_a_residual_network_whose_last_batch_norms_scale_by_zero_gives_a_warning():
    image = torch.randn(1, 3, 96, 96)
    with pytest.warns(UserWarning, match=r"3 batch norms \(the first is 'layer1.0.bn3'\) scale by zero"):
        field = measure(narrow_resnet(zero_init_residual=True), RESNET_50[0], image=image)[RESNET_50[0]]
    assert field.size == 11                                              # the stem alone: conv 7 / 2, pool 3 / 2


def test_a_globally_pooled_tap_has_no_receptive_field():
    with pytest.raises(ParameterError, match="'avgpool' sees the whole image"):
        analytic(narrow_resnet(), ["avgpool"])
    with pytest.raises(ParameterError, match=r"'fc' is \(1, 1000\), expected a map \(B, C, H, W\)"):
        measure(narrow_resnet(), ["fc"], 64)


def test_a_layer_of_unknown_geometry_is_named():
    with pytest.raises(ParameterError, match=r"cannot follow layer '1' \(Upsample\)"):
        analytic([nn.Conv2d(3, 3, 3), nn.Upsample(scale_factor=2)])


class Folded(nn.Module):
    def forward(self, x):
        return torch.roll(x, 3) if x.sum() > 0 else x


class Rolled(nn.Module):
    def forward(self, x):
        return torch.roll(x, 3)


class Crossed(nn.Module):
    def forward(self, x):
        return x + x.mean((2, 3), keepdim=True)


class Strides(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, stride=2)

    def forward(self, x):
        return self.a(x) + self.b(x)


def test_a_graph_that_cannot_be_followed_is_refused():
    with pytest.raises(ParameterError, match="cannot trace Folded"):
        analytic(Folded(), ["roll"])
    with pytest.raises(ParameterError, match="cannot follow 'roll'"):
        analytic(Rolled(), ["roll"])
    with pytest.raises(ParameterError, match="cannot follow 'add'"):                   # an added global value is not a gate
        analytic(Crossed(), ["add"])
    with pytest.raises(ParameterError, match="joins branches of strides"):
        analytic(Strides(), ["add"])
    with pytest.raises(ParameterError, match="cannot linearize '0'"):
        linearized(nn.Sequential(nn.MaxPool2d(3, dilation=2)))


@pytest.mark.parametrize("options", [{"size": 16}, {"size": 64, "border": -1}, {"size": 64, "threshold": -0.1}])
def test_a_size_border_or_threshold_that_leaves_no_pixel_is_refused(options):
    with pytest.raises(ParameterError, match="nothing to measure: size"):
        measure(weighted([[1.0]]), ["0"], **options)


def test_a_threshold_above_every_gradient_is_refused():
    with pytest.raises(ParameterError, match=r"no gradient of '0' reaches 3 inside a border of 8 \(the largest is 2\)"):
        measure(weighted(ROW_AND_COLUMN), ["0"], 33, threshold=3, relative=False)
