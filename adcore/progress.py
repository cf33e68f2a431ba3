"""Progress bars for people, silence for batch runs."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm.auto import tqdm

from adcore.distributed import is_rank_zero


def interactive() -> bool:
    """True in a terminal, or in a notebook kernel that no batch tool drives.

    Batch runs (`adcore run`, the workflow, the tests) set ADCORE_PROGRESS=0; a person may set it to 1 or 0 as well.
    """
    wish = os.environ.get("ADCORE_PROGRESS")
    if wish is not None:
        return wish not in ("", "0")
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def progress_bar(*, enabled: bool | None = None, **options: Any) -> Any:
    """A tqdm bar; `enabled=None` shows it only when interactive. Of several processes one has a bar."""
    options = {"leave": False, **options, "disable": not is_rank_zero() or not (interactive() if enabled is None else enabled)}
    return tqdm(**options)
