"""Progress bars in terminals and notebooks, and none in batch runs."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, ClassVar

from tqdm.std import tqdm

from adcore.distributed import is_rank_zero


def _shell() -> Any:
    """IPython's shell, or None in plain Python; `kernel` is an attribute of a notebook's shell only."""
    return getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()


def interactive() -> bool:
    """True in a terminal or a notebook. The environment variable ADCORE_PROGRESS (1 or 0) overrides this.

    Batch runs (`adcore run`, the workflow, the tests) set it to 0.
    """
    setting = os.environ.get("ADCORE_PROGRESS")
    if setting is not None:
        return setting not in ("", "0")
    return sys.stderr.isatty() or hasattr(_shell(), "kernel")


def progress_bar(*, enabled: bool | None = None, **options: Any) -> Any:
    """A tqdm bar with these options; `enabled=None` shows it only if `interactive()`. Of several ranks only rank 0 shows it."""
    options = {"leave": False, **options, "disable": not is_rank_zero() or not (interactive() if enabled is None else enabled)}
    return (NotebookBar if hasattr(_shell(), "kernel") else tqdm)(**options)


class NotebookBar(tqdm):
    """A bar of characters in a cell's output, empty when it is done.

    tqdm's own bar for notebooks is a widget, and a saved notebook shows "Error displaying widget" in its place.
    """

    _empty: ClassVar[list[tuple[int, Any]]] = []  # number of a cell, place of a bar that is done: for the cell's next bar

    def __init__(self, *args: Any, **options: Any) -> None:
        self._place: Any = None
        super().__init__(*args, **{"file": io.StringIO(), "ascii": False, **options})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show this text instead of the last one; by default the bar. tqdm calls it, at the end with no text."""
        from IPython.display import DisplayHandle
        cell = _shell().execution_count
        text = {"text/plain": str(self) if msg is None else msg}
        if self._place is not None:
            self._place.update(text, raw=True)
        elif text["text/plain"]:
            same_cell = [place for number, place in self._empty if number == cell]
            self._place = same_cell[0] if same_cell else DisplayHandle()
            NotebookBar._empty = [(cell, place) for place in same_cell[1:]]
            (self._place.update if same_cell else self._place.display)(text, raw=True)
        if msg == "" and self._place is not None:
            NotebookBar._empty.append((cell, self._place))
            self._place = None
