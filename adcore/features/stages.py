"""Fine-tuning of some stages of a backbone; the others stay frozen."""

from __future__ import annotations

from collections.abc import Sequence

from adcore.errors import ParameterError
from adcore.features.extractor import FeatureExtractor


def train_only(extractor: FeatureExtractor, stages: Sequence[int]) -> None:
    """Train only these stages: all other parameters of the network get no gradient.

    >>> extractor = FeatureExtractor("resnet18", (2,), "random", frozen=False)
    >>> train_only(extractor, [2])
    >>> {name.split(".")[0] for name, parameter in extractor.network.named_parameters() if parameter.requires_grad}
    {'layer2'}

    Raises:
        ParameterError: see `stage_parameters`.
    """
    chosen = set(stage_parameters(extractor, stages))
    for name, parameter in extractor.network.named_parameters():
        parameter.requires_grad_(name in chosen)


def stage_parameters(extractor: FeatureExtractor, stages: Sequence[int]) -> list[str]:
    """Names of the network's parameters in some stages: those after the end of the previous stage, up to the stage's own end.

    >>> extractor = FeatureExtractor("resnet18", (2,), "random")
    >>> stage_parameters(extractor, [1])[:2]
    ['conv1.weight', 'bn1.weight']

    Raises:
        ParameterError: a stage that the backbone does not have by number, or a stage after the last tap.
    """
    names, ends = [name for name, _ in extractor.network.named_parameters()], extractor.backbone.stages   # in forward order
    found: list[str] = []
    for stage in stages:
        if stage not in ends:
            raise ParameterError(f"stage {stage!r} of backbone '{extractor.backbone.name}' cannot be fine-tuned: set tuned to "
                                 f"some of its stages {', '.join(map(str, ends)) or '(none has a number)'}")
        last = [_last(names, ends[number]) for number in (stage - 1, stage) if number in ends]
        if last[-1] == 0:
            raise ParameterError(f"stage {stage} of backbone '{extractor.backbone.name}' comes after the last of the taps "
                                 f"{extractor.taps}: there is nothing to fine-tune")
        found += names[last[0] if len(last) == 2 else 0:last[-1]]
    return found


def _last(names: list[str], node: str) -> int:
    return max((i + 1 for i, name in enumerate(names) if name.startswith(f"{node}.")), default=0)
