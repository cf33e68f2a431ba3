"""Parameters as text: `name=value` is read by the type of the default value that it replaces.

    value   "text", 'text', a word, [value, ...], (value, ...) or {name: value, ...}
    word    text without quotes; a word in brackets ends at the next comma or at the closing bracket

A word stays text where the default is text: 01, no and 2024-01-02 are possible names of categories. Values of a dictionary,
such as settings, are read as in YAML 1.2: true, false, null and decimal numbers (12, .5, 1e-5); any other word is text.
Brackets may be 20 deep, and an integer may have 300 digits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from adcore.errors import ParameterError

BOOLEANS = {"true": True, "yes": True, "false": False, "no": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\']|\'\')*\'', re.DOTALL)
_SPACE = re.compile(r"\s*")
_CLOSING = {"[": "]", "(": ")", "{": "}"}
DEEPEST = 20  # brackets in brackets

# Every parameter of a notebook, with a value of its type: the type is the same in all notebooks. A reader may edit and save a
# parameters cell, so that the type cannot be read from it.
EXAMPLES: dict[str, Any] = {
    "profile": "quick", "dataset": "mini", "folder": "", "category": "brick", "categories": ["brick"], "splits": ["01234"],
    "left_out": ["0"], "known": {"brick": ["crack"]}, "examples": {"brick": "paint"}, "photograph": "astronaut",
    "target": "coins", "pretraining": "mini:chip", "sources": ["mini:chip"], "seed": 0, "seeds": [0], "counts": [1],
    "method": "patchcore", "methods": ["patchcore"], "backbone": "resnet50", "backbones": ["resnet50"],
    "pretrainings": ["random"], "ablations": ["a"], "steps": ["cutmix"], "queries": ["one"], "image_size": 96,
    "image_sizes": [96], "size": 384, "height": 256, "border": 8, "best": 6, "worst": 2, "levels": [0.5], "alpha": 0.5,
    "side": 30.0, "threshold": 0.5, "settings": {}, "quick_settings": {}, "quick_decoder": {}, "sensitivity": {},
    "sensitivity_epochs": 3, "device": "auto", "out": ""}


class Word(str):
    """Text as it was typed, without quotes, whose type is not known yet."""

    __slots__ = ()


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """Split `name=value` words: ['seeds=[0, 1]'] -> {'seeds': Word('[0, 1]')}. `typed` reads the values.

    Raises:
        ParameterError: a word that is not `name=value`.
    """
    values = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise ParameterError(f"'{assignment}' is not name=value")
        values[name] = Word(text)
    return values


def parse_settings(assignments: Sequence[str], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Read `setting=value` words as the entries of a dictionary, see `typed`; a name without a default is read as well.

        >>> parse_settings(["backbone=resnet18", "taps=(2, 3)", "lr=1e-3"], {"backbone": "resnet50", "taps": (1,), "lr": 0.1})
        {'backbone': 'resnet18', 'taps': (2, 3), 'lr': 0.001}

    Raises:
        ParameterError: a word that is not `setting=value`, or a value that cannot be read.
    """
    values = {}
    for name, word in parse_assignments(assignments).items():
        try:
            values[name] = _entry(word, name, defaults)
        except ValueError:
            raise unreadable(name, word) from None
        except TypeError:
            shown = short(repr(str(word)))
            raise ParameterError(f"setting '{name}' takes {defaults[name]!r} or the like, not {shown}") from None
    return values


def unreadable(name: str, word: str) -> ParameterError:
    """The error for a value whose brackets or quotes do not match, or that is nested too deeply."""
    return ParameterError(f"the value of '{name}={short(word)}' cannot be read: write lists as [a, b], and quotes around a "
                          f"text that has brackets, quotes or commas in it, with at most {DEEPEST} brackets in each other")


def short(text: str) -> str:
    """The text as it stands in a message: its beginning and its length when it is long."""
    return text if len(text) <= 200 else f"{text[:100]}... ({len(text):,} characters)"


def typed(value: Any, default: Any) -> Any:
    """`value` with the type of `default`; words in it are read, other values are checked.

    An integer is accepted for a float, a single value for a list of one, and nothing for an empty list or dictionary. The
    items of a list have the type of the default's first item; those of an empty list are text. An entry of a dictionary
    stays text if the default's entry of that name is text, or, for a new name, if all the default's entries are.

        >>> typed(Word("[01, no]"), ["brick"]), typed(Word("no"), True), typed(Word("{lr: 1e-5}"), {})
        (['01', 'no'], False, {'lr': 1e-05})

    Raises:
        TypeError: a value of another type, or a number that is not finite.
        ValueError: brackets or quotes that do not match, or more than `DEEPEST` brackets in each other.
    """
    if isinstance(value, Word):
        value = _unquoted(value) if isinstance(default, str) else _structure(value)
    if isinstance(default, (list, tuple)):
        items = value if isinstance(value, (list, tuple)) else [] if _nothing(value) else [value]
        return type(default)(typed(item, default[0] if default else "") for item in items)
    if isinstance(default, dict):
        if not isinstance(value, dict) and not _nothing(value):
            raise TypeError
        return {str(name): _entry(item, name, default) for name, item in dict(value or {}).items()}
    if isinstance(value, Word):
        value = _read(value, type(default))
    if isinstance(default, float) and type(value) is int:
        value = float(value) if abs(value) < 1e308 else math.inf
    if type(value) is not type(default) or (isinstance(value, float) and not math.isfinite(value)):
        raise TypeError
    return value


