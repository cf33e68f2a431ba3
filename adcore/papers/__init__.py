"""The exhibits of the five papers and their printed numbers.

    >>> exhibits().loc["uniad2022.table_s2", "notebook"]
    'uniad2022/02_ablations'
    >>> published("uniad2022.table_s2").loc[0, ["row", "metric", "text"]].tolist()
    ['w/o query', 'image_auroc', '69.5']
"""

from adcore.papers.errata import errata, errata_of
from adcore.papers.published import bibliography, exhibits, glossary, papers, published

__all__ = ["bibliography", "errata", "errata_of", "exhibits", "glossary", "papers", "published"]
