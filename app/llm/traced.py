"""Tracing model calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from functools import lru_cache

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from app.engine.errors import ModelError
from app.engine.model import FinishReason, ModelClient, ModelEvent, ModelRequest, ModelResponse
from app.engine.usage import Spend
from app.llm.content import input_messages, output_messages
from app.llm.metered import MeteredClient
from app.telemetry.metrics import Metrics
from app.telemetry.trace_context import in_context
from app.telemetry.tracing import CANCELLED, UNEXPECTED, Tracing, failed

_SETTINGS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "max_tokens": "gen_ai.request.max_tokens",
    "seed": "gen_ai.request.seed",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
}


_REASONS = {reason: (reason.value,) for reason in FinishReason}


class TracedClient(MeteredClient):
    """A `MeteredClient` that makes a span `chat {model}` of each call too: one generator, since each one more costs for
    every event that passes it.

    It goes inside of the retry, so that each try is a span of its own.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        inner: ModelClient,
        metrics: Metrics,
        tracing: Tracing,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        super().__init__(inner, metrics, clock=clock)
        self._tracing = tracing

    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """See `ModelClient.stream`."""
        name, attributes = _chat(request.model)
        span = self._tracing.start(name, SpanKind.CLIENT, attributes)
        last: ModelEvent | Spend | None = None
        first_s: float | None = None
        error: str | None = UNEXPECTED
        said: str | None = None
        started = self._clock()
        try:
            async with aclosing(self._inner.stream(request)) as events:
                # Current only while the request goes out: what a generator leaves attached, its reader would have too.
                token = context.attach(in_context(span))
                try:
                    last = await anext(events, None)
                finally:
                    context.detach(token)
                first_s = self._clock() - started
                if last is not None:
                    yield last
                    async for event in events:
                        last = event
                        yield event
            error = None
        except ModelError as failure:
            error, said, last = failure.code.value, failure.message, failure.spent
            raise
        except (asyncio.CancelledError, GeneratorExit):
            error = CANCELLED
            raise
        finally:
            self._count(request, started, error, last)
            if span.is_recording():
                self._describe(span, request, last, first_s)
                if error is not None:
                    failed(span, error, said if self._tracing.content else None)
            span.end()

    def _describe(
        self, span: trace.Span, request: ModelRequest, last: ModelEvent | Spend | None, first_s: float | None
    ) -> None:
        found: dict[str, str | int | float | tuple[str, ...]] = {}
        for name, value in request.settings.items():
            if name in _SETTINGS:
                found[_SETTINGS[name]] = value
        if request.response_schema is not None:
            found["gen_ai.output.type"] = "json"
        if first_s is not None:
            found["gen_ai.response.time_to_first_chunk"] = first_s
        if isinstance(last, ModelResponse | Spend):
            found |= _taken(last)
        if isinstance(last, ModelResponse):
            found["gen_ai.response.model"] = last.model
            found["gen_ai.response.finish_reasons"] = _REASONS[last.finish_reason]
            if last.cache_write_tokens:
                found["gen_ai.usage.cache_creation.input_tokens"] = last.cache_write_tokens
        if self._tracing.content:
            found |= input_messages(request)
            if isinstance(last, ModelResponse):
                found |= output_messages(last)
        span.set_attributes(found)


@lru_cache(maxsize=256)
def _chat(model: str) -> tuple[str, dict[str, str | bool]]:
    """The span's name, and what of it is known before the call."""
    provider, _, name = model.partition("/")
    name = name or provider
    return f"chat {name}", {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": name,
        "gen_ai.request.stream": True,
    }


def _taken(took: ModelResponse | Spend) -> dict[str, str | int | float | tuple[str, ...]]:
    usage = took.usage
    found: dict[str, str | int | float | tuple[str, ...]] = {
        "gen_ai.usage.input_tokens": usage.input_tokens,
        "gen_ai.usage.output_tokens": usage.output_tokens,
    }
    if usage.cached_input_tokens:
        found["gen_ai.usage.cache_read.input_tokens"] = usage.cached_input_tokens
    if usage.reasoning_tokens:
        found["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    if took.cost_usd:
        found["agent_runner.cost_usd"] = float(took.cost_usd)
    return found
