"""Executed notebooks as single HTML files that ask the network for nothing: formulas become MathML, pictures stay inside."""

from __future__ import annotations

import html
import re
from pathlib import Path

from adcore.files import write_text

# Code spans and fences first, so that a dollar inside them is left alone; then display and inline formulas.
_PIECES = re.compile(r"(?P<code>```.*?```|`[^`\n]+`)|\$\$(?P<display>.+?)\$\$|(?<![\\$\w])\$(?P<inline>[^$\n]+?)\$(?![\w$])",
                     re.DOTALL)


def with_mathml(markdown: str) -> str:
    """Markdown with its TeX formulas as MathML, which browsers draw by themselves."""
    from latex2mathml.converter import convert

    def replace(match: re.Match[str]) -> str:
        if match["code"]:
            return match[0]
        display = match["display"] is not None
        formula = (match["display"] or match["inline"]).strip()
        try:
            return convert(formula, display="block" if display else "inline")
        except Exception:  # a formula that it cannot read has many errors; TeX as text can still be read
            return f"<code>{html.escape(formula)}</code>"

    return _PIECES.sub(replace, markdown)


def to_html(notebook: Path, target: Path) -> None:
    """Write an executed notebook as one HTML page."""
    import nbformat
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    exporter = HTMLExporter(embed_images=True, require_js_url="", mathjax_url="", jquery_url="", mermaid_js_url="",
                            jupyter_widgets_base_url="", widget_renderer_url="", html_manager_semver_range="")
    page, _ = exporter.from_notebook_node(content)
    write_text(target, drop_outside(page))


def drop_outside(page: str) -> str:
    """The page without tags that would load something from elsewhere; plain links stay, they load nothing."""
    page = re.sub(r"<script[^>]+src\s*=\s*[\"'](?:https?:)?//[^>]*>\s*</script>", "", page)
    page = re.sub(r"<(?:img|iframe|source|video|audio)[^>]+src\s*=\s*[\"'](?:https?:)?//[^>]*>", "", page)
    page = re.sub(r"<link[^>]+href\s*=\s*[\"'](?:https?:)?//[^>]*>", "", page)
    # nbconvert's template starts MathJax and a diagram renderer from a CDN in inline scripts.
    return re.sub(r"<script[^>]*>(?:(?!</script>).)*https?://(?:(?!</script>).)*</script>", "", page, flags=re.DOTALL)
