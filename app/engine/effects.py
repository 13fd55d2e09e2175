"""What a tool's call does to the world."""

from __future__ import annotations

from enum import StrEnum


class ToolEffect(StrEnum):
    """What may be done when the outcome of a call is unknown."""

    READ_ONLY = "read_only"  # run again freely
    IDEMPOTENT = "idempotent"  # run again with the same idempotency key
    UNSAFE = "unsafe"  # never run again by itself
