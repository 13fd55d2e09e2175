"""What endpoints need besides their arguments."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable
from typing import TypeVar, cast

import orjson
from pydantic import BaseModel
from starlette.requests import Request

from app.engine.records import IdempotencyKey
from app.services.container import Services

REPLAYED = {"Idempotency-Replayed": "true"}

_T = TypeVar("_T")


def services_of(request: Request) -> Services:
    """The services of this replica."""
    return cast("Services", request.app.state.services)


def idempotency_of(key: str | None, operation: str, body: BaseModel) -> IdempotencyKey | None:
    """A caller's key with the hash of what it was sent with.

    Args:
        operation: which operation it is, with its path where that says more; operations that create the same thing
            share one.
    """
    if key is None:
        return None
    content = orjson.dumps(body.model_dump(mode="json", exclude_unset=True), option=orjson.OPT_SORT_KEYS)
    return IdempotencyKey(key, hashlib.sha256(operation.encode() + b"\0" + content).digest())


async def while_connected(request: Request, work: Awaitable[_T]) -> _T | None:
    """The result of `work`, or None if the caller went away before: the work is then cancelled."""
    patience = asyncio.timeout(None)
    try:
        async with patience:
            watching = asyncio.create_task(_end_on_disconnect(request, patience))
            try:
                return await work
            finally:
                watching.cancel()
    except TimeoutError:
        if not patience.expired():
            raise
        return None


async def _end_on_disconnect(request: Request, patience: asyncio.Timeout) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    patience.reschedule(asyncio.get_running_loop().time())
