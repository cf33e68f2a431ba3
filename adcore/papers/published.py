"""Read the papers' exhibits and printed numbers from the csv files in this folder.

    papers.csv                        one row per paper
    errata.csv                        one row per error, open point or choice, see `errata.py`
    exhibits.csv                      one row per exhibit: table, figure, algorithm, equations or protocol
    bibliography.csv                  one row per work that the papers or the code here build on
    glossary.csv                      one row per term
    <paper>/published/<exhibit>.csv   one row per printed number

Numbers are stored as printed: percentages as percentages, and misprints unchanged, with the error described in `note`.
Printed text (the name of a layer, the source of a checkpoint) has the metric 'text'.

`match` tells which measured results belong to a printed cell: fields of an experiment and their values, where `all` means the
mean over all values of a field.

    method=atacnet;step=cutmix;category=all    the mean over categories of the first step of ATAC-Net
"""

from __future__ import annotations

import importlib.resources
import io
import math
import re
from typing import TYPE_CHECKING

import pandas as pd

from adcore.errors import DataError, ParameterError, did_you_mean

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable  # not in Python 3.10

COLUMNS = ("row", "column", "metric", "value", "std", "unit", "match", "note")
TEXT = "text"  # the metric of a cell that contains text

Value = bool | int | float | str | tuple[int, ...]


def papers() -> pd.DataFrame:
    """The five papers: index `id`; columns title, authors (separated by '; '), venue, year, arxiv, url."""
    table = read_table("papers.csv")
    return table.assign(year=table["year"].astype(int)).set_index("id")


def bibliography() -> pd.DataFrame:
    """Works that the five papers or the code here build on: index `id`; columns of `papers()` except arxiv, papers (ids,
    separated by ';') and used_for."""
    table = read_table("bibliography.csv")
    return table.assign(year=table["year"].astype(int)).set_index("id")


def glossary() -> pd.DataFrame:
    """The terms of the field as they are used here: index `term`; columns meaning and notebook, where it is introduced."""
    return read_table("glossary.csv").set_index("term")


def exhibits() -> pd.DataFrame:
    """All exhibits in the papers' order: index `id`, as in 'uniad2022.table_s2'.

    paper           id of a row of `papers()`
    number, title   'Table S2' and our title
    caption         one sentence in our words
    kind            table, figure, algorithm, equations or protocol
    code            'file.py: name' of what computes it, in the paper's folder or in adcore/; '; ' between several
    notebook        path below notebooks/ without suffix
    needs_data      data sets for profile=paper: names of data_manifest.csv, separated by ';'; '' when none
    needs_weights   weights for profile=paper, likewise
    state           'regenerated' or 'planned'
    deterministic   bool: no training and no data needed
    note            what is missing, misprinted or not stated
    """
    table = read_table("exhibits.csv")
    return table.assign(deterministic=table["deterministic"] == "true").set_index("id")


def published(exhibit: str) -> pd.DataFrame:
    """The printed cells of an exhibit, one row per cell.

    row, column   labels as printed
    metric        our name for the quantity; 'text' for text
    value, std    float in `unit` (%, fraction, G, M or ''); NaN where no number is printed
    text          the cell as printed: '19' and '19.0' differ in precision
    match         dict of experiment fields, see the module's docstring
    note          misprints, defaults
    exhibit       the argument
    source        'published': marks these rows in a table joined with measured ones

    Raises:
        ParameterError: no such exhibit, or one without printed numbers.
        DataError: the file is damaged.
    """
    known = exhibits().index
    printed = [name for name in known if _resource(_file(name)).is_file()]
    if exhibit not in printed:
        listing = f"those with printed cells are {', '.join(printed)}"
        if exhibit in known:
            raise ParameterError(f"exhibit '{exhibit}' has no printed numbers; {listing}")
        raise ParameterError(f"unknown exhibit '{exhibit}'{did_you_mean(exhibit, known)}; {listing}")
    table = read_table(_file(exhibit))
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise DataError(f"adcore/papers/{_file(exhibit)} has no column '{missing[0]}': restore the file")
    textual = table["metric"] == TEXT
    try:
        values = [math.nan if is_text else float(cell) for cell, is_text in zip(table["value"], textual, strict=True)]
        stds = [float(cell) if cell else math.nan for cell in table["std"]]
    except (ValueError, TypeError) as error:  # the missing cells of a short row are NaN
        raise DataError(f"adcore/papers/{_file(exhibit)}: {_first_line(error)}; text needs the metric '{TEXT}'") from error
    return pd.DataFrame({
        "row": table["row"],
        "column": table["column"],
        "metric": table["metric"],
        "value": values,
        "text": table["value"],
        "std": stds,
        "unit": table["unit"],
        "match": [parse_match(cell) for cell in table["match"]],
        "note": table["note"],
        "exhibit": exhibit,
        "source": "published",
    })


def parse_match(text: str) -> dict[str, Value]:
    """Parse `field=value;field=value` into a dict.

    true and false become bool, digits become numbers, and `1,2,3` becomes a tuple of integers. Everything else is text;
    single quotes make digits text (`category='01234'`).

    Raises:
        DataError: a part without '=', a field that occurs twice, or an argument that is not a string.
    """
    fields: dict[str, Value] = {}
    if not isinstance(text, str):
        raise DataError(f"match '{text}' is not a list of field=value joined by ';': a cell of the row may be missing")
    for part in text.split(";") if text else ():
        field, equals, value = part.partition("=")
        if not (field and equals and value) or field in fields:
            raise DataError(f"match '{text}' is not a list of field=value joined by ';', each field once")
        fields[field] = _value(value)
    return fields


def _value(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"'[^']+'", text):
        return text[1:-1]
    if re.fullmatch(r"-?[0-9]{1,18}(,-?[0-9]{1,18})+", text):
        return tuple(map(int, text.split(",")))
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    return float(text) if re.fullmatch(r"-?\d+\.\d+", text) else text


def _file(exhibit: str) -> str:
    return exhibit.replace(".", "/published/", 1) + ".csv"


def _resource(path: str) -> Traversable:
    return importlib.resources.files("adcore.papers") / path


def read_table(path: str) -> pd.DataFrame:
    """Read a csv file of this package with every cell as text: '-' and 'none' are not missing values here."""
    try:
        text = _resource(path).read_text(encoding="utf-8")
        return pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False)
    except ValueError as error:  # from pandas, or from decoding
        raise DataError(f"adcore/papers/{path} is not a csv file in UTF-8 ({_first_line(error)}): restore the file") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
