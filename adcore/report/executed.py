"""Executed notebooks as single HTML files that load nothing from the network: formulas as MathML, pictures embedded."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

from adcore.files import write_text

# Code spans and blocks come first, so that dollar signs inside them are not read as formulas.
_PIECES = re.compile(r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])",
                     re.DOTALL)


def with_mathml(markdown: str, put: Callable[[str], str] = str) -> str:
    """Replace the TeX formulas of a Markdown text by MathML, which browsers show without a script.

    put  maps a formula's MathML to the text that replaces the formula; the MathML itself by default
    """
    from latex2mathml.converter import convert

    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        display = match["display"] is not None
        formula = (match["display"] or match["inline"]).strip()
        try:
            return put(convert(formula, display="block" if display else "inline"))
        except Exception:  # the converter raises many kinds of errors; then show the TeX source
            return put(f"<code>{html.escape(formula)}</code>")

    return _PIECES.sub(replace, markdown)


def markdown_to_html(markdown: str) -> str:
    """A Markdown text as HTML, its formulas as MathML."""
    from nbconvert.filters import markdown2html

    formulas = Formulas()
    return formulas.inserted(str(markdown2html(with_mathml(markdown, formulas.put))))


class Formulas:
    """Formulas that are left out while Markdown is converted, because its parser would break their tags."""

    def __init__(self) -> None:
        self.markup: list[str] = []

    def put(self, markup: str) -> str:
        """Keep a formula's MathML and return a word that stands for it."""
        self.markup.append(markup)
        return f"FORMULA{len(self.markup) - 1:05}ELUMROF"

    def inserted(self, page: str) -> str:
        """The page with the formulas in place of their words."""
        # A formula in a heading is also in the heading's anchor, where tags would break the page.
        page = re.sub(r"(?:id|href)=\"[^\"]*\"", lambda match: re.sub(r"FORMULA\d{5}ELUMROF", "formula", match[0]), page)
        return re.sub(r"FORMULA(\d{5})ELUMROF", lambda match: self.markup[int(match[1])], page)


def to_html(notebook: Path, target: Path) -> None:
    """Write an executed notebook as one HTML page."""
    import nbformat
    from nbconvert import HTMLExporter

    formulas = Formulas()
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source, formulas.put)
        for output in cell.get("outputs", ()):
            _formulas_to_html(output.get("data", {}), formulas.put)
    exporter = HTMLExporter(embed_images=True, require_js_url="", mathjax_url="", jquery_url="", mermaid_js_url="",
                            jupyter_widgets_base_url="", widget_renderer_url="", html_manager_semver_range="")
    page, _ = exporter.from_notebook_node(content)
    write_text(target, formulas.inserted(drop_outside(page)))


def _formulas_to_html(data: dict[str, str], put: Callable[[str], str]) -> None:
    """Convert the formulas in a cell's Markdown or LaTeX (sympy's) output in place, unless the output has HTML already."""
    if "text/markdown" in data:
        data["text/markdown"] = with_mathml(data["text/markdown"], put)
    if "text/latex" in data and "text/html" not in data:
        data["text/html"] = f"<p>{with_mathml(data.pop('text/latex'), put)}</p>"


def drop_outside(page: str) -> str:
    """Remove the tags that would load something from the network. Plain links load nothing and stay."""
    page = re.sub(r"<script[^>]+src\s*=\s*[\"'](?:https?:)?//[^>]*>\s*</script>", "", page)
    page = re.sub(r"<(?:img|iframe|source|video|audio)[^>]+src\s*=\s*[\"'](?:https?:)?//[^>]*>", "", page)
    page = re.sub(r"<link[^>]+href\s*=\s*[\"'](?:https?:)?//[^>]*>", "", page)
    # Inline scripts of nbconvert's template load MathJax and a diagram renderer from a CDN.
    return re.sub(r"<script[^>]*>(?:(?!</script>).)*https?://(?:(?!</script>).)*</script>", "", page, flags=re.DOTALL)