def plain(value: Any) -> Any:
    """The value with its words read as in YAML 1.2, where no default gives a type.

    Raises:
        TypeError: a number that is not finite.
        ValueError: brackets or quotes that do not match.
    """
    return _untyped(value, {})


def text_of(value: Any) -> str:
    """The text from which `typed` reads this value.

        >>> print(text_of({"taps": (2,), "lr": 1e-5, "names": ["01", "no"]}))
        {"taps": (2,), "lr": 1e-05, "names": ["01", "no"]}
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(name))}: {text_of(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text_of, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(text_of, value)) + ("," if len(value) == 1 else "") + ")"
    return json.dumps(value)


def _nothing(value: Any) -> bool:
    return isinstance(value, Word) and not value


def _unquoted(word: Word) -> str:
    """Text that is quoted as a whole, without its quotes; any other text as it is."""
    found = _QUOTED.fullmatch(word)
    try:
        return _string(word) if found else str(word)
    except ValueError:                   # a backslash that begins no JSON escape, as in "C:\data"
        return str(word[1:-1])


def _string(quoted: str) -> str:
    """The content of "..." as in JSON, of '...' as in YAML."""
    return str(json.loads(quoted, strict=False)) if quoted[0] == '"' else quoted[1:-1].replace("''", "'")


def _structure(word: Word) -> Any:
    """Lists, tuples and dictionaries of words and of quoted strings (type str); a Word if there is no bracket or quote."""
    text = word.strip()
    if not text.startswith((*_CLOSING, '"', "'")):
        return Word(text)
    value, end = _value(text, 0, "")
    if end != len(text):
        raise ValueError
    return value


def _value(text: str, start: int, ends: str, depth: int = 1) -> tuple[Any, int]:
    """The value that begins at `start`, and the place after it and its spaces; a word ends before the characters `ends`."""
    start = _skip(text, start)
    if text[start:start + 1] in _CLOSING:
        return _group(text, start, depth)
    quoted = _QUOTED.match(text, start)
    if quoted:
        return _string(quoted[0]), _skip(text, quoted.end())
    end = next((at for at in range(start, len(text)) if text[at] in ends), len(text))
    word = Word(text[start:end].strip())
    if not word or word[0] in "\"'":
        raise ValueError
    return word, end


def _group(text: str, start: int, depth: int) -> tuple[Any, int]:
    """The list, tuple or dictionary whose bracket is at `start`, and the place after it."""
    if depth > DEEPEST:
        raise ValueError
    kind = text[start]
    closing, items, place = _CLOSING[kind], [], _skip(text, start + 1)
    while text[place:place + 1] != closing:
        name = ""
        if kind == "{":
            name, place = _value(text, place, ":," + closing, depth + 1)
            if text[place:place + 1] != ":" or not isinstance(name, str):
                raise ValueError
            place += 1
        item, place = _value(text, place, "," + closing, depth + 1)
        items.append((str(name), item))
        if text[place:place + 1] == ",":
            place = _skip(text, place + 1)
        elif text[place:place + 1] != closing:
            raise ValueError
    end = _skip(text, place + 1)
    if kind == "{":
        return dict(items), end
    return (list if kind == "[" else tuple)(item for _, item in items), end


def _skip(text: str, place: int) -> int:
    """The first place from `place` on that has no white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _read(word: Word, kind: type) -> Any:
    """The word as bool, int or float where it has that form; else the word itself."""
    if kind is bool:
        return BOOLEANS.get(word.lower(), word)
    if kind is int and _INTEGER.fullmatch(word):
        return int(word)
    if kind is float and _NUMBER.fullmatch(word):
        return float(word)
    return word


def _entry(value: Any, name: str, defaults: Mapping[str, Any]) -> Any:
    """One value of a dictionary. The names of settings are free and a setting may take several types: only text is typed."""
    same = [defaults[name]] if name in defaults else list(defaults.values())
    if same and all(_is_text(default) for default in same):
        return typed(value, same[0])
    inner = defaults.get(name)
    return _untyped(value, inner if isinstance(inner, dict) else {})


def _is_text(default: Any) -> bool:
    return isinstance(default, str) or (isinstance(default, (list, tuple)) and bool(default) and _is_text(default[0]))


def _untyped(value: Any, defaults: Mapping[str, Any]) -> Any:
    """The value with its words read as in YAML 1.2."""
    if isinstance(value, Word):
        value = _structure(value)
    if isinstance(value, dict):
        return {str(name): _entry(item, name, defaults) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_untyped(item, {}) for item in value)
    if isinstance(value, Word):
        return _plain(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError
    return value


def _plain(word: Word) -> Any:
    if word.lower() in ("true", "false"):
        return BOOLEANS[word.lower()]
    if word.lower() in ("null", "none", "~", ""):
        return None
    if _NUMBER.fullmatch(word) and not _LEADING_ZERO.match(word):
        if _INTEGER.fullmatch(word):
            return int(word)
        if math.isfinite(float(word)):
            return float(word)
    return str(word)
