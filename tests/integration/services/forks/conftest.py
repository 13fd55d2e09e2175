"""What the tests of forks share: runs to fork, the service, and a look at what it made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.db.database import Database
from app.db.fork import ForkPoint, ForkRequest
from app.db.run_store import PostgresRunStore
from app.engine.policy import PolicyEngine
from app.engine.records import ForkedFrom, IdempotencyKey, NewRun, RunRecord
from app.event_bus.memory import MemoryBus
from app.services.agents import AgentService
from app.services.forks import ForkRun, ForkService
from app.services.run_queries import RunQueries
from app.services.runs import RunService
from tests.contract.stores import Owner, a_run, create_started, new_id, user
from tests.integration.breaking import Breaking
from tests.integration.services.conftest import TOOLS
from tests.integration.services.test_waiting import NoRoom

KEY = IdempotencyKey("key", b"the request".ljust(32, b"."))
OTHER = (user("other"),)


def a_service(
    database: Database, store: PostgresRunStore, agents: AgentService, max_queued: int = 100
) -> tuple[ForkService, RunService]:
    runs = RunService(
        database, store, agents, TOOLS, PolicyEngine(), NoRoom(), MemoryBus(), backlog=bool, max_queued=max_queued
    )
    return ForkService(store, agents, runs), runs


@pytest.fixture
def forks(database: Breaking, store: PostgresRunStore, agents: AgentService) -> ForkService:
    return a_service(database, store, agents)[0]


async def fork(forks: ForkService, source: Owner | NewRun | RunRecord, **fields: Any) -> RunRecord:
    return (await forks.fork(ForkRun(source.run_id, **fields))).run


async def counted(database: Database) -> list[int]:
    """How many runs, threads, messages and keys there are."""
    tables = ("runs", "threads", "messages", "idempotency_keys")
    return [await database.pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables]


async def two_steps(store: PostgresRunStore, thread_id: str = "t", **fields: Any) -> Owner:
    """A run before its second model call; its input, its calls and their result are messages."""
    owner = await create_started(store, a_run(thread_id, **fields))
    await owner.ask("look")
    await owner.close_step()
    return owner


async def points(run_queries: RunQueries, run: Owner) -> dict[str, list[str]]:
    """The ids of a run's checkpoints by what they stand before."""
    found: dict[str, list[str]] = {}
    for checkpoint in (await run_queries.list_checkpoints(run.run_id, None, 100)).items:
        found.setdefault(checkpoint.phase, []).append(checkpoint.checkpoint_id)
    return found


def a_request(source_id: str, **fields: Any) -> ForkRequest:
    new = a_run(f"fork-{new_id()}", input=OTHER, **fields)

    def plan(point: ForkPoint) -> NewRun:
        return replace(new, forked_from=ForkedFrom(point.run.run_id, point.checkpoint_id))

    return ForkRequest(source_id, None, new.run_id, "", None, plan)


async def claim_only_fork(store: PostgresRunStore, made: RunRecord) -> None:
    assert made.run_id in [claim.fence.run_id for claim in await store.claim(new_id(), 10)]
