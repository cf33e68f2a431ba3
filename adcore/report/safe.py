"""What a page of the report may hold. Names, results and executed notebooks are shown and never run as a script.

Three borders; each of them alone stops a script:

    templates  a value is escaped unless it is `Markup`, and `Markup` is only for what this package made of escaped parts
    notebooks  what nbconvert makes of an executed notebook passes `only_safe`
    browser    the policy in templates/policy.html: no script, no frame, no form, and nothing from the network
"""

from __future__ import annotations

import re
from html import unescape
from xml.etree.ElementTree import tostring

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

TAGS = {"a", "abbr", "b", "blockquote", "br", "caption", "code", "col", "colgroup", "dd", "del", "details", "div", "dl", "dt",
        "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "kbd", "li", "mark", "ol", "p", "pre", "s", "small",
        "span", "strong", "sub", "summary", "sup", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "tt", "u", "ul"}
ATTRIBUTES = {"a": {"href"}, "img": {"src", "alt", "width", "height"}, "details": {"open"}, "ol": {"start"},
              "table": {"border"}, "td": {"colspan", "rowspan", "align", "valign"}, "div": {"data-mime-type"},
              "th": {"colspan", "rowspan", "align", "valign", "halign", "scope"}, "col": {"span"}, "colgroup": {"span"}}
EVERYWHERE = {"class", "id", "style", "title"}
# A relative address has no colon, so that it cannot begin with `javascript:`. Pictures are part of the page.
_ADDRESSES = {"href": re.compile(r"(?:https?://|mailto:|#)\S*|[\w.][\w./%-]*(?:#\S*)?"),
              "src": re.compile(r"data:image/(?:png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/=\s]*")}

# What changes the look of text and tables. No position: a cell must not cover another.
_PROPERTIES = re.compile(r"color|opacity|width|height|(?:min|max)-(?:width|height)|vertical-align|white-space|line-height|"
                         r"letter-spacing|background(?:-color)?|(?:border|padding|margin|font|text)(?:-[a-z]+)*")
_LOADS = re.compile(r"url|image|src|[<@\\]", re.IGNORECASE)  # in a value; a backslash could hide a word
_STYLE = re.compile(r"<style\b[^>]*>(.*?)</style\s*>", re.IGNORECASE | re.DOTALL)


def environment() -> Environment:
    """The templates. A value is escaped unless it is `Markup`; a name without a value is an error."""
    return Environment(loader=PackageLoader("adcore.report", "templates"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True)


def only_safe(page: str) -> str:
    """HTML of unknown origin with the tags, attributes and addresses that only show something.

    Other tags become visible text. Every `<` of what is returned begins a tag, and attributes are quoted.
    """
    from bleach.sanitizer import Cleaner

    cleaner = Cleaner(tags=TAGS, attributes=_allowed, protocols={"http", "https", "mailto", "data"}, css_sanitizer=Styles())
    return str(cleaner.clean(page))


def _allowed(tag: str, name: str, value: str) -> bool:
    if name not in EVERYWHERE | ATTRIBUTES.get(tag, set()):
        return False
    return name not in _ADDRESSES or _ADDRESSES[name].fullmatch(value) is not None


class Styles:
    """Keeps the declarations of a `style` attribute that change only the look of text and tables (bleach's interface)."""

    def sanitize_css(self, style: str) -> str:
        """'color: red; position: fixed' -> 'color: red'."""
        import tinycss2

        found = [one for one in tinycss2.parse_declaration_list(style) if one.type == "declaration"]
        return "; ".join(one.serialize() for one in found if _PROPERTIES.fullmatch(one.lower_name)
                         and not _LOADS.search(tinycss2.serialize(one.value)))


def table_styles(page: str) -> tuple[str, str]:
    """Take the `<style>` elements out of HTML: (their rules about tables of pandas as one safe element or '', the rest)."""
    import tinycss2

    rules = []
    for rule in tinycss2.parse_stylesheet("".join(_STYLE.findall(page)), skip_comments=True, skip_whitespace=True):
        if rule.type == "qualified-rule":
            selector, look = tinycss2.serialize(rule.prelude), Styles().sanitize_css(tinycss2.serialize(rule.content))
            if "<" not in selector and all(one.strip().startswith((".dataframe", "#T_")) for one in selector.split(",")):
                rules.append(f"{selector.strip()} {{ {look} }}")
    return f"<style>{' '.join(rules)}</style>" if rules else "", _STYLE.sub("", page)


def mathml(formula: str, display: str) -> Markup:
    """A TeX formula as MathML, which browsers show without a script; its source when it cannot be converted.

    display  'inline' or 'block'
    """
    from latex2mathml.converter import Converter

    try:
        tree = Converter(display=display).convert_to_element(formula)
    except Exception:  # the converter raises many kinds of errors
        return Markup("<code>{}</code>").format(formula)
    # The converter's own writer does not escape text: \text{</mtext><img onerror=...>} would become a tag.
    for element in tree.iter():
        element.text = unescape(element.text or "")
        for name in {"href", "style", "class"} & set(element.attrib):
            del element.attrib[name]
    return Markup(tostring(tree, encoding="unicode"))
