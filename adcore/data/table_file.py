"""A data set listed in a csv file: one row per image.

    column      other names                    values
    image_path  image, path, filename, file    path of the image, below the csv's folder unless absolute
    label       label_index, target            0 or 1; good, normal, ...; anomaly, defective, ...; or the name of a defect
    mask_path   mask                           path of the mask; empty for none                       (optional)
    split       set                            train or test; without it a fifth of the normal images is for testing  (optional)
    category    object                         without it all images are one category, named like the file  (optional)
    defect      anomaly_type                   kind of defect, where the label does not tell          (optional)

The first row has the columns' names, in any case. Fields are separated by commas, semicolons or tabs.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adcore.data.findings import Finding, count, gaps
from adcore.data.sample import Dataset, Sample
from adcore.data.split import hold_out
from adcore.errors import DataError, did_you_mean

COLUMNS = {"image_path": ("image", "path", "filename", "file"), "label": ("label_index", "target"), "mask_path": ("mask",),
           "split": ("set",), "category": ("object",), "defect": ("anomaly_type",)}
NORMAL = {"0", "good", "normal", "ok", "nominal", "false"}
ANOMALOUS = {"1", "anomaly", "anomalous", "abnormal", "defect", "defective", "bad", "ng", "true"}  # no name of a defect
MISSING = {"", "none", "nan", "null", "na", "n/a", "<na>"}
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}


@dataclass(frozen=True)
class Row:
    """One image of the file; an error names its line.

    split  train, test, or '' when the file has no such column
    """

    line: int
    path: Path
    category: str
    label: int
    defect: str
    mask: Path | None
    split: str


def load_table(path: Path, name: str, categories: Sequence[str] | None = None) -> tuple[Dataset, list[Finding]]:
    """List a data set from a csv file, with what a person should know about it. Pixels are read later, image by image.

    Without a column `split`, 80 % of the normal images of each category are for training, drawn once with a fixed seed, and all
    others for testing. Anomalous images in the training split are left out.

    Raises:
        ParameterError: an unknown category.
        DataError: a column or file that is missing, a label or split that is empty or unknown, an image listed twice, no normal
            image; the message names line and column.
    """
    rows, unused = read_table(path, name)
    shared = Path(os.path.commonpath([row.path.parent for row in rows]))
    shared = shared.parent if any(row.path.parent == shared for row in rows) else shared
    train: list[Sample] = []
    test: list[Sample] = []
    left = []
    for category in dict.fromkeys(row.category for row in rows):
        normal: list[Sample] = []
        for row in (row for row in rows if row.category == category):
            sample = Sample(row.path, category, row.label, row.defect, row.mask if row.label else None,
                            called=row.path.relative_to(shared).as_posix())
            if row.label and row.split == "train":
                left.append(sample.called)
            elif row.label or row.split == "test":
                test.append(sample)
            else:
                (train if row.split else normal).append(sample)
        fit, held_out = hold_out(normal, 0.8)
        train, test = train + fit, test + held_out
    if not train:
        raise DataError(f"{path} has no normal image to train on: list some with label good"
                        + (" and split train" if rows[0].split else ""))
    dataset = Dataset(name, tuple(train), tuple(test))
    findings = [Finding(f"{count(len(left), 'anomalous training image')} left out", tuple(left))] if left else []
    if unused:
        findings.append(Finding(f"{count(len(unused), 'column')} not used", tuple(unused)))
    return dataset.only(categories), [*findings, *gaps(dataset.only(categories), categories or dataset.categories, path.parent)]


def read_table(path: Path, name: str) -> tuple[list[Row], list[str]]:
    """The rows of a csv file, checked, and the names of the columns that are not used. Raises as `load_table`."""
    lines = _lines(path)
    if not lines:
        raise DataError(f"{path} is empty: expected a row of column names, such as image_path,label,mask_path,split")
    (_, header), *body = lines
    places = _places(path, header)
    known: dict[Path, int] = {}
    rows = []
    for line, fields in body:
        if len(fields) != len(header):
            raise DataError(f"{path}, line {line}: {len(fields)} fields where the first row names {len(header)} columns")
        row = _row(path, line, {column: fields[place].strip() for column, place in places.items()}, name)
        if row.path in known:
            raise DataError(f"{path}, line {line}: {row.path} is listed before, in line {known[row.path]}")
        known[row.path] = line
        rows.append(row)
    if not rows:
        raise DataError(f"{path} lists no image: it has column names only")
    # A first column without name is pandas' index; label_index repeats label in anomalib's tables.
    return rows, [column for place, column in enumerate(header)
                  if place not in places.values() and column.strip().casefold() not in ("", "label_index")]


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """Line number and fields of each row that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        return [(reader.line_num, fields) for fields in reader if any(field.strip() for field in fields)]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as csv in UTF-8 ({error}): save it again") from None


def _places(path: Path, header: Sequence[str]) -> dict[str, int]:
    """Column -> its position in the file."""
    found: dict[str, int] = {}
    given = [name.strip().casefold() for name in header]
    for column, others in COLUMNS.items():
        for called in (column, *others):
            if given.count(called) > 1:
                raise DataError(f"{path}, line 1: two columns are called {called}")
            if called in given:
                found.setdefault(column, given.index(called))
    for column, enough in (("image_path", {"image_path"}), ("label", {"label", "defect"})):
        if not enough & set(found):
            raise DataError(f"{path}, line 1: no column {column}{did_you_mean(column, given)}; the columns are "
                            f"{', '.join(header)}")
    return found


def _row(path: Path, line: int, fields: dict[str, str], name: str) -> Row:
    def refuse(column: str, why: str) -> DataError:
        return DataError(f"{path}, line {line}, column {column}: {why}")

    column = "label" if "label" in fields else "defect"
    text = fields[column]
    if text.casefold() in MISSING:
        raise refuse(column, f"'{text}' is no label: write 0 or good for a normal image, 1 or the kind of defect for others")
    number = _number(text)
    if number is not None and number not in (0, 1):
        raise refuse(column, f"label {text} is neither 0 (normal) nor 1 (anomalous)")
    plain = text.casefold() if number is None else str(int(number))
    label = 0 if plain in NORMAL else 1
    defect = fields.get("defect") or ("defective" if plain in ANOMALOUS else text)
    if label and defect.casefold() in {*NORMAL, "good"}:
        raise refuse("defect", f"the image is anomalous by its label {text} and '{defect}' by its defect")
    if "split" in fields and fields["split"].casefold() not in SPLITS:
        raise refuse("split", f"'{fields['split']}' is neither train nor test")
    if fields.get("category") == "":
        raise refuse("category", "no category")
    if not fields["image_path"]:
        raise refuse("image_path", "no path")
    mask = fields.get("mask_path", "")
    places = {column: _file(path, text) for column, text in (("image_path", fields["image_path"]), ("mask_path", mask)) if text}
    for column, place in places.items():
        if place is None and not (column == "mask_path" and mask.casefold() in MISSING):
            raise refuse(column, f"{fields[column]} is not there, looked for below {path.parent}")
    image = places["image_path"]
    assert image is not None
    return Row(line, image, fields.get("category", name), label, defect if label else "good", places.get("mask_path"),
               SPLITS[fields["split"].casefold()] if "split" in fields else "")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _file(table: Path, text: str) -> Path | None:
    """The file that a field names, relative to the csv's folder; None when it is not there."""
    for written in (text, text.replace("\\", "/")):
        path = Path(os.path.normpath(table.parent / written))
        with contextlib.suppress(OSError, ValueError):  # a name that is too long or has a null byte
            if path.is_file():
                return path
    return None
