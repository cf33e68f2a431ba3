"""How much of an image AUROC is chance of the test images: scores of many methods on the same images, and a paired bootstrap.

    runs of several methods and seeds --gather--> one `ImageScores` per category --bootstrap--> AUROC of each draw --> 95 %

One draw takes as many defective and as many normal images of the category as there are, with replacement, and all methods and
seeds are measured on the same draws. So an interval covers the choice of the test images. It does not cover another training:
the seeds show that.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from adcore.errors import ParameterError, StoreError
from adcore.experiments.experiment import Experiment
from adcore.experiments.store import Store
from adcore.files import atomic
from adcore.paths import repository

DRAWS = 1000
LEVEL = 0.95
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageScores:
    """Scores of the test images of one category.

    methods  M names
    seeds    S numbers
    labels   (n,) 0 normal, 1 defective
    scores   (M, S, n) float32; NaN where a run did not score an image: a method with labels has trained on it, or there is no
             such run
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    labels: Array
    scores: Array

    def of(self, method: str) -> Array:
        """The scores of a method, (seeds that were run, n). Raises ParameterError for an unknown method."""
        if method not in self.methods:
            raise ParameterError(f"method={method!r} has no scores here; there are {', '.join(self.methods)}")
        scores = self.scores[self.methods.index(method)]
        return np.asarray(scores[~np.isnan(scores).all(axis=1)])


def gather(experiments: Iterable[Experiment], out: str | Path | None = None,
           name_of: Callable[[Experiment], str] = lambda experiment: experiment.method) -> dict[str, ImageScores]:
    """The stored scores of experiments, by category. Experiments that are not stored are left out.

    name_of  what the experiment's row is called among `ImageScores.methods`

    Raises:
        StoreError: none of them is stored, or two runs label an image differently.
    """
    store = Store(out)
    parts = [store.scores(e).assign(method=name_of(e), seed=e.seed) for e in experiments if store.load(e) is not None]
    if not parts:
        raise StoreError("none of the experiments is in the store: run them first")
    frame = pd.concat(parts, ignore_index=True)
    methods, seeds = list(dict.fromkeys(frame["method"])), sorted(set(frame["seed"]))
    found = {}
    for category, part in frame.groupby("category", sort=False):
        labels = part.groupby("image")["label"].agg(["min", "max"])
        if (labels["min"] != labels["max"]).any():
            raise StoreError(f"two runs label an image of {category} differently: measure them again")
        wide = part.pivot(index="image", columns=["method", "seed"], values="score")
        wide = wide.reindex(columns=pd.MultiIndex.from_product([methods, seeds]))
        scores = wide.to_numpy(np.float32).T.reshape(len(methods), len(seeds), -1)
        found[str(category)] = ImageScores(tuple(methods), tuple(map(int, seeds)), labels["max"].to_numpy(np.int8), scores)
    return found


def with_earlier(new: Mapping[str, ImageScores], old: Mapping[str, ImageScores],
                 kept: Collection[tuple[str, str, int]]) -> dict[str, ImageScores]:
    """The new scores, and of the old ones those of the runs `kept`, (method, category, seed), that are not among the new.

    Raises:
        StoreError: a category has other images than before.
    """
    found = dict(new)
    for category, before in old.items():
        if category in new and not np.array_equal(before.labels, new[category].labels):
            raise StoreError(f"{category} has other test images than the scores on record: remove those and export all again")
        rows = {(method, seed): row for (method, seed), row in _rows(before).items() if (method, category, seed) in kept}
        rows |= _rows(new[category]) if category in new else {}
        if not rows:
            continue
        methods, seeds = list(dict.fromkeys(method for method, _ in rows)), sorted({seed for _, seed in rows})
        missing = np.full(len(before.labels), np.nan, np.float32)
        scores = np.array([[rows.get((method, seed), missing) for seed in seeds] for method in methods])
        found[category] = ImageScores(tuple(methods), tuple(seeds), before.labels, scores)
    return found


def _rows(found: ImageScores) -> dict[tuple[str, int], Array]:
    """The scores of each method and seed that were run."""
    return {(method, seed): row for method, part in zip(found.methods, found.scores, strict=True)
            for seed, row in zip(found.seeds, part, strict=True) if not np.isnan(row).all()}


def save_scores(found: Mapping[str, ImageScores], path: Path) -> str:
    """Write scores to an npz file of plain arrays; returns a line about it. Raises StoreError when it cannot be written."""
    arrays = {f"{name}/{category}": np.asarray(getattr(scores, name)) for category, scores in found.items()
              for name in ("methods", "seeds", "labels", "scores")}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)     # type: ignore[arg-type]
    return f"{path}: scores of {sum(len(scores.labels) for scores in found.values())} images"


def recorded_scores(name: str, folder: Path | None = None) -> dict[str, ImageScores]:
    """The scores of results/NAME_scores.npz, by category.

    Raises:
        StoreError: the file is not there or holds something else.
    """
    path = (folder or (repository() or Path.cwd()) / "results") / f"{name}_scores.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {}
            for key in (key for key in file.files if key.startswith("scores/")):
                category = key.partition("/")[2]
                methods, seeds, labels = (file[f"{part}/{category}"] for part in ("methods", "seeds", "labels"))
                scores = file[key]
                if scores.shape != (len(methods), len(seeds), len(labels)):
                    raise ValueError(f"shapes of {category}")
                found[category] = ImageScores(tuple(map(str, methods)), tuple(map(int, seeds)), labels, scores)
            return found
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error.strerror or error}): export it again") from error
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path} is no file of image scores ({error}): export it again") from error


