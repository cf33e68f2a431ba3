"""Errata and choices: errors found in the papers and their code, what they leave open, and where we depart from them.

errata.csv holds them all, one row per point. The notebooks show their own rows, the report shows all of them.

    paper     id of a row of `papers()`; 'all' for what concerns every paper
    kind      error, difference, open or ours, see `KINDS`
    place     where: "Table 2, tile, DRA's mean", "Eq. (S1)"
    printed   what is printed or coded
    chosen    what is right, or what we chose
    shown     how a reader can see it; '' for a choice
    notebook  where it is discussed
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from adcore.errors import ParameterError, did_you_mean
from adcore.papers.published import read_table

COLUMNS = ("paper", "kind", "place", "printed", "chosen", "shown", "notebook")

KINDS = {
    "error": "an error in the paper or its code",
    "difference": "the paper and its published code, or two sources, differ",
    "open": "stated nowhere; we chose",
    "ours": "we depart from the paper on purpose",
}


def errata() -> pd.DataFrame:
    """All rows, by paper and kind, each in the order of the file; columns as above, all text."""
    table = read_table("errata.csv")
    order = {kind: number for number, kind in enumerate(KINDS)}
    return table.sort_values("kind", key=lambda kinds: kinds.map(order), kind="stable").reset_index(drop=True)


@dataclass(frozen=True)
class ErrataList:
    """Some rows as a list in Markdown, which a notebook displays."""

    rows: pd.DataFrame

    def _repr_markdown_(self) -> str:
        kinds = [kind for kind in KINDS if kind in set(self.rows["kind"])]
        lines = ["; ".join(f"*{kind}*: {KINDS[kind]}" for kind in kinds) + ".", ""]
        for row in self.rows.to_dict("records"):
            word = "Right" if row["kind"] == "error" else "Here"
            shown = f" *Shown by: {row['shown']}.*" if row["shown"] else ""
            lines.append(f"- **{row['place']}** (*{row['kind']}*). {row['printed']} **{word}:** {row['chosen']}{shown}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"{len(self.rows)} errata and choices"


def errata_of(notebook: str) -> ErrataList:
    """The errata and choices that one notebook discusses: `errata_of("uniad2022/01_architecture")`.

    Raises:
        ParameterError: there is no row for this notebook.
    """
    table = errata()
    rows = table[table["notebook"] == notebook]
    if rows.empty:
        known = list(dict.fromkeys(table["notebook"]))
        raise ParameterError(f"errata.csv has no row for notebook '{notebook}'{did_you_mean(notebook, known)}; it has rows for "
                             f"{', '.join(known)}")
    return ErrataList(rows)
