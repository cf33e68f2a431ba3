"""A small checkout, executed notebooks and an HTML parser for the tests of the report."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from adcore.experiments import record as recording
from adcore.models import METHODS

PIXEL = base64.b64encode(base64.b16decode(
    "89504E470D0A1A0A0000000D49484452000000010000000108060000001F15C4890000000D49444154789C63F8FFFF3F0005FE02FEA7356"
    "9810000000049454E44AE426082")).decode()
NAMES = ["uniad2022/01_architecture", "uniad2022/02_ablations", "heckler2023/02_best_layer"]


def write_notebook(path: Path) -> None:
    """An executed notebook with an inline and a display formula, a picture, and code with dollar signs and a URL."""
    picture = new_output("display_data", {"image/png": PIXEL, "text/plain": "<Figure>"})
    code = 'price = "$5 and $6"\nhome = "https://example.org/x.js"'
    cells = [new_markdown_cell("# Title\nThe map is $s = \\|f - \\hat f\\|_2$, a price `$x` stays, and so does \\$3.\n\n"
                               "$$\\frac{1}{HW} \\sum_i x_i^2$$\n\n[paper](https://arxiv.org/abs/2206.03687)"),
             new_code_cell(code, execution_count=1, outputs=[picture]),
             new_code_cell("print('$a$')", execution_count=2, outputs=[new_output("stream", text="$a$ stays text\n")])]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def write_records(folder: Path) -> None:
    """Write results/real_images.csv, two seeds of one method and one of another, and five tables of benchmarks/."""
    rows = []
    measured = (("uniad", 0, (0.9, 0.8, 0.7)), ("uniad", 1, (0.92, 0.84, 0.7)), ("patchcore", 0, (1.0, 0.5, 0.6)))
    for method, seed, values in measured:
        for metric, value in zip(("image_auroc", "pixel_auroc", "aupro"), values, strict=True):
            rows.append({"method": method, "dataset": "mtd", "category": "tile", "profile": "quick", "settings": "",
                         "seed": seed, "metric": metric, "value": value, "seconds": 10.0 * (seed + 1), "peak_bytes": 2e9,
                         "device": "cpu", "machine": "a chip", "commit": "abc", "data": "d", "weights_digest": "w",
                         "finished": "t", "version": METHODS[method].version, "key": f"{method}{seed}"})
    (folder / "results").mkdir(parents=True)
    pd.DataFrame(rows)[recording.COLUMNS].to_csv(folder / "results" / "real_images.csv", index=False)
    (folder / "benchmarks").mkdir()
    speed = pd.DataFrame({"benchmark": ["aupro", "kcenter"], "peer": ["adeval", "anomalib"],
                          "size": ["100x256x256", "20000x128x2000"], "ratio": [3.0, 0.8]})
    speed.to_csv(folder / "benchmarks" / "results.csv", index=False)
    growth = [{"kernel": kernel, "of": "points", "size": size, "seconds": size**power / 1e6, "exponent": power, "expected": 1,
               "peak_mb": peak} for kernel, power, peak in (("gmm", 1.25, 3.0), ("nearest", 0.75, 0.0)) for size in (100, 200)]
    pd.DataFrame(growth).to_csv(folder / "benchmarks" / "growth.csv", index=False)
    whole = [("patchcore bottle", "anomalib", 60.0, 20.0, 3.5), ("patchcore bottle", "adcore", 12.0, 4.0, 2.0),
             ("fastflow grid", "anomalib", 50.0, 10.0, 1.5), ("fastflow grid", "adcore", 40.0, 10.0, 1.25)]
    pd.DataFrame([{"case": case, "way": way, "seconds": fit + test, "fit_s": fit, "test_s": test, "peak_gb": peak,
                   "times faster": 5.0} for case, way, fit, test, peak in whole]
                 ).to_csv(folder / "benchmarks" / "whole.csv", index=False)
    pd.DataFrame({"case": ["uniad screw"], "path": ["dropout"], "with_s": [40.0], "without_s": [50.0], "times faster": [1.25]}
                 ).to_csv(folder / "benchmarks" / "paths.csv", index=False)
    pd.DataFrame({"job": ["verify"], "images": [4000], "seconds": [7.5], "memory_mb": [321]}
                 ).to_csv(folder / "benchmarks" / "large.csv", index=False)


class Tags(HTMLParser):
    """A parsed page: its tags with their attributes, the text of its scripts and styles, and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, list[str]] = {"script": [], "style": []}
        self._in = ""
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in self.inline else ""

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in:
            self.inline[self._in].append(data)
        else:
            self.text += data


def outside_references(page: str) -> list[str]:
    """Everything that a browser would load from the network when it opens the page."""
    tags, found = Tags(page), []
    for tag, attributes in tags.tags:
        for name in ("src", "srcset", "data", "poster", *(["href"] if tag in ("link", "base", "use", "image") else [])):
            if re.match(r"\s*(https?:|ftp:)?//", attributes.get(name) or ""):
                found.append(f"<{tag} {name}={attributes[name]}>")
        if re.search(r"url\(\s*['\"]?(https?:)?//", attributes.get("style") or ""):
            found.append(f"<{tag} style>")
    found += [text for text in tags.inline["style"] if re.search(r"@import|url\(\s*['\"]?(https?:)?//", text)]
    found += [text[:300] for text in tags.inline["script"] if "http:" in text or "https:" in text]
    return found