def draws_of(labels: Array, draws: int = DRAWS, seed: int = 0) -> Array:
    """How often each draw takes each image, (draws, n): normal and defective images are drawn separately, with replacement.

    Raises:
        ParameterError: an AUROC needs images of both kinds.
    """
    generator = np.random.default_rng(seed)
    counts = np.zeros((draws, len(labels)))
    for label in (0, 1):
        members = np.flatnonzero(labels == label)
        if not len(members):
            raise ParameterError(f"labels has no {'defective' if label else 'normal'} image: an AUROC needs both kinds")
        counts[:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), size=draws)
    return counts


def drawn_aurocs(labels: Array, scores: Array, counts: Array) -> Array:
    """The AUROC of each draw: labels (n,), scores (n,), counts (draws, n) -> (draws,). Images with the score NaN do not count.

    A defective image is worth the number of normal images below it and half of those with the same score, each as often as it
    was drawn. The normal images are sorted once, so these numbers are differences of one cumulative sum.

        >>> labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.6, 0.4, 0.9])
        >>> drawn_aurocs(labels, scores, np.ones((1, 4)))
        array([0.75])

    Raises:
        ParameterError: no scored image of one kind.
    """
    good, bad = (np.flatnonzero((labels == label) & ~np.isnan(scores)) for label in (0, 1))
    if not (len(good) and len(bad)):
        raise ParameterError(f"scores has no {'defective' if len(good) else 'normal'} image: an AUROC needs both kinds")
    good = good[np.argsort(scores[good])]
    below = np.cumsum(np.pad(counts[:, good], ((0, 0), (1, 0))), axis=1)                      # (draws, number of good + 1)
    first, last = (np.searchsorted(scores[good], scores[bad], side) for side in ("left", "right"))
    wins = 0.5 * (below[:, first] + below[:, last])                                           # (draws, number of bad)
    pairs = counts[:, bad].sum(1) * counts[:, good].sum(1)
    return np.asarray((counts[:, bad] * wins).sum(1) / pairs)


def auroc_intervals(found: Mapping[str, ImageScores], draws: int = DRAWS) -> pd.DataFrame:
    """Image AUROC of each method in each category and in their mean ('mean'), in percent.

    Columns: category, method, auroc (mean over seeds), low and high (95 % of the draws), seeds (a tuple: the AUROC of each).
    The mean is over categories that all have the method, draws of different categories being independent.
    """
    rows = []
    means: dict[str, list[tuple[Array, Array]]] = {}
    for number, (category, one) in enumerate(found.items()):
        counts = draws_of(one.labels, draws, seed=number)
        for method in (method for method in one.methods if len(one.of(method))):
            exact = np.array([drawn_aurocs(one.labels, run, np.ones((1, len(run))))[0] for run in one.of(method)])
            drawn = np.array([drawn_aurocs(one.labels, run, counts) for run in one.of(method)])        # (seeds, draws)
            means.setdefault(method, []).append((exact, drawn))
            rows.append(_row(category, method, exact, drawn))
    for method, parts in means.items():
        if len(parts) == len(found) > 1:
            seeds = min(len(exact) for exact, _ in parts)       # those that all categories have
            exact, drawn = (np.mean([one[:seeds] for one in each], axis=0) for each in zip(*parts, strict=True))
            rows.append(_row("mean", method, exact, drawn))
    return pd.DataFrame(rows)


def _row(category: str, method: str, exact: Array, drawn: Array) -> dict[str, Any]:
    low, high = _span(drawn.mean(axis=0))
    return {"category": category, "method": method, "auroc": 100 * exact.mean(), "low": 100 * low, "high": 100 * high,
            "seeds": tuple(100 * exact)}


def _span(drawn: Array) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_differences(found: Mapping[str, ImageScores], best: str, draws: int = DRAWS) -> pd.DataFrame:
    """How much the image AUROC of `best` is above each other method's, in points, with 95 % of the same draws.

    Each pair of runs with the same seed is compared on the images that both have scored. Columns: category, method, difference,
    low, high.

    Raises:
        ParameterError: `best` has no scores.
    """
    rows = []
    for number, (category, one) in enumerate(found.items()):
        if best not in one.methods:
            raise ParameterError(f"best={best!r} has no scores here; there are {', '.join(one.methods)}")
        counts, ones = draws_of(one.labels, draws, seed=number), np.ones((1, len(one.labels)))
        mine = one.scores[one.methods.index(best)]
        for method, runs in zip(one.methods, one.scores, strict=True):
            shared = [(a, b) for a, b in zip(mine, runs, strict=True) if not (np.isnan(a).all() or np.isnan(b).all())]
            if method != best and shared:
                exact, drawn = (np.mean([_difference(one.labels, a, b, many) for a, b in shared], axis=0)
                                for many in (ones, counts))
                low, high = _span(drawn)
                rows.append({"category": category, "method": method, "difference": 100 * float(exact[0]), "low": 100 * low,
                             "high": 100 * high})
    return pd.DataFrame(rows)


def _difference(labels: Array, a: Array, b: Array, counts: Array) -> Array:
    both = ~(np.isnan(a) | np.isnan(b))
    one, other = (drawn_aurocs(labels, np.where(both, run, np.nan), counts) for run in (a, b))
    return one - other
