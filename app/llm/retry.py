"""Trying a model call again when that can help."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import WarningCode
from app.engine.model import ModelClient, ModelEvent, ModelNotice, ModelRequest, StreamRestarted
from app.llm.output import OUTPUT

BASE_S = 0.5
MAX_BACKOFF_S = 8.0
MAX_RETRY_AFTER_S = 60.0
# A model that asks for a longer wait is left for the next one at once, where there is one.
PATIENCE_S = 10.0
# Whoever reads along notices no wait that is shorter, and needs no reason for it.
NOT_TOLD_S = 2.0


class RetryClient:
    """A `ModelClient` that calls another one up to `request.policies.max_attempts` times.

    Only errors that are `retryable` are tried again. The wait is exponential with full jitter
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), on top of what the provider
    asked for with Retry-After, of which at most a minute is honoured. Where a stream breaks after output has
    been passed on, `StreamRestarted` voids that output before the next try, and what it has cost is passed on as
    `Spend`. A notice tells of a long wait. Where `request.fallback_models` are left, an open circuit and waits of more
    than `PATIENCE_S` end the tries of a model.

    Args:
        sleep: waits so many seconds.
        uniform: a random number from 0 up to 1.
    """

    def __init__(
        self,
        inner: ModelClient,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self._inner = inner
        self._sleep = sleep
        self._uniform = uniform

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        attempt = 1
        while True:
            has_output = False
            try:
                async with aclosing(self._inner.stream(request)) as events:
                    async for event in events:
                        has_output = has_output or isinstance(event, OUTPUT)
                        yield event
                return
            except ModelError as error:
                if not _helps(error, request, attempt):
                    raise
                failure = error
            if failure.spent is not None:
                yield failure.spent
            if has_output:
                yield StreamRestarted(failure.message)
            wait_s = self._wait_s(attempt, failure)
            attempt += 1
            if wait_s > NOT_TOLD_S:
                yield _notice(request, failure, attempt, wait_s)
            await self._sleep(wait_s)

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()

    def _wait_s(self, attempt: int, error: ModelError) -> float:
        asked_s = min(error.retry_after_s or 0.0, MAX_RETRY_AFTER_S)
        return asked_s + self._uniform() * min(MAX_BACKOFF_S, BASE_S * 2.0 ** (attempt - 1))


def _notice(request: ModelRequest, failure: ModelError, attempt: int, wait_s: float) -> ModelNotice:
    return ModelNotice(
        WarningCode.MODEL_RETRIED,
        f"{failure.message}; {request.model} is asked again in {wait_s:.1f} s",
        {"model": request.model, "reason": failure.code.value, "attempt": attempt, "wait_s": round(wait_s, 3)},
    )


def _helps(error: ModelError, request: ModelRequest, attempt: int) -> bool:
    """Whether the same model is asked again after the try of this number."""
    if not error.retryable or attempt >= request.policies.max_attempts:
        return False
    if not request.fallback_models:
        return True
    return error.code is not ModelErrorCode.CIRCUIT_OPEN and (error.retry_after_s or 0.0) <= PATIENCE_S
