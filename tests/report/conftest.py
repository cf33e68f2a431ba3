"""A checkout, a results store and a report, all written by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from support.report import NAMES, write_notebook, write_records
from support.tiny import result

from adcore import figures, notebook
from adcore.experiments import ResultTable, Store, compare_values
from adcore.experiments import record as recording
from adcore.report import pages, readme, write_report


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Iterator[Path]:
    """A checkout with three notebooks and a few measured numbers."""
    root = tmp_path_factory.mktemp("checkout")
    for name in NAMES:
        write_notebook(root / "notebooks" / f"{name}.ipynb")
    write_records(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook, "notebook_folder", lambda: root / "notebooks")
        for module in (recording, pages, readme):
            patch.setattr(module, "repository", lambda: root)
        yield root


@pytest.fixture(scope="module")
def runs(checkout) -> Path:
    """A results store: one notebook ran, one failed; tables S6 and S7 and a figure are stored."""
    root = checkout / "runs"
    write_notebook(root / "notebooks" / f"{NAMES[0]}.ipynb")
    (root / "notebooks" / f"{NAMES[0]}.json").write_text(json.dumps({"seconds": 12.5}))
    write_notebook(root / "notebooks" / f"{NAMES[1]}.ipynb")           # without a record: it failed
    compare_values("uniad2022.table_s7", {
        ("FLOPs(G)", "Ours"): 6.41, ("Learnable Params(M)", "Ours"): 7.479296, ("Learnable Params(M)", "PaDiM"): 950.3648,
        ("Sec. E.1", "claim"): "another"}, root=root)
    made = result({("screw", "image_auroc"): 0.965, ("screw", "pixel_auroc"): 0.99})
    ResultTable([made], Store(root)).against("uniad2022.table_s6")
    figures.record(Figure(figsize=(1, 1)), "heckler2023.figure_1", "random weights", "quick", root)
    return root


@pytest.fixture(scope="module")
def report(runs, checkout) -> Path:
    """The folder of a report on this store."""
    return write_report(checkout / "report", runs).parent
