"""A claim of a notebook: raised on the data that it was made for, reported on others."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from adcore.claims import claim


@pytest.mark.parametrize("holds", [True, np.True_, pd.Series([1, 2]).gt(0).all()])
def test_a_claim_that_holds_is_silent_where_it_was_made_and_said_elsewhere(capsys, holds):
    with claim("defects are found", True):
        assert holds
    assert capsys.readouterr().out == ""
    with claim("defects are found", made_for=False):
        assert holds
    assert capsys.readouterr().out == "holds here: defects are found\n"


@pytest.mark.parametrize("holds", [False, np.False_, float("nan") > 0.7])
def test_a_claim_that_does_not_hold_is_raised_where_it_was_made_and_said_elsewhere(capsys, holds):
    with pytest.raises(AssertionError, match="the table"), claim("defects are found", True):
        assert holds, "the table"
    assert capsys.readouterr().out == ""
    with claim("defects are found", made_for=False):
        assert holds, "the table"
    assert capsys.readouterr().out == "does not hold here: defects are found\n"


def test_a_claim_about_what_was_not_measured_cannot_be_checked_on_other_data(capsys):
    with pytest.raises(KeyError), claim("defects are found", True):
        assert {}["aupro"] > 0.5
    with claim("defects are found", made_for=False):
        assert {}["aupro"] > 0.5
    assert capsys.readouterr().out == "cannot be checked here: defects are found (KeyError: 'aupro')\n"
