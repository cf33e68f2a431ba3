"""Errors that the user can fix: the message is one sentence that says what is wrong, where, and what to do."""

import difflib
import sys
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A suggestion to append to an unknown name; empty when no known name is similar.

    >>> "unknown parameter 'sed'" + did_you_mean("sed", ["seed", "profile"])
    "unknown parameter 'sed' (did you mean 'seed'?)"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


def printable(text: str) -> str:
    """The text with line breaks, control and formatting characters as escapes, because a terminal would obey those in the name
    of a file or in a server's answer.

    >>> print(printable("a\x1b[2Jb\u202ec é"))
    a\\x1b[2Jb\\u202ec é
    """
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def tell(message: str) -> None:
    """Print a message on stderr, made `printable`."""
    print(f"adcore: {printable(message)}", file=sys.stderr)


class AdcoreError(Exception):
    """Base of every error whose message is written for the user, which is made `printable`. The CLI prints it and exits with 2.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message))


class DataError(AdcoreError):
    """A data set, image, mask or manifest row that is missing or malformed."""


class WeightsError(AdcoreError):
    """Weights that are missing or do not fit their network."""


class ParameterError(AdcoreError):
    """A parameter, option or name that is unknown or has the wrong type or value."""


class StoreError(AdcoreError):
    """A results folder that cannot be written, or a stored result that cannot be read."""
