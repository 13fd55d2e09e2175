"""Where OTLP goes, by the standard variables (https://opentelemetry.io/docs/specs/otel/protocol/exporter/)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from opentelemetry.util.re import parse_env_headers

from app.telemetry.setting_error import TelemetrySettingError

Signal = Literal["traces", "metrics"]

PROTOCOL = "http/protobuf"
_DEFAULT_ENDPOINT = "http://localhost:4318"
_DEFAULT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Destination:
    """Where one signal goes, and how.

    Args:
        timeout_s: for all tries of one request together.
        authorities: a file of certificates; None for those that are known anyway.
        certificate: a client's own, with a key if that is in a file of its own.
    """

    url: str
    headers: Mapping[str, str]
    timeout_s: float
    compression: str
    authorities: str | None
    certificate: tuple[str, str | None] | None

    @classmethod
    def of(cls, environment: Mapping[str, str], signal: Signal) -> Destination:
        """As the variables say; what they say of the signal goes before what they say of all.

        Raises:
            TelemetrySettingError: one of them cannot be followed.
        """

        def given(name: str) -> str:
            ours = f"OTEL_EXPORTER_OTLP_{signal.upper()}_{name}"
            return (environment.get(ours) or environment.get(f"OTEL_EXPORTER_OTLP_{name}") or "").strip()

        if (protocol := given("PROTOCOL") or PROTOCOL) != PROTOCOL:
            raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_PROTOCOL: {protocol!r} cannot be used: only {PROTOCOL} is")
        if (compression := given("COMPRESSION").lower() or "none") not in ("none", "gzip", "deflate"):
            raise TelemetrySettingError(
                f"OTEL_EXPORTER_OTLP_COMPRESSION: {compression!r} cannot be used: it is none, gzip or deflate"
            )
        certificate, key = given("CLIENT_CERTIFICATE"), given("CLIENT_KEY")
        return cls(
            url=_url(environment, signal),
            headers=parse_env_headers(given("HEADERS"), liberal=True),
            timeout_s=_seconds(given("TIMEOUT")),
            compression=compression,
            authorities=given("CERTIFICATE") or None,
            certificate=(certificate, key or None) if certificate else None,
        )


def _url(environment: Mapping[str, str], signal: Signal) -> str:
    name = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    url = stated = environment.get(name, "").strip()
    if not url:
        name = "OTEL_EXPORTER_OTLP_ENDPOINT"
        stated = environment.get(name, "").strip() or _DEFAULT_ENDPOINT
        url = f"{stated.rstrip('/')}/v1/{signal}"
    if not url.startswith(("http://", "https://")):
        raise TelemetrySettingError(f"{name}: {stated!r} cannot be used: it is no http(s):// URL")
    return url


def _seconds(given: str) -> float:
    try:
        seconds = float(given) if given else _DEFAULT_TIMEOUT_S
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds <= 3600.0:
        raise TelemetrySettingError(f"OTEL_EXPORTER_OTLP_TIMEOUT: {given!r} cannot be used: it is seconds, up to 3600")
    return seconds
