"""Deltas on their way to the log: gathered per run, written for several runs at once.

The first delta that someone waits for goes at once. After that a run has at most one delta write in flight, every
40 ms while anyone reads it and every second while nobody does; or twice a second where it cannot be known whether
anyone does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from app.engine.events import DELTA_TYPES, Event, EventType, RunIdentity
from app.engine.ownership import Committed, DeltaOutcome, DeltaWrite, Fence
from app.engine.ports import EventBus, RunStore
from app.engine.store_errors import StoreError, reason_of
from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

WATCHED_EVERY_S = 0.040
UNWATCHED_EVERY_S = 1.0
UNHEARD_EVERY_S = 0.5
RUNS_PER_WRITE = 200

log = get_logger(__name__)


@dataclass(slots=True)
class _Piece:
    """Deltas of one kind in a row, as one event to be; or a fact that stands for itself."""

    type: EventType
    key: tuple[str, str]
    texts: list[str]
    fact: Event | None = None


class DeltaLog:
    """The deltas of one run that are not committed yet, and the fence that its next write needs.

    The driver of the run and the gatherer take turns: `settle` gives the fence to the driver, `resume` gives it back.
    """

    def __init__(self, identity: RunIdentity, fence: Fence, on_lost: Callable[[], None]) -> None:
        self.identity = identity
        self.fence = fence
        self.on_lost = on_lost
        self.step = 1
        self.since = 0.0
        self.written_at = 0.0
        self.in_flight: asyncio.Future[None] | None = None
        self._pieces: list[_Piece] = []

    def add(self, kind: EventType, text: str, key: tuple[str, str] = ("", "")) -> None:
        """Append to the last piece if it is of the same kind; `key` is (tool_call_id, tool_name) of argument deltas."""
        pieces = self._pieces
        if pieces and pieces[-1].type is kind and pieces[-1].key == key:
            pieces[-1].texts.append(text)
        else:
            pieces.append(_Piece(kind, key, [text]))

    def note(self, fact: Event) -> None:
        """Append a fact that is told as deltas are: soon, and in its place among them."""
        self._pieces.append(_Piece(fact.type, ("", ""), [], fact))

    @property
    def pending(self) -> bool:
        """Whether there is something that is not yet on its way."""
        return bool(self._pieces)

    def take(self) -> tuple[Event, ...]:
        """All that is not yet on its way, as events."""
        pieces, self._pieces = self._pieces, []
        return tuple(piece.fact or Event(piece.type, self.step, _data(piece)) for piece in pieces)

    def put_back(self, events: tuple[Event, ...]) -> None:
        """Events that were taken and not written: they come first again."""
        self._pieces[:0] = [_piece(event) for event in events]

    async def settle(self) -> Fence:
        """Wait for the write in flight; the fence is then the caller's until it is set anew."""
        while self.in_flight is not None:  # the next one may be under way before this task gets its turn
            await asyncio.shield(self.in_flight)
        return self.fence


class DeltaGatherer:
    """Writes the deltas of all runs of a replica, one statement at a time.

    Args:
        unwatched_every_s: how long deltas of a run wait that nobody reads, as far as the bus knows.
    """

    def __init__(
        self,
        store: RunStore,
        bus: EventBus,
        clock: Callable[[], float],
        unwatched_every_s: float = UNWATCHED_EVERY_S,
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._unwatched_every_s = unwatched_every_s
        self._failures = Recurring(log, "deltas_not_written")
        self._dirty: dict[str, DeltaLog] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to write; the task goes on until `stop`."""
        self._task = asyncio.create_task(self._run(), name="delta-gatherer")
        return self._task

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def touched(self, deltas: DeltaLog) -> None:
        """This log has something to write."""
        run_id = deltas.identity.run_id
        if run_id not in self._dirty:
            deltas.since = self._clock()
            self._dirty[run_id] = deltas
            self._wake.set()

    def noticed(self, run_id: str) -> None:
        """Someone began to read this run."""
        if run_id in self._dirty:
            self._wake.set()

    def forget(self, deltas: DeltaLog) -> None:
        """The driver writes this log's deltas itself, or nobody does."""
        self._dirty.pop(deltas.identity.run_id, None)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock()
            due = [deltas for deltas in self._dirty.values() if self._due_at(deltas) <= now][:RUNS_PER_WRITE]
            if due:
                await self._write(due)
                continue
            wait = min((self._due_at(deltas) for deltas in self._dirty.values()), default=now + 3600.0) - now
            with suppress(TimeoutError):
                async with asyncio.timeout(max(wait, 0.001)):
                    await self._wake.wait()

    def _due_at(self, deltas: DeltaLog) -> float:
        if self._bus.watched(deltas.identity.run_id):
            return max(deltas.since, deltas.written_at + WATCHED_EVERY_S)
        return deltas.since + self._unwatched_every_s

    async def _write(self, due: list[DeltaLog]) -> None:
        loop = asyncio.get_running_loop()
        batch: list[DeltaWrite] = []
        for deltas in due:
            del self._dirty[deltas.identity.run_id]
            deltas.in_flight = loop.create_future()
            deltas.written_at = self._clock()
            batch.append(DeltaWrite(deltas.fence, deltas.identity, deltas.take()))
        try:
            answers = await self._store.append_deltas(batch)
        except StoreError as error:  # and that for longer than a write is sent again: no other one gets through either
            self._failures.failed(str(error), runs=len(batch), error=reason_of(error))
            answers = [DeltaOutcome.LOST] * len(batch)
        except Exception:
            log.exception("deltas_not_written", runs=len(batch))
            answers = [DeltaOutcome.LOST] * len(batch)
        finally:
            for deltas in due:
                if deltas.in_flight is not None:
                    deltas.in_flight.set_result(None)
                    deltas.in_flight = None
        for deltas, write, answer in zip(due, batch, answers, strict=True):
            self._answered(deltas, write, answer)

    def _answered(self, deltas: DeltaLog, write: DeltaWrite, answer: Committed | DeltaOutcome) -> None:
        match answer:
            case Committed():
                deltas.fence = answer.fence
                self._bus.publish(deltas.identity.run_id, answer.events)
            case DeltaOutcome.SKIPPED:
                deltas.put_back(write.events)
                self.touched(deltas)
            case DeltaOutcome.LOST:
                deltas.on_lost()


def _piece(event: Event) -> _Piece:
    if event.type not in DELTA_TYPES:
        return _Piece(event.type, ("", ""), [], event)
    key = (event.data.get("tool_call_id", ""), event.data.get("tool_name", ""))
    return _Piece(event.type, key, [event.data["delta"]])


def _data(piece: _Piece) -> dict[str, str]:
    text = "".join(piece.texts)
    if piece.type is EventType.TOOL_CALL_DELTA:
        tool_call_id, tool_name = piece.key
        return {"tool_call_id": tool_call_id, "tool_name": tool_name, "delta": text}
    return {"delta": text}
