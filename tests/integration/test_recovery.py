"""Which replicas count as dead, by whom, and what becomes of their runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import asyncpg
import pytest
from structlog.testing import capture_logs

from app.db import heartbeats, recovery
from app.db.database import Database
from app.db.heartbeats import Process
from app.db.run_store import PostgresRunStore
from app.engine.crashes import MAX_CRASHES_AMONG_OTHERS
from app.engine.status import RunStatus
from app.event_bus.memory import MemoryBus
from app.telemetry.metrics import Metrics
from app.worker.lease import Lease, LeaseLoss
from app.worker.own_runs import OwnRuns
from app.worker.process import this_process
from app.worker.recovery import BATCH, Recovery
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    create_owned,
    create_started,
    new_id,
    owner_of,
)
from tests.exposition import Exposition
from tests.unit.worker.parts import Parts

LEASE_S = 1.5
ELSEWHERE = Process("elsewhere", 1)


@asynccontextmanager
async def leased(url: str, replica: str, lease_s: float = 60.0) -> AsyncGenerator[Lease]:
    lease = Lease(url, replica, lease_s, lambda _: None)
    await lease.start()
    try:
        yield lease
    finally:
        await lease.stop()


async def beat(database: Database, replica: str, process: Process = ELSEWHERE) -> None:
    async with database.connection() as connection:
        await heartbeats.beat(connection, replica, process, draining=False)


async def replicas(database: Database) -> set[str]:
    return {str(row["incarnation"]) for row in await database.pool.fetch("SELECT incarnation FROM replicas")}


async def ticking(lease: Lease, until: Callable[[], bool], what: str) -> None:
    """Do what a main loop does, until something is so."""
    deadline = time.monotonic() + 30
    while not until():
        assert time.monotonic() < deadline, f"waited for {what}"
        lease.tick()
        await asyncio.sleep(0.01)


def recovery_of(database: Database, replica: str, lease: Lease, metrics: Metrics | None = None) -> Recovery:
    return Recovery(database, replica, MemoryBus(), lease, 60.0, metrics or Metrics())


# --- orphans ----------------------------------------------------------------------------------------------------------


async def test_all_orphans_are_back_in_the_queue_after_one_look(
    store: PostgresRunStore, database: Database, database_url: str
) -> None:
    """Seen to fail where a look ends after a batch, though that was full."""
    run = await create_started(store)
    await database.pool.execute(
        """INSERT INTO runs (run_id, thread_key, thread_id, root_run_id, agent_name, agent_version_id, requested_model,
                             overrides, context, input, status, holds_thread, owner, epoch)
           SELECT gen_random_uuid(), gen_random_uuid(), 't' || n, run_id, agent_name, agent_version_id, requested_model,
                  overrides, context, input, 'running', true, owner, 1
           FROM runs, generate_series(1, $2) AS n WHERE run_id = $1::uuid""",
        run.run_id,
        10 * BATCH,
    )
    judge, metrics = new_id(), Metrics()
    async with leased(database_url, judge) as lease:
        await recovery_of(database, judge, lease, metrics).look()
    assert await database.pool.fetchval("SELECT count(*) FROM runs WHERE status = 'queued'") == 10 * BATCH + 1
    assert Exposition(metrics.exposition()).value("agent_runner_runs_recovered_total") == 10 * BATCH + 1


async def test_each_run_that_is_given_up_is_named_in_the_log(
    store: PostgresRunStore, database: Database, database_url: str
) -> None:
    """Seen to fail without the line."""
    given_up, requeued = await create_started(store), await create_started(store)
    await database.pool.execute(
        "UPDATE runs SET crashes = $2 WHERE run_id = $1::uuid", given_up.run_id, MAX_CRASHES_AMONG_OTHERS - 1
    )
    judge = new_id()
    with capture_logs() as logs:
        async with leased(database_url, judge) as lease:
            await recovery_of(database, judge, lease, Metrics()).look()
    told = [line for line in logs if line["event"] == "run_given_up"]
    assert [(line["log_level"], line["run_id"]) for line in told] == [("error", given_up.run_id)]
    assert "was given up" in told[0]["error"]
    assert requeued.run_id not in str(told)


async def test_nobody_is_judged_by_a_replica_that_was_not_heard_of_itself(
    store: PostgresRunStore, database: Database
) -> None:
    """After the database has stood still, all beats are old. Seen to fail without the judge's own beat in the query."""
    await create_started(store)
    judge = new_id()
    await beat(database, judge)
    await beat(database, OWNER)
    await database.pool.execute("UPDATE replicas SET heartbeat_at = heartbeat_at - interval '1 hour'")
    async with database.connection() as connection:
        assert await recovery.requeue_orphans(connection, judge, 60, 100) == (0, [])
        await beat(database, judge)
        assert await recovery.requeue_orphans(connection, judge, 60, 100) == (1, [])


