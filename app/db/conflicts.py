"""When the database is there and yet does not do what is asked: which refusals there are, and what is tried again.

StoreUnavailable
├── TransactionUndone   nothing took place, and the same may well succeed at once
└── NotNow              trying again at once would only make it worse: for the caller, later
    ├── PoolExhausted
    ├── LockHeld
    └── StatementTimedOut
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from app.engine.store_errors import StoreUnavailable

_TRIES = 5
_PAUSE_S = 0.01

_P = ParamSpec("_P")
_T = TypeVar("_T")


class TransactionUndone(StoreUnavailable):
    """Postgres undid the transaction because of another one: nothing of it took place, and it can be tried again."""

    def __init__(self, reason: object) -> None:
        super().__init__("other requests were in the way of this one; try again", reason)


class NotNow(StoreUnavailable):
    """The database answers, but has no room or no time for this request."""


class PoolExhausted(NotNow):
    """No connection was free in time: nothing was sent."""


class LockHeld(NotNow):
    """Somebody else held a lock for too long: nothing of the transaction took place."""

    def __init__(self, reason: object) -> None:
        super().__init__("another request holds what this one needs, and has for a while; try again", reason)


class StatementTimedOut(NotNow):
    """A statement took too long and was cancelled; one that committed just then did take place."""

    def __init__(self, bound_s: float, reason: object) -> None:
        super().__init__(f"the database did not finish this request within {bound_s:g} s; try again", reason)


def again_if_undone(work: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """`work`, run again from its start where its transaction was undone; the fifth time that is for the caller.

    Only for work whose one effect is a single transaction.
    """

    @wraps(work)
    async def again(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for attempt in range(1, _TRIES):
            try:
                return await work(*args, **kwargs)
            except TransactionUndone:
                await asyncio.sleep(_PAUSE_S * attempt)
        return await work(*args, **kwargs)

    return again
