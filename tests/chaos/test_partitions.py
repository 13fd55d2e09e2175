"""Replicas that are cut off from the others: stopped, behind a broken network, or in another time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from tests.acceptance.client import Client, Json, check_log, of_type
from tests.acceptance.conftest import Caller
from tests.acceptance.gates import Gate, Gates
from tests.acceptance.model import SILENT, Model
from tests.acceptance.questions import judged, pending, rule
from tests.acceptance.service import ROOT, Service
from tests.acceptance.teams import at_once, through
from tests.acceptance.waiting import eventually, holds
from tests.chaos.cluster import LEASE_S, Cluster
from tests.chaos.gauge import Gauge
from tests.chaos.proxy import Proxy
from tests.chaos.work import words_of
from tests.exposition import Exposition
from tests.model_server import Reply

Database: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

OBEDIENT: Json = {"name": "obedient", "model": "openai/obey", "tools": ["read", "put", "persist", "order"]}
TALKER: Json = {"name": "talker", "model": "openai/talker"}
# Words without end, and then a whole answer.
ENDLESS = Reply(text=["word "], finish_reason=None, usage=None, done=False, endless=True, chunk_delay_s=0.02)
TAKEN_OVER = Reply(text="Taken over.")
CLOCK_FOLDER = Path(__file__).with_name("shifted_clock")
AN_HOUR_S = 3600


async def both(cluster: Cluster, proxy: Proxy, lease_s: int = LEASE_S) -> tuple[Service, Service]:
    """Two replicas; the first has its database through the proxy."""
    (first,), (second,) = await asyncio.gather(
        cluster.start(DATABASE_URL=proxy.url, LEASE_S=str(lease_s)), cluster.start(LEASE_S=str(lease_s))
    )
    return first, second


async def talk(chaos: Gauge, client: Client, model: Model, times: int) -> list[str]:
    """Runs in a model call that says nothing, and as many in one that never ends."""
    runs: list[str] = []
    for number in range(times):
        for place, reply in enumerate((SILENT, ENDLESS), 1):
            model.script(reply)
            runs.append((await client.create(agent=TALKER, input="Talk."))["run_id"])
            await model.asked(2 * number + place)
        await words_of(client, runs[-1])
    chaos.runs += len(runs)
    return runs


async def persist(chaos: Gauge, client: Client, gate: Gate, times: int) -> list[str]:
    """Runs in a tool that goes on until it is cancelled."""
    task = at_once(("persist", {"ledger": gate.name}))
    runs = [(await client.create(agent=OBEDIENT, input=task))["run_id"] for _ in range(times)]
    await gate.entered(times)
    chaos.runs += times
    return runs


async def standing(sql: Database, run_ids: list[str]) -> list[tuple[Any, ...]]:
    """What a write to any of these runs would change."""
    rows = await sql.fetch(
        "SELECT run_id, status, owner, epoch, write_no, last_seq FROM runs WHERE run_id = ANY ($1::uuid[]) ORDER BY 1",
        run_ids,
    )
    return [tuple(row) for row in rows]


async def taken_over(sql: Database, run_ids: list[str], *, let_go: Callable[[], bool] = lambda: True) -> None:
    """Wait until all of these runs have a second attempt; nobody may touch one before `let_go`."""

    async def look() -> bool:
        dropped = let_go()
        rows = await sql.fetch("SELECT epoch, attempt FROM runs WHERE run_id = ANY ($1::uuid[])", run_ids)
        assert dropped or all(row["epoch"] == 1 for row in rows), "a run was taken from a replica that still ran it"
        return all(row["attempt"] == 2 for row in rows)

    await eventually(look, "the runs to be taken over")


async def check_taken_over(client: Client, run_ids: list[str]) -> None:
    for run_id in run_ids:
        run = await client.until(run_id, "completed", "degraded", "failed")
        events = await client.events(run_id)
        check_log(events, run)
        assert (run["status"], run["attempt"]) == ("completed", 2), run
        ends = [event["data"]["tool_call_id"] for event in of_type(events, "tool_completed")]
        assert len(ends) == len(set(ends)), ends


async def works_again(client: Client) -> None:
    """Wait for a replica to have nothing under way and to take work, and have a run of its own done."""

    async def idle() -> bool:
        ready = (await client.http.get("/readyz")).status_code == 200
        metrics = Exposition((await client.http.get("/metrics")).content)
        return ready and metrics.value("agent_runner_runs_under_way") == 0

    await eventually(idle, "the replica to be idle and ready")
    done = await client.create_and_wait(agent=OBEDIENT, input="Are you there?")
    assert (done["status"], done["attempt"]) == ("completed", 1)


@pytest.mark.scenario(2, short=True)
async def test_a_replica_that_is_stopped_past_its_lease_and_goes_on_writes_nothing_and_drops_its_runs(
    chaos: Gauge, cluster: Cluster, caller: Caller, model: Model, gates: Gates, proxy: Proxy, sql: Database
) -> None:
    """Its commit that was on its way finds no row; its model calls are broken off and its tools cancelled.

    Seen to fail without: epoch and write number in the fence (a second result of one call); the drop of runs by the
    guard of the lease and by the look at the owned ones, both (they go on until their next write).
    """
    zombie, heir = await both(cluster, proxy)
    a, b = caller(zombie), caller(heir)
    times = chaos.size(4, 1)
    talking = await talk(chaos, a, model, times)
    lingering, putting, reading = gates.new(), gates.new(), gates.new()
    runs = talking + await persist(chaos, a, lingering, times)
    task = at_once(("put", {"gate": putting.name}), ("read", {"gate": reading.name}))
    late = (await a.create(agent=OBEDIENT, input=task))["run_id"]
    await putting.entered()
    await reading.entered()

    proxy.catch(lambda text: "INSERT INTO tool_executions" in text)
    putting.open()
    await proxy.has_caught(1)
    cluster.suspend(zombie)
    model.script(*[TAKEN_OVER] * len(talking))
    await taken_over(sql, [*runs, late])
    await reading.entered(2)
    await putting.left(2)
    proxy.pass_on()
    reading.open()
    await check_taken_over(b, [*runs, late])
    before = await standing(sql, [*runs, late])

    cluster.wake(zombie)
    await model.saw_hang_up(len(talking))
    await holds(lambda: len(cancelled(lingering, zombie)) == times, "its tools to be cancelled")
    await works_again(a)
    assert await standing(sql, [*runs, late]) == before
    assert "lease_lost" in zombie.stdout() + zombie.stderr()
    await cluster.check()


def cancelled(gate: Gate, service: Service) -> list[Json]:
    """The calls of `persist` that were cancelled in that process."""
    return [entry for entry in gate.calls() if entry.get("cancelled") and entry["pid"] == service.pid]


@pytest.mark.scenario(13)
@pytest.mark.parametrize("fault", ["hold", "cut"])
async def test_a_replica_without_its_database_drops_its_runs_before_another_claims_them(
    fault: str,
    chaos: Gauge,
    cluster: Cluster,
    caller: Caller,
    model: Model,
    gate: Gate,
    proxy: Proxy,
    sql: Database,
) -> None:
    """Whether packets are lost or connections refused. What was on its way and comes late changes nothing.

    Seen to fail without: the drop of all runs by the guard of the lease.
    """
    # The time between the drop and the claim is a third of the lease: enough for a busy machine.
    alone, heir = await both(cluster, proxy, lease_s=6)
    a, b = caller(alone), caller(heir)
    times = chaos.size(4, 1)
    talking = await talk(chaos, a, model, times)
    runs = talking + await persist(chaos, a, gate, times)
    model.script(*[TAKEN_OVER] * len(talking))

    chaos.kills += 1
    proxy.hold() if fault == "hold" else proxy.cut()
    await taken_over(
        sql,
        runs,
        let_go=lambda: model.aborted == len(talking) and len(cancelled(gate, alone)) == times,
    )
    await check_taken_over(b, runs)
    before = await standing(sql, runs)
    proxy.mend()
    await works_again(a)
    assert await standing(sql, runs) == before
    assert model.aborted == len(talking)
    await cluster.check()


async def in_another_time(cluster: Cluster, off_s: int) -> Service:
    """A replica whose clock is wrong by so many seconds."""
    path = f"{CLOCK_FOLDER}:{ROOT}"
    (service,) = await cluster.start(PYTHONPATH=path, CLOCK_OFF_S=str(off_s))
    return service


async def clock_of(client: Client, sql: Database) -> float:
    """How many seconds a replica's clock is off."""
    agent = {"name": "clock", "model": "openai/obey", "tools": ["current_time"]}
    done = await client.create_and_wait(agent=agent, input=at_once(("current_time", {})))
    told = datetime.fromisoformat(done["result"]["tool_executions"][0]["output"]["time"])
    return (told - await sql.fetchval("SELECT clock_timestamp()")).total_seconds()


