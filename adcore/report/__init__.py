"""The report: one folder of pages that opens offline and says, cell by cell, what was reproduced."""

from adcore.report.card import score_card
from adcore.report.pages import write_report

__all__ = ["score_card", "write_report"]
