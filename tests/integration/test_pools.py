"""Each use of the database has connections of its own: what takes all of one leaves the others what they need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from sqlalchemy import text

from app.db.conflicts import LockHeld, PoolExhausted, StatementTimedOut
from app.db.connecting import Bounds
from app.db.database import Database
from app.db.pools import Pools, PoolSizes
from app.settings import Settings
from tests.acceptance.waiting import DEADLINE_S, eventually
from tests.exposition import Exposition
from tests.integration.serving import serving

AGENT = {"name": "helper", "model": "demo/assistant", "tools": ["calculate"]}
API = 2
NARROW = Bounds("narrow", "the test", "A_SETTING", most=1, acquire_s=0.5, statement_s=1)


@pytest.fixture
async def pools(database_url: str) -> AsyncIterator[Pools]:
    pools = await Pools.open(database_url, PoolSizes(execution=2, api=2, streams=1), prepared=True)
    yield pools
    await pools.close()


@pytest.fixture
async def narrow(database_url: str) -> AsyncIterator[Database]:
    """A pool of one connection and little patience."""
    database = await Database.connect(database_url, bounds=NARROW)
    yield database
    await database.close()


@asynccontextmanager
async def locked(url: str, *statements: str) -> AsyncIterator[asyncpg.Connection[Any]]:
    """Another session that has begun a transaction with these statements, and holds what they have locked."""
    other = await asyncpg.connect(url)
    await other.execute("; ".join(["BEGIN", *statements]))
    yield other
    await other.close()


@asynccontextmanager
async def always(work: Callable[[], Awaitable[object]], times: int) -> AsyncIterator[None]:
    """Do this again and again, so many times at once."""

    async def again() -> None:
        while True:
            await work()

    tasks = [asyncio.create_task(again()) for _ in range(times)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def put(client: httpx.AsyncClient, url: str, **body: Any) -> Any:
    answer = await client.post(url, json=body)
    assert answer.is_success, answer.text
    return answer.json()


async def test_with_every_connection_for_requests_stuck_all_else_goes_on_and_it_is_told_why(
    database_url: str, database: Database, tmp_path: Path
) -> None:
    """Seen to fail where `Pools.open` gives requests the connections of execution, or those of streams."""
    settings = Settings.load(database_url=database_url, agents_dir=tmp_path, database_api_connections=API)
    async with serving(settings) as client:
        later = {"agent": AGENT, "input": "What is 17 * 23?", "start_after": "2100-01-01T00:00:00Z"}
        run_id = (await put(client, "/runs", **later))["run_id"]
        refusals: list[httpx.Response] = []

        async def create() -> None:
            key = {"Idempotency-Key": "the same for all"}
            refusals.append(await client.post("/runs", json={"agent": AGENT, "input": "Now."}, headers=key))

        async def refused_for_want_of_connections() -> httpx.Response | None:
            return next((each for each in refusals if "DATABASE_API_CONNECTIONS" in each.text), None)

        async def unready() -> httpx.Response | None:
            answer = await client.get("/readyz")
            return answer if answer.status_code == 503 else None

        lock = "LOCK TABLE idempotency_keys IN ACCESS EXCLUSIVE MODE"
        async with locked(database_url, lock), always(create, 4 * API):
            refusal = await eventually(refused_for_want_of_connections, "a request without a connection")
            assert refusal.json()["detail"] == (
                f"all {API} connections for requests are in use (DATABASE_API_CONNECTIONS); try again"
            )
            assert (refusal.status_code, refusal.json()["code"]) == (503, "unavailable")
            assert int(refusal.headers["Retry-After"]) > 0
            assert (await client.get("/healthz")).status_code == 200
            told = await eventually(unready, "the replica to be unready")
            assert told.json()["detail"] == refusal.json()["detail"]

            async with database.connection() as connection:
                await connection.execute("UPDATE runs SET available_at = clock_timestamp()")
            async with asyncio.timeout(DEADLINE_S):
                stream = await client.get(f"/runs/{run_id}/events")  # which ends with the run
            assert "event: run_completed" in stream.text
            assert not any(each.is_success for each in refusals)
        seen = Exposition((await client.get("/metrics")).content)
        assert seen.value("agent_runner_db_acquire_timeouts_total", pool="api") > 0
        for pool in ("execution", "streams", "readiness"):
            assert seen.value("agent_runner_db_acquire_timeouts_total", pool=pool) == 0

        async def ready() -> bool:
            return (await client.get("/readyz")).status_code == 200

        await eventually(ready, "the replica to be ready again")


async def test_a_pool_without_a_free_connection_says_which_and_the_others_have_theirs(pools: Pools) -> None:
    """Seen to fail where readiness has the connections of requests."""
    async with pools.api.connection(), pools.api.connection():
        with pytest.raises(PoolExhausted, match=r"^all 2 connections for requests .* \(DATABASE_API_CONNECTIONS\)"):
            async with pools.api.connection():
                pass
        assert "DATABASE_API_CONNECTIONS" in str(pools.shortage())
        for other in (pools.execution, pools.streams, pools.readiness):
            async with other.connection() as connection:
                assert await connection.fetchval("SELECT 1") == 1
        async with pools.api.session() as session:
            assert (await session.execute(text("SELECT 1"))).scalar() == 1
    assert pools.shortage() is None


async def test_sessions_without_a_free_connection_name_the_setting_as_well(pools: Pools) -> None:
    async with pools.api.session() as session:
        await session.execute(text("SELECT 1"))
        with pytest.raises(PoolExhausted, match=r"lists, threads and agents .*DATABASE_API_CONNECTIONS"):
            async with pools.api.session() as another:
                await another.execute(text("SELECT 1"))
        assert "DATABASE_API_CONNECTIONS" in str(pools.shortage())
        async with pools.api.connection() as connection:
            assert await connection.fetchval("SELECT 1") == 1
    async with pools.api.session() as session:
        await session.execute(text("SELECT 1"))
    assert pools.shortage() is None


async def test_a_shortage_is_over_when_a_connection_has_done_its_work(narrow: Database) -> None:
    """Seen to fail without the line that forgets a refusal."""
    async with narrow.connection():
        with pytest.raises(PoolExhausted):
            async with narrow.connection():
                pass
        assert narrow.pool_use().shortage is not None
    assert narrow.pool_use().shortage is None  # it is free
    async with narrow.connection():
        assert narrow.pool_use().shortage is None  # in use, and nobody has waited in vain since
        assert narrow.pool_use().exhausted
    assert narrow.pool_use().timeouts == 1


async def test_a_request_does_not_wait_long_for_what_another_has_locked(pools: Pools, database_url: str) -> None:
    """Seen to fail without the lock_timeout: then the statement has its time and is cancelled, which is told otherwise.

    Those who execute runs wait for as long as their statement may take.
    """
    async with pools.execution.connection() as connection:
        await connection.execute("INSERT INTO idempotency_keys VALUES ('', 'a', '', '{}')")
    touch = "UPDATE idempotency_keys SET created_at = clock_timestamp() WHERE key = 'a'"

    async def in_transaction(database: Database) -> None:
        async with database.transaction() as connection:
            await connection.execute(touch)

    async with locked(database_url, touch) as other:
        patient = asyncio.create_task(in_transaction(pools.execution))
        with pytest.raises(LockHeld, match="another request holds"):
            await in_transaction(pools.api)
        with pytest.raises(LockHeld, match="another request holds"):
            async with pools.api.session() as session:
                await session.execute(text(touch))
        assert not patient.done()
        await other.execute("COMMIT")
        await patient


async def test_the_bound_on_locks_ends_with_its_transaction(pools: Pools) -> None:
    """What a pooler's next client would find on the server connection. Seen to fail with SET in place of SET LOCAL."""
    async with pools.api.transaction() as connection:
        assert await connection.fetchval("SHOW lock_timeout") == "3s"
    for _ in range(2):
        async with pools.api.connection() as connection:
            assert await connection.fetchval("SHOW lock_timeout") == "0"


