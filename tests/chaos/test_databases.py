"""A database that dies, and one in which somebody else is slow."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TypeAlias

import asyncpg
import httpx
import pytest

from app.db.embedded import EmbeddedPostgres
from app.db.embedded.postmaster import Postmaster
from app.db.migrate import upgrade
from app.db.steering import append_events, lock
from app.engine.events import Event, EventType
from tests.acceptance.client import Client, Json, Sent, check_log, of_type
from tests.acceptance.conftest import Caller, Serve, Settings
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.teams import through
from tests.acceptance.waiting import eventually, holds
from tests.chaos.callers import Callers
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.work import READER, WORKER, check_effects, some_work, speaker, spoken, words_of

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class Server:
    """A Postgres of the scenario's own that crashes and comes back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[EmbeddedPostgres] = []

    def start(self) -> str:
        """Start it, with recovery if need be; its URL, always the same."""
        self._started.append(EmbeddedPostgres(self._folder))
        return self._started[-1].start()

    def crash(self) -> None:
        """Immediate shutdown: no goodbye to anyone, and what was committed is found in the log."""
        server = Postmaster.of(self._folder / "postgres")
        assert server is not None
        os.kill(server.pid, signal.SIGQUIT)

    def stop(self) -> None:
        for each in self._started:
            each.stop()


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="agent-runner-own-", dir="/tmp"))
    server = Server(folder)
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


class Witness:
    """Somebody who asks for runs all the time and remembers what was answered."""

    def __init__(self, cluster: Cluster, dice: Random, http: httpx.AsyncClient) -> None:
        self._cluster = cluster
        self._dice = dice
        self._http = http
        self.run_ids: list[str] = []
        self.logs: dict[str, list[Json]] = {}
        self.refused = 0

    async def watch(self) -> None:
        """Until cancelled. Raises AssertionError for an answer that is neither right nor a 503."""
        while True:
            url = self._dice.choice(self._cluster.replicas).url
            assert (await self._http.get(f"{url}/healthz")).status_code == 200
            if self.run_ids:
                await self._look(url, self._dice.choice(self.run_ids))
            await asyncio.sleep(0.02)

    async def _look(self, url: str, run_id: str) -> None:
        known = self.logs.setdefault(run_id, [])
        log = await self._get(f"{url}/runs/{run_id}/events/list?limit=100")
        if log is not None:
            assert log["items"][: len(known)] == known, "events were seen that are not there any more"
            self.logs[run_id] = known = log["items"]
        run = await self._get(f"{url}/runs/{run_id}")
        assert run is None or run["last_event_seq"] >= len(known)

    async def _get(self, url: str) -> Json | None:
        answer = await self._http.get(url)
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) > 0
            self.refused += 1
            return None
        assert answer.status_code == 200, f"{url}: {answer.text}"
        return answer.json()


async def crash_and_come_back(chaos: Gauge, server: Server, witness: Witness) -> None:
    """After a while the server crashes; once somebody was refused, and a moment later, it is there again."""
    await holds(lambda: len(witness.run_ids) > 0, "somebody to have been told of a run")
    await asyncio.sleep(chaos.dice.uniform(1.0, 4.0))
    before = witness.refused
    chaos.kills += 1
    server.crash()
    await holds(lambda: witness.refused > before, "somebody to be refused")
    await asyncio.sleep(chaos.dice.uniform(0, 1.0))
    await asyncio.to_thread(server.start)


@pytest.mark.scenario(4)
async def test_a_database_crashes_again_and_again_while_runs_go_on(
    chaos: Gauge, server: Server, serve: Serve, settings: Settings, gate: Gate
) -> None:
    """What was acknowledged or seen stays; answers meanwhile are right, or 503 and when to ask again; all runs end.

    Seen to fail without: `CannotConnectNowError` among what makes the store unavailable (500 during recovery),
    `synchronous_commit` (readers come back with cursors that are ahead of the log).
    """
    url = await asyncio.to_thread(server.start)
    await upgrade(url)
    # Longer than the server is away: what is under way then goes on in the same attempt.
    environment = settings(TOOL_MODULES="tests.acceptance.tools,tests.chaos.tools", LEASE_S="8")
    cluster = Cluster(chaos, serve, environment, url)
    await cluster.start(2)
    async with Callers(chaos, cluster) as callers, asyncio.TaskGroup() as tasks:
        witness = Witness(cluster, chaos.dice, callers.http)
        reading: list[asyncio.Task[list[Sent]]] = []

        async def work(number: int) -> str:
            await asyncio.sleep(chaos.dice.uniform(0, chaos.size(20.0, 4.0)))
            body: Json = {"agent": speaker(2), "input": "Go."}
            if number % 3:
                body = {"agent": WORKER, "input": some_work(chaos, gate.name)}
            run_id = (await callers.create(**body))["run_id"]
            witness.run_ids.append(run_id)
            if number % 4 == 0:
                reading.append(tasks.create_task(callers.follow(run_id)))
            return run_id

        watching = tasks.create_task(witness.watch())
        working = [tasks.create_task(work(number)) for number in range(chaos.size(60, 15))]
        for _ in range(chaos.size(6, 2)):
            await crash_and_come_back(chaos, server, witness)
        runs = {run["run_id"]: run for run in await callers.all_ended([await each for each in working])}
        for log in await asyncio.gather(*reading):
            events = [sent.event for sent in log]
            check_log(events, runs[events[0]["run_id"]])
        watching.cancel()
    assert {run["status"] for run in runs.values()} == {"completed"}
    check_effects(gate, [run for run in runs.values() if run["agent_name"] == WORKER["name"]])
    await cluster.check()


