"""What a grid asks for before anything runs: experiments, what is here, what is missing, about how long it takes.

    >>> print(plan(jobs_for(load_grid("paper"), ["uniad2022.table_s2"])))
"""

from adcore.plan.asked import Asked, asked
from adcore.plan.table import plan, rows

__all__ = ["Asked", "asked", "plan", "rows"]
