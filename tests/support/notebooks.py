"""Functions that write a small notebook or grid for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """\
# What a reader may change.
profile = "quick"
seeds = [0, 1]
rate = 0.5
seed = -1
noisy = False
categories = []
"""


def write_notebook(path: Path, parameters: str | None = PARAMETERS, *code: str) -> Path:
    cells = [new_markdown_cell("# A title"), *(new_code_cell(source) for source in code)]
    if parameters is not None:
        cells.insert(1, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": {
        "name": "python3", "display_name": "Python 3", "language": "python"}}), path)
    return path


def write_grid(folder: Path, text: str | dict[str, Any]) -> Path:
    (folder / "toy.yaml").write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
    return folder
