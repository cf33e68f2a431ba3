"""The charts of the report, as PNG pictures embedded in its pages."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from adcore.experiments.record import METRICS, summarize
from adcore.figures import COLORS, HATCHES, use_style


def as_data(figure: Figure) -> str:
    """A figure as a data URL with a PNG picture."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


LEGIBLE = 12  # largest number of groups of bars in a chart


def record_chart(frame: pd.DataFrame) -> str | None:
    """Bars: image AUROC, pixel AUROC and AUPRO of each method and category, mean and standard deviation over seeds.

    None when the table has more than `LEGIBLE` rows, because so many bars cannot be read.
    """
    table = summarize(frame)
    if len(table) > LEGIBLE:
        return None
    labels = [f"{row['method']}\n{row['category'].replace('_', ' ')}" for _, row in table.iterrows()]
    with matplotlib.rc_context():
        use_style()
        figure = Figure(figsize=(max(4.5, 1.15 * len(labels)), 2.9), layout="constrained")
        axes = figure.add_subplot()
        for i, title in enumerate(METRICS.values()):
            parts = [str(cell).split(" ± ") if cell else ["nan"] for cell in table[title]]
            means = np.array([float(part[0]) for part in parts])
            spread = np.array([float(part[1]) if len(part) > 1 else 0.0 for part in parts])
            axes.bar(np.arange(len(labels)) + 0.27 * (i - 1), means, 0.25, yerr=np.where(spread > 0, spread, np.nan),
                     color=COLORS[i], hatch=HATCHES[i], edgecolor="white", label=title, error_kw={"linewidth": 1})
        axes.set(xticks=np.arange(len(labels)), ylabel="percent", ylim=(0, 101))
        axes.set_xticklabels(labels, fontsize=7.5, parse_math=False)  # a name may have dollar signs
        axes.axhline(50, color="#888", linewidth=0.8, linestyle=":")
        axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
        axes.grid(axis="x", visible=False)
        return as_data(figure)


def benchmark_chart(frame: pd.DataFrame | None) -> str | None:
    """Bars: how many times faster than each other library, on a logarithmic axis with a line at 1."""
    if frame is None or frame.empty:
        return None
    with matplotlib.rc_context():
        use_style()
        figure = Figure(figsize=(7.4, 0.8 + 0.36 * len(frame)), layout="constrained")
        axes = figure.add_subplot()
        # With the size: bars with equal names would coincide.
        names = [f"{row.benchmark} ({row.size})\nvs {row.peer}" for row in frame.itertuples()]
        names = [name.replace("$", r"\$") for name in names]  # not a formula
        axes.barh(names, frame["ratio"], color=[COLORS[2] if ratio >= 1 else COLORS[1] for ratio in frame["ratio"]])
        axes.margins(y=0.5 / len(frame))
        for y, ratio in enumerate(frame["ratio"]):
            axes.text(ratio * 1.03, y, f"{ratio:.0f}x" if ratio >= 10 else f"{ratio:.2g}x", va="center", fontsize=8)
        axes.axvline(1, color="#333", linewidth=1)
        axes.set(xscale="log", xlabel="peer's time / ours")
        axes.invert_yaxis()
        return as_data(figure)


def whole_chart(frame: pd.DataFrame | None) -> str | None:
    """One panel per case, with one bar per library: seconds of fitting and of testing."""
    if frame is None or frame.empty:
        return None
    cases = list(frame.groupby("case", sort=False))
    rows = -(-len(cases) // 2)
    with matplotlib.rc_context():
        use_style()
        figure = Figure(figsize=(9.6, 0.3 + 1.25 * rows), layout="constrained")
        panels = figure.subplots(rows, 2, squeeze=False).ravel()
        for axes, (case, runs) in zip(panels, cases, strict=False):
            axes.barh(runs["way"], runs["fit_s"], 0.6, color=COLORS[0], label="fit")
            axes.barh(runs["way"], runs["test_s"], 0.6, left=runs["fit_s"], color=COLORS[1], hatch=HATCHES[1],
                      edgecolor="white", label="test and metrics")
            for y, (seconds, memory) in enumerate(zip(runs["seconds"], runs["peak_gb"], strict=True)):
                axes.text(seconds, y, f" {seconds:.0f} s, {memory:.1f} GB", va="center", fontsize=8)
            axes.set_title(f"{case}: {runs['times faster'].iloc[-1]:.1f} times faster", fontsize=8.5, parse_math=False)
            axes.set_xlim(0, 1.35 * runs["seconds"].max())
            axes.grid(axis="y", visible=False)
            axes.invert_yaxis()
        for axes in panels[len(cases):]:
            axes.set_axis_off()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
        figure.supxlabel("seconds", fontsize=8.5)
        return as_data(figure)


def growth_chart(frame: pd.DataFrame | None) -> str | None:
    """One panel per computation and growing size: seconds and peak memory over the size, on logarithmic axes.

    The title gives the fitted exponent of the time and the exponent that follows from counting operations.
    """
    if frame is None or frame.empty:
        return None
    groups = list(frame.groupby(["kernel", "of"], sort=False))
    rows = -(-len(groups) // 3)
    with matplotlib.rc_context():
        use_style()
        figure = Figure(figsize=(9.6, 2.5 * rows), layout="constrained")
        panels = figure.subplots(rows, 3, squeeze=False).ravel()
        for axes, ((kernel, of), lines) in zip(panels, groups, strict=False):
            axes.loglog(lines["size"], lines["seconds"], marker="o", color=COLORS[0])
            first = lines.iloc[0]
            axes.set_title(f"{kernel}\ntime ~ {of}^{first['exponent']:.2f}, counted {first['expected']:g}", fontsize=8.5,
                           parse_math=False)
            axes.set_xlabel(of, parse_math=False)
            axes.set_ylabel("seconds", color=COLORS[0])
            axes.set_xticks(lines["size"], [_short(size) for size in lines["size"]])
            axes.minorticks_off()
            memory = lines[lines["peak_mb"] > 0] if "peak_mb" in lines else lines[:0]
            if not memory.empty:
                twin = axes.twinx()
                twin.loglog(memory["size"], memory["peak_mb"], marker="s", linestyle="--", color=COLORS[1])
                twin.set_ylabel("peak MB", color=COLORS[1])
                twin.minorticks_off()
                twin.grid(visible=False)
                _at_least_a_decade(twin)
            _at_least_a_decade(axes)
        for axes in panels[len(groups):]:
            axes.set_axis_off()
        return as_data(figure)


def _at_least_a_decade(axes: Axes) -> None:
    """Let the y axis span at least a decade: it then has a labeled tick, and a nearly constant line looks flat."""
    low, high = axes.get_ylim()
    if high < 10 * low:
        middle = (low * high)**0.5
        axes.set_ylim(middle / 10**0.6, middle * 10**0.6)


def _short(size: int) -> str:
    """1048576 -> '1.0M'."""
    return next((f"{size / unit:.3g}{letter}" for unit, letter in ((1e6, "M"), (1e3, "k")) if size >= unit), str(size))
