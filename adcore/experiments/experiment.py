"""One training or evaluation that yields numbers. Its key is a digest of everything that determines them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adcore.data import Dataset, Sample, find_dataset, load_dataset
from adcore.data.registry import dataset_name, split_names
from adcore.data.verify import PUBLISHED
from adcore.detector import Detector
from adcore.errors import DataError, ParameterError
from adcore.experiments.profiles import data_options, method_named, profile_settings
from adcore.features import find_backbone
from adcore.files import digest_text
from adcore.settings import plain
from adcore.training import checked_seed

_CONFIGS: dict[str, Any] = {}  # of this process: making one takes long, and many experiments share it


@dataclass(frozen=True)
class Experiment:
    """What to run. Experiments with equal settings have equal keys, however the settings were written.

    category  one category, several joined by '+', or 'all'
    settings  the settings that differ from the profile's, sorted by name
    """

    method: str
    dataset: str = "mini"
    category: str = "all"
    seed: int = 0
    profile: str = "quick"
    settings: tuple[tuple[str, Any], ...] = ()

    def config(self) -> Any:
        """The method's complete config.

        Raises:
            ParameterError: unknown method, profile or setting.
        """
        try:
            kind = f"{self.method} {self.profile} {self.settings!r}"    # as text: 1, 1.0 and True would be the same key
        except ValueError:      # an integer of thousands of digits has no text
            kind = ""
        if not kind or kind not in _CONFIGS:
            method = method_named(self.method)
            _CONFIGS[kind] = method.Config.make({**profile_settings(method, self.profile), **dict(self.settings)})
        return _CONFIGS[kind]

    def identity(self) -> dict[str, Any]:
        """Everything that determines the numbers, as plain values."""
        config = self.config()
        backbone = getattr(config, "backbone", "")
        padded = find_backbone(backbone).native if backbone else 0
        return {"method": self.method, "version": method_named(self.method).version, "dataset": self.dataset,
                "category": self.category, "seed": self.seed, "profile": self.profile, "config": config.values(),
                "data": data_options(self.dataset, self.profile), **({"padded": padded} if padded else {})}

    @property
    def key(self) -> str:
        """16 hexadecimal digits, equal on every machine."""
        return key_of(self.identity())

    @property
    def title(self) -> str:
        """A readable name: 'uniad mini all seed 0 nma=False'."""
        settings = " ".join(f"{name}={value}" for name, value in self.settings)
        return f"{self.method} {self.dataset} {self.category} seed {self.seed} {settings}".strip()

    def data(self) -> Dataset:
        """The images, split by the method's protocol. Raises DataError or ParameterError when they are missing."""
        return self.split(self.all_data())

    def all_data(self) -> Dataset:
        """All images of the categories, as the data set splits them. Raises DataError or ParameterError as `data`."""
        options = data_options(self.dataset, self.profile)
        categories = None if self.category == "all" else [self.category]
        if "+" in self.category:
            categories = split_names(self.category, load_dataset(self.dataset, **options).categories)
        return load_dataset(self.dataset, categories, **options)

    def split(self, dataset: Dataset) -> Dataset:
        """The part of `all_data` that the method trains and is tested on, and how it is split."""
        return method_named(self.method).protocol(dataset, self.config(), self.seed)

    def pretraining_images(self) -> tuple[Sample, ...]:
        """Normal images on which the method is pretrained before it is fitted; none for most methods.

        The setting `pretraining` names them: 'dataset', 'category', or another data set, 'NAME' or 'NAME:CATEGORY+CATEGORY'.
        Raises DataError or ParameterError when they are missing.
        """
        if not method_named(self.method).pretrains:
            return ()
        chosen = self.config().pretraining
        if chosen == "category":
            return self.data().train
        name, some = (self.dataset, "") if chosen == "dataset" else (chosen, "")
        if ":" in name and find_dataset(name) is None:  # a folder's name may have a colon
            name, _, some = name.rpartition(":")
        options = data_options(name, self.profile)
        categories = split_names(some, load_dataset(name, **options).categories) if some else None
        return load_dataset(name, categories, **options).train

    def detector(self, device: Any = "cpu") -> Detector:
        """The method, ready to fit."""
        return method_named(self.method)(self.config(), device=device, seed=self.seed)


