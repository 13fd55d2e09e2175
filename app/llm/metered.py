"""Counting model calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from app.engine.errors import ModelError
from app.engine.model import ModelClient, ModelEvent, ModelRequest, ModelResponse
from app.engine.usage import Spend
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
        last: ModelEvent | Spend | None = None
        error: str | None = UNEXPECTED
        try:
            async with aclosing(self._inner.stream(request)) as events:
                async for event in events:
                    last = event  # what it is, is asked once: there may be thousands
                    yield event
            error = None
        except ModelError as failure:
            error, last = failure.code.value, failure.spent
            raise
        except (asyncio.CancelledError, GeneratorExit):
            error = CANCELLED
            raise
        finally:
            self._count(request, started, error, last)

    def _count(self, request: ModelRequest, started: float, error: str | None, took: ModelEvent | Spend | None) -> None:
        """Count a call that has ended; `took` is what came last of it, or what it has cost without an answer."""
        self._metrics.model_called(request.model, self._clock() - started, error)
        if not isinstance(took, ModelResponse | Spend):
            return
        usage, cost = took.usage, took.cost_usd
        self._metrics.model_took(
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
