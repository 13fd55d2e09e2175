"""A variable of OpenTelemetry's that cannot be followed."""

from __future__ import annotations


class TelemetrySettingError(ValueError):
    """A variable of OpenTelemetry's has a value that cannot be used; the text names it, and what is allowed."""