async def test_the_bound_on_locks_takes_no_round_trip(pools: Pools) -> None:
    sent: list[str] = []
    async with pools.api.connection() as connection:
        with connection.query_logger(lambda query: sent.append(query.query)):
            async with connection.transaction():
                await connection.execute("SELECT 1")
    assert len(sent) == 3  # begin, the statement, commit


async def test_a_statement_that_takes_too_long_is_cancelled_and_its_connection_goes_on(narrow: Database) -> None:
    """Seen to fail without `command_timeout`."""

    async def server_process(sleep_s: int) -> int:
        async with narrow.transaction() as connection:
            pid = await connection.fetchval("SELECT pg_backend_pid()")
            await connection.execute(f"SELECT pg_sleep({sleep_s})")
            return pid

    before = await server_process(0)
    with pytest.raises(StatementTimedOut, match=r"within 1 s"):
        await server_process(20)
    assert await server_process(0) == before


async def test_a_request_that_meets_a_locked_run_is_told_so_and_to_come_again(
    database_url: str, tmp_path: Path
) -> None:
    settings = Settings.load(database_url=database_url, agents_dir=tmp_path)
    async with serving(settings) as client:
        later = {"agent": AGENT, "input": "hello", "start_after": "2100-01-01T00:00:00Z"}
        run_id = (await put(client, "/runs", **later))["run_id"]
        async with locked(database_url, f"SELECT 1 FROM runs WHERE run_id = '{run_id}' FOR UPDATE"):
            answer = await client.post(f"/runs/{run_id}/cancel")
        assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
        assert "another request holds" in answer.json()["detail"]
        assert int(answer.headers["Retry-After"]) > 0
        assert (await client.post(f"/runs/{run_id}/cancel")).json()["status"] == "cancelled"
