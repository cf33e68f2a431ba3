"""Experiments behind the tables and figures of UniAD (You et al., NeurIPS 2022): which trainings each exhibit asks for.

Each function is named by its exhibit and takes the parameters of its notebook. Making a list reads no data and trains nothing.

    quick_settings  settings of the quick profile that differ from the method's own; other profiles ignore them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adcore.experiments import Experiment, as_tuples, grid
from adcore.models import CNN, MLP, Transformer, UniAD

QUICK = {"image_size": 96, "neighbors": 3, "hidden": 48, "heads": 2, "ffn": 96, "encoder_layers": 1, "decoder_layers": 2,
         "epochs": 30, "lr": 3e-3, "lr_drop": 24, "jitter_scale": 10}
QUICK_LONG = {**QUICK, "epochs": 50, "lr_drop": 40}
QUICK_SHORTCUT = {"taps": (2, 3), "image_size": 96, "neighbors": 3, "hidden": 64, "heads": 4, "ffn": 128, "encoder_layers": 1,
                  "decoder_layers": 1, "epochs": 64, "lr": 4e-3, "lr_drop": 53, "jitter_scale": 5}
QUICK_CIFAR10 = {"image_size": 48, "encoder_layers": 1, "decoder_layers": 1, "hidden": 64, "ffn": 128, "neighbors": 1,
                 "batch_size": 16, "lr": 6e-3, "epochs": 3, "lr_drop": 2}
QUICK_FIGURES = {**QUICK_SHORTCUT, "image_size": 128, "epochs": 80, "lr_drop": 66}

SPLITS = ("01234", "56789", "02468", "13579")    # the halves of the ten classes (S C.4)
BACKBONES = ("efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2")   # those whose weights need no download


def table_s7(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick", "capsule", "gear"),
             seeds: Sequence[int] = (0,)) -> list[Experiment]:
    """UniAD trained on a few categories, one model per seed. Table S7 itself counts operations and needs no training."""
    return grid(UniAD, dataset=dataset, categories=categories, seeds=seeds, profile=profile)


def table_s2(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("capsule", "gear"),
             seeds: Sequence[int] = (0, 1), queries: Sequence[str] = ("none", "one"),
             quick_settings: Mapping[str, Any] = QUICK_SHORTCUT) -> list[Experiment]:
    """Table S2: query, neighbor masked attention and feature jittering, in the printed order.

    queries  kinds of query: 'none' has one row, 'one' and 'layerwise' have four each; empty for all nine rows
    """
    common = _common(profile, dataset, categories, seeds, quick_settings)
    found: list[Experiment] = []
    for query in queries or ("none", "one", "layerwise"):
        values: Any = False if query == "none" else [False, True]
        found += grid(UniAD, query=query, nma=values, jitter=values, **common)
    return found


def table_s3(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick",),
             seeds: Sequence[int] = (0,), quick_settings: Mapping[str, Any] = QUICK) -> list[Experiment]:
    """Table S3: the vanilla decoder, the six wirings without mask and jitter, and wirings a, b, f with both."""
    common = _common(profile, dataset, categories, seeds, quick_settings)
    return [*grid(UniAD, query="one", nma=False, jitter=False, **common),
            *grid(UniAD, wiring=list("abcdef"), nma=False, jitter=False, **common),
            *grid(UniAD, wiring=list("abf"), nma=True, jitter=True, **common)]


def table_s4(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick",),
             seeds: Sequence[int] = (0,), quick_settings: Mapping[str, Any] = QUICK_LONG) -> list[Experiment]:
    """Table S4: the three losses."""
    return grid(UniAD, loss=["mse", "normalized_mse", "cosine"], **_common(profile, dataset, categories, seeds, quick_settings))


def table_s5(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick",),
             seeds: Sequence[int] = (0,), quick_settings: Mapping[str, Any] = QUICK_LONG) -> list[Experiment]:
    """Table S5: trained and frozen backbone; the quick profile trains 12 epochs only, because each runs the backbone."""
    shortened = {**quick_settings, "epochs": 12, "lr_drop": 10}
    return grid(UniAD, train_backbone=[True, False], **_common(profile, dataset, categories, seeds, shortened))


def table_s5_models(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick",),
                    seeds: Sequence[int] = (0,), quick_settings: Mapping[str, Any] = QUICK_LONG) -> list[Experiment]:
    """The two networks of Table S5 with the first seed, whose training losses the notebook draws."""
    return table_s5(profile=profile, dataset=dataset, categories=categories, seeds=seeds[:1], quick_settings=quick_settings)


def table_s6(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("brick",),
             seeds: Sequence[int] = (0,), backbones: Sequence[str] = BACKBONES,
             quick_settings: Mapping[str, Any] = QUICK_LONG) -> list[Experiment]:
    """Table S6: backbones; and as a control, the first one with random weights (weights='random')."""
    common = _common(profile, dataset, categories, seeds, quick_settings)
    return [*grid(UniAD, backbone=list(backbones), **common), *grid(UniAD, backbone=backbones[0], weights="random", **common)]


def cifar10(*, profile: str = "quick", dataset: str = "digits", splits: Sequence[str] = SPLITS,
            left_out: Sequence[str] = tuple("0123456789"), seeds: Sequence[int] = (0,),
            quick_settings: Mapping[str, Any] = QUICK_CIFAR10) -> list[Experiment]:
    """CIFAR-10 (S C.4): one model for each half of the classes, then one for all classes but each of `left_out`.

    splits    normal classes, the others are anomalous (many against many)
    left_out  anomalous classes, one at a time; the others are normal (many against one)
    """
    settings = {"score": "mean", "resize": "lanczos", "taps": (1, 2, 3, 4, 5),
                **(as_tuples(quick_settings) if profile == "quick" else {"batch_size": 128})}
    normal = [*splits, *("0123456789".replace(digit, "") for digit in left_out)]
    return [e for classes in normal
            for e in grid(UniAD, dataset=dataset, categories=classes, seeds=seeds, profile=profile, **settings)]


def cifar10_models(*, profile: str = "quick", dataset: str = "digits", splits: Sequence[str] = SPLITS,
                   seeds: Sequence[int] = (0,), quick_settings: Mapping[str, Any] = QUICK_CIFAR10) -> list[Experiment]:
    """The model of the first half with the first seed, of which the notebook draws maps."""
    return cifar10(profile=profile, dataset=dataset, splits=splits[:1], left_out=(), seeds=seeds[:1],
                   quick_settings=quick_settings)


def figure_s2_models(*, profile: str = "quick", dataset: str = "mini", categories: Sequence[str] = ("capsule", "gear"),
                     seeds: Sequence[int] = (0,), quick_settings: Mapping[str, Any] = QUICK_FIGURES) -> list[Experiment]:
    """Figure S2: MLP, CNN, transformer and UniAD, each one model for all categories. Figure S3 shows UniAD's."""
    experiments = []
    for method in (MLP, CNN, Transformer, UniAD):
        known = method.Config().values()
        own = {name: value for name, value in quick_settings.items() if name in known}
        experiments += grid(method, **_common(profile, dataset, categories, seeds, own))
    return experiments


def _common(profile: str, dataset: str, categories: Sequence[str], seeds: Sequence[int],
            quick_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `grid` that all experiments of a table share."""
    settings = as_tuples(quick_settings) if profile == "quick" else {}
    return {"dataset": dataset, "categories": categories, "seeds": seeds, "profile": profile, **settings}
