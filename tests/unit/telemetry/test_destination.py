"""Where spans go, by the standard variables."""

from __future__ import annotations

import pytest

from app.telemetry.otlp_destination import Destination, Signal
from app.telemetry.setting_error import TelemetrySettingError


def test_spans_go_to_the_local_collector_by_default() -> None:
    found = Destination.of({}, "traces")
    assert (found.url, found.timeout_s, found.compression) == ("http://localhost:4318/v1/traces", 10.0, "none")
    assert (dict(found.headers), found.authorities, found.certificate) == ({}, None, None)


def test_what_is_said_of_traces_goes_before_what_is_said_of_all() -> None:
    found = Destination.of(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://all:4318/base/",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20key,x-a=1",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "3",
            "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "4",
            "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
            "OTEL_EXPORTER_OTLP_CERTIFICATE": "/ca.pem",
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "/client.pem",
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": "/client.key",
        },
        "traces",
    )
    assert found.url == "https://all:4318/base/v1/traces"
    assert dict(found.headers) == {"authorization": "Bearer key", "x-a": "1"}
    assert (found.timeout_s, found.compression) == (4.0, "gzip")
    assert (found.authorities, found.certificate) == ("/ca.pem", ("/client.pem", "/client.key"))


def test_an_endpoint_of_traces_is_taken_as_it_is() -> None:
    assert Destination.of({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h/here"}, "traces").url == "http://h/here"


def test_metrics_go_beside_spans_unless_that_is_said_otherwise() -> None:
    assert Destination.of({}, "metrics").url == "http://localhost:4318/v1/metrics"
    both = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://all/", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://h/here"}
    assert Destination.of(both, "metrics").url == "http://h/here"
    assert Destination.of(both, "traces").url == "http://all/v1/traces"
    timeouts = {"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "3", "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "4"}
    assert Destination.of(timeouts, "metrics").timeout_s == 4.0


@pytest.mark.parametrize(
    ("name", "signal"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "traces"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "metrics"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "traces"),
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "metrics"),
    ],
)
def test_an_endpoint_that_is_no_url_is_told_as_it_was_given(name: str, signal: Signal) -> None:
    with pytest.raises(TelemetrySettingError) as caught:
        Destination.of({name: "collector:4317"}, signal)
    assert str(caught.value) == f"{name}: 'collector:4317' cannot be used: it is no http(s):// URL"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zip"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "0"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nan"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(TelemetrySettingError, match=name):
        Destination.of({name: value}, "metrics")
