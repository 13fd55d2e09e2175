"""OpenTelemetry's own switch."""

from __future__ import annotations

from collections.abc import Mapping


def sdk_disabled(environment: Mapping[str, str]) -> bool:
    """Whether OTEL_SDK_DISABLED says that nothing is to be exported; only `true`, in any case, does.

    https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/#general-sdk-configuration
    """
    return environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
