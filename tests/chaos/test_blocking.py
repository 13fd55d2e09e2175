"""Tools that block: a thread each, or the whole event loop of their replica."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest

from tests.acceptance.client import TERMINAL, Client, Json, check_log
from tests.acceptance.conftest import Caller
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.teams import at_once, through
from tests.acceptance.waiting import eventually
from tests.chaos.callers import afresh
from tests.chaos.cluster import Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.work import WORKER, check_effects, some_work
from tests.exposition import Exposition

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

READER: Json = {"name": "reader", "model": "openai/obey", "tools": ["read"]}
FREEZER: Json = {"name": "freezer", "model": "openai/obey", "tools": ["freeze"]}
TALKER: Json = {"name": "talker", "model": "openai/stream-100"}
THREADS = 32  # as many synchronous tools as a replica runs at once


async def probe(client: Client, blocked: str) -> float:
    """Ask for health, stream a run from its start to its end, cancel a run whose tool blocks; how long it took."""
    began = time.monotonic()
    for path in ("/healthz", "/readyz"):
        assert (await client.http.get(path)).status_code == 200
    run = await client.create(agent=TALKER, input="Talk.")
    events = [sent.event for sent in await client.streamed(run["run_id"])]
    check_log(events, await client.get(run["run_id"]))
    assert events[-1]["type"] == "run_completed"
    assert (await client.steer("cancel", blocked))["status"] == "cancelled"
    assert [sent.type for sent in await client.streamed(blocked)][-1] == "run_cancelled"
    return time.monotonic() - began


@pytest.mark.scenario(15)
async def test_a_replica_answers_while_every_tool_thread_of_it_is_blocked(
    chaos: Gauge, cluster: Cluster, caller: Caller, gate: Gate
) -> None:
    """Health, streams and cancels, again and again for longer than a lease, all of it before any tool has returned.

    Seen to fail without: a thread for a synchronous tool.
    """
    (service,) = await cluster.start(LEASE_S="10")
    client = afresh(caller(service))
    run_ids = [(await client.create(agent=READER, input=through(gate)))["run_id"] for _ in range(THREADS)]
    await gate.entered(THREADS)
    until = time.monotonic() + chaos.size(30, 5)
    took: list[float] = []
    cancelled: list[str] = []
    while time.monotonic() < until:
        if len(run_ids) > THREADS // 2:
            cancelled.append(run_ids.pop())
        took.append(await probe(client, cancelled[-1]))
    assert gate.ended() == []
    gate.open()
    for run_id in run_ids:
        run = await client.until(run_id, *TERMINAL)
        assert (run["status"], run["attempt"]) == ("completed", 1), run
    await gate.left(THREADS)
    for run_id in cancelled:
        assert (await client.get(run_id))["status"] == "cancelled"
    chaos.runs += THREADS + len(took)
    chaos.measured.append(f"health, a streamed run and a cancel beside {THREADS} blocked tools: max {max(took):.2f} s")
    await cluster.check()


async def standing(sql: Database) -> list[tuple[Any, ...]]:
    """What a write to any run would change."""
    rows = await sql.fetch("SELECT run_id, status, epoch, write_no, last_seq FROM runs ORDER BY run_id")
    return [tuple(row) for row in rows]


async def metric(client: Client, name: str) -> float:
    return Exposition((await client.http.get("/metrics")).content).value(name)


async def back_and_idle(client: Client) -> None:
    """Wait until a replica takes work and has let go of all that it had."""

    async def look() -> bool:
        ready = (await client.http.get("/readyz")).status_code == 200
        return ready and await metric(client, "agent_runner_runs_under_way") == 0

    await eventually(look, "the replica to be back")


@pytest.mark.scenario(15)
async def test_a_replica_whose_event_loop_is_blocked_loses_its_runs_and_lives_on(
    chaos: Gauge, cluster: Cluster, caller: Caller, gates: Gates, sql: Database
) -> None:
    """For longer than its lease: the other replica finishes the runs while it hangs, nothing is done twice, and when it
    is back it writes nothing late, says that it has lost its lease, and takes new runs.

    Seen to fail without: the condition that the heartbeat's thread beats only while the loop ticks, the guard that
    looks at the lease.
    """
    for _ in range(chaos.size(4, 1)):
        hangs, other = await cluster.start(2)
        here, there = afresh(caller(hangs)), afresh(caller(other))
        ledger, gate = gates.new(), gates.new()
        tasks = [some_work(chaos, ledger.name) for _ in range(12)]
        run_ids = [(await here.create(agent=WORKER, input=task))["run_id"] for task in tasks]
        frozen = await here.create(agent=FREEZER, input=at_once(("freeze", {"gate": gate.name})))
        assert (await gate.entered())[0]["pid"] == hangs.pid
        chaos.runs += len(run_ids) + 1
        done = [await there.until(run_id, *TERMINAL) for run_id in (*run_ids, frozen["run_id"])]
        assert {run["status"] for run in done} == {"completed"}
        check_effects(ledger, done[:-1])
        assert (done[-1]["attempt"], [call["pid"] for call in gate.calls()]) == (2, [hangs.pid, other.pid])
        with pytest.raises(httpx.ReadTimeout):
            await here.http.get("/healthz", timeout=0.5)

        before = await standing(sql)
        gate.open()
        await back_and_idle(here)
        assert await metric(here, "agent_runner_lease_losses_total") == 1
        assert await standing(sql) == before
        check_effects(ledger, done[:-1])
        again = await here.create_and_wait(agent=TALKER, input="Talk.")
        assert (again["status"], again["attempt"]) == ("completed", 1)
        for service in (hangs, other):
            await cluster.kill(service)
    await cluster.check()
