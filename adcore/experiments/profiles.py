"""Profiles: the settings of a quick run, of an open one and of the paper. They change numbers, never code paths.

    quick  embedded data, cut-down sizes: the method's `quick` settings, a part of `mini`
    open   the paper's settings, but for those that need a download: the method's `open` settings, such as another backbone
    paper  the paper's own settings, which are the defaults of the method's config
"""

from __future__ import annotations

from typing import Any

from adcore.detector import Detector
from adcore.errors import ParameterError, did_you_mean
from adcore.models import METHODS

PROFILES = ("quick", "open", "paper")

# Images of each category of `mini` in the quick profile; the paper profile takes all there are.
QUICK_MINI = {"train": 40, "good": 12, "defective": 18}


def method_named(name: str) -> type[Detector]:
    """A method's class. Raises ParameterError for an unknown name."""
    if name not in METHODS:
        raise ParameterError(f"unknown method '{name}'{did_you_mean(str(name), METHODS)}; there are {', '.join(METHODS)}")
    return METHODS[name]


def profile_settings(method: type[Detector], profile: str) -> dict[str, Any]:
    """The settings in which a profile differs from the config's defaults. Raises ParameterError for an unknown profile."""
    if profile not in PROFILES:
        raise ParameterError(f"unknown profile '{profile}': use {', '.join(PROFILES)}")
    return dict({"quick": method.quick, "open": method.open, "paper": {}}[profile])


def data_options(dataset: str, profile: str) -> dict[str, Any]:
    """How many images of a data set a profile reads, as options of `load_dataset`."""
    return dict(QUICK_MINI) if dataset == "mini" and profile == "quick" else {}
