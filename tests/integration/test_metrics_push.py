"""Sending the numbers to a collector, and what is told where it does not take them."""

from __future__ import annotations

import structlog
from structlog.testing import capture_logs

from app.telemetry.metrics import Metrics
from app.telemetry.metrics_push import MetricsPush
from app.telemetry.otlp import OtlpSender
from app.telemetry.otlp_destination import Destination
from tests.collector import Collector

NEVER_S = 3600.0  # only the last export, which a close makes


def pushed(collector: Collector, **more: str) -> list[structlog.typing.EventDict]:
    """What is logged when numbers are sent twice."""
    metrics = Metrics()
    metrics.run_ended("completed", 0.5)
    sender = OtlpSender(Destination.of({**collector.settings, **more}, "metrics"))
    push = MetricsPush(metrics, sender, NEVER_S)
    with capture_logs() as lines:
        push.close()
        push.close()
    return [line for line in lines if line["log_level"] != "debug"]


def test_numbers_arrive() -> None:
    with Collector() as collector:
        assert pushed(collector) == []
        assert collector.metrics()["agent_runner.run.duration"] == 1


def test_a_collector_that_refuses_is_told_once_and_in_a_few_words() -> None:
    with Collector(status=400) as collector:
        (line,) = pushed(collector)
        endpoint = collector.settings["OTEL_EXPORTER_OTLP_ENDPOINT"]
    assert line == {
        "event": "metrics_not_exported",
        "reason": f"{endpoint}/v1/metrics: it answered 400",
        "log_level": "warning",
    }


def test_a_collector_that_is_away_is_told_once_and_in_a_few_words() -> None:
    with Collector() as collector:
        away = "http://127.0.0.1:9"  # the discard port, where nobody listens
        (line,) = pushed(collector, OTEL_EXPORTER_OTLP_ENDPOINT=away, OTEL_EXPORTER_OTLP_TIMEOUT="0.2")
    assert line["reason"] == f"{away}/v1/metrics: it cannot be reached"
