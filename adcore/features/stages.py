"""Fine-tuning some stages of a backbone and leaving the others as they are."""

from __future__ import annotations

from collections.abc import Sequence

from adcore.errors import ParameterError
from adcore.features.extractor import FeatureExtractor


def train_only(extractor: FeatureExtractor, stages: Sequence[int]) -> None:
    """Let gradients reach these stages alone.

    Raises:
        ParameterError: see `stage_parameters`.
    """
    chosen = set(stage_parameters(extractor, stages))
    for name, parameter in extractor.network.named_parameters():
        parameter.requires_grad_(name in chosen)


def stage_parameters(extractor: FeatureExtractor, stages: Sequence[int]) -> list[str]:
    """Names of the network's parameters in some stages: those behind the end of the stage before, up to the stage's own end.

    Raises:
        ParameterError: a stage that the backbone does not have by number, or that lies behind the last tap.
    """
    names, ends = [name for name, _ in extractor.network.named_parameters()], extractor.backbone.stages   # in forward order
    found: list[str] = []
    for stage in stages:
        if stage not in ends:
            raise ParameterError(f"stage {stage!r} of backbone '{extractor.backbone.name}' cannot be fine-tuned: set tuned to "
                                 f"some of its stages {', '.join(map(str, ends)) or '(none known by number)'}")
        last = [_last(names, ends[number]) for number in (stage - 1, stage) if number in ends]
        if last[-1] == 0:
            raise ParameterError(f"stage {stage} of backbone '{extractor.backbone.name}' lies behind the last of taps "
                                 f"{extractor.taps}: there is nothing to fine-tune")
        found += names[last[0] if len(last) == 2 else 0:last[-1]]
    return found


def _last(names: list[str], node: str) -> int:
    return max((i + 1 for i, name in enumerate(names) if name.startswith(f"{node}.")), default=0)
