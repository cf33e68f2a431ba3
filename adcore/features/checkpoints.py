"""Names of tensors in the checkpoints of others, and their names in the networks here.

    EfficientNet-PyTorch   _blocks.7._bn1.weight                       -> blocks.3.1.bn2.weight
    DenseNet, torchvision  denselayer1.norm.1.weight                   -> denselayer1.norm1.weight
    MoCo v2                encoder_q.layer1.0.conv1.weight             -> layer1.0.conv1.weight
                           encoder_q.fc.*, encoder_k.*, queue*         -> left out
    SwAV, SeLa v2          projection_head.*, prototypes*              -> left out
    SimCLR, converted      the names of torchvision
    DS2, CutPaste, ours    encoder.layer1.0.conv1.weight               -> layer1.0.conv1.weight
    a part of a network    model.backbone.layer1.0.conv1.weight        -> layer1.0.conv1.weight

Only the tensors listed above are left out; `weights.load_weights` refuses others that do not fit the part of a network in use.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

from torch import Tensor

_MOCO = re.compile(r"encoder_q\.fc\.[02]\.(weight|bias)|encoder_k\..+|queue(_ptr)?")
_SWAV = re.compile(r"projection_head\.[013]\.\w+|prototypes(\.prototypes\d+)?\.weight")


def without_prefix(state: Mapping[str, Tensor], parts: Collection[str]) -> dict[str, Tensor]:
    """A state dict without the prefixes that all names share, such as `module.`, `model.`, `backbone.` or `_orig_mod.`.

    parts  names of the network's own outermost modules, which are no prefixes

    >>> import torch
    >>> list(without_prefix({"module.net.conv1.bias": torch.zeros(2)}, ["conv1", "layer1"]))
    ['conv1.bias']
    """
    shared = {key.partition(".")[0] for key in state}
    if len(shared) != 1 or shared & {*parts, "encoder_q"} or not all("." in key for key in state):  # encoder_q: see `translate`
        return dict(state)
    return without_prefix({key.partition(".")[2]: value for key, value in state.items()}, parts)


def part_of(state: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of one part of a larger network, without its prefix: `backbone.conv1.weight` beside `head.weight`.

    names  of the network's own tensors; the part is the one that has most of them. If two have equally many, all is returned

    >>> import torch
    >>> list(part_of(dict.fromkeys(["backbone.conv1.bias", "backbone.bn1.bias", "fc.bias"], torch.zeros(2)),
    ...              ["conv1.bias", "bn1.bias", "fc.bias"]))
    ['conv1.bias', 'bn1.bias']
    """
    found: Counter[str] = Counter()
    for key in state:
        starts = [0, *(i + 1 for i, letter in enumerate(key) if letter == ".")]
        start = next((start for start in starts if key[start:] in names), None)
        found.update([] if start is None else [key[:start]])
    (prefix, most), (_, next_most) = [*found.most_common(2), ("", 0), ("", 0)][:2]
    if not prefix or most == next_most:
        return dict(state)
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def translate(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """A state dict with the networks' names, and whether it has a classifier.

    The trainer that wrote it is recognized by its names. Parts that only its pretraining needs (momentum encoder, queue,
    projection head, prototypes) are left out; such a checkpoint has no classifier.

    >>> import torch
    >>> translate({"encoder.conv1.bias": torch.zeros(2)})
    ({'conv1.bias': tensor([0., 0.])}, False)
    """
    if any(key.startswith("_blocks.") for key in state):
        return rename_efficientnet(state), True
    if any(key.startswith("encoder_q.") for key in state):
        return {key.removeprefix("encoder_q."): value for key, value in state.items() if not _MOCO.fullmatch(key)}, False
    if all(key.startswith("encoder.") for key in state):
        return {key.removeprefix("encoder."): value for key, value in state.items()}, False
    if any(key.startswith(("projection_head.", "prototypes.")) for key in state):
        return {key: value for key, value in state.items() if not _SWAV.fullmatch(key)}, False
    return {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d+)", r"\1\2", key): value for key, value in state.items()}, True


def rename_efficientnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the EfficientNet-PyTorch family (`_blocks.7._bn1`) in timm's form (`blocks.3.1.bn2`).

    The stage of a block follows from the shapes: a stage begins at a block whose number of output channels differs from its
    number of input channels, since such a block cannot repeat the one before.

    >>> import torch
    >>> list(rename_efficientnet({"_conv_stem.weight": torch.zeros(8, 3, 3, 3), "_blocks.0._bn2.bias": torch.zeros(4),
    ...                           "_blocks.0._project_conv.weight": torch.zeros(4, 8, 1, 1)}))
    ['conv_stem.weight', 'blocks.0.0.bn2.bias', 'blocks.0.0.conv_pw.weight']
    """
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}
    squeeze = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    places = _stages_of(state)
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            stage, index = places[int(parts[1])]
            inside = {**(first if stage == 0 else later), **squeeze}
            renamed[".".join(["blocks", str(stage), str(index), inside[parts[2]], *parts[3:]])] = value
        else:
            renamed[".".join([outside.get(parts[0], parts[0]), *parts[1:]])] = value
    return renamed


def _stages_of(state: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Index of a block in the whole network -> (stage, index in the stage)."""
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))
    places: dict[int, tuple[int, int]] = {}
    stage, index, width = -1, 0, state["_conv_stem.weight"].shape[0]
    for block in range(count):
        out = state[f"_blocks.{block}._project_conv.weight"].shape[0]
        stage, index = (stage + 1, 0) if block == 0 or out != width else (stage, index + 1)
        places[block] = (stage, index)
        width = out
    return places
