"""The style of all figures, and functions that show a figure in its notebook or store it for the report."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adcore.files import atomic, write_json
from adcore.paths import runs_folder

# The colors of Okabe and Ito, which color-blind readers can distinguish; each has its own line style, marker and hatch.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (5, 2)), "-")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xxx", "\\\\\\", "---", "++")
HEAT = "inferno"


def use_style() -> None:
    """Set the fonts, sizes and colors of all figures. Every notebook calls this once."""
    plt.rcParams.update({
        "figure.dpi": 100, "savefig.dpi": 100, "savefig.bbox": "tight", "figure.constrained_layout.use": True,
        "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8, "xtick.labelsize": 8,
        "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "grid.linewidth": 0.6, "image.interpolation": "nearest", "axes.prop_cycle": plt.cycler(color=COLORS)})


def show(figure: Figure) -> None:
    """Show a figure in its notebook and close it."""
    if getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)() is None:
        plt.show()
        plt.close(figure)
    else:
        from IPython.display import display
        display(picture(figure))


def picture(figure: Figure) -> Any:
    """The figure as an `IPython.display.Image`; it is closed.

    This is the smallest of three files: photographs are several times smaller as JPEG, charts as PNG with 256 colors, which is
    no choice where the colors would differ from the figure's by more than half a level of 255 on average.
    """
    from IPython.display import Image
    whole, jpeg, palette = io.BytesIO(), io.BytesIO(), io.BytesIO()
    figure.savefig(whole, format="png")
    figure.savefig(jpeg, format="jpeg", pil_kwargs={"quality": 76})
    plt.close(figure)
    colors = PIL.Image.open(whole).convert("RGB")
    few = colors.quantize(256, dither=PIL.Image.Dither.NONE)
    few.save(palette, format="png", optimize=True)
    found = [("png", whole), ("jpeg", jpeg)]
    if np.abs(np.asarray(few.convert("RGB"), int) - np.asarray(colors, int)).mean() < 0.5:
        found.append(("png", palette))
    kind, smallest = min(found, key=lambda pair: len(pair[1].getvalue()))
    return Image(smallest.getvalue(), format=kind)


def record(figure: Figure, exhibit: str, context: str, profile: str, out: str | Path | None = None) -> None:
    """Store a figure under its exhibit's id, for the report.

    context  how the figure was made, in words
    profile  'paper' when it was made with the paper's settings, 'quick' when it only demonstrates the exhibit
    """
    folder = runs_folder(out) / "exhibits"
    with atomic(folder / f"{exhibit}.png") as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    write_json(folder / f"{exhibit}.json", {"exhibit": exhibit, "context": context, "profile": profile, "rows": []})


def bare(axes: Axes) -> None:
    """Remove ticks, grid and frame from axes that show a picture."""
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def outline(axes: Axes, mask: np.ndarray, color: str = "#FF2D2D") -> None:
    """Draw the border of a mask (H, W); nothing if the mask is empty."""
    if mask.any():
        axes.contour(mask.astype(float), levels=[0.5], colors=[color], linewidths=1.1)
