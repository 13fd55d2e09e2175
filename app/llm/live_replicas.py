"""How many replicas share what is limited for all of them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_MOST_CHANGES = 64


class LiveReplicas:
    """Counts of live replicas over the last while; one until told otherwise.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts = deque([(float("-inf"), 1)], maxlen=_MOST_CHANGES)

    def counted(self, replicas: int) -> None:
        """So many live now, this one included. May be called in any thread."""
        if replicas != self._counts[-1][1]:
            self._counts.append((self._clock(), replicas))

    @property
    def now(self) -> int:
        """As last counted."""
        return self._counts[-1][1]

    def most_within(self, window_s: float) -> int:
        """The most that lived at once in the last so many seconds: what one that is gone has used still counts."""
        since = self._clock() - window_s
        most = 1
        for at, replicas in reversed(tuple(self._counts)):
            most = max(most, replicas)
            if at <= since:
                break
        return most
