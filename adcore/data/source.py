"""What adcore knows of a data set beside its row in data_manifest.csv: one `Source` at the end of each reader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adcore.data.sample import Dataset


@dataclass(frozen=True)
class Source:
    """A data set that `load_dataset` knows by name.

    name      as in data_manifest.csv
    load      called as load(folder, categories, **options); categories is a list, or None for all
    folders   names that the folder below ADCORE_DATA may have; `adcore data fetch` takes the first
    options   keyword arguments of `load` that `load_dataset` accepts
    counts    (training images, test images) of each category as published, loaded with the options `whole`
    whole     options that load everything there is
    package   what to `pip install` when the data set comes in a Python package
    find      the data folder of that package, None when it is not installed
    """

    name: str
    load: Callable[..., Dataset]
    folders: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)
    package: str = ""
    find: Callable[[], Path | None] = lambda: None
