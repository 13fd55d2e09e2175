"""Counting model calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from app.engine.errors import ModelError
from app.engine.model import ModelClient, ModelEvent, ModelRequest, ModelResponse
from app.telemetry.metrics import Metrics
from app.telemetry.tracing import CANCELLED, UNEXPECTED


class MeteredClient:
    """A `ModelClient` that counts the calls of another one: how long they took, how they ended, what they used.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, inner: ModelClient, metrics: Metrics, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._inner = inner
        self._metrics = metrics
        self._clock = clock

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        started = self._clock()
        last: ModelEvent | None = None
        error: str | None = UNEXPECTED
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    last = event  # what it is, is asked once: there may be thousands
                    yield event
            error = None
        except ModelError as failure:
            error = failure.code.value
            raise
        except (asyncio.CancelledError, GeneratorExit):
            error = CANCELLED
            raise
        finally:
            self._count(request, started, error, last)

    def _count(self, request: ModelRequest, started: float, error: str | None, last: ModelEvent | None) -> None:
        """Count a call that has ended; `last` is what came last of it."""
        self._metrics.model_called(request.model, self._clock() - started, error)
        if error is not None or not isinstance(last, ModelResponse):
            return
        usage, cost = last.usage, last.cost_usd
        self._metrics.model_answered(
            request.model,
            usage.input_tokens,
            usage.output_tokens,
            0.0 if cost is None else float(cost),
            cached_input_tokens=usage.cached_input_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        )

    async def aclose(self) -> None:
        """See `ModelClient.aclose`."""
        await self._inner.aclose()
