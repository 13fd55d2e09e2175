"""One page of a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar
from uuid import UUID

from app.services.errors import Invalid

MOST_INTEGER = 2**31 - 1
MOST_BIGINT = 2**63 - 1

_Item = TypeVar("_Item", covariant=True)
_Cursor = TypeVar("_Cursor", covariant=True)


@dataclass(frozen=True, slots=True)
class Page(Generic[_Item, _Cursor]):
    """`next_cursor` is where the next page begins, None on the last one."""

    items: Sequence[_Item]
    next_cursor: _Cursor | None


def page_of(found: Sequence[_Item], limit: int, cursor_of: Callable[[_Item], _Cursor]) -> Page[_Item, _Cursor]:
    """A page of the first `limit` of what was found when one more than that was asked for."""
    items = found[:limit]
    return Page(items, cursor_of(items[-1]) if len(found) > limit else None)


def uuid_cursor(cursor: str | None) -> UUID | None:
    """A cursor that is an id.

    Raises:
        Invalid: it is none of ours.
    """
    if cursor is None:
        return None
    try:
        return UUID(cursor)
    except ValueError:
        raise _bad_cursor() from None


def int_cursor(cursor: str | None, most: int = MOST_BIGINT) -> int | None:
    """A cursor that is a number of at most `most`, which the column has to hold; raises as `uuid_cursor` does."""
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) <= 19 and int(cursor) <= most):
        raise _bad_cursor()
    return int(cursor)


def _bad_cursor() -> Invalid:
    return Invalid("this is no cursor of this list; pass next_cursor on as it is", ("query", "cursor"))
