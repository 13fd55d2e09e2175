"""Answers of earlier calls that were the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol

from app.engine.events import WarningCode
from app.engine.model import (
    CachePolicy,
    FinishReason,
    ModelClient,
    ModelEvent,
    ModelNotice,
    ModelRequest,
    ModelResponse,
)
from app.llm.request_key import request_key
from app.llm.stored_answer import events_of, restored_answer, stored_answer
from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

# The longest answer that is kept, as it is stored.
MAX_ENTRY_BYTES = 256 * 1024
# A cache that takes longer is as good as none.
WITHIN_S = 2.0

log = get_logger(__name__)


class ModelCache(Protocol):
    """Where answers are kept, by a key that covers all that they hang on, the tenant included. Either may fail in any
    way; that costs a call its cache and nothing else."""

    async def get(self, key: bytes, max_age_s: float) -> bytes | None:
        """What was put there no longer ago than that, and is to be kept still."""
        ...

    async def put(self, key: bytes, answer: bytes, ttl_s: float) -> None:
        """Keep an answer for so many seconds, in place of an earlier one."""
        ...


class CacheClient:
    """A `ModelClient` that answers from a cache where `request.policies.cache` allows it, and else by another one.

    Only calls at temperature 0 are looked up, unless the policy says otherwise, and only whole answers of the model
    that was asked for are kept. An answer out of the cache comes at once, has no usage and no cost, and is
    `reused`.
    """

    def __init__(self, inner: ModelClient, cache: ModelCache) -> None:
        self._inner = inner
        self._cache = cache
        self._failures = Recurring(log, "model_cache_failed")

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        policy = request.policies.cache
        if policy is None or not (policy.any_temperature or request.settings.get("temperature") == 0):
            return self._inner.stream(request)
        return self._cached(request, policy)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()

    async def _cached(self, request: ModelRequest, policy: CachePolicy) -> AsyncGenerator[ModelEvent]:
        key = request_key(request)
        found = await self._found(key, policy)
        if found is not None:
            for event in events_of(found):
                yield event
            return
        own = True
        async with aclosing(self._inner.stream(request)) as events:
            async for event in events:
                if isinstance(event, ModelNotice):
                    own = own and event.code is not WarningCode.FALLBACK_USED
                elif isinstance(event, ModelResponse) and own and _is_whole(event):
                    await self._keep(key, event, policy)
                yield event

    async def _found(self, key: bytes, policy: CachePolicy) -> ModelResponse | None:
        try:
            async with asyncio.timeout(WITHIN_S):
                stored = await self._cache.get(key, policy.ttl_s)
            return None if stored is None else restored_answer(stored)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a cache, the model can be asked
            self._failed("get", error)
            return None

    async def _keep(self, key: bytes, response: ModelResponse, policy: CachePolicy) -> None:
        try:
            answer = stored_answer(response)
            if len(answer) <= MAX_ENTRY_BYTES:
                async with asyncio.timeout(WITHIN_S):
                    await self._cache.put(key, answer, policy.ttl_s)
        except Exception as error:  # noqa: BLE001 - the answer is there, cached or not
            self._failed("put", error)

    def _failed(self, operation: str, error: Exception) -> None:
        self._failures.failed(operation, operation=operation, error=str(error) or type(error).__name__)


def _is_whole(response: ModelResponse) -> bool:
    ended = response.finish_reason in (FinishReason.STOP, FinishReason.TOOL_CALLS)
    return ended and not response.reused and bool(response.text or response.tool_calls)
