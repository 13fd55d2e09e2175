"""The bus inside one process: committed events go to their readers in memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from app.engine.events import StoredEvent

# How many events, and how many characters of them, a reader may be behind before it is sent to the rows; a slow reader
# never makes the writer wait.
SUBSCRIPTION_LIMIT = 1000
SUBSCRIPTION_CHARS = 256 * 1024


class Subscription:
    """One reader's place at one or several runs. Use as a context manager; leaving it ends the subscription.

    Events wait in `take()`; `stale()` says that something happened which was not handed over, so that the reader has
    to look at the rows.
    """

    def __init__(self, bus: MemoryBus, run_ids: Iterable[str]) -> None:
        self._bus = bus
        self._run_ids = set(run_ids)
        self._events: deque[tuple[str, StoredEvent]] = deque()
        self._chars = 0
        self._stale = False
        self._wake = asyncio.Event()
        self.cursors: dict[str, int] = {}

    def __enter__(self) -> Subscription:
        for run_id in self._run_ids:
            self._bus.join(run_id, self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for run_id in self._run_ids:
            self._bus.part(run_id, self)

    def add(self, run_id: str) -> None:
        """Listen to one more run."""
        if run_id not in self._run_ids:
            self._run_ids.add(run_id)
            self._bus.join(run_id, self)

    async def wait(self, timeout_s: float) -> bool:
        """Wait until there is something; False if nothing came in that many seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    def take(self) -> list[tuple[str, StoredEvent]]:
        """The events handed over since the last call, each with its run's id."""
        events = list(self._events)
        self._clear()
        self._wake.clear()
        return events

    def stale(self) -> bool:
        """Whether the rows know more than was handed over; asking resets it."""
        stale, self._stale = self._stale, False
        return stale

    def put(self, run_id: str, events: Sequence[StoredEvent]) -> None:
        self._chars += sum(len(event.body) for event in events)
        if len(self._events) + len(events) > SUBSCRIPTION_LIMIT or self._chars > SUBSCRIPTION_CHARS:
            self._clear()
            self._stale = True
        else:
            self._events.extend((run_id, event) for event in events)
        self._wake.set()

    def poke(self) -> None:
        self._stale = True
        self._wake.set()

    def _clear(self) -> None:
        self._events.clear()
        self._chars = 0


class MemoryBus:
    """Readers, and whoever wants to hear of control and of new work, in one process."""

    def __init__(self) -> None:
        self._readers: dict[str, set[Subscription]] = {}
        self._on_control: list[Callable[[str, int], None]] = []
        self._on_wake: list[Callable[[str], None]] = []
        self._on_queued: list[Callable[[], None]] = []
        self._on_watched: list[Callable[[str], None]] = []
        self.closing = False

    async def start(self) -> None:
        """Nothing to connect to."""

    async def stop(self) -> None:
        """Nothing to take leave of."""

    def subscribe(self, *run_ids: str) -> Subscription:
        return Subscription(self, run_ids)

    def publish(self, run_id: str, events: Sequence[StoredEvent]) -> None:
        """Hand committed events to the run's readers."""
        for reader in self._readers.get(run_id, ()):
            reader.put(run_id, events)

    def control(self, run_id: str, epoch: int) -> None:
        """A caller moved the run on to `epoch` in the store: its owner, wherever it is, should stop at once."""
        self.controlled(run_id, epoch)

    def wake(self, run_id: str) -> None:
        """Something was stored for a running run: its owner, wherever it is, should look."""
        self.woken(run_id)

    def queued(self) -> None:
        """There is a run to claim."""
        self.work_queued()

    def watched(self, run_id: str) -> bool:
        """Whether anyone reads the run now."""
        return run_id in self._readers

    def read_runs(self) -> dict[str, int]:
        """The runs that are read here, each with the lowest cursor of its readers."""
        return {
            run_id: min(reader.cursors.get(run_id, 0) for reader in readers)
            for run_id, readers in self._readers.items()
        }

    def subscribers(self) -> int:
        """How many readers there are now, each counted once however many runs it reads."""
        return len({reader for readers in self._readers.values() for reader in readers})

    def poke(self, run_id: str) -> None:
        """The rows of a run have grown; its readers here should look."""
        for reader in self._readers.get(run_id, ()):
            reader.poke()

    def close_readers(self) -> None:
        """This process stops: whoever reads here ends where it is and goes on elsewhere."""
        self.closing = True
        for run_id in self.read_runs():
            self.poke(run_id)

    def on_control(self, callback: Callable[[str, int], None]) -> None:
        self._on_control.append(callback)

    def on_wake(self, callback: Callable[[str], None]) -> None:
        self._on_wake.append(callback)

    def on_queued(self, callback: Callable[[], None]) -> None:
        self._on_queued.append(callback)

    def on_watched(self, callback: Callable[[str], None]) -> None:
        self._on_watched.append(callback)

    def controlled(self, run_id: str, epoch: int) -> None:
        for callback in self._on_control:
            callback(run_id, epoch)

    def woken(self, run_id: str) -> None:
        for callback in self._on_wake:
            callback(run_id)

    def work_queued(self) -> None:
        for callback in self._on_queued:
            callback()

    def join(self, run_id: str, reader: Subscription) -> None:
        self._readers.setdefault(run_id, set()).add(reader)
        self.noticed(run_id)

    def part(self, run_id: str, reader: Subscription) -> None:
        readers = self._readers.get(run_id)
        if readers is not None:
            readers.discard(reader)
            if not readers:
                del self._readers[run_id]

    def noticed(self, run_id: str) -> None:
        """Someone, here or elsewhere, began to read the run: its text should no longer be held back."""
        for callback in self._on_watched:
            callback(run_id)
