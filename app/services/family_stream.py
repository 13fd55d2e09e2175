"""The events of a run and of all runs below it, as one stream.

Child runs are found by the `subagent_started` events in their parents' logs. Each log comes whole and in its own order;
events that are stored already come by their times, so that a delegation is told before its end.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from heapq import heappop, heappush
from typing import Any
from uuid import UUID

import orjson

from app.db import reading
from app.db.database import Database
from app.db.queries import families
from app.db.reading import RunHead
from app.db.rows import run_uuid
from app.engine.events import TERMINAL_TYPES, EventType, StoredEvent
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.event_bus.memory import MemoryBus
from app.services.errors import EventsTrimmed, Invalid
from app.services.event_stream import CHARS_AT_ONCE, ROWS_AT_ONCE, filter_of, handed_over, is_full, refuse_ahead

SUBAGENT_EVENT = "subagent_event"

_HEADER = ("header", "Last-Event-ID")
_MARK = "f1."  # tells the cursors of this stream from those of others
_ID_BYTES, _SEQ_BYTES = 16, 7
_MAX_MEMBERS = 4096
# A run that ended so gives no more events; the other ends can be resumed.
_FINAL = frozenset({RunStatus.COMPLETED, RunStatus.DEGRADED, RunStatus.CANCELLED})

_Wanted = Callable[[str, StoredEvent], bool]


@dataclass(slots=True)
class _Place:
    """A place in a family's events: how far each log was read, the first one that of the run itself.

    Child runs whose last event was read, and can have no further one, are left out: they are found again only by an
    event that was read before them.
    """

    positions: dict[str, int]

    @property
    def run_id(self) -> str:
        return next(iter(self.positions))

    def advance(self, run_id: str, event: StoredEvent) -> str | None:
        """Move past an event; the child run that begins with it, if one does."""
        self.positions[run_id] = event.seq
        if event.type != EventType.SUBAGENT_STARTED:
            return None
        child: str = orjson.loads(event.body)["data"]["run_id"]
        if child in self.positions:
            return None
        self.positions[child] = 0
        return child

    def forget_ended(self, heads: Mapping[str, RunHead]) -> None:
        for run_id, position in list(self.positions.items())[1:]:
            head = heads.get(run_id)
            if head is None or (head.status in _FINAL and head.last_seq <= position):
                del self.positions[run_id]

    def is_last(self, heads: Mapping[str, RunHead]) -> bool:
        """Whether all runs are over, and all their events were read."""
        return all(head.status.terminal and head.last_seq <= self.positions[run_id] for run_id, head in heads.items())

    def encode(self) -> str:
        packed = b"".join(
            UUID(run_id).bytes + position.to_bytes(_SEQ_BYTES) for run_id, position in self.positions.items()
        )
        return _MARK + base64.urlsafe_b64encode(packed).decode().rstrip("=")

    @classmethod
    def decode(cls, run_id: str, text: str) -> _Place:
        """Raises: Invalid: it is no cursor of this run's family."""
        size = _ID_BYTES + _SEQ_BYTES
        try:
            encoded = text.removeprefix(_MARK)
            packed = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
            if not text.startswith(_MARK) or len(packed) % size or len(packed) > size * _MAX_MEMBERS:
                raise ValueError(text)
            entries = [packed[start : start + size] for start in range(0, len(packed), size)]
            known = {str(UUID(bytes=entry[:_ID_BYTES])): int.from_bytes(entry[_ID_BYTES:]) for entry in entries}
            if next(iter(known), None) != run_id:
                raise ValueError(text)
        except (ValueError, binascii.Error):
            raise Invalid("this is not a cursor of this stream", _HEADER) from None
        return cls(known)


