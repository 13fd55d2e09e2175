"""A caller who waits for a run is told when it is their turn, or nobody's any more."""

from __future__ import annotations

import asyncio

import pytest

from app.db.database import Database
from app.db.run_store import PostgresRunStore
from app.engine.agent import AgentVersion
from app.engine.ownership import Claim
from app.engine.policy import PolicyEngine
from app.engine.records import RunRecord
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.event_bus.memory import MemoryBus
from app.services.agents import AgentService
from app.services.errors import Invalid
from app.services.event_stream import EventStreams
from app.services.runs import RunService
from tests.contract.stores import claim_only, create_started, new_id
from tests.contract.waiting import (
    a_child,
    a_question,
    asking,
    asking_run,
    deferred,
    delegate,
    delegated,
    end_child,
    hold,
    started,
    waiting_run,
)
from tests.integration.services.conftest import TOOLS


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


class NoRoom:
    """An executor that takes no run."""

    owner = new_id()

    def has_room(self) -> bool:
        return False

    def start(self, claim: Claim, created: RunRecord, agent: AgentVersion) -> None:
        raise AssertionError("there is no room")

    def wake(self, run_id: str) -> None: ...

    def signal(self, run_id: str, epoch: int) -> None: ...


@pytest.fixture
def runs(database: Database, store: PostgresRunStore, agents: AgentService, bus: MemoryBus) -> RunService:
    return RunService(
        database, store, agents, TOOLS, PolicyEngine(), NoRoom(), bus, backlog=lambda: False, max_queued=100
    )


async def _waited(runs: RunService, run_id: str) -> RunRecord:
    async with asyncio.timeout(30):
        return await runs.wait(run_id, 60)


async def test_a_wait_ends_where_someone_outside_has_to_act(store: PostgresRunStore, runs: RunService) -> None:
    for owner in (await asking_run(store, a_question()), await waiting_run(store, deferred())):
        run = await _waited(runs, owner.run_id.upper())
        assert (run.status, len(run.waiting_for)) == (RunStatus.WAITING, 1)


async def test_a_wait_goes_on_while_only_child_runs_are_waited_for(
    store: PostgresRunStore, runs: RunService, bus: MemoryBus
) -> None:
    owner = await create_started(store)
    waiting = asyncio.create_task(_waited(runs, owner.run_id))
    child = a_child(owner.new)
    bus.publish(owner.run_id, (await delegate(owner, child)).events)
    await end_child(await started(store, child))
    bus.publish(owner.run_id, (await (await claim_only(store, owner.new)).finish()).events)
    assert (await waiting).status is RunStatus.COMPLETED


async def test_a_question_beside_a_child_run_ends_a_wait(
    store: PostgresRunStore, runs: RunService, bus: MemoryBus
) -> None:
    owner = await create_started(store)
    waiting = asyncio.create_task(_waited(runs, owner.run_id))
    child, question = a_child(owner.new), a_question(1)
    committed = await hold(owner, delegated(0, child), asking(question), children=(child,), interactions=(question,))
    bus.publish(owner.run_id, committed.events)
    run = await waiting
    assert [entry["kind"] for entry in run.waiting_for] == ["child_run", "interaction"]


async def test_a_run_that_is_not_there_is_not_waited_for(runs: RunService) -> None:
    with pytest.raises(RunNotFound):
        await runs.wait("x", 60)


async def test_a_page_of_events_from_beyond_the_log_is_refused_as_a_stream_is(
    database: Database, store: PostgresRunStore
) -> None:
    owner = await create_started(store)
    streams = EventStreams(database, MemoryBus())
    assert (await streams.list_run(owner.run_id, 3, 5)).items == []
    for refusal in (
        streams.list_run(owner.run_id, 4, 5),
        streams.open_run(owner.run_id, 4, types=None, deltas=True, reconnect=False),
    ):
        with pytest.raises(Invalid, match="ahead") as refused:
            await refusal
        assert refused.value.loc == ("query", "after")
