"""Server-sent events, as far as chat completions use them: the data of each event, out of bytes as they come.

The format is https://html.spec.whatwg.org/multipage/server-sent-events.html; `event`, `id` and `retry` are
not used by any chat-completions server and are passed over, as are comments.
"""

from __future__ import annotations


class SseOverflow(Exception):
    """One event is longer than the parser will hold."""


class SseParser:
    """Cuts a byte stream into the data of its events.

    Works on bytes and cuts only at line ends, so that a character split over two reads stays whole.

    Args:
        max_event_bytes: the longest event that is held in memory.
    """

    __slots__ = ("_data", "_max_event_bytes", "_tail")

    def __init__(self, max_event_bytes: int = 16 * 1024 * 1024) -> None:
        self._tail = b""
        self._data = b""
        self._max_event_bytes = max_event_bytes

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return the data of the events that they complete.

        Raises:
            SseOverflow: an event grew beyond `max_event_bytes`.
        """
        lines = (self._tail + chunk if self._tail else chunk).split(b"\n")
        self._tail = lines.pop()
        if len(self._tail) + len(self._data) > self._max_event_bytes:
            raise SseOverflow
        events: list[bytes] = []
        for line in lines:
            self._take_line(line, events)
        return events

    def finish(self) -> list[bytes]:
        """The stream has ended: return what was left without its closing blank line."""
        events: list[bytes] = []
        self._take_line(self._tail, events)
        self._take_line(b"", events)
        self._tail = b""
        return events

    def _take_line(self, line: bytes, events: list[bytes]) -> None:
        if line[-1:] == b"\r":
            line = line[:-1]
        if line[:5] == b"data:":
            value = line[6:] if line[5:6] == b" " else line[5:]
            if not self._data:
                self._data = value
            elif self._data[-1:] == b"}" and value[:1] in (b"{", b"["):
                # A server that forgets blank lines: no JSON text has a } with { or [ on the next line.
                events.append(self._data)
                self._data = value
            else:
                self._data += b"\n" + value
        elif not line and self._data:
            events.append(self._data)
            self._data = b""
