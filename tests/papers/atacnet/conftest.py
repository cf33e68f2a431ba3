"""A fixture of all tests of few-shot methods."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.tiny import shared_extractor

from adcore.features import FeatureExtractor
from adcore.papers.atacnet import few_shot


def copied_extractor(*args: Any, **named: Any) -> FeatureExtractor:
    """A new extractor with the weights of one that is built once. `deepcopy` keeps neither eval mode nor the memory format."""
    return copy.deepcopy(shared_extractor(*args, **named)).eval().to(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a backbone takes longer than most tests, and the methods train theirs. Each detector gets a copy of one."""
    monkeypatch.setattr(few_shot, "FeatureExtractor", copied_extractor)
