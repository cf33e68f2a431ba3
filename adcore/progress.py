"""Progress bars in terminals and notebooks, and none in batch runs."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm.auto import tqdm

from adcore.distributed import is_rank_zero


def interactive() -> bool:
    """True in a terminal or a notebook. The environment variable ADCORE_PROGRESS (1 or 0) overrides this.

    Batch runs (`adcore run`, the workflow, the tests) set it to 0.
    """
    setting = os.environ.get("ADCORE_PROGRESS")
    if setting is not None:
        return setting not in ("", "0")
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or hasattr(shell, "kernel")


def progress_bar(*, enabled: bool | None = None, **options: Any) -> Any:
    """A tqdm bar with these options; `enabled=None` shows it only if `interactive()`. Of several ranks only rank 0 shows it."""
    options = {"leave": False, **options, "disable": not is_rank_zero() or not (interactive() if enabled is None else enabled)}
    return tqdm(**options)
