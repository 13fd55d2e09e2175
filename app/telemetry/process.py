"""The telemetry of this process: made once, on first use, and only where it is switched on.

A program that has an OpenTelemetry provider of its own keeps it: with `otel` our spans then go where its own do.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, assert_never

from opentelemetry import trace
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Tracer as SdkTracer
from opentelemetry.sdk.trace import TracerProvider
from uuid_utils import uuid4

from app.telemetry.lines import LineSink, json_line, people_line
from app.telemetry.logs import get_logger, name_traces
from app.telemetry.metrics import Metrics
from app.telemetry.otlp_destination import Destination, Signal
from app.telemetry.setting_error import TelemetrySettingError
from app.telemetry.span import LeanTracer
from app.telemetry.span_queue import QueueLimits, SpanQueue, SpanSink
from app.telemetry.trace_context import current_ids
from app.telemetry.tracing import SdkSpans, TelemetryKind, Tracing

if TYPE_CHECKING:
    from app.telemetry.otlp import OtlpSender

# How long what is still to be exported may hold up the end of a process.
FLUSH_S = 2.0
_SCOPE = "agent_runner"
_LINES_EVERY_S = 0.2

_ours: list[TracerProvider] = []  # at most one of a kind

log = get_logger(__name__)


class Telemetry:
    """Where spans go, and for `otel` metrics. `telemetry_of` makes it."""

    def __init__(self, kind: TelemetryKind) -> None:
        self._kind: TelemetryKind = kind
        given = trace.get_tracer_provider()
        self._queue: SpanQueue | None = None
        self._push_every_s = _whole("OTEL_METRIC_EXPORT_INTERVAL", 60_000) / 1000
        shared = kind == "otel" and isinstance(given, TracerProvider) and given not in _ours
        if kind == "otel":
            _sender("metrics")  # told now, and not when the first replica is up
        self._provider: trace.TracerProvider = given if shared else self._own_provider()
        if isinstance(given, trace.ProxyTracerProvider):
            trace.set_tracer_provider(self._provider)  # for the spans that tools open themselves
        name_traces(current_ids)

    def tracing(self, *, content: bool) -> Tracing:
        """What our spans are made with; see `Tracing`."""
        tracer = self._provider.get_tracer(_SCOPE, version("agent-runner"))
        if self._queue is not None and isinstance(tracer, SdkTracer):
            return Tracing(LeanTracer(tracer, self._queue, _SCOPE), content)
        return Tracing(SdkSpans(tracer), content)

    @cached_property
    def resource(self) -> Resource:
        """Who tells: a service of the name agent-runner, unless the standard variables say otherwise."""
        ours = {
            "service.name": "agent-runner",
            "service.version": version("agent-runner"),
            "service.instance.id": str(uuid4()),
        }
        return Resource.create({**ours, **OTELResourceDetector().detect().attributes})

    def push(self, metrics: Metrics) -> Callable[[], object]:
        """Export these from now on, for `otel`; what is to be called in the end, and may block."""
        if self._kind != "otel":
            return lambda: None
        # Imported with its kind: this and what it needs takes a tenth of a second.
        from app.telemetry.metrics_push import MetricsPush

        return MetricsPush(metrics, _sender("metrics"), self._push_every_s).close

    async def flush(self, *, also: Callable[[], object] = lambda: None, within_s: float = FLUSH_S) -> None:
        """Export what has ended, as far as that takes no longer than `within_s` seconds.

        Args:
            also: done meanwhile in another thread, within the same time.
        """
        await asyncio.gather(_bounded(self._flush, within_s), _bounded(also, within_s))

    def _flush(self) -> None:
        if isinstance(self._provider, TracerProvider):
            self._provider.force_flush()

    def _own_provider(self) -> TracerProvider:
        provider = TracerProvider(resource=self.resource, shutdown_on_exit=False)
        self._queue = SpanQueue(self._sink(), self._limits())
        provider.add_span_processor(self._queue)
        _ours.append(provider)
        return provider

    def _sink(self) -> SpanSink:
        match self._kind:
            case "otel":
                # Imported with its kind, as above.
                from app.telemetry.otlp import OtlpSink

                return OtlpSink(_sender("traces"), self.resource)
            case "console":
                return LineSink(people_line)
            case "json":
                return LineSink(json_line)
            case _:
                assert_never(self._kind)

    def _limits(self) -> QueueLimits:
        usual = QueueLimits(every_s=5.0 if self._kind == "otel" else _LINES_EVERY_S)
        most = _whole("OTEL_BSP_MAX_QUEUE_SIZE", usual.max_spans)
        return QueueLimits(
            max_spans=most,
            batch=min(_whole("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", usual.batch), most),
            every_s=_whole("OTEL_BSP_SCHEDULE_DELAY", round(1000 * usual.every_s)) / 1000,
        )


@lru_cache
def telemetry_of(kind: TelemetryKind) -> Telemetry:
    """The telemetry of that kind of this process.

    Raises:
        TelemetrySettingError: a variable of OpenTelemetry's cannot be followed.
    """
    return Telemetry(kind)


def _sender(signal: Signal) -> OtlpSender:
    """Raises TelemetrySettingError: a variable of OpenTelemetry's cannot be followed."""
    # Imported with its kind, as above.
    from app.telemetry.otlp import OtlpSender

    return OtlpSender(Destination.of(os.environ, signal))


def _whole(name: str, usual: int) -> int:
    """A variable that is a whole number above 0.

    Raises:
        TelemetrySettingError: it is something else.
    """
    given = os.environ.get(name, "").strip()
    if not given:
        return usual
    if not given.isdecimal() or not 0 < int(given[:12]) < 10**9:
        raise TelemetrySettingError(f"{name}: {given!r} cannot be used: it is a whole number above 0")
    return int(given)


async def _bounded(work: Callable[[], object], within_s: float) -> None:
    """Do this in a thread that nobody waits for when the time is over; it may be stuck, and keeps nothing alive."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def answer() -> None:
        if not done.done():
            done.set_result(None)

    def run() -> None:
        try:
            work()
        except Exception:
            log.exception("telemetry_not_flushed")
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(answer)

    threading.Thread(target=run, name="telemetry-flush", daemon=True).start()
    await asyncio.wait((done,), timeout=within_s)
