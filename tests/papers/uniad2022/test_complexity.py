"""Table S7 of uniad2022: parameters and operations, counted on paper and by torch's own counter."""

from __future__ import annotations

import pytest
import timm
import torch
from pytest import approx
from torch import nn

from adcore.papers import published
from adcore.papers.uniad2022.baselines import CNNConfig, CNNNetwork, MLPConfig, MLPNetwork, TransformerConfig
from adcore.papers.uniad2022.complexity import flops, linear_weights, padim_parameters, parameters, uniad_cost
from adcore.papers.uniad2022.transformer import Attention
from adcore.papers.uniad2022.uniad import UniADConfig, UniADNetwork

CHANNELS = 24 + 32 + 56 + 160     # EfficientNet-b4, stages 1 to 4
D, FFN, TOKENS = 256, 1024, 14 * 14


def network() -> UniADNetwork:
    with torch.device("meta"):
        return UniADNetwork(CHANNELS, (14, 14), UniADConfig(nma=False)).eval()


def printed(row: str, column: str) -> float:
    cells = published("uniad2022.table_s7")
    return float(cells[(cells["row"] == row) & (cells["column"] == column)]["value"].item())


def test_uniad_has_7_479_296_weights_of_linear_maps_which_is_the_papers_count():
    on_paper = 2 * CHANNELS * D + 4 * (4 * D * D + 2 * D * FFN) + 4 * (2 * 4 * D * D + 2 * D * FFN)
    assert linear_weights(network()) == on_paper == 7_479_296
    assert round(on_paper / 1e6, 2) == printed("Learnable Params(M)", "Ours")


def test_uniad_has_7_717_392_trainable_values_and_7_516_688_without_its_queries():
    queries = 4 * TOKENS * D
    biases = D + CHANNELS + 4 * (4 * D + FFN + D) + 4 * (8 * D + FFN + D)
    norms = 2 * D * (4 * 2 + 4 * 3 + 1)
    positions = (14 + 14) * D // 2
    assert parameters(network()) == 7_479_296 + biases + norms + positions + queries == 7_717_392
    assert parameters(network()) - queries == 7_516_688


def test_frozen_values_are_not_counted_as_trainable():
    module = nn.Linear(3, 2).requires_grad_(False)
    assert (parameters(module), linear_weights(module)) == (0, 6)


def test_uniad_takes_6_41_gflops_by_the_formula_with_the_backbone_as_torch_counts_it():
    with torch.device("meta"):
        backbone = timm.create_model("tf_efficientnet_b4").eval()
    counted = flops(backbone, torch.zeros(1, 3, 224, 224, device="meta"))
    assert counted / 2e9 == approx(1.50, abs=0.005)
    cost = uniad_cost(network(), UniADConfig(), counted)
    assert cost.linear == TOKENS * 7_479_296
    assert cost.attention == 12 * 2 * TOKENS * TOKENS * D
    assert round(cost.flops / 1e9, 2) == 6.41
    assert abs(cost.flops / 1e9 - printed("FLOPs(G)", "Ours")) < 0.06


def test_the_formula_without_backbone_equals_torchs_count_of_a_forward_pass():
    cost = uniad_cost(network(), UniADConfig(), 0)
    assert flops(network(), torch.zeros(1, TOKENS, CHANNELS, device="meta")) == cost.flops


def test_torchs_counter_takes_two_operations_per_multiply_add_of_a_convolution():
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    assert flops(convolution, torch.zeros(2, 3, 8, 10)) == 2 * (2 * 8 * 10) * (3 * 3 * 3 * 5)


def test_padim_learns_a_mean_and_a_covariance_at_each_of_56_x_56_positions():
    assert padim_parameters() == 950_364_800
    assert padim_parameters(2, 3, 5) == 3 * 5 * (2 + 4)
    assert round(padim_parameters() / 1e6, 2) == printed("Learnable Params(M)", "PaDiM")


@pytest.mark.parametrize(("network", "config"), [(MLPNetwork, MLPConfig), (CNNNetwork, CNNConfig),
                                                 (UniADNetwork, TransformerConfig)], ids=["mlp", "cnn", "transformer"])
def test_the_baselines_operations_follow_from_their_weights_and_positions(network, config):
    baseline = network(CHANNELS, (14, 14), config()).eval()
    # Every weight of a linear or convolutional map is used once per cell: strides are 1, and torch counts padding as cells.
    weights = sum(p.numel() for name, p in baseline.named_parameters() if p.ndim > 1 and name.split(".")[0] not in (
        "query", "position"))
    attentions = sum(isinstance(module, Attention) for module in baseline.modules())
    assert flops(baseline, torch.randn(1, TOKENS, CHANNELS)) == 2 * (TOKENS * weights + attentions * 2 * TOKENS**2 * D)
