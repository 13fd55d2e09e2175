"""The bus between replicas: Postgres NOTIFY, with ids only, gathered, and outside of every write.

One connection of its own both listens and notifies. While it is down, or where it leads through a pooler in transaction
mode and cannot listen, nothing is wrong: whoever reads or owns runs asks the store once a second anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import asyncpg

from app.engine.events import StoredEvent
from app.event_bus.memory import MemoryBus, Subscription
from app.telemetry.logs import get_logger
from app.telemetry.recurring import Recurring

CHANNEL = "agent_runner"
GATHER_S = 0.010
# Postgres takes payloads below 8 000 bytes.
PAYLOAD_BYTES = 7_900
WATCH_EVERY_S = 5.0
WATCH_TTL_S = 15.0
RECONNECT_S = (0.1, 5.0)

EVENTS, CONTROL, WAKE, QUEUED, WATCHING = "e", "c", "k", "q", "w"

log = get_logger(__name__)


class PostgresBus(MemoryBus):
    """A `MemoryBus` that also tells the other replicas, and hears from them.

    Args:
        url: a connection of the bus's own.
        sender: this replica's incarnation; its own messages come back and are known by it.
        hears: False where `url` leads through a pooler in transaction mode: LISTEN would be some server connection's,
            and what that hears nobody's. Others are still told.

    While `alone` is set (by whoever counts the replicas) nothing but control is told: nobody would hear.
    """

    def __init__(self, url: str, sender: str, *, hears: bool = True) -> None:
        super().__init__()
        self._url = url
        self._sender = sender
        self._hears = hears
        self._failures = Recurring(log, "event_bus_disconnected")
        self._outbox: dict[str, set[str]] = {}
        self._filled = asyncio.Event()
        self._watched_until: dict[str, float] = {}
        self._task: asyncio.Task[None] | None = None
        self.alone = False

    @property
    def task(self) -> asyncio.Task[None]:
        """What listens and tells, from `start` to `stop`."""
        assert self._task is not None
        return self._task

    async def start(self) -> None:
        if not self._hears:
            log.info("event_bus_polling", hint="set DATABASE_DIRECT_URL to hear of other replicas' work at once")
        self._task = asyncio.create_task(self._serve(), name="event-bus")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def publish(self, run_id: str, events: Sequence[StoredEvent]) -> None:
        super().publish(run_id, events)
        self._send(EVENTS, run_id)

    def control(self, run_id: str, epoch: int) -> None:
        super().control(run_id, epoch)
        self._send(CONTROL, f"{run_id}/{epoch}")

    def wake(self, run_id: str) -> None:
        super().wake(run_id)
        self._send(WAKE, run_id)

    def queued(self) -> None:
        super().queued()
        self._send(QUEUED, "")

    def watched(self, run_id: str) -> bool:
        return super().watched(run_id) or self._watched_until.get(run_id, 0.0) > time.monotonic()

    def join(self, run_id: str, reader: Subscription) -> None:
        super().join(run_id, reader)
        self._send(WATCHING, run_id)

    def _send(self, kind: str, run_id: str) -> None:
        if self.alone and kind is not CONTROL:
            return  # a replica that has just come says so, and until then it looks at the rows by itself
        self._outbox.setdefault(kind, set()).add(run_id)
        self._filled.set()

    async def _serve(self) -> None:
        pause = RECONNECT_S[0]
        while True:
            try:
                await self._serve_connected()
                pause = RECONNECT_S[0]
            except Exception as error:  # noqa: BLE001 - whatever broke the connection, another one is made
                self._failures.failed("", error=str(error) or type(error).__name__, retry_s=pause)
            self._poke_all()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RECONNECT_S[1])

    async def _serve_connected(self) -> None:
        connection = await asyncpg.connect(self._url, timeout=10, command_timeout=10, statement_cache_size=0)
        closed = asyncio.Event()
        connection.add_termination_listener(lambda _: closed.set())
        try:
            if self._hears:
                await connection.add_listener(CHANNEL, self._heard)
            self._poke_all()  # what was said while nobody listened
            self._outbox.setdefault(QUEUED, set()).add("")  # whoever thinks that it is alone hears of this replica
            self._filled.set()
            next_watch = time.monotonic() + WATCH_EVERY_S
            while not closed.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._filled.wait()
                if self._filled.is_set():
                    await asyncio.sleep(GATHER_S)
                    await self._flush(connection)
                if time.monotonic() >= next_watch:
                    next_watch = time.monotonic() + WATCH_EVERY_S
                    self._renew_watches()
        finally:
            connection.terminate()

    async def _flush(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        self._filled.clear()
        outbox, self._outbox = self._outbox, {}
        payloads = [payload for kind, ids in outbox.items() for payload in _payloads(self._sender, kind, ids)]
        await connection.execute("SELECT pg_notify($1, p) FROM unnest($2::text[]) AS p", CHANNEL, payloads)

    def _renew_watches(self) -> None:
        for run_id in self._readers:
            self._send(WATCHING, run_id)
        now = time.monotonic()
        self._watched_until = {run_id: until for run_id, until in self._watched_until.items() if until > now}

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        sender, kind, ids = str(payload).split(":", 2)
        if sender == self._sender:
            return
        self.alone = False
        for run_id in ids.split(","):
            match kind:
                case "e":
                    self.poke(run_id)
                case "c":
                    run_id, _, epoch = run_id.partition("/")
                    self.controlled(run_id, int(epoch))
                    self.poke(run_id)
                case "k":
                    self.woken(run_id)
                case "q":
                    self.work_queued()
                case "w":
                    self._watched_until[run_id] = time.monotonic() + WATCH_TTL_S
                    self.noticed(run_id)
                case _:
                    log.debug("event_bus_unknown_message", kind=kind)  # from a newer version of this program

    def _poke_all(self) -> None:
        for run_id in list(self._readers):
            self.poke(run_id)


def _payloads(sender: str, kind: str, ids: set[str]) -> Iterator[str]:
    head = f"{sender}:{kind}:"
    line = ""
    for run_id in ids:
        if line and len(head) + len(line) + 1 + len(run_id) > PAYLOAD_BYTES:
            yield head + line
            line = ""
        line = f"{line},{run_id}" if line else run_id
    yield head + line
