"""What a provider was asked for within its window: a sliding log. Pure: whoever calls says what time it is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Entry:
    """A part of one call.

    Args:
        since: when the call was let through.
        settled: whether it is known when the part leaves the window.
        final: whether `tokens` are those that were used, and no reservation.
    """

    requests: int
    tokens: int
    since: float
    settled: bool = False
    final: bool = False


class RateLog:
    """Requests and tokens that count now, all times in seconds of one monotonic clock.

    A call has two parts. Its request and its input count until a window after they have arrived at the provider, which
    was at the latest when a first sign of an answer came; the time on the way is no more than `arrival_s`. Its output
    counts until a window after it has ended.

    Args:
        window_s: the provider counts what it gets in any span as long as this.
    """

    def __init__(self, window_s: float, arrival_s: float) -> None:
        self._window_s = window_s
        self._arrival_s = arrival_s
        self._on_the_way: dict[Entry, None] = {}  # by the time since when
        self._answering: set[Entry] = set()
        self._settled: deque[tuple[float, Entry]] = deque()  # with the time at which each one leaves
        self._used_tokens = 0
        self.requests = 0
        self.tokens = 0

    def ask(self, now: float, input_tokens: int) -> Entry:
        """A request is sent."""
        entry = self._add(Entry(1, input_tokens, now))
        self._on_the_way[entry] = None
        return entry

    def expect(self, now: float, output_tokens: int) -> Entry:
        """Its answer may have so many tokens."""
        entry = self._add(Entry(0, output_tokens, now))
        self._answering.add(entry)
        return entry

    def settle(self, entry: Entry, at: float) -> None:
        """The request has arrived, or the answer has ended, by then."""
        if not entry.settled:
            entry.settled = True
            self._on_the_way.pop(entry, None)
            self._answering.discard(entry)
            self._settled.append((at + self._window_s, entry))

    def correct(self, entry: Entry, tokens: int) -> None:
        """So many tokens it was."""
        if not entry.final:
            entry.final = True
            self.tokens += tokens - entry.tokens
            self._used_tokens += tokens
            entry.tokens = tokens

    def forget(self, entry: Entry) -> None:
        """It was never sent."""
        self._take_off(entry)
        self._on_the_way.pop(entry, None)
        self._answering.discard(entry)

    def advance(self, now: float) -> None:
        """Let go of what has left the window."""
        while self._on_the_way and (first := next(iter(self._on_the_way))).since + self._arrival_s <= now:
            self.settle(first, first.since + self._arrival_s)
        while self._settled and self._settled[0][0] <= now:
            _, entry = self._settled.popleft()
            self._take_off(entry)

    def next_change(self) -> float | None:
        """When `advance` next has something to do; None if that hangs on what callers tell."""
        if self._settled:
            return self._settled[0][0]
        return next((entry.since + self._arrival_s for entry in self._on_the_way), None)

    def room_from(self, now: float, requests: float, tokens: float) -> float:
        """The earliest time at which the log may have come down to so many of both.

        What is reserved and not used yet may come back at any moment, so it counts for nothing here.
        """
        requests_left = self.requests - requests
        tokens_left = self._used_tokens - tokens
        if requests_left <= 0 and tokens_left <= 0:
            return now
        for leaves_at, entry in self._settled:
            requests_left -= entry.requests
            tokens_left -= entry.tokens if entry.final else 0
            if requests_left <= 0 and tokens_left <= 0:
                return leaves_at
        return now + self._window_s

    def _add(self, entry: Entry) -> Entry:
        self.requests += entry.requests
        self.tokens += entry.tokens
        return entry

    def _take_off(self, entry: Entry) -> None:
        self.requests -= entry.requests
        self.tokens -= entry.tokens
        self._used_tokens -= entry.tokens if entry.final else 0
        entry.requests = entry.tokens = 0  # once, however it comes to its end
        entry.final = True
