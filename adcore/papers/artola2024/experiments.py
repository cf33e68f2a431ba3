"""Experiments behind the figures of artola2024: which trainings each exhibit asks for.

Figure 1 and Eqs. (1)-(16) need no training and are computed in their notebooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adcore.experiments import Experiment, as_tuples, grid
from adcore.papers.artola2024.contrastive import Contrastive


def figure_2(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gravel",),
             seeds: Sequence[int] = (0,), settings: Mapping[str, Any] | None = None,
             sensitivity: Mapping[str, Sequence[Any]] | None = None, sensitivity_epochs: int = 3) -> list[Experiment]:
    """Figure 2: each category and seed before (0 epochs) and after fine-tuning, then the runs of `sensitivity_study`.

    settings     overrides of the profile's settings; 'epochs' is the number after fine-tuning
    sensitivity  setting -> values, see `sensitivity_study`; none by default
    """
    common = _common(profile, dataset, categories, seeds, settings)
    trials = sensitivity_study(profile=profile, dataset=dataset, categories=categories, seeds=seeds, settings=settings,
                               sensitivity=sensitivity, sensitivity_epochs=sensitivity_epochs)
    return [*grid(Contrastive, epochs=[0, _epochs(profile, settings)], **common),
            *(experiment for trial in trials.values() for experiment in trial)]


def figure_2_models(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gravel",),
                    seeds: Sequence[int] = (0,), settings: Mapping[str, Any] | None = None) -> list[Experiment]:
    """The two networks whose histograms Figure 2 shows, before and after fine-tuning, of the first category and seed."""
    common = _common(profile, dataset, categories, seeds, settings)
    return [grid(Contrastive, epochs=epochs, **common)[0] for epochs in (0, _epochs(profile, settings))]


def outlier_filter_models(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gravel",),
                          seeds: Sequence[int] = (0,), settings: Mapping[str, Any] | None = None) -> list[Experiment]:
    """The network fine-tuned without the outlier filter (Sec. 2), of the first category and seed."""
    common = _common(profile, dataset, categories, seeds, settings)
    return grid(Contrastive, **{**common, "epochs": _epochs(profile, settings), "filter": False})[:1]


def sensitivity_study(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("gravel",),
                      seeds: Sequence[int] = (0,), settings: Mapping[str, Any] | None = None,
                      sensitivity: Mapping[str, Sequence[Any]] | None = None,
                      sensitivity_epochs: int = 3) -> dict[tuple[str, Any], list[Experiment]]:
    """Short runs that vary one setting at a time: (setting, value) -> experiments of all categories with the first seed.

    Each setting takes its values in `sensitivity` and its usual value, in ascending order.
    """
    common = {**_common(profile, dataset, categories, seeds[:1], settings), "epochs": sensitivity_epochs}
    trials = {}
    for name, values in (sensitivity or {}).items():
        usual = getattr(grid(Contrastive, **common)[0].config(), name)
        for value in sorted({usual, *(tuple(v) if isinstance(v, list) else v for v in values)}):
            trials[name, value] = grid(Contrastive, **{**common, name: value})
    return trials


def _common(profile: str, dataset: str, categories: Sequence[str], seeds: Sequence[int],
            settings: Mapping[str, Any] | None) -> dict[str, Any]:
    own = {name: value for name, value in as_tuples(settings or {}).items() if name != "epochs"}
    return {"profile": profile, "dataset": dataset, "categories": categories, "seeds": seeds, **own}


def _epochs(profile: str, settings: Mapping[str, Any] | None) -> int:
    usual = Contrastive.quick["epochs"] if profile == "quick" else Contrastive.Config().epochs
    return int((settings or {}).get("epochs", usual))
