"""Transactions that Postgres undoes so that others can go on, and how they are tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import asyncpg

from app.engine.store_errors import StoreUnavailable

# A deadlock and a serialisation failure undo the whole transaction; Postgres asks for it to be tried again.
CONFLICTS = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
_TRIES = 5
_PAUSE_S = 0.01

_P = ParamSpec("_P")
_T = TypeVar("_T")


class TransactionUndone(StoreUnavailable):
    """Postgres undid the transaction because of another one: nothing of it took place, and it can be tried again."""

    def __init__(self, reason: object) -> None:
        super().__init__("other requests were in the way of this one; try again", reason)


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
