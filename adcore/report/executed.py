"""Executed notebooks as single HTML files that ask the network for nothing: formulas become MathML, pictures stay inside."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

from adcore.files import write_text

# Code spans and fences first, so that a dollar inside them is left alone; then display and inline formulas.
_PIECES = re.compile(r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])",
                     re.DOTALL)


def with_mathml(markdown: str, put: Callable[[str], str] = str) -> str:
    """Markdown with its TeX formulas as MathML, which browsers draw by themselves.

    put  what to write in the text for a formula's markup; the markup itself by default
    """
    from latex2mathml.converter import convert

    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        display = match["display"] is not None
        formula = (match["display"] or match["inline"]).strip()
        try:
            return put(convert(formula, display="block" if display else "inline"))
        except Exception:  # a formula that it cannot read has many errors; TeX as text can still be read
            return put(f"<code>{html.escape(formula)}</code>")

    return _PIECES.sub(replace, markdown)


def to_html(notebook: Path, target: Path) -> None:
    """Write an executed notebook as one HTML page."""
    import nbformat
    from nbconvert import HTMLExporter

    formulas: list[str] = []

    def put(markup: str) -> str:
        formulas.append(markup)  # nbconvert's Markdown would tear its tags apart: it goes in afterwards
        return f"FORMULA{len(formulas) - 1:05}ELUMROF"

    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source, put)
        for output in cell.get("outputs", ()):
            _latex_to_html(output.get("data", {}), put)
    exporter = HTMLExporter(embed_images=True, require_js_url="", mathjax_url="", jquery_url="", mermaid_js_url="",
                            jupyter_widgets_base_url="", widget_renderer_url="", html_manager_semver_range="")
    page, _ = exporter.from_notebook_node(content)
    # A heading's formula is also in its anchor, where markup would break the page.
    page = re.sub(r"(?:id|href)=\"[^\"]*\"", lambda match: re.sub(r"FORMULA\d{5}ELUMROF", "formula", match[0]),
                  drop_outside(page))
    page = re.sub(r"FORMULA(\d{5})ELUMROF", lambda match: formulas[int(match[1])], page)
    write_text(target, page)


def _latex_to_html(data: dict[str, str], put: Callable[[str], str]) -> None:
    """A cell's formula, as sympy gives it, becomes HTML in place; an output that already has HTML keeps it."""
    if "text/latex" in data and "text/html" not in data:
        data["text/html"] = f"<p>{with_mathml(data.pop('text/latex'), put)}</p>"


def drop_outside(page: str) -> str:
    """The page without tags that would load something from elsewhere; plain links stay, they load nothing."""
    page = re.sub(r"<script[^>]+src\s*=\s*[\"'](?:https?:)?//[^>]*>\s*</script>", "", page)
    page = re.sub(r"<(?:img|iframe|source|video|audio)[^>]+src\s*=\s*[\"'](?:https?:)?//[^>]*>", "", page)
    page = re.sub(r"<link[^>]+href\s*=\s*[\"'](?:https?:)?//[^>]*>", "", page)
    # nbconvert's template starts MathJax and a diagram renderer from a CDN in inline scripts.
    return re.sub(r"<script[^>]*>(?:(?!</script>).)*https?://(?:(?!</script>).)*</script>", "", page, flags=re.DOTALL)
