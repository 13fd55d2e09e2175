"""How much a server may send unasked."""

from __future__ import annotations

import time
from collections.abc import Callable


class Flooded(Exception):
    """A server sent more than anyone asked for; the text says what."""


class FloodGate:
    """Two token buckets, of messages and of bytes.

    A call's answer and its progress are asked for, so every call begins with full buckets; between calls they fill up
    slowly.

    Args:
        max_messages: the most in one go; a tenth of that may follow every second.
        max_bytes: likewise.
        clock: monotonic seconds.
    """

    def __init__(self, max_messages: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = (max_messages, max_bytes)
        self._left = (float(max_messages), float(max_bytes))
        self._clock = clock
        self._then = clock()

    def refill(self) -> None:
        self._left = (float(self._most[0]), float(self._most[1]))

    def take(self, *, messages: int = 0, size: int = 0) -> None:
        """Count what came in.

        Raises:
            Flooded: it is more than is left.
        """
        now = self._clock()
        share = (now - self._then) / 10
        self._then = now
        messages_left, bytes_left = (
            min(most, left + most * share) for most, left in zip(self._most, self._left, strict=True)
        )
        self._left = (messages_left - messages, bytes_left - size)
        if self._left[0] < 0:
            raise Flooded(f"it sent more than {self._most[0]} messages that nobody asked for")
        if self._left[1] < 0:
            raise Flooded(f"it sent more than {self._most[1]} bytes that nobody asked for")