async def check_start(client: Client, sql: Database) -> None:
    """A run that is to start later does, and soon after."""
    due = await sql.fetchval("SELECT clock_timestamp()") + timedelta(seconds=2)
    run = await client.create(agent=OBEDIENT, input="Now.", start_after=due.isoformat())
    assert run["status"] == "queued"
    await client.until(run["run_id"], "completed")
    began = await sql.fetchval("SELECT started_at FROM runs WHERE run_id = $1::uuid", run["run_id"])
    assert timedelta() <= began - due < timedelta(seconds=AN_HOUR_S / 2)


async def check_expiry(client: Client, sql: Database) -> None:
    """A question waits for as long as it is to, and the run then goes on."""
    agent = judged(rule("request_approval"), model="openai/obey", approval_timeout_s=2)
    run = await client.create(agent=agent, input=at_once(("lookup", {"word": "a"})))
    question = await pending(client, run["run_id"])
    await client.until(run["run_id"], "completed")
    row = await sql.fetchrow(
        "SELECT status, created_at, expires_at, resolved_at FROM interactions WHERE interaction_id = $1::uuid",
        question["interaction_id"],
    )
    assert row is not None
    assert row["status"] == "expired"
    check_wait(row["created_at"], row["expires_at"], row["resolved_at"])


