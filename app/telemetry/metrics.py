"""The numbers of one replica: counted by OpenTelemetry, read by Prometheus.

Names and buckets of model calls are those of the GenAI semantic conventions
(https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/); everything else is `agent_runner.*`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Generic, TypeAlias, TypeVar

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import Resource
from opentelemetry.util.types import Attributes
from prometheus_client import CollectorRegistry, generate_latest

from app.telemetry.histogram import Histogram

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MOST_NAMES = 100
OTHER = "other"

_CALL_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_RUN_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0)
_WAIT_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_TOKENS = tuple(4.0**power for power in range(14))

Labels: TypeAlias = Mapping[str, str]
Read: TypeAlias = Callable[[], Iterable[tuple[float, Labels]]]  # values, each with its labels

_T = TypeVar("_T")


class ToolOutcome(StrEnum):
    SUCCESS = "success"
    FAILURE = "failure"
    CANCELLED = "cancelled"


class Metrics:
    """What one replica counts. Nothing of it is global: several may live in one process.

    Counting costs a few microseconds at most, since label sets are made once each. Models and tools are named by
    callers: what comes after the first `most_names` of either is counted as `other`.

    Args:
        resource: who tells, in what `collected` gives.
    """

    def __init__(self, most_names: int = MOST_NAMES, *, resource: Resource | None = None) -> None:
        self._registry = CollectorRegistry()
        self._histograms: list[Histogram] = []
        self._reader = _Reader(self._histograms, self._registry)
        provider = _Provider(
            (self._reader,),
            resource=resource or Resource.get_empty(),
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        self._meter = provider.get_meter("agent_runner")
        self._run_duration = self._histogram(
            "agent_runner.run.duration",
            "s",
            "Runs that ended, by status, and how long they were active.",
            _RUN_SECONDS,
        )
        self._model_duration = self._histogram(
            "gen_ai.client.operation.duration",
            "s",
            "Tries of model calls, and how long they took.",
            _CALL_SECONDS,
        )
        self._model_tokens = self._histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens of model calls, those that broke off estimated.",
            _TOKENS,
        )
        self._step_duration = self._histogram(
            "agent_runner.step.duration",
            "s",
            "Steps that were closed: a model call and the tools that it asked for, waits left out.",
            _CALL_SECONDS,
        )
        self._tool_duration = self._histogram(
            "agent_runner.tool.duration",
            "s",
            "Tool calls, by outcome, and how long they took.",
            _CALL_SECONDS,
        )
        self._queue_wait = self._histogram(
            "agent_runner.queue.wait",
            "s",
            "How long runs had been ready when this replica took them from the queue.",
            _WAIT_SECONDS,
        )
        self._loop_lag = self._histogram(
            "agent_runner.loop.lag",
            "s",
            "By how much this replica's event loop was late, measured about twice a second.",
            _WAIT_SECONDS,
        )
        self._statuses = _LabelSets(lambda status: {"status": status}, most_names)
        self._models = _LabelSets(_ModelLabels.of, most_names)
        self._tools = _LabelSets(_tool_labels, most_names)
        self._claimed = self._recovered = self._leases_lost = 0
        self._add_counters()

    def run_ended(self, status: str, active_s: float) -> None:
        """A run came to a terminal status; a run that is resumed after it ends once more."""
        self._run_duration.record(active_s, self._statuses.of(status))

    def step_ended(self, seconds: float) -> None:
        """A step was closed."""
        self._step_duration.record(seconds)

    def runs_claimed(self, count: int) -> None:
        self._claimed += count

    def run_waited(self, seconds: float) -> None:
        """A run was claimed from the queue so long after it was ready."""
        self._queue_wait.record(seconds)

    def loop_lagged(self, seconds: float) -> None:
        """The event loop was late by so much; 0 counts as well."""
        self._loop_lag.record(seconds)

    def runs_recovered(self, count: int) -> None:
        self._recovered += count

    def lease_lost(self) -> None:
        self._leases_lost += 1

    def model_called(self, model: str, seconds: float, error: str | None = None) -> None:
        """A try of a model call ended.

        Args:
            model: the full name with its prefix, such as `openai/gpt-4o-mini`.
            error: the kind of the failure, one of a few; None if the model answered.
        """
        labels = self._models.of(model)
        self._model_duration.record(seconds, labels.answered if error is None else labels.failed(error))

    def model_took(
        self,
        model: str,
        input_tokens: int,
        output_tokens: int,
        cost_usd: float,
        *,
        cached_input_tokens: int = 0,
        reasoning_tokens: int = 0,
    ) -> None:
        """What a try took, answered or broken off; `cost_usd` is 0 where there is no price.

        Args:
            cached_input_tokens: of the input tokens; `reasoning_tokens` of the output tokens.
        """
        labels = self._models.of(model)
        self._model_tokens.record(input_tokens, labels.input)
        self._model_tokens.record(output_tokens, labels.output)
        labels.cost_usd += cost_usd
        labels.cached_input_tokens += cached_input_tokens
        labels.reasoning_tokens += reasoning_tokens

    def tool_called(self, tool: str, outcome: ToolOutcome, seconds: float) -> None:
        """A tool call ended."""
        self._tool_duration.record(seconds, self._tools.of(tool)[outcome])

    def gauge(self, name: str, description: str, read: Read) -> None:
        """A number that goes up and down; `read` is called whenever the metrics are."""
        self._meter.create_observable_gauge(name, [_observing(read)], description=description)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format (`MEDIA_TYPE`)."""
        return generate_latest(self._registry)

    def collected(self) -> MetricsData:
        """All metrics as they are now, for an exporter; from any thread."""
        return self._reader.collected()

    def _histogram(self, name: str, unit: str, description: str, bounds: Sequence[float]) -> Histogram:
        histogram = Histogram(name, unit, description, bounds)
        self._histograms.append(histogram)
        return histogram

    def _add_counters(self) -> None:
        """What is only added up is added up here, and read like a gauge: recording it costs many times as much."""
        self.counter(
            "agent_runner.runs.claimed",
            "Runs that this replica took, as they were created or from the queue.",
            lambda: [(self._claimed, {})],
        )
        self.counter(
            "agent_runner.runs.recovered",
            "Runs of dead replicas that this one put back into the queue.",
            lambda: [(self._recovered, {})],
        )
        self.counter(
            "agent_runner.lease.losses",
            "How often this replica let go of all runs for want of a lease.",
            lambda: [(self._leases_lost, {})],
        )
        self.counter(
            "agent_runner.model.cost_usd",
            "What model calls of known price cost, in US dollars.",
            lambda: [(labels.cost_usd, labels.model) for labels in self._models.all() if labels.cost_usd > 0],
        )
        self.counter(
            "agent_runner.model.cached_input_tokens",
            "Input tokens that providers had in a cache.",
            lambda: [(each.cached_input_tokens, each.model) for each in self._models.all() if each.cached_input_tokens],
        )
        self.counter(
            "agent_runner.model.reasoning_tokens",
            "Output tokens that models reasoned with.",
            lambda: [(each.reasoning_tokens, each.model) for each in self._models.all() if each.reasoning_tokens],
        )

    def counter(self, name: str, description: str, read: Read) -> None:
        """A number that only grows; `read` is called whenever the metrics are."""
        self._meter.create_observable_counter(name, [_observing(read)], description=description)


