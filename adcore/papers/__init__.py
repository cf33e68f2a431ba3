"""What the five papers print: their exhibits and their numbers.

    >>> exhibits().loc["uniad2022.table_s2", "notebook"]
    >>> published("uniad2022.table_s2")
"""

from adcore.papers.published import exhibits, papers, published

__all__ = ["exhibits", "papers", "published"]
