"""Claims of a notebook: asserted on the data and settings that they were made for, reported on others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def claim(text: str, made_for: bool) -> Iterator[None]:
    """Check the assertions of a block, which state a claim about measured numbers.

    made_for  True for the data and settings that the claim was made for. On others the outcome is printed and nothing is
              raised: a measurement that disagrees is a result, and one that is not defined there cannot be checked.

        >>> with claim("the defects are found", made_for=False):
        ...     assert 0.6 > 0.75
        does not hold here: the defects are found

    Raises:
        AssertionError: the claim was made for this run and does not hold.
    """
    try:
        yield
    except AssertionError:
        if made_for:
            raise
        print(f"does not hold here: {text}")
    except Exception as error:
        if made_for:
            raise
        print(f"cannot be checked here: {text} ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})")
    else:
        if not made_for:
            print(f"holds here: {text}")
