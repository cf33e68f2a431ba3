"""The report: a folder of HTML pages that open offline and show, cell by cell, what was reproduced."""

from adcore.report.card import score_card
from adcore.report.pages import write_report

__all__ = ["score_card", "write_report"]
