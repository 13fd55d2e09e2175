"""A cache of answers in this process."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MOST_ENTRIES = 1000
MOST_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Entry:
    answer: bytes
    stored_at: float
    expires_at: float


class MemoryModelCache:
    """A `ModelCache` in memory; beyond its bounds it lets go of what was used longest ago.

    Args:
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        most_entries: int = MOST_ENTRIES,
        most_bytes: int = MOST_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._bytes = 0

    async def get(self, key: bytes, max_age_s: float) -> bytes | None:
        """See `ModelCache.get`."""
        entry = self._entries.get(key)
        now = self._clock()
        if entry is None or now >= min(entry.expires_at, entry.stored_at + max_age_s):
            return None
        self._entries.move_to_end(key)
        return entry.answer

    async def put(self, key: bytes, answer: bytes, ttl_s: float) -> None:
        """See `ModelCache.put`."""
        self._remove(key)
        now = self._clock()
        self._entries[key] = _Entry(answer, now, now + ttl_s)
        self._bytes += len(answer)
        while len(self._entries) > self._most_entries or self._bytes > self._most_bytes:
            self._remove(next(iter(self._entries)))

    def _remove(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= len(entry.answer)
