"""Readers of events: they come back anywhere, are many, leave rudely, or never read."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import asyncpg
import psutil
import pytest

from tests.acceptance.client import Client, Sent, an_agent
from tests.acceptance.gates import Gate
from tests.acceptance.model import Model
from tests.acceptance.service import Service
from tests.acceptance.teams import at_once, steps
from tests.acceptance.waiting import eventually
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.exposition import Exposition
from tests.model_server import Reply

MEGABYTE = 1024 * 1024
OBEDIENT = an_agent(model="openai/obey")


async def suffix(url: str, run_id: str, after: int) -> list[bytes]:
    """All that a reader gets who comes back with that seq."""
    async with Client(url) as client:
        answer = await client.http.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": str(after)})
    if answer.status_code == 204:
        return []
    assert answer.status_code == 200, answer.text
    return [block for block in answer.content.split(b"\n\n") if block.startswith(b"id: ")]


@pytest.mark.scenario(8, short=True)
async def test_a_reader_comes_back_at_every_seq_on_the_other_replica(
    chaos: Gauge, cluster: Cluster, callers: Callers, model: Model
) -> None:
    """Live and afterwards, the rest of the log is the same, byte for byte.

    Seen to fail without: the same line of an event from memory as from its row (`StoredEvent.line`).
    """
    a, b = await cluster.start(2)
    agent = an_agent(model="openai/obey", tools=["lookup", "fail", "look"])
    batches = [[("lookup", {"word": "\u2028 \u0085"}), ("fail", {"reason": "a\nb"})], [("look", {"seconds": 0.2})]]
    for _ in range(chaos.size(20, 3)):
        run_id = (await callers.create(agent=agent, input=steps(*batches)))["run_id"]
        live: list[Sent] = []
        turn = 0
        while not live or live[-1].type != "run_completed":
            async with Client((a, b)[turn % 2].url) as client:
                last_id = live[-1].id if live else None
                async with client.stream(run_id, last_id=last_id) as events:
                    live.append(await anext(events))
            turn += 1
        whole = [sent.raw for sent in live]
        for after in range(len(whole) + 1):
            for replica in (a, b):
                assert await suffix(replica.url, run_id, after) == whole[after:]
    await cluster.check()


@pytest.mark.scenario(14, short=True)
async def test_nothing_but_time_is_lost_where_nobody_is_notified(
    chaos: Gauge, cluster: Cluster, callers: Callers, sql: asyncpg.Connection[asyncpg.Record], gate: Gate
) -> None:
    """Listeners are killed again and again, and one replica has none: every reader on the other replica sees every
    event, cancels reach the owner, children wake their parents. How late, is told.

    Seen to fail without: the signal in `OwnRuns.look` (owners).
    """
    (a,) = await cluster.start()
    (b,) = await cluster.start(DATABASE_PREPARED="off")  # without a direct URL there is nobody who listens
    late: list[float] = []

    async def reads(replica: Service, run_id: str) -> None:
        seen: list[int] = []
        async with Client(replica.url) as client, client.stream(run_id) as events:
            async for sent in events:
                seen.append(sent.event["seq"])
                at = datetime.strptime(sent.event["created_at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
                late.append((datetime.now(UTC) - at).total_seconds())
        assert seen == list(range(1, len(seen) + 1))

    async def deafen() -> None:
        while True:
            chaos.kills += await sql.fetchval(
                """SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE datname = current_database() AND pid <> pg_backend_pid() AND query ~* '^listen|pg_notify'"""
            )
            await asyncio.sleep(0.2)

    deafening = asyncio.create_task(deafen())
    try:
        for owner, other in [(a, b), (b, a)] * chaos.size(20, 2):
            async with Client(owner.url) as mine, Client(other.url) as theirs:
                work = steps([("lookup", {"word": "a"})], [("lookup", {"word": "b"})])
                run = await mine.create(agent=OBEDIENT, input=work)
                await reads(other, run["run_id"])
                stuck = await mine.create(agent=an_agent(model="openai/slow-60"), input="Go.")
                reader = asyncio.create_task(reads(other, stuck["run_id"]))
                await theirs.steer("cancel", stuck["run_id"])
                await reader
                await eventually(lambda mine=mine: nothing_under_way(mine), "the owner to let go")
                chaos.runs += 2
    finally:
        deafening.cancel()
        await asyncio.wait({deafening})
    assert deafening.cancelled()
    assert chaos.kills, "no listener was killed"
    chaos.measured.append(f"events came {max(late):.2f} s after their commit at the latest")
    await cluster.check()


async def nothing_under_way(client: Client) -> bool:
    return (await metrics(client)).value("agent_runner_runs_under_way") == 0


async def metrics(client: Client) -> Exposition:
    return Exposition((await client.http.get("/metrics")).content)


class Reader:
    """A connection that reads a run's events over a plain socket, or does not."""

    def __init__(self, url: str, run_id: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._address = (parts.hostname, parts.port)
        self._request = f"GET /runs/{run_id}/events HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.setblocking(False)

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._socket, self._address)
        await loop.sock_sendall(self._socket, self._request)

    async def begun(self) -> None:
        """Wait for the first bytes of the answer."""
        assert (await asyncio.get_running_loop().sock_recv(self._socket, 12)).startswith(b"HTTP/1.1 200")

    def reset(self) -> None:
        """Leave without a word: the other side gets an RST."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


@asynccontextmanager
async def readers(count: int, url: str, run_ids: list[str]) -> AsyncIterator[list[Reader]]:
    """So many readers, each of one of the runs in turn; all have got the beginning of their answer."""
    async with AsyncExitStack() as stack:
        made = [Reader(url, run_ids[number % len(run_ids)]) for number in range(count)]
        for reader in made:
            stack.callback(reader.reset)
        for start in range(0, count, 50):
            await asyncio.gather(*(reader.open() for reader in made[start : start + 50]))
            await asyncio.gather(*(reader.begun() for reader in made[start : start + 50]))
        yield made


async def quiet(client: Client) -> bool:
    """Whether no reader is counted and no connection to the database is in use but by who looks."""
    told = await metrics(client)
    used = told.value("agent_runner_db_connections", state="used")
    return told.value("agent_runner_subscribers") == 0 and used <= 1


async def database_connections(sql: asyncpg.Connection[asyncpg.Record]) -> int:
    return await sql.fetchval("SELECT count(*) - 1 FROM pg_stat_activity WHERE datname = current_database()")


@pytest.mark.scenario(17)
async def test_many_readers_share_few_connections_and_leave_the_others_room(
    chaos: Gauge, cluster: Cluster, callers: Callers, sql: asyncpg.Connection[asyncpg.Record], gate: Gate
) -> None:
    """The API goes on, no more connections are open than the pools may have, and none stays in use.

    Seen to fail without: the context manager that gives a reader's connection back before it yields
    (`EventStreams._rows`).
    """
    (replica,) = await cluster.start(
        DATABASE_API_CONNECTIONS="4", DATABASE_EXECUTION_CONNECTIONS="4", DATABASE_STREAM_CONNECTIONS="2"
    )
    task = at_once(("read", {"gate": gate.name}))
    run_ids = [(await callers.create(agent=OBEDIENT, input=task))["run_id"] for _ in range(10)]
    await gate.entered(times=10)
    slowest = 0.0
    async with Client(replica.url) as client:
        async with readers(chaos.size(500, 50), replica.url, run_ids):
            assert (await metrics(client)).value("agent_runner_subscribers") == chaos.size(500, 50)
            for _ in range(chaos.size(100, 10)):
                began = asyncio.get_running_loop().time()
                run = await client.create(agent=an_agent(model="openai/echo"), input="Hello.")
                await client.steer("cancel", run["run_id"])
                await client.get(run_ids[0])
                slowest = max(slowest, asyncio.get_running_loop().time() - began)
                chaos.runs += 1
            # Pools, half as many sessions as the API has, and one each to listen, to beat, and to say that all is well.
            assert await database_connections(sql) <= 4 + 4 + 2 + 2 + 3
            gate.open()
            runs = await callers.all_ended(run_ids)
            assert {run["status"] for run in runs} == {"completed"}
        await eventually(lambda: quiet(client), "readers and connections to be let go")
    chaos.measured.append(f"create, cancel and get took {slowest:.3f} s at most with {chaos.size(500, 50)} readers")
    await cluster.check()


@pytest.mark.scenario(18)
async def test_a_storm_of_readers_that_reset_their_connections_leaves_nothing_behind(
    chaos: Gauge, cluster: Cluster, callers: Callers, gate: Gate
) -> None:
    """Pools and memory are back to where they were.

    Seen to fail without: `Subscription.__exit__` taking the reader out of the bus.
    """
    (replica,) = await cluster.start()
    task = at_once(("read", {"gate": gate.name}))
    run_id = (await callers.create(agent=OBEDIENT, input=task))["run_id"]
    await gate.entered()
    process = psutil.Process(replica.pid)

    async def storm() -> int:
        """The memory that the replica has after it, in bytes."""
        async with Client(replica.url) as client:
            for _ in range(chaos.size(20, 3)):
                async with readers(100, replica.url, [run_id]):
                    chaos.kills += 100
            await eventually(lambda: quiet(client), "readers and connections to be let go")
        return process.memory_info().rss

    first, second = await storm(), await storm()
    assert second - first < 20 * MEGABYTE
    gate.open()
    assert (await callers.ended(run_id))["status"] == "completed"
    await cluster.check()


@pytest.mark.scenario(23)
async def test_readers_that_never_read_cost_a_bounded_piece_of_memory_each(
    chaos: Gauge, cluster: Cluster, callers: Callers, model: Model
) -> None:
    """Much output, and readers that take none of it: memory is as without them, and others see all of it.

    Seen to fail without: `CHARS_AT_ONCE`, the bound on a page of the log.
    """
    (replica,) = await cluster.start()
    process = psutil.Process(replica.pid)
    pieces = chaos.size(4000, 1000)
    much = Reply(text=["x" * 4000] * pieces, chunk_delay_s=0.002)

    async def peak_with(count: int) -> int:
        """The most memory that the replica has while a run talks to so many who do not listen."""
        model.script(much)
        run_id = (await callers.create(agent=an_agent(), input="Talk."))["run_id"]
        most = 0
        async with readers(count, replica.url, [run_id]):
            following = asyncio.create_task(callers.follow(run_id))
            while not following.done():
                most = max(most, process.memory_info().rss)
                await asyncio.wait({following}, timeout=0.05)
            seen = [sent.event for sent in await following]
        async with readers(count, replica.url, [run_id]):  # who come when all is there to be read
            for _ in range(40):
                most = max(most, process.memory_info().rss)
                await asyncio.sleep(0.05)
        assert sum(len(event["data"]["delta"]) for event in seen if event["type"] == "text_delta") == 4000 * pieces
        return most

    await peak_with(0)  # what the replica needs for such a run it keeps
    without, with_them = await peak_with(0), await peak_with(chaos.size(100, 40))
    grown = (with_them - without) / MEGABYTE
    chaos.measured.append(f"{chaos.size(100, 40)} readers that never read: {grown:.0f} MB more")
    assert with_them - without < chaos.size(100, 40) * MEGABYTE
    await cluster.check()
