"""A choice made by a variable of the environment for a whole program, or in a `with` block for a few lines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from adcore.errors import ParameterError, did_you_mean


class Switch:
    """One of a few words. The block is stronger than the variable, and the first word holds where neither says anything.

    name      what is chosen, for messages: 'engine'
    variable  of the environment: 'ADCORE_ENGINE'
    """

    def __init__(self, name: str, variable: str, choices: Sequence[str]) -> None:
        self.name, self.variable, self.choices = name, variable, tuple(choices)
        self._word: ContextVar[str | None] = ContextVar(name, default=None)

    @contextmanager
    def turned_to(self, word: str) -> Iterator[None]:
        """Within the block `word` holds, for this thread alone.

        Raises:
            ParameterError: another word than those to choose from.
        """
        token = self._word.set(self._known(word, self.name))
        try:
            yield
        finally:
            self._word.reset(token)

    def __call__(self) -> str:
        """The word that holds now.

        Raises:
            ParameterError: the variable holds an unknown one.
        """
        return self._word.get() or self._known(os.environ.get(self.variable) or self.choices[0], self.variable)

    def _known(self, word: str, where: str) -> str:
        if word not in self.choices:
            raise ParameterError(f"unknown choice '{word}' for {where}{did_you_mean(word, self.choices)}: use "
                                 f"{', '.join(self.choices[:-1])} or {self.choices[-1]}")
        return word
