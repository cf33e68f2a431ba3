"""Names in csv files for people: a spreadsheet would take a name that begins with `=` for a formula and compute it."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

FORMULA = re.compile(r"'*[=+\-@\t\r]")


def guarded(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before texts that a spreadsheet would take for a formula. Numbers stay as they are.

    >>> guarded(pd.DataFrame({"name": ["=1+1", "bolt"], "score": [-0.5, 2.0]})).values.tolist()
    [["'=1+1", -0.5], ['bolt', 2.0]]
    """
    return _in_texts(frame, lambda text: f"'{text}" if FORMULA.match(text) else text)


def unguarded(frame: pd.DataFrame) -> pd.DataFrame:
    """The table that `guarded` was given.

    >>> unguarded(guarded(pd.DataFrame({"name": ["=1+1", "'=1", "'a"]}))).name.tolist()
    ['=1+1', "'=1", "'a"]
    """
    return _in_texts(frame, lambda text: text[1:] if text.startswith("'") and FORMULA.match(text) else text)


def _in_texts(frame: pd.DataFrame, change: Any) -> pd.DataFrame:
    texts = [name for name in frame.columns if not pd.api.types.is_numeric_dtype(frame[name])]
    return frame.assign(**{name: [change(cell) if isinstance(cell, str) else cell for cell in frame[name]] for name in texts})