def note(number: int) -> Event:
    """Something that a slow writer has to say."""
    data = {"tool_call_id": "none", "message": f"slow {number}", "data": None}
    return Event(EventType.TOOL_PROGRESS, 1, data)


async def waiting_for_locks(sql: Database, count: int) -> None:
    """Wait until so many connections of the scenario's database wait for a lock."""

    async def look() -> bool:
        waiting = """SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'"""
        return await sql.fetchval(waiting) >= count

    await eventually(look, f"{count} connections to wait for a lock")


async def saw(seen: list[Json], count: int) -> None:
    await holds(lambda: len(seen) >= count, f"{count} events to be read")


async def read_into(client: Client, run_id: str, seen: list[Json]) -> None:
    """Follow a run to the end of its log."""
    async with client.stream(run_id) as events:
        async for sent in events:
            seen.append(sent.event)


async def both_want(
    first: str, owner: Client, other: Client, run_id: str, gate: Gate, sql: Database
) -> asyncio.Task[httpx.Response]:
    """Let the run's owner want to write, and cancel the run, one behind the other; the answer to the cancel."""
    if first == "the owner":
        gate.open()
        await waiting_for_locks(sql, 1)
    cancelling = asyncio.create_task(other.ask("cancel", run_id))
    if first == "the cancel":
        await waiting_for_locks(sql, 1)
        gate.open()
    await waiting_for_locks(sql, 2)
    return cancelling


async def check_logs(client: Client, held: str, talking: str, logs: list[list[Json]], cancel: httpx.Response) -> None:
    """All readers have read all there is, the slow writer's events among it, and the cancel was told the truth."""
    for run_id, seen in ((held, logs[0]), (held, logs[1]), (held, logs[4]), (talking, logs[2]), (talking, logs[3])):
        run = await client.get(run_id)
        check_log(seen, run)
        assert seen == await client.events(run_id)
        assert [event["data"]["message"][:4] for event in of_type(seen, "tool_progress")] == ["slow"]
    assert cancel.status_code == 200
    assert cancel.json()["status"] == (await client.get(held))["status"]
    talked = await client.get(talking)
    assert (talked["status"], spoken(logs[2])) == ("completed", talked["result"]["final_text"])


@pytest.mark.scenario(9)
@pytest.mark.parametrize("first", ["the owner", "the cancel"])
async def test_readers_miss_nothing_of_a_slow_writer_that_commits_late(
    first: str, chaos: Gauge, cluster: Cluster, caller: Caller, gates: Gates, sql: Database, database_url: str
) -> None:
    """It has appended to the log and not committed, while the run's owner wants to write and a cancel arrives. Nobody
    reads past it, other runs go on, and in the end all readers have the same log, without a gap.

    Seen to fail without: the look at the rows where an event does not follow on (`handed_over`), `SKIP LOCKED` in the
    write of several runs' deltas (another run's words wait as well).
    """
    a, b = (caller(service) for service in await cluster.start(2))
    for number in range(chaos.size(15, 1)):
        gate = gates.new()
        held = (await a.create(agent=READER, input=through(gate)))["run_id"]
        talking = (await a.create(agent=speaker(3), input="Go."))["run_id"]
        chaos.runs += 3
        await gate.entered()
        before = await a.events(held)
        logs: list[list[Json]] = [[] for _ in range(5)]
        readers = [
            asyncio.create_task(read_into(client, run_id, seen))
            for client, run_id, seen in zip((a, b, a, b), (held, held, talking, talking), logs[:4], strict=True)
        ]
        await saw(logs[0], len(before))
        await saw(logs[1], len(before))
        slow = await asyncpg.connect(database_url)
        async with slow.transaction():
            for run_id in (held, talking):
                locked = await lock(slow, run_id)
                await append_events(slow, locked.run, [note(number)])
            cancelling = await both_want(first, a, b, held, gate, sql)
            readers.append(asyncio.create_task(read_into(b, held, logs[4])))
            other = (await a.create(agent=speaker(30), input="Go."))["run_id"]
            await words_of(a, other)
            await a.steer("cancel", other)
            await saw(logs[4], len(before))
            assert all(log == before for log in (logs[0], logs[1], logs[4]))
        await slow.close()
        answer = await cancelling
        await asyncio.gather(*readers)
        await check_logs(a, held, talking, logs, answer)
    await cluster.check()
