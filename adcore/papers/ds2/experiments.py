"""Experiments behind the tables and figures of DS2's supplement: which trainings each exhibit asks for.

The parameters are those of the notebook that shows the exhibit. `pretraining` names the images from which the encoder learns,
and `settings` replaces settings of the profile, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

from adcore.detector import Detector
from adcore.experiments import Experiment, as_tuples, grid
from adcore.models import METHODS
from adcore.papers.ds2.cutpaste import CutPaste
from adcore.papers.ds2.ds2 import DS2
from adcore.papers.ds2.instance_ssl import BRANCHES
from adcore.papers.ds2.localization import GDE
from adcore.papers.ds2.views import AUGMENTATIONS

NO_SETTINGS: Mapping[str, Any] = MappingProxyType({})
LOCALIZATION = ("image_size", "patch", "stride", "density_images", "layout", "dims")  # settings that the baselines share

# Rows of Table 1 (a) to (e): what each row changes. The supplement does not print (a); its rows are our reading.
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "a": {"geometric": {"pairs": "geometric"}, "feature": {"pairs": "feature"}, "both": {}, "both, k=5": {"top_k": 5},
          "both, k=10": {"top_k": 10}},
    "b": {name: {"instance": name} for name in BRANCHES},
    "c": {name: {"augmentation": name} for name in AUGMENTATIONS},
    "d": {str(size): {"batch_size": size} for size in (32, 64, 128, 256, 512)},
    "e": {"".join(scales): {"scales": scales} for scales in (("c5",), ("c4", "c5"), ("c3", "c4", "c5"))}}
QUICK_ROWS = {"a": {name: ROWS["a"][name] for name in ("geometric", "feature", "both")},
              "d": {str(size): {"batch_size": size} for size in (4, 8, 16)}}  # forty images give no batch of 64
QUICK_ABLATION = {"epochs": 3, "batch_size": 8, "decay_epochs": (2,)}


def pretraining(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gear", "chip"),
                pretraining: str = "mini:gear+chip", seeds: Sequence[int] = (0,),
                settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """Sec. 2: DS2, and the same localization with random weights and with ImageNet weights (EfficientNet-Lite0)."""
    common = _common(profile, dataset, categories, seeds)
    return [*grid(DS2, **common, pretraining=pretraining, **as_tuples(settings)), *_random(common, settings),
            *grid(GDE, **common, backbone="efficientnet_lite0", tap=5, **_localization(settings))]


def pretraining_models(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gear", "chip"),
                       pretraining: str = "mini:gear+chip", seeds: Sequence[int] = (0,),
                       settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """DS2 of the first category and seed."""
    return _first(DS2, _common(profile, dataset, categories, seeds), pretraining, settings)


def table_1(letter: str, *, ablations: Sequence[str] = tuple(ROWS), profile: str = "quick", dataset: str = "mini",
            categories: Sequence[str] = ("chip",), pretraining: str = "mini:chip", seeds: Sequence[int] = (0,),
            settings: Mapping[str, Any] = NO_SETTINGS) -> dict[str, list[Experiment]]:
    """Table 1 (`letter`), one of a to e: row -> DS2 with the settings of this row, one experiment per category and seed.

    In the quick profile trainings are short, and (a) and (d) have other rows (`QUICK_ROWS`). No row if the letter is not in
    `ablations`.
    """
    if letter not in ablations:
        return {}
    quick = profile == "quick"
    rows = {**ROWS, **QUICK_ROWS}[letter] if quick else ROWS[letter]
    own = {"pretraining": pretraining, **(QUICK_ABLATION if quick else {}), **as_tuples(settings)}
    return {name: grid(DS2, **_common(profile, dataset, categories, seeds), **{**own, **row}) for name, row in rows.items()}


table_1a = partial(table_1, "a")
table_1b = partial(table_1, "b")
table_1c = partial(table_1, "c")
table_1d = partial(table_1, "d")
table_1e = partial(table_1, "e")


def cutpaste(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gear", "chip"),
             pretraining: str = "mini:gear+chip", seeds: Sequence[int] = (0,),
             settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """Sec. 3: CutPaste (3-way), and the same localization with random weights."""
    common = _common(profile, dataset, categories, seeds)
    return [*grid(CutPaste, **common, pretraining=pretraining, **as_tuples(settings)), *_random(common, settings)]


def cutpaste_models(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gear", "chip"),
                    pretraining: str = "mini:gear+chip", seeds: Sequence[int] = (0,),
                    settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """CutPaste (3-way) of the first category and seed."""
    return _first(CutPaste, _common(profile, dataset, categories, seeds), pretraining, settings)


def transfer_datasets(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("chip",),
                      sources: Sequence[str] = ("mini:chip", "mini:gear"), seeds: Sequence[int] = (0,),
                      settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """Sec. 4: DS2 pretrained on each of the sources, and random weights.

    sources  values of the setting `pretraining`: 'NAME' or 'NAME:CATEGORY+CATEGORY'
    """
    common = _common(profile, dataset, categories, seeds)
    return [*grid(DS2, **common, pretraining=list(sources), **as_tuples(settings)), *_random(common, settings)]


def figure_1_models(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gear", "chip"),
                    method: str = "ds2", pretraining: str = "mini:gear+chip", seed: int = 0,
                    settings: Mapping[str, Any] = NO_SETTINGS) -> list[Experiment]:
    """Figures 1 to 5: the detectors whose maps are drawn, one per category. The figures differ only in their categories."""
    chosen: dict[str, Any] = {"pretraining": pretraining} if METHODS[method].pretrains else {}
    return grid(method, **_common(profile, dataset, categories, [seed]), **chosen, **as_tuples(settings))


figure_2_models = figure_3_models = figure_4_models = figure_5_models = figure_1_models


def _common(profile: str, dataset: str, categories: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    return {"profile": profile, "dataset": dataset, "categories": categories, "seeds": seeds}


def _localization(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in as_tuples(settings).items() if name in LOCALIZATION}


def _random(common: Mapping[str, Any], settings: Mapping[str, Any]) -> list[Experiment]:
    return grid(GDE, **common, backbone="resnet18", tap=4, weights="random", **_localization(settings))


def _first(method: type[Detector], common: Mapping[str, Any], pretraining: str,
           settings: Mapping[str, Any]) -> list[Experiment]:
    return grid(method, **common, pretraining=pretraining, **as_tuples(settings))[:1]
