"""Cursors that are none of ours."""

from __future__ import annotations

import pytest

from app.services.errors import Invalid
from app.services.pages import MOST_BIGINT, MOST_INTEGER, int_cursor, uuid_cursor


@pytest.mark.parametrize("most", [MOST_INTEGER, MOST_BIGINT])
def test_a_number_that_its_column_cannot_hold_is_no_cursor(most: int) -> None:
    assert int_cursor(str(most), most) == most
    with pytest.raises(Invalid):
        int_cursor(str(most + 1), most)


@pytest.mark.parametrize("cursor", ["", "-1", "1e5", "1_0", "\u0663", " 1", "9" * 5000])
def test_what_is_no_plain_number_is_no_cursor(cursor: str) -> None:
    for read in (int_cursor, uuid_cursor):
        with pytest.raises(Invalid):
            read(cursor)
