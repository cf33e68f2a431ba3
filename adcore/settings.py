"""Settings of a method: plain values, whose names, types and ranges are checked in one place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from adcore.errors import ParameterError

SIZES = ("image_size", "crop")  # settings that take a side in pixels, a pair (H, W), or None for no crop
TOO_LARGE = 2**63               # for an integer of torch


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a setting takes, or each item of a tuple. Only finite numbers are inside.

    least, most   the smallest and the largest
    above, below  limits that are not allowed themselves
    items         smallest and largest length of a tuple

    >>> str(Range(least=0, below=1)), 0.0 in Range(least=0, below=1), float("nan") in Range()
    ('at least 0 and below 1', True, False)
    """

    least: float = -math.inf
    above: float = -math.inf
    below: float = math.inf
    most: float = math.inf
    items: tuple[int, float] = (0, math.inf)

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most and self.above < number < self.below

    def __str__(self) -> str:
        limits = (("at least", self.least), ("above", self.above), ("below", self.below), ("at most", self.most))
        return " and ".join(f"{word} {limit}" for word, limit in limits if math.isfinite(limit)) or "a finite number"

    @property
    def length(self) -> str:
        """The allowed lengths of a tuple, in words."""
        fewest, most = self.items
        return f"{'' if fewest == most else 'at least '}{fewest} item{'s' if fewest > 1 else ''}"


# The upper limits are far above anything useful: a typing error gets a sentence before it fills the memory.
IMAGE_SIDE = Range(least=1, most=2**14)  # in pixels
WIDTH = Range(least=1, most=2**16)       # channels, dimensions, or images at a time
DEPTH = Range(least=1, most=2**10)       # layers, blocks or steps of a network


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a method. Defaults are the paper's own. A config adds its choices and ranges to those of its base class.

    choices  setting -> its allowed values, for each setting that takes one of a few words
    ranges   setting -> the numbers that it takes, for each setting that is a number or a tuple of numbers

    A number of numpy becomes a plain one, a list becomes a tuple, a path becomes text, and 20 becomes 20.0 for a float.
    Experiments are named by their settings, so that each value has one spelling.

    Raises:
        ParameterError: a value of another type than the default, or outside its choices or its range.
    """

    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    ranges: ClassVar[Mapping[str, Range]] = {
        "image_size": IMAGE_SIDE, "crop": IMAGE_SIDE, "taps": Range(least=1, items=(1, math.inf)), "tuned": Range(least=1),
        "epochs": Range(least=0), "batch_size": WIDTH, "lr": Range(above=0), "lr_drop": Range(least=1),
        "weight_decay": Range(least=0), "momentum": Range(least=0, below=1), "clip_norm": Range(above=0),
        "dropout": Range(least=0, below=1), "hidden": WIDTH}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for table in ("choices", "ranges"):
            bases = [vars(base).get(table, {}) for base in reversed(cls.__mro__)]
            setattr(cls, table, {name: value for base in bases for name, value in base.items()})

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, self._checked(field.name, field.default, getattr(self, field.name)))

    @classmethod
    def make(cls, values: Mapping[str, Any]) -> Any:
        """A config made from plain values, such as those of a JSON file, whose names, types and ranges are checked.

        Raises:
            ParameterError: a name that the method does not have; see the class.
        """
        known = sorted(field.name for field in fields(cls))
        for name in values:
            if name not in known:
                raise ParameterError(f"{cls.__qualname__} has no setting '{name}'; it has {', '.join(known)}")
        return cls(**values)

    def values(self) -> dict[str, Any]:
        """All settings, as a result stores them."""
        return asdict(self)

    def refused(self, message: str) -> ParameterError:
        """The error for settings that do not fit together, with the config's name before the message."""
        return ParameterError(f"{type(self).__qualname__}: {message}")

    def _checked(self, name: str, default: Any, value: Any) -> Any:
        """The value as a plain one of the default's type, if it is among the choices and in the range."""
        value = plain(value, isinstance(default, float))
        items = value if type(value) is tuple else (value,)
        kinds, kinds_of_items = _kinds(name, default)
        if type(value) not in kinds or (type(value) is tuple and not {type(item) for item in items} <= kinds_of_items):
            raise self.refused(f"{name} takes {default!r} or the like, not {_shown(value)}")
        if name in SIZES and type(value) is tuple and len(value) != 2:
            raise self.refused(f"{name}={_shown(value)} must be a side in pixels or a pair (height, width)")
        if (words := self.choices.get(name)) and not set(items) <= set(words):
            raise self.refused(f"{name} is one of {', '.join(words)}, not {_shown(value)}")
        if (allowed := self.ranges.get(name)) is not None:
            if type(value) is tuple and not allowed.items[0] <= len(value) <= allowed.items[1]:
                raise self.refused(f"{name}={_shown(value)} must have {allowed.length}")
            for number in (item for item in items if type(item) in (int, float)):
                if number not in allowed:
                    raise self.refused(f"{name}={_shown(value)} must be {allowed}")
                if abs(number) >= TOO_LARGE:
                    raise self.refused(f"{name}={_shown(value)} is too large a number")
        return value


def _kinds(name: str, default: Any) -> tuple[set[type], set[type]]:
    """Types of a setting's value, and of its items if it is a tuple. True and False are not numbers."""
    if name in SIZES:
        return {int, tuple} | ({type(None)} if name == "crop" else set()), {int}
    if type(default) is tuple:
        return {tuple}, {int, str} if name == "taps" else {type(item) for item in default} or {int}
    return {type(default)}, set()


def plain(value: Any, to_float: bool = False) -> Any:
    """A number of numpy as Python's, a list as a tuple, a path as text; other values as they are.

    >>> plain(np.float64(0.5)), plain([2, np.int64(3)]), plain(20, to_float=True)
    (0.5, (2, 3), 20.0)
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return tuple(plain(item) for item in value)
    if isinstance(value, Path):
        return str(value)
    return float(value) if to_float and type(value) is int and abs(value) < TOO_LARGE else value


def _shown(value: Any) -> str:
    """A value in one short line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes no integer of more than 4300 digits
        text = "an integer of thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."
