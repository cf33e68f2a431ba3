"""Executed notebooks as single HTML files that run no script and load nothing: formulas as MathML, pictures embedded."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path

from markupsafe import Markup

from adcore.errors import StoreError
from adcore.files import write_text
from adcore.report.safe import environment, mathml, only_safe, table_styles

# Code spans and blocks come first, so that dollar signs inside them are not read as formulas.
_PIECES = re.compile(r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])",
                     re.DOTALL)
_TAG = re.compile(r"<(?:[^\"'>]|\"[^\"]*\"|'[^']*')*>")  # in HTML from `only_safe`

# Of what a cell shows, the kinds that need no script, the richest first.
KINDS = ("text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "image/jpeg", "text/plain")


def with_mathml(markdown: str, put: Callable[[str], str] = str) -> str:
    """Replace the TeX formulas of a Markdown text by MathML, which browsers show without a script.

    put  maps a formula's MathML to the text that replaces the formula; the MathML itself by default
    """
    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        display = "inline" if match["display"] is None else "block"
        return put(mathml((match["display"] or match["inline"]).strip(), display))

    return _PIECES.sub(replace, markdown)


def markdown_to_html(markdown: str) -> Markup:
    """A Markdown text as HTML, its formulas as MathML."""
    from nbconvert.filters import markdown2html

    kept = Kept()
    return kept.inserted(str(markdown2html(with_mathml(markdown, kept.put))))


class Kept:
    """Safe HTML that is left out while the rest is converted and cleaned: the parsers would break or remove its tags."""

    def __init__(self) -> None:
        self.markup: list[str] = []
        self._word = f"KEPT{secrets.token_hex(8)}N"  # which no text can contain by intent

    def put(self, markup: str) -> str:
        """Keep safe HTML and return a word that stands for it."""
        self.markup.append(markup)
        return f"{self._word}{len(self.markup) - 1:05}TPEK"

    def inserted(self, page: str) -> Markup:
        """The page, cleaned by `only_safe`, with the safe HTML in place of its words."""
        word = re.compile(rf"{self._word}(\d{{5}})TPEK")
        # A formula in a heading is also in the heading's anchor, where tags would break the page.
        page = _TAG.sub(lambda tag: word.sub("formula", tag[0]), only_safe(page))
        return Markup(word.sub(lambda match: self.markup[int(match[1])], page))


class NotebookError(StoreError):
    """An executed notebook of which no page can be made."""


_LINK = re.compile(r"\[(?P<label>[^\]\n]+)\]\((?P<file>[^()\s:]+)\.ipynb\)")


def with_page_links(markdown: str, here: Path, pages: Collection[Path]) -> str:
    """Links to other notebooks become links to their pages; where there is no page, the label alone.

    here   the page in which the text stands
    pages  the pages of all notebooks

    >>> with_page_links("see [maps](../b/02.ipynb) and [more](03.ipynb)", Path("r/a/01.html"), [Path("r/b/02.html")])
    'see [maps](../b/02.html) and more'
    """
    def replace(match: re.Match[str]) -> str:
        found = Path(os.path.normpath(here.parent / f"{match['file']}.html")) in pages
        return f"[{match['label']}]({match['file']}.html)" if found else match["label"]

    return _LINK.sub(replace, markdown)


def to_html(notebook: Path, target: Path, pages: Collection[Path] = ()) -> None:
    """Write an executed notebook as one HTML page.

    pages  the pages of all notebooks, to which its links may lead

    Raises:
        NotebookError: the file cannot be read as an executed notebook.
        StoreError: the page cannot be written.
    """
    import nbformat
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    kept = Kept()
    invalid: dict[str, Exception] = {}
    try:
        content = nbformat.read(notebook, as_version=4, capture_validation_error=invalid)
        if invalid:
            raise invalid["ValidationError"]
        for cell in content.cells:
            if cell.cell_type == "markdown":
                # Without the empty line, nbconvert's parser takes the solution of an exercise for a part of the list before it.
                cell.source = with_page_links(re.sub(r"\n(?=<details\b)", "\n\n", cell.source), target, pages)
                cell.source = with_mathml(cell.source, kept.put)
            for output in cell.get("outputs", ()):
                _keep_safe(output.get("data", {}), kept.put)
        exporter = HTMLExporter(template_file="base.html.j2", config=Config(NbConvertBase={"display_data_priority": KINDS}))
        body, _ = exporter.from_notebook_node(content)
        body = kept.inserted(body)
    except Exception as error:  # nbformat and nbconvert raise many kinds of errors
        raise NotebookError(f"{notebook} cannot be shown as a page ({type(error).__name__}): run it again") from error
    page = environment().get_template("notebook.html").render(title=notebook.stem, styles=_styles(), body=body)
    write_text(target, page)


@cache
def _styles() -> Markup:
    """The style sheets of nbconvert's page, without its scripts: they fetch MathJax, a diagram renderer and widgets."""
    from nbconvert import HTMLExporter
    from nbformat.v4 import new_notebook

    page, _ = HTMLExporter().from_notebook_node(new_notebook())
    return Markup("\n".join(re.findall(r"<style.*?</style>", page, re.DOTALL)))


def _keep_safe(data: dict[str, str], put: Callable[[str], str]) -> None:
    """Convert the formulas in a cell's Markdown or LaTeX (sympy's) output in place, and keep the styles of its tables."""
    if "text/markdown" in data:
        data["text/markdown"] = with_mathml(data["text/markdown"], put)
    if "text/html" in data:
        styles, data["text/html"] = table_styles(data["text/html"])
        data["text/html"] = (put(styles) if styles else "") + data["text/html"]
    elif "text/latex" in data:
        data["text/html"] = f"<p>{with_mathml(data.pop('text/latex'), put)}</p>"