# --- replicas of this machine -----------------------------------------------------------------------------------------


def _child(*words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "; ".join(words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@pytest.fixture
def process() -> Process:
    process = this_process()
    assert process.machine is not None, "this test needs a system that names its boot and its pid namespace"
    return process


async def test_a_starting_replica_removes_those_of_its_machine_whose_process_is_gone(
    database: Database, database_url: str, process: Process
) -> None:
    """Seen to fail without each of: the missing process, the other start, the zombie."""
    ended = _child("pass")
    ended.communicate()
    zombie = _child("pass")
    os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
    assert process.start is not None
    dead = {
        new_id(): replace(process, pid=ended.pid),
        new_id(): replace(process, start=process.start - 1),
        new_id(): replace(process, pid=zombie.pid, start=None),
    }
    me = new_id()
    async with leased(database_url, me) as lease:
        for replica, its_process in dead.items():
            await beat(database, replica, its_process)
        await recovery_of(database, me, lease).bury_neighbours()
        assert await replicas(database) == {me}
    zombie.communicate()


async def test_a_starting_replica_leaves_those_alone_of_which_it_knows_nothing(
    database: Database, database_url: str, process: Process
) -> None:
    """Seen to fail without the host, and without the machine, in the query."""
    ended = _child("pass")
    ended.communicate()
    gone = replace(process, pid=ended.pid)
    others = {
        new_id(): process,
        new_id(): replace(process, start=None),
        new_id(): replace(gone, host="another-host"),
        new_id(): replace(gone, machine="another machine"),
        new_id(): replace(gone, machine=None),
    }
    me = new_id()
    async with leased(database_url, me) as lease:
        for replica, its_process in others.items():
            await beat(database, replica, its_process)
        await recovery_of(database, me, lease).bury_neighbours()
        assert await replicas(database) == {me, *others}


async def test_a_heartbeat_names_its_process(database: Database, database_url: str, process: Process) -> None:
    me = new_id()
    async with leased(database_url, me):
        row = await database.pool.fetchrow("SELECT host, pid, machine, process_start FROM replicas")
    assert row is not None
    assert tuple(row) == (process.host, os.getpid(), process.machine, process.start)


# --- outages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def outage(database_url: str, postgres_server: str) -> AsyncIterator[Callable[[bool], asyncio.Future[None]]]:
    """Call it with True, and the database takes nobody's connection and keeps none; with False it is back."""
    admin = await asyncpg.connect(postgres_server)
    name = database_url.split("?")[0].rpartition("/")[2]

    async def switch(out: bool) -> None:
        await admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS {not out}")
        if out:
            await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", name)

    yield lambda out: asyncio.ensure_future(switch(out))
    await switch(False)
    await admin.close()


async def test_after_an_outage_a_replica_judges_nobody_until_it_has_beaten_for_a_whole_lease(
    database_url: str, outage: Callable[[bool], asyncio.Future[None]]
) -> None:
    """Seen to fail without the whole lease after the outage, and without the look at its own beats in it."""
    losses: list[LeaseLoss] = []
    lease = Lease(database_url, new_id(), LEASE_S, lambda _: None)
    lease.on_lost(losses.append)
    await lease.start()
    assert lease.may_judge(), "one that has just started recovers at once"
    await outage(True)
    await ticking(lease, lambda: not lease.may_judge(), "the beats to be missed")
    await ticking(lease, lambda: bool(losses), "the lease to be lost")
    assert losses == [LeaseLoss.DATABASE]
    await outage(False)
    back_at = time.monotonic()
    await ticking(lease, lease.held, "the lease to be held again")
    assert not lease.may_judge()
    await ticking(lease, lease.may_judge, "the lease to be whole")
    assert time.monotonic() - back_at >= LEASE_S
    await lease.stop()


async def test_a_loop_that_was_blocked_is_told_first_of_all_that_the_lease_is_lost(database_url: str) -> None:
    """Seen to fail where only the loop's own look finds that out."""
    losses: list[LeaseLoss] = []
    lease = Lease(database_url, new_id(), LEASE_S, lambda _: None)
    lease.on_lost(losses.append)
    await lease.start()
    while lease.held():
        time.sleep(0.05)  # the loop does nothing else
    time.sleep(0.5)  # the heartbeat's own thread looks twice a second at the least
    await asyncio.sleep(0)
    assert losses == [LeaseLoss.LOOP]
    await ticking(lease, lease.held, "the lease to be held again")
    assert lease.may_judge(), "nobody else has missed a beat for it"
    await lease.stop()


async def test_a_crash_is_taken_back_that_was_none(store: PostgresRunStore, database: Database) -> None:
    """Of runs that others have moved on, and not below zero. Seen to fail without the look at the epoch, without the
    bound, and without that runs that are over stay as they are."""
    counted, untouched, ended = [await create_started(store) for _ in range(3)]
    dropped = {owner.run_id: owner.fence.epoch for owner in (counted, untouched, ended)}
    await beat(database, OTHER_OWNER)
    await database.pool.execute(
        "UPDATE runs SET owner = $1, crashes = 1 WHERE run_id = $2", OTHER_OWNER, untouched.run_id
    )
    async with database.connection() as connection:
        await recovery.requeue_orphans(connection, OTHER_OWNER, 60, 100)
    for claim in await store.claim(OTHER_OWNER, 10):
        if claim.fence.run_id == ended.run_id:
            await owner_of(store, ended.new, claim).finish()
    assert await crashes(database) == {counted.run_id: 1, untouched.run_id: 1, ended.run_id: 1}
    async with database.connection() as connection:
        assert await recovery.take_crash_back(connection, OWNER, dropped) == 1
        assert await recovery.take_crash_back(connection, OWNER, dropped) == 0
    assert await crashes(database) == {counted.run_id: 0, untouched.run_id: 1, ended.run_id: 1}


async def test_a_replica_that_is_back_after_an_outage_takes_back_what_others_have_counted(
    store: PostgresRunStore, database: Database, database_url: str
) -> None:
    """What it still owns goes back to the queue. Seen to fail without the taking back."""
    async with Parts(store=store) as parts, leased(database_url, parts.executor.owner) as lease:
        counted, kept = [await create_owned(store, owner=parts.executor.owner) for _ in range(2)]
        own_runs = OwnRuns(database, parts.executor, parts.bus, lease)
        own_runs.dropped({counted.run_id: counted.fence.epoch, kept.run_id: kept.fence.epoch})
        await beat(database, OTHER_OWNER)
        await database.pool.execute("UPDATE runs SET owner = $1 WHERE run_id = $2", new_id(), counted.run_id)
        async with database.connection() as connection:
            assert await recovery.requeue_orphans(connection, OTHER_OWNER, 60, 100) == (1, [])
        assert (await crashes(database))[counted.run_id] == 1
        for _ in range(3):  # it puts nothing back that it has not seen twice
            await own_runs.look()
        assert await crashes(database) == {counted.run_id: 0, kept.run_id: 0}
        assert {(await store.get(owner.run_id)).status for owner in (counted, kept)} == {RunStatus.QUEUED}


async def crashes(database: Database) -> dict[str, int]:
    return {str(row["run_id"]): row["crashes"] for row in await database.pool.fetch("SELECT run_id, crashes FROM runs")}
