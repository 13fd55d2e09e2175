"""Tracing attempts at runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from opentelemetry import context, trace
from opentelemetry.trace import SpanKind

from app.engine.status import RunStatus
from app.engine.store_errors import StoreError
from app.telemetry.metrics import Metrics
from app.telemetry.trace_context import in_context, parent_of, text_of
from app.telemetry.tracing import CANCELLED, Tracing, failed
from app.worker.driver import DriverPorts, LostRun
from app.worker.metered import MeteredDriver
from app.worker.start import Start


class TracedDriver(MeteredDriver):
    """A `MeteredDriver` that is a span `invoke_agent {agent}`, part of the trace in which its run was made.

    Model calls, tool calls and child runs of the attempt are below it. It is current in the run's task until that ends,
    so that whatever is logged about the run afterwards names it too.
    """

    def __init__(
        self,
        tracing: Tracing,
        metrics: Metrics,
        ports: DriverPorts,
        start: Start,
        *,
        on_lost: Callable[[], None],
        on_progress: Callable[[], None],
    ) -> None:
        self._tracing = tracing
        self._span = _begun(tracing, start)
        if start.agent.definition.subagents:  # for what is made of it: child runs are part of this attempt
            run = replace(start.run, trace_context=text_of(self._span.get_span_context()))
            start = replace(start, run=run)
        self._used_before = start.state.usage
        super().__init__(metrics, ports, start, on_lost=on_lost, on_progress=on_progress)

    async def drive(self) -> RunStatus:
        """See `RunDriver.drive`."""
        # Never detached: the task is the run's own.
        context.attach(in_context(self._span))
        try:
            status = await super().drive()
            self._left(status)
        except LostRun:
            self._span.set_attribute("agent_runner.run.status", "lost")
            raise
        except asyncio.CancelledError:
            self._span.set_attribute("agent_runner.run.status", CANCELLED)
            raise
        except StoreError:
            failed(self._span, "store_unavailable")
            raise
        except BaseException as error:
            failed(self._span, type(error).__name__)
            raise
        finally:
            self._span.end()
        return status

    def _left(self, status: RunStatus) -> None:
        span = self._span
        if not span.is_recording():
            return
        used, before = self.state.usage, self._used_before
        span.set_attributes(
            {
                "agent_runner.run.status": status.value,
                "gen_ai.usage.input_tokens": used.input_tokens - before.input_tokens,
                "gen_ai.usage.output_tokens": used.output_tokens - before.output_tokens,
            }
        )
        if self.failure is not None:
            failed(span, self.failure.code, self.failure.message if self._tracing.content else None)


def _begun(tracing: Tracing, start: Start) -> trace.Span:
    run, claim = start.run, start.claim
    version = start.agent.version
    title, attributes = _agent(run.agent_name, None if version is None else str(version), start.agent.model)
    attributes = {
        **attributes,
        "gen_ai.conversation.id": run.thread_id,
        "agent_runner.run.id": run.run_id,
        "agent_runner.run.attempt": claim.attempt,
    }
    if claim.waited_s:
        attributes["agent_runner.queue.wait_s"] = claim.waited_s
    return tracing.start.below(parent_of(run.trace_context), title, SpanKind.INTERNAL, attributes)


@lru_cache(maxsize=256)
def _agent(name: str, version: str | None, model: str) -> tuple[str, dict[str, str | int | float]]:
    """The span's name, and what all attempts with this agent have in common."""
    provider, _, model_name = model.partition("/")
    attributes: dict[str, str | int | float] = {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.provider.name": provider,
        "gen_ai.request.model": model_name or provider,
        "gen_ai.agent.name": name,
    }
    if version is not None:
        attributes["gen_ai.agent.version"] = version
    return f"invoke_agent {name}", attributes
