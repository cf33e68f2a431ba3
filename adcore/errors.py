"""What goes wrong for a reason the user can mend: one sentence that says what, where and what to do."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """" (did you mean 'seed'?)" when one of the known names is near, else nothing; to go behind the wrong name."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class AdcoreError(Exception):
    """Base of every error whose message is meant for the person at the keyboard. The CLI prints it and exits with 2."""


class DataError(AdcoreError):
    """A data set, image, mask or manifest row that cannot be used as it is."""


class WeightsError(AdcoreError):
    """A checkpoint that is missing or does not fit its network."""


class ParameterError(AdcoreError):
    """A parameter, option or name that is unknown or has the wrong type or value."""


class StoreError(AdcoreError):
    """A results folder that cannot be written, or a stored result that cannot be read."""
