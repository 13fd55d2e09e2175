"""Moments as callers read them."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp(moment: datetime) -> str:
    """UTC, always with microseconds: `2026-01-31T08:00:00.000000Z`.

    Args:
        moment: with its time zone.
    """
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return f"{moment.isoformat(timespec='microseconds')[:-6]}Z"