class _Provider(MeterProvider):
    """Counts also where OTEL_SDK_DISABLED is true: that is about what is exported, and these numbers are read."""

    def get_meter(
        self, name: str, version: str | None = None, schema_url: str | None = None, attributes: Attributes = None
    ) -> Meter:
        self._disabled = False
        return super().get_meter(name, version, schema_url, attributes)


class _Reader(PrometheusMetricReader):
    """Prometheus' reader, which others may read as well: a reader more would cost as much again for each number.

    Args:
        histograms: ours, which are read with what the SDK counts.
    """

    def __init__(self, histograms: list[Histogram], registry: CollectorRegistry) -> None:
        super().__init__(disable_target_info=True, scope_info_enabled=False, registry=registry)
        self._histograms = histograms
        self._collecting = threading.local()  # a scrape may read meanwhile, in another thread

    def collected(self) -> MetricsData:
        self._collecting.data = MetricsData(())
        try:
            self.collect()
            data: MetricsData = self._collecting.data
            return data
        finally:
            del self._collecting.data

    def _receive_metrics(
        self, metrics_data: MetricsData | None, timeout_millis: float = 10_000, **kwargs: object
    ) -> None:
        if metrics_data is None or not metrics_data.resource_metrics:
            return  # OTEL_SDK_DISABLED
        data = self._with_histograms(metrics_data)
        if hasattr(self._collecting, "data"):
            self._collecting.data = data
        else:
            super()._receive_metrics(data, timeout_millis)  # pyright: ignore[reportUnknownMemberType]

    def _with_histograms(self, data: MetricsData) -> MetricsData:
        ours = [metric for each in self._histograms if (metric := each.collected()) is not None]
        whose, *others = data.resource_metrics
        scope, *more = whose.scope_metrics
        scope = replace(scope, metrics=[*scope.metrics, *ours])
        return MetricsData([replace(whose, scope_metrics=[scope, *more]), *others])


def _observing(read: Read) -> Callable[[CallbackOptions], list[Observation]]:
    return lambda _: [Observation(value, labels) for value, labels in read()]


class _LabelSets(Generic[_T]):
    """Label sets by a name, made once each; the names after the first `most` share one."""

    def __init__(self, make: Callable[[str], _T], most: int) -> None:
        self._make = make
        self._most = most
        self._made: dict[str, _T] = {}
        self._other = make(OTHER)

    def of(self, name: str) -> _T:
        found = self._made.get(name)
        if found is None:
            if len(self._made) >= self._most:
                return self._other
            found = self._made[name] = self._make(name)
        return found

    def all(self) -> Iterable[_T]:
        return (*self._made.values(), self._other)


@dataclass(slots=True)
class _ModelLabels:
    """The label sets of one model, and what it has cost.

    The provider is the name's prefix, for all calls: one that failed has no other.
    """

    model: Labels
    answered: Labels
    input: Labels
    output: Labels
    failures: dict[str, Labels] = field(default_factory=dict[str, Labels])
    cost_usd: float = 0.0
    cached_input_tokens: int = 0
    reasoning_tokens: int = 0

    @classmethod
    def of(cls, model: str) -> _ModelLabels:
        provider, _, name = model.partition("/")
        whose = {"gen_ai.provider.name": provider, "gen_ai.request.model": name or provider}
        chat = {"gen_ai.operation.name": "chat", **whose}
        return cls(
            model=whose,
            answered=chat,
            input={**chat, "gen_ai.token.type": "input"},
            output={**chat, "gen_ai.token.type": "output"},
        )

    def failed(self, error: str) -> Labels:
        found = self.failures.get(error)
        if found is None:
            found = self.failures[error] = {**self.answered, "error.type": error}
        return found


def _tool_labels(tool: str) -> dict[ToolOutcome, Labels]:
    return {outcome: {"gen_ai.tool.name": tool, "outcome": outcome.value} for outcome in ToolOutcome}