class FamilyStreams:
    """Raises (all methods): `StoreUnavailable` when the database cannot be reached."""

    def __init__(self, database: Database, bus: MemoryBus) -> None:
        self._database = database
        self._bus = bus

    async def open(
        self, run_id: str, cursor: str | None, *, types: frozenset[str] | None, deltas: bool
    ) -> AsyncGenerator[tuple[str, StoredEvent]] | None:
        """The events of a run and of all runs below it, each with the cursor that stands behind it, until the run and
        they are over and their last events were given.

        Args:
            cursor: where the reader was before; None for one that begins at the start.
            types: only these types; None for all. An event of a child run is wanted by its own type, or with all others
                of child runs by `subagent_event`.
            deltas: whether deltas are given.

        Returns:
            None if a reader that comes back has all that will ever be.

        Raises:
            RunNotFound: there is no such run.
            Invalid: the cursor is none of this stream's.
            EventsTrimmed: the cursor is behind what retention kept of the run itself.
        """
        run_id = str(run_uuid(run_id))
        place = _Place({run_id: 0}) if cursor is None else _Place.decode(run_id, cursor)
        heads = await self._heads(place)
        if run_id not in heads:
            raise RunNotFound(run_id)
        for head in heads.values():
            refuse_ahead(head, place.positions[head.run_id], _HEADER)
        # A child run has ended before this one and may have lost its events before: what is left of them is given.
        if place.positions[run_id] + 1 < heads[run_id].first_seq:
            raise EventsTrimmed(heads[run_id].first_seq)
        if cursor is not None and place.is_last(heads):
            return None
        return self._follow(place, _wanted(run_id, types, deltas))

    async def _follow(self, place: _Place, wanted: _Wanted) -> AsyncGenerator[tuple[str, StoredEvent]]:
        run_id = place.run_id
        look_at_rows = True
        with self._bus.subscribe(*place.positions) as reader:
            while not self._bus.closing:
                if look_at_rows:
                    heads = await self._heads(place)
                    place.forget_ended(heads)
                    if run_id not in heads:
                        return
                    look_at_rows = False
                    async with aclosing(self._stored(place, heads)) as events:
                        async for member, event in events:
                            look_at_rows = True
                            if wanted(member, event):
                                yield place.encode(), _shown(run_id, member, event)
                    if not look_at_rows and place.is_last({key: heads[key] for key in place.positions}):
                        return
                else:
                    handed, look_at_rows = await handed_over(reader, place.positions)
                    for member, event in handed:
                        begun = place.advance(member, event)
                        look_at_rows = look_at_rows or begun is not None or event.type in TERMINAL_TYPES
                        if wanted(member, event):
                            yield place.encode(), _shown(run_id, member, event)
                for member, position in place.positions.items():
                    reader.add(member)
                    reader.cursors[member] = position

    async def _stored(self, place: _Place, heads: Mapping[str, RunHead]) -> AsyncGenerator[tuple[str, StoredEvent]]:
        """The rows behind a place, and those of the child runs that begin in them, by their times; moves the place."""
        logs: dict[str, AsyncGenerator[StoredEvent]] = {}
        waiting: list[tuple[datetime, str, StoredEvent]] = []  # one event of each log

        async def next_of(run_id: str) -> None:
            event = await anext(logs[run_id], None)
            if event is not None:
                heappush(waiting, (event.created_at, run_id, event))

        for run_id, position in place.positions.items():
            if heads[run_id].last_seq > position:
                logs[run_id] = self._log(run_id, position)
                await next_of(run_id)
        while waiting:
            _, run_id, event = heappop(waiting)
            begun = place.advance(run_id, event)
            yield run_id, event
            if begun is not None:
                logs[begun] = self._log(begun, 0)
                await next_of(begun)
            await next_of(run_id)

    async def _log(self, run_id: str, after: int) -> AsyncGenerator[StoredEvent]:
        rows: list[StoredEvent] | None = None
        while rows is None or is_full(rows):
            async with self._database.connection() as connection:
                rows = await reading.read_events(connection, run_id, after, ROWS_AT_ONCE, most_chars=CHARS_AT_ONCE)
            for event in rows:
                yield event
                after = event.seq

    async def _heads(self, place: _Place) -> dict[str, RunHead]:
        async with self._database.connection() as connection:
            return await families.heads(connection, place.run_id, place.positions)


def _wanted(run_id: str, types: frozenset[str] | None, deltas: bool) -> _Wanted:
    own = filter_of(types, deltas)
    below = filter_of(None if types is None or SUBAGENT_EVENT in types else types, deltas)
    return lambda member, event: own(event) if member == run_id else below(event)


def _shown(run_id: str, member: str, event: StoredEvent) -> StoredEvent:
    """An event as this stream gives it: the run's own as it is, a child run's inside a `subagent_event`."""
    if member == run_id:
        return event
    body: dict[str, Any] = orjson.loads(event.body)
    wrapped = body | {
        "type": SUBAGENT_EVENT,
        "message": None,
        "data": {"event": orjson.Fragment(event.line())},
    }
    return StoredEvent(event.seq, SUBAGENT_EVENT, event.created_at, orjson.dumps(wrapped).decode())