def key_of(identity: Mapping[str, Any]) -> str:
    """The key of the experiment with this `Experiment.identity`."""
    return digest_text(json.dumps(identity, sort_keys=True))


def grid(method: type[Detector] | str, *, dataset: str = "mini", categories: Sequence[str] | str | None = None,
         seeds: Iterable[int] = (0,), profile: str = "quick", **settings: Any) -> list[Experiment]:
    """Experiments for every combination of the settings given as lists, every seed, and the categories.

    A pooled method (one model for all categories) gives one experiment for all categories together, any other method one
    experiment per category. A setting that is itself a sequence (taps) is written as a tuple, a sweep over it as a list.

        >>> from adcore.models import UniAD
        >>> len(grid(UniAD, nma=[False, True], jitter=[False, True], seeds=[0, 1]))
        8

    dataset  a name, the path of a folder, or that of a csv file (see `load_dataset`); a path is kept by its last part

    Raises:
        ParameterError: unknown method, profile, setting, data set or category, a list without elements, or a seed that is not
            a whole number from 0 to 2**32 - 1.
    """
    name = method if isinstance(method, str) else method.name
    dataset = dataset_name(dataset)
    wanted = [categories] if isinstance(categories, str) else _listed("categories", categories or ())
    if wanted == ["all"]:
        wanted = []
    numbers = [checked_seed(seed) for seed in _listed("seeds", seeds)]
    swept = {key: [plain(one) for one in (value if isinstance(value, list) else [value])] for key, value in settings.items()}
    for key, values in {"seeds": numbers, **swept}.items():
        if not values:
            raise ParameterError(f"{key}=[] asks for no experiment: name at least one value")
    _check_categories(dataset, wanted, profile)
    groups = ["+".join(wanted) or "all"] if method_named(name).pooled else wanted or _categories(dataset, profile)
    experiments = []
    for combination in itertools.product(*swept.values()):
        chosen = tuple(sorted(zip(swept, combination, strict=True)))
        experiments += [Experiment(name, dataset, category, seed, profile, chosen) for category in groups for seed in numbers]
    for experiment in experiments:
        experiment.config()
    return experiments


def _listed(name: str, values: Any) -> list[Any]:
    """A list of several values. Raises ParameterError for a single value."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise ParameterError(f"{name}={values!r} is not a list: write [{values!r}]")
    return list(values)


def _check_categories(dataset: str, wanted: Sequence[str], profile: str) -> None:
    """Raises ParameterError for a category that the data set does not have, as far as it is known here."""
    for category in wanted:
        try:
            load_dataset(dataset, [category], **data_options(dataset, profile))
        except DataError:  # a data set that is not on this machine
            if dataset in PUBLISHED and category not in PUBLISHED[dataset]:
                raise ParameterError(f"unknown category '{category}' in data set '{dataset}'; it has "
                                     f"{', '.join(sorted(PUBLISHED[dataset]))}") from None


def _categories(dataset: str, profile: str) -> list[str]:
    """All categories of a data set; those of a published one are known even when it is not on this machine."""
    try:
        return list(load_dataset(dataset, **data_options(dataset, profile)).categories)
    except DataError:
        if dataset not in PUBLISHED:
            raise
        return sorted(PUBLISHED[dataset])


def as_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings read from JSON, which has no tuples: each list becomes a tuple, because `grid` would sweep over a list.

        >>> as_tuples({"taps": [2, 3], "epochs": 5})
        {'taps': (2, 3), 'epochs': 5}
    """
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
