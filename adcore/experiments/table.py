"""Results as a table: means over categories and seeds, the gain of a switch, and the published numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from adcore.errors import ParameterError
from adcore.experiments.comparison import Comparison, compare_results
from adcore.experiments.departures import with_departures

if TYPE_CHECKING:
    from adcore.experiments.store import Result, Store

HEADLINE = ("image_auroc", "pixel_auroc", "aupro")


class ResultTable:
    """Results of some experiments.

    frame      one tidy row per number: method, dataset, category, seed, the whole config, metric, value, why, provenance
    stale      titles of the experiments that were run by other code; of those in `record`, by an older version of the method
    record     titles of those read from results/, whose code is known only by its commit
    unchecked  titles of those whose data or weights are not on this machine, so that a change since could not be seen
    """

    def __init__(self, results: Sequence[Result], store: Store, unchecked: Sequence[str] = ()) -> None:
        self.results, self.store, self.unchecked = tuple(results), store, list(unchecked)
        rows = [row for result in results for row in result.rows()]
        self.frame = pd.DataFrame(rows or None, columns=None if rows else ["method", "dataset", "category", "profile", "seed",
                                                                           "metric", "value", "why", "commit"])
        self.frame["value"] = self.frame["value"].astype(float)  # None, where undefined, becomes NaN
        self.record = [result.experiment.title for result in results if result.from_record]
        self.stale = [result.experiment.title for result in results if result.made_by_older_code]

    def where(self, **settings: Any) -> ResultTable:
        """The table of the results with these fields: `where(image_size=128, weights="default")`.

        Raises:
            ParameterError: no such field, or no such result.
        """
        kept = []
        for result in self.results:
            row = result.rows()[0]
            missing = sorted(set(settings) - set(row))
            if missing:
                raise ParameterError(f"results have no field '{missing[0]}'; they have {', '.join(row)}")
            if all(row[name] == value for name, value in settings.items()):
                kept.append(result)
        if not kept:
            raise ParameterError(f"no result with {settings}")
        titles = {result.experiment.title for result in kept}
        return ResultTable(kept, self.store, [title for title in self.unchecked if title in titles])

    def scores(self) -> pd.DataFrame:
        """Stored score, label and defect of every test image of all experiments, with seed and method."""
        return pd.concat([self.store.scores(e).assign(seed=e.seed, method=e.method)
                          for e in (result.experiment for result in self.results)], ignore_index=True)

    def maps(self) -> dict[str, np.ndarray]:
        """The stored anomaly maps of the first seed's experiments: 'category/folder/file' -> (H, W)."""
        first = min(result.experiment.seed for result in self.results)
        found: dict[str, np.ndarray] = {}
        for result in self.results:
            if result.experiment.seed == first:
                found |= self.store.maps(result.experiment)
        return found

    def swept(self) -> list[str]:
        """Settings that differ between the results, apart from seed and category."""
        named = {name for result in self.results for name, _ in result.experiment.settings}
        columns = ["method", "dataset", "profile", *sorted(named)]
        return [name for name in columns if self.frame[name].map(repr).nunique() > 1]

    def by_seed(self) -> pd.DataFrame:
        """Categories averaged within each seed, those without a value left out: one row for each setting, seed and metric."""
        groups = [*(self.swept() or ["method"]), "seed", "metric"]
        return self.frame.groupby(groups, sort=False, dropna=False)["value"].mean().reset_index()

    def mean_std(self, metrics: Sequence[str] = HEADLINE) -> pd.DataFrame:
        """Mean and standard deviation over seeds in percent, and the number of seeds; without metrics that have no value."""
        groups = self.swept() or ["method"]
        frame = self.by_seed()
        frame = frame[frame.metric.isin(metrics) & frame["value"].notna()]
        table = frame.groupby([*groups, "metric"], sort=False, dropna=False)["value"].agg(["mean", "std", "count"])
        return table.assign(mean=table["mean"] * 100, std=table["std"] * 100).rename(columns={"count": "seeds"})

    def by_category(self, metric: str = "image_auroc") -> pd.DataFrame:
        """Mean over seeds of one metric in percent, NaN where undefined: one row per category, one column per setting."""
        frame = self.frame[self.frame.metric == metric]
        groups = self.swept() or ["method"]
        table = frame.pivot_table(index="category", columns=groups, values="value", aggfunc="mean", sort=False) * 100
        return table.reindex(pd.Index(frame["category"].unique(), name="category"))  # also those without any value

    def value(self, metric: str, **settings: Any) -> float:
        """One number: the mean over categories and seeds of the results with those settings, a fraction.

        Raises:
            ParameterError: no result has those settings.
        """
        frame = self.frame[self.frame.metric == metric]
        for name, wanted in settings.items():
            if name not in frame:
                raise ParameterError(f"results have no field '{name}'; they have {', '.join(map(str, frame.columns))}")
            frame = frame[frame[name].map(lambda value, wanted=wanted: value == wanted)]
        if frame.empty:
            raise ParameterError(f"no result has metric={metric} with {settings}")
        return float(frame.groupby("seed")["value"].mean().mean())

    def gain(self, switch: str, metric: str = "image_auroc") -> float:
        """How much a metric rises when a switch is turned on, all else equal, averaged over all else.

        Raises:
            ParameterError: the results do not have the switch both on and off.
        """
        frame = self.frame[self.frame.metric == metric]
        if switch not in frame or set(frame[switch]) != {True, False}:
            raise ParameterError(f"'{switch}' is not both True and False in these results")
        others = [name for name in self.swept() if name != switch]
        paired = frame.pivot_table(index=[*others, "category", "seed"], columns=switch, values="value").dropna()
        return float((paired[True] - paired[False]).mean())

    def against(self, exhibit: str, computed: Mapping[tuple[str, str], float] | None = None) -> Comparison:
        """The published numbers of an exhibit beside these, with a verdict for each; stored for the report.

        computed  (row, column) -> value that needs no training, such as a parameter count

        Raises:
            ParameterError: unknown exhibit.
        """
        comparison = with_departures(compare_results(exhibit, self, computed), self.results)
        comparison.record(self.store.root)
        return comparison

    def summary(self) -> str:
        """The main numbers as text, for the message of a failed claim."""
        lines = [self.settings_line(), *([] if self.frame.empty else [self.mean_std().round(2).to_string()])]
        return "\n".join(lines)

    def settings_line(self) -> str:
        """Data set, profile, seeds, commits and doubts, written below a table."""
        if self.frame.empty:
            return "no result"
        first = self.frame.iloc[0]
        seeds = ", ".join(str(seed) for seed in sorted(self.frame.seed.unique()))
        commits = ", ".join(dict.fromkeys(self.frame["commit"].fillna("").replace("", "unknown")))
        parts = [f"data set {first['dataset']}", f"profile {first['profile']}", f"seeds {seeds}", f"commit {commits}",
                 self.doubts(), f"{len(self.unchecked)} not compared with today's data and weights, which are not here" if
                 self.unchecked else "", *self.gaps()]
        return " · ".join(part for part in parts if part)

    def gaps(self) -> list[str]:
        """Which metrics are empty, or leave something out, and why: 'no test image in part: image_auroc, image_ap'."""
        partial = self.frame[self.frame["why"] != ""]
        metrics: dict[tuple[str, str], dict[str, None]] = {}
        for why, category, metric in zip(partial["why"], partial["category"], partial["metric"], strict=True):
            metrics.setdefault((why, category), {})[metric] = None
        categories: dict[tuple[str, str], list[str]] = {}
        for (why, category), found in metrics.items():
            categories.setdefault((why, ", ".join(found)), []).append(category)
        every = set(self.frame["category"])
        return [f"{why}{'' if set(where) == every else ' in ' + ', '.join(where)}: {names}"
                for (why, names), where in categories.items()]

    def doubts(self) -> str:
        """How many results may come from other code than today's, in words; '' when none."""
        counts = ((len(self.record), "from the record"), (len(self.stale), "made by older code"))
        return ", ".join(f"{count} result{'s' * (count > 1)} {words}" for count, words in counts if count)

    def _repr_html_(self) -> str:
        table = self.mean_std().reset_index() if len(self.frame) else self.frame
        if table.empty:
            return f"<p><small>no number · {escape(self.settings_line(), quote=False)}</small></p>"
        table["value"] = [f"{mean:.1f}" if pd.isna(std) else f"{mean:.1f} ± {std:.1f}"
                          for mean, std in zip(table["mean"], table["std"], strict=True)]
        groups = self.swept() or ["method"]
        wide = table.pivot_table(index=groups, columns="metric", values="value", aggfunc="first", sort=False)
        wide.columns.name = None
        return (f"<div class='adcore-measured'>{wide.to_html(border=0, na_rep='–')}<p><small>measured, percent · "
                f"{escape(self.settings_line(), quote=False)}</small></p></div>")

    def __repr__(self) -> str:
        return self.summary()
