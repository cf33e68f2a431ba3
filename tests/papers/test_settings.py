"""Settings of all methods: each number has a range, and a value outside it is refused in one sentence, never stored."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from adcore.errors import ParameterError
from adcore.experiments import grid
from adcore.models import METHODS
from adcore.papers.ds2.cutpaste import CutPastePretrainingConfig
from adcore.papers.ds2.ds2 import DS2PretrainingConfig
from adcore.papers.heckler2023.patchcore import PatchCoreConfig
from adcore.papers.uniad2022.feature_decoder import FeatureDecoderConfig
from adcore.papers.uniad2022.uniad import UniADConfig
from adcore.settings import SIZES, Config, Range

CONFIGS = sorted({method.Config for method in METHODS.values()} | {
    FeatureDecoderConfig, DS2PretrainingConfig, CutPastePretrainingConfig}, key=lambda config: config.__name__)
FIELDS = [(config, field.name, field.default) for config in CONFIGS for field in dataclasses.fields(config)]


def subclasses(kind: type) -> set[type]:
    return {kind, *itertools.chain.from_iterable(map(subclasses, kind.__subclasses__()))}


def is_numeric(name: str, default: Any) -> bool:
    """A number, a size, or a tuple of numbers; an empty tuple is one of numbers, and taps may be names or numbers."""
    items = default if type(default) is tuple else (default,)
    return name in (*SIZES, "taps") or all(type(item) in (int, float) for item in items)


NUMBERS = [(config, name, default) for config, name, default in FIELDS if is_numeric(name, default)]


def outside(allowed: Range, kind: type) -> list[float]:
    """Values next to the limits of a range; for floats also those that are not finite."""
    step = 1 if kind is int else 1e-3
    limits = (allowed.least - step, allowed.above, allowed.below, allowed.most + step)
    values = [kind(value) for value in limits if math.isfinite(value)]
    return [*values, math.nan, math.inf, -math.inf] if kind is float else values


def test_the_list_of_configs_holds_all_that_have_settings_of_their_own():
    """Those that are not in it have no setting that a listed one does not inherit."""
    covered = {base for config in CONFIGS for base in config.__mro__}
    assert {kind for kind in subclasses(Config) if kind.__module__.startswith("adcore.papers")} <= covered


@pytest.mark.parametrize(("config", "name", "default"), NUMBERS, ids=lambda value: getattr(value, "__name__", str(value)))
def test_every_number_has_a_range_and_what_is_outside_is_refused(config, name, default):
    allowed = config.ranges[name]
    for value in outside(allowed, float if type(default) is float else int):
        given = (value,) * max(1, allowed.items[0]) if type(default) is tuple else value
        with pytest.raises(ParameterError, match=f"^{re.escape(f'{config.__name__}: {name}={given!r} must be {allowed}')}$"):
            config(**{name: given})
    if type(default) is tuple and allowed.items[0]:
        with pytest.raises(ParameterError, match=rf"^{config.__name__}: {name}=\(\) must have"):
            config(**{name: ()})


@pytest.mark.parametrize("config", CONFIGS)
def test_ranges_are_declared_for_numbers_alone_and_defaults_and_quick_settings_are_inside(config):
    names, numbers = ({field[1] for field in fields if field[0] is config} for fields in (FIELDS, NUMBERS))
    assert set(config.ranges) - names <= set(Config.ranges) and set(config.ranges) & names == numbers
    for quick in ({}, *(method.quick for method in METHODS.values() if method.Config is config)):
        stored = json.loads(json.dumps(config.make(quick).values(), allow_nan=False))
        assert config.make(stored) == config.make(quick)


ODD = (-1, 0, 1.5, math.nan, math.inf, -math.inf, "x", "", None, [], (), True, False, {}, b"x", 10**30, 10**5000, -10**400,
       (True,), (None,), ("x", 1), ((),), [[1]], (1.5,), np.nan, np.arange(3), np.array(1), np.array([[0.1, 0.2], [0.3, 0.4]]),
       torch.ones(2), object())


@pytest.mark.parametrize("method", METHODS)
def test_any_odd_value_of_any_setting_is_accepted_or_refused_in_one_short_line(method):
    for name in METHODS[method].Config().values():
        for value in ODD:
            try:
                grid(method, **{name: [value]})                 # a list, because grid sweeps over it
            except ParameterError as error:
                assert "\n" not in str(error) and len(str(error)) < 400, str(error)
            else:
                made = METHODS[method].Config.make({**METHODS[method].quick, name: value}).values()[name]
                assert json.loads(json.dumps(made, allow_nan=False)) == (list(made) if isinstance(made, tuple) else made)


def test_numbers_of_numpy_become_plain_ones_and_experiments_with_them_have_the_same_key():
    plain = PatchCoreConfig(coreset=0.25, starts=3, taps=(2, 3), image_size=(64, 96), crop=None)
    made = PatchCoreConfig(coreset=np.float64(0.25), starts=np.int32(3), taps=[np.int64(2), 3],
                           image_size=[np.int8(64), 96], crop=None)
    assert made == plain and {type(v) for v in made.values().values()} <= {bool, int, float, str, tuple, type(None)}
    assert type(made.taps[0]) is int and type(made.coreset) is float
    assert type(PatchCoreConfig(coreset=5).coreset) is float and type(PatchCoreConfig(sigma=np.int64(2)).sigma) is float
    assert UniADConfig(nma=np.bool_(False)).nma is False and UniADConfig(weights=Path("a") / "b.pth").weights == "a/b.pth"
    first, second = (grid("patchcore", categories="brick", coreset=coreset, starts=starts)[0]
                     for coreset, starts in ((0.25, 3), (np.float64(0.25), [np.int64(3)])))
    assert first == second and first.key == second.key and {type(value) for _, value in second.settings} == {float, int}


def test_true_is_no_number_and_one_is_not_true():
    for values in ({"epochs": True}, {"lr": True}, {"taps": (True,)}, {"image_size": True}, {"image_size": (64, True)},
                   {"nma": 1}):
        with pytest.raises(ParameterError, match=r" takes .* or the like, not "):
            UniADConfig(**values)


@pytest.mark.parametrize(("method", "values", "message"), [
    ("patchcore", {"coreset": -1.0}, "PatchCoreConfig: coreset=-1.0 must be above 0"),
    ("patchcore", {"coreset": 1.5}, "PatchCoreConfig: coreset=1.5 must be a fraction up to 1 or a whole number of patches"),
    ("patchcore", {"crop": 200, "image_size": 160}, "PatchCoreConfig: crop=200 is larger than image_size=160"),
    ("patchcore", {"crop": (64, 65), "image_size": (96, 64)}, "PatchCoreConfig: crop=(64, 65) is larger than image_size="
     "(96, 64)"),
    ("patchcore", {"taps": ()}, "PatchCoreConfig: taps=() must have at least 1 item"),
    ("patchcore", {"image_size": (64, 64, 64)}, "PatchCoreConfig: image_size=(64, 64, 64) must be a side in pixels or a pair "
     "(height, width)"),
    ("patchcore", {"image_size": 10**9}, "PatchCoreConfig: image_size=1000000000 must be at least 1 and at most 16384"),
    ("patchcore", {"starts": 10**30}, f"PatchCoreConfig: starts={10**30} is too large a number"),
    ("uniad", {"heads": 7}, "UniADConfig: hidden=96 must be even (half of it embeds rows, half columns) and a multiple of "
     "heads=7"),
    ("uniad", {"dropout": 1.0}, "UniADConfig: dropout=1.0 must be at least 0 and below 1"),
    ("cnn", {"blocks": (1, 1)}, "CNNConfig: blocks=(1, 1) must have 4 items"),
    ("asymst", {"kernels": (3, 4)}, "AsymSTConfig: kernels=(3, 4) must be odd, so that a kernel has a cell in its middle"),
    ("ds2", {"stop_after": 9}, "DS2Config: stop_after=9 is more than epochs=4")])
def test_a_setting_that_does_not_fit_is_refused_with_its_name_and_what_it_takes(method, values, message):
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        grid(method, **values)


def test_a_config_adds_its_choices_and_ranges_to_those_of_its_bases():
    class Base(Config):
        choices: ClassVar = {"a": ("x",)}
        ranges: ClassVar = {"n": Range(least=1)}

    class Left(Base):
        ranges: ClassVar = {"n": Range(least=2), "lr": Range()}

    class Right(Base):
        choices: ClassVar = {"b": ("y",)}

    class Both(Left, Right):
        pass

    assert Both.choices == {"a": ("x",), "b": ("y",)}
    assert (Both.ranges["n"], Both.ranges["lr"]) == (Range(least=2), Range()) and Base.ranges["n"] == Range(least=1)
    assert Both.ranges["epochs"] == Config.ranges["epochs"] and Base.ranges["lr"] == Config.ranges["lr"]
