"""Waiting for a state, never for a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

# Far more than anything takes here; only a promise that is broken meets it.
DEADLINE_S = 30.0
_LOOK_EVERY_S = 0.02

_T = TypeVar("_T")


async def eventually(look: Callable[[], Awaitable[_T | None]], what: str, deadline_s: float = DEADLINE_S) -> _T:
    """The first true answer of `look`.

    Raises:
        AssertionError: there was none in `deadline_s` seconds; tells `what` was waited for and what was seen last.
    """
    until = time.monotonic() + deadline_s
    while not (seen := await look()):
        assert time.monotonic() < until, f"waited {deadline_s:g} s for {what}; last seen: {seen!r}"
        await asyncio.sleep(_LOOK_EVERY_S)
    return seen


async def holds(look: Callable[[], bool], what: str) -> None:
    """Wait until what can be looked at without waiting is true; raises as `eventually` does."""

    async def looked() -> bool:
        return look()

    await eventually(looked, what)