async def check_deferral(client: Client, sql: Database, item: str) -> None:
    """A call whose result is to come from outside waits for as long as it is to, and the run then goes on."""
    run = await client.create(agent=OBEDIENT, input=at_once(("order", {"item": item, "ttl_s": 2})))
    await client.until(run["run_id"], "completed")
    row = await sql.fetchrow(
        "SELECT started_at, finished_at FROM tool_executions WHERE run_id = $1::uuid", run["run_id"]
    )
    assert row is not None
    check_wait(row["started_at"], row["started_at"] + timedelta(seconds=1.9), row["finished_at"])


def check_wait(began: datetime, until: datetime, ended: datetime) -> None:
    """Two seconds, as far as a busy machine keeps time; a wrong clock would have made an hour of them, or nothing."""
    assert timedelta(seconds=1.5) <= until - began < timedelta(seconds=AN_HOUR_S / 2)
    assert timedelta() <= ended - until < timedelta(seconds=AN_HOUR_S / 2)


@pytest.mark.scenario(24)
async def test_replicas_whose_clocks_are_wrong_by_an_hour_keep_their_runs_and_everybody_s_times(
    chaos: Gauge, cluster: Cluster, caller: Caller, gates: Gates, sql: Database
) -> None:
    """One is an hour late, the other an hour early. No run of a living replica is taken from it, those of a dead one
    are; what is to start or to expire does so in its time.

    Seen to fail without: the database's clock in heartbeats, and in the times that a write states (`Scope.now`).
    """
    late, early = await asyncio.gather(*(in_another_time(cluster, off) for off in (-AN_HOUR_S, AN_HOUR_S)))
    clients = a, b = caller(late), caller(early)
    assert abs(await clock_of(a, sql) + AN_HOUR_S) < AN_HOUR_S / 2
    assert abs(await clock_of(b, sql) - AN_HOUR_S) < AN_HOUR_S / 2
    kept = gates.new()
    lasting = [await client.create(agent=OBEDIENT, input=through(kept)) for client in clients]
    await kept.entered(2)
    began = await sql.fetchval("SELECT clock_timestamp()")
    for client in clients:
        await check_start(client, sql)
        await check_expiry(client, sql)
        await check_deferral(client, sql, gates.new().name)

    async def lived() -> bool:
        return await sql.fetchval("SELECT clock_timestamp()") > began + timedelta(seconds=3 * LEASE_S)

    await eventually(lived, "three leases to pass")
    assert [(await a.get(run["run_id"]))["attempt"] for run in lasting] == [1, 1]
    kept.open()
    assert [(await b.until(run["run_id"], "completed"))["attempt"] for run in lasting] == [1, 1]
    chaos.runs += 10

    for off, victim, client, heir in ((AN_HOUR_S, early, b, a), (-AN_HOUR_S, late, a, None)):
        cut_off = gates.new()
        run = await client.create(agent=OBEDIENT, input=through(cut_off))
        await cut_off.entered()
        await cluster.kill(victim)
        cut_off.open()
        successor = caller(await in_another_time(cluster, off)) if heir is None else heir
        assert (await successor.until(run["run_id"], "completed"))["attempt"] == 2
        if heir is not None:
            await in_another_time(cluster, off)
        chaos.runs += 1
    await cluster.check()
