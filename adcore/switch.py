"""A setting with a few allowed values, chosen by an environment variable or, for some lines, in a `with` block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from adcore.errors import ParameterError, did_you_mean


class Switch:
    """A setting. The `with` block overrides the environment variable; the first choice is the default.

    name      name of the setting in error messages, such as 'kernels'
    variable  environment variable, such as 'ADCORE_KERNELS'
    choices   allowed values

    >>> color = Switch("color", "ADCORE_COLOR", ("red", "blue"))
    >>> with color.turned_to("blue"):
    ...     color()
    'blue'
    >>> color()
    'red'
    """

    def __init__(self, name: str, variable: str, choices: Sequence[str]) -> None:
        self.name, self.variable, self.choices = name, variable, tuple(choices)
        self._word: ContextVar[str | None] = ContextVar(name, default=None)

    @contextmanager
    def turned_to(self, word: str) -> Iterator[None]:
        """A block with this value, in this thread only.

        Raises:
            ParameterError: the value is not one of the choices.
        """
        token = self._word.set(self._known(word, self.name))
        try:
            yield
        finally:
            self._word.reset(token)

    def __call__(self) -> str:
        """The current value.

        Raises:
            ParameterError: the value of the environment variable is not one of the choices.
        """
        return self._word.get() or self._known(os.environ.get(self.variable) or self.choices[0], self.variable)

    def _known(self, word: str, where: str) -> str:
        if word not in self.choices:
            raise ParameterError(f"unknown choice '{word}' for {where}{did_you_mean(word, self.choices)}: use "
                                 f"{', '.join(self.choices[:-1])} or {self.choices[-1]}")
        return word
