"""Failures that come again and again for one reason, as all do while the database is away: told now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog

TOLD_EVERY_S = 10.0


class Recurring:
    """One kind of work that is tried again and again, and what the log says when it fails.

    A failure is told at once, and another one of the same kind not before `every_s` have passed; those in between are
    lines at debug level.

    Args:
        event: the name of the line.
        every_s: how long a failure is not told again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        log: structlog.stdlib.BoundLogger,
        event: str,
        clock: Callable[[], float] = time.monotonic,
        *,
        every_s: float = TOLD_EVERY_S,
    ) -> None:
        self._log = log
        self._event = event
        self._clock = clock
        self._every_s = every_s
        self._told_at: dict[str, float] = {}

    def failed(self, kind: str, **values: Any) -> None:
        """Tell of a failure.

        Args:
            kind: what is told again only after a while; one of a few, so not a text that names runs or times.
            values: of the line.
        """
        now = self._clock()
        if now - self._told_at.get(kind, float("-inf")) < self._every_s:
            self._log.debug(self._event, **values)
            return
        self._told_at[kind] = now
        self._log.warning(self._event, **values)
