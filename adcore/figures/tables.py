"""Tables of printed and measured numbers as HTML, for notebooks and the report."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Any

import pandas as pd


def _number(value: Any, digits: str = "") -> str:
    if value is None or value != value:
        return ""
    return str(value) if isinstance(value, str) else digits or f"{value:,.6g}"


def comparison_html(frame: pd.DataFrame) -> str:
    """A comparison's cells as an HTML table. The verdict is written as a word, not only shown by a color. A reason that more
    than two rows share is written once, below."""
    colors = {"reproduced": "#1b7837", "higher": "#2166ac", "lower": "#b2182b", "other": "#b2182b",
              "departs": "#7a5195", "not run": "#777"}
    lines, rows = [], frame.to_dict("records")
    notes = [why for why, times in Counter(str(row["why"] or "") for row in rows).items() if why and times > 2]
    for row in rows:
        spread = f" ± {_number(row['std'])}" if _number(row["std"]) else ""
        reason = str(row["why"] or "")
        why = f"<br><small>{escape(reason)}</small>" if reason else ""
        why = f"<sup>{1 + notes.index(reason)}</sup>" if reason in notes else why
        cells = [row["row"], row["column"], row["metric"], f"{_number(row['published'])} {row['unit']}".strip(),
                 f"{_number(row['measured'])}{spread}", _number(row["seeds"])]
        lines.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells)
                     + f"<td style='color:{colors[row['verdict']]}'><b>{row['verdict']}</b>{why}</td></tr>")
    head = "".join(f"<th>{name}</th>" for name in ("row", "column", "metric", "published", "measured", "seeds", "verdict"))
    below = "".join(f"<p><small><sup>{i}</sup> {escape(why)}</small></p>" for i, why in enumerate(notes, start=1))
    return f"<table class='adcore-comparison'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>{below}"


def published_html(printed: pd.DataFrame) -> str:
    """Published cells alone, as a table with the printed rows and columns."""
    shown = printed.assign(cell=[text if pd.isna(std) else f"{text} ± {std:g}"
                                 for text, std in zip(printed["text"], printed["std"], strict=True)])
    wide = shown.pivot_table(index="row", columns="column", values="cell", aggfunc=" / ".join, sort=False).fillna("")
    wide.index.name = wide.columns.name = None
    return wide.to_html(border=0, classes="adcore-published")
