"""A fork is made whole, once or not at all, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from app.db.database import Database
from app.db.fork import Fork
from app.db.run_store import PostgresRunStore
from app.engine.agent import AgentSettings
from app.engine.messages import Message, Role
from app.engine.records import IdempotencyKey
from app.engine.state import Phase
from app.engine.status import RunStatus
from app.engine.store_errors import AgentChanged, IdempotencyMismatch, StoreUnavailable, ThreadExists
from app.services.agents import AgentService
from app.services.errors import Invalid, TooManyRuns
from app.services.forks import ForkRun, ForkService
from app.services.run_queries import RunQueries
from app.services.threads import ThreadService
from tests.contract.stores import texts_of
from tests.contract.waiting import deferred, waiting_run
from tests.integration.breaking import Breaking
from tests.integration.services.forks.conftest import (
    KEY,
    OTHER,
    a_request,
    a_service,
    claim_only_fork,
    counted,
    fork,
    points,
    two_steps,
)


async def test_a_thread_that_is_there_is_not_forked_into(
    store: PostgresRunStore, forks: ForkService, database: Breaking
) -> None:
    """Guard: the refusal is raised inside the transaction; as an answer it would leave its key with no run."""
    owner = await two_steps(store)
    await fork(forks, owner, thread_id="new")
    before = await counted(database)
    for taken in ("new", "t"):
        for key in (None, KEY):
            with pytest.raises(ThreadExists, match="already"):
                await forks.fork(ForkRun(owner.run_id, thread_id=taken), key)
    assert await counted(database) == before


async def test_of_forks_into_one_thread_at_once_one_is_made(
    store: PostgresRunStore, forks: ForkService, database: Breaking
) -> None:
    owner = await two_steps(store)
    requests = (fork(forks, owner, thread_id="new") for _ in range(6))
    answers = await asyncio.gather(*requests, return_exceptions=True)
    assert [type(answer) for answer in answers].count(ThreadExists) == 5
    assert await counted(database) == [2, 2, 6, 0]


async def test_forks_of_a_thread_that_others_write_to_all_have_the_messages_of_their_checkpoint(
    store: PostgresRunStore, forks: ForkService, threads: ThreadService, run_queries: RunQueries
) -> None:
    """Guard: `seq <= message_seq` in `AS_OF`."""
    owner = await two_steps(store, text="asked")
    checkpoint_id = (await points(run_queries, owner))["call_model"][-1]

    async def write() -> None:
        for _ in range(10):
            await threads.append_message("t", Message(Role.USER, "more"))

    async with asyncio.TaskGroup() as group:
        made = [group.create_task(fork(forks, owner, checkpoint_id=checkpoint_id)) for _ in range(10)]
        for _ in range(2):
            group.create_task(write())
    for run in [task.result() for task in made]:
        assert await texts_of(store, run.thread_key) == ["asked", "", "found"]


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "key"])
@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 1), (0, 2), (1, 1)])
async def test_a_fork_whose_answer_is_lost_is_made_once(
    store: PostgresRunStore,
    agents: AgentService,
    database: Breaking,
    before: int,
    after: int,
    key: IdempotencyKey | None,
) -> None:
    """Guards: `_made_before`, and with a key the comparison with our own id: without them this is a 409 or a replay.

    What is forked has moved on before the answer is asked for again: where the fork begins is not asked anew.
    """
    owner = await two_steps(store, text="asked")
    forks, runs = a_service(database, store, agents)
    await runs.create_many([])  # the queue is counted
    database.meanwhile = """
        INSERT INTO checkpoints (run_id, seq, step, phase, message_seq, state)
        SELECT run_id, max(seq) + 1, 3, 'finish', 3, '{}' FROM checkpoints GROUP BY run_id"""
    database.before, database.after = before, after
    created = await forks.fork(ForkRun(owner.run_id, thread_id="new"), key)
    assert (created.replayed, created.run.status) == (False, RunStatus.QUEUED)
    assert await texts_of(store, created.run.thread_key) == ["asked", "", "found"]
    assert await counted(database) == [2, 2, 6, 0 if key is None else 1]
    await claim_only_fork(store, created.run)


async def test_a_database_that_stays_away_is_not_asked_for_ever(
    store: PostgresRunStore, agents: AgentService, database: Breaking
) -> None:
    owner = await two_steps(store)
    forks, runs = a_service(database, store, agents)
    await runs.create_many([])
    database.before = 3
    with pytest.raises(StoreUnavailable):
        await fork(forks, owner)
    assert database.before == 0


async def test_a_fork_that_is_still_being_made_when_it_is_sent_again_is_made_once(
    store: PostgresRunStore, database: Breaking
) -> None:
    """Guard: `_made_before` knows the thread by its key; without it the second sending is a conflict with the first."""
    owner = await two_steps(store)
    fork = Fork(a_request(owner.run_id))
    async with database.transaction() as first, database.transaction() as second:
        made = await fork.send(first)
        again = asyncio.create_task(fork.send(second))
        await blocked(database)
        assert not again.done()
        await first.execute("COMMIT")
        found = await again
        await first.execute("BEGIN")
    assert (found.run, found.replayed) == (replace(made.run, tool_executions=()), False)
    assert (await counted(database))[:3] == [2, 2, 6]


async def blocked(database: Database) -> None:
    """Wait until somebody waits for a lock."""
    look = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(30):
        while not await database.pool.fetchval(look):
            await asyncio.sleep(0.01)


async def test_an_agent_that_changes_meanwhile_undoes_the_fork_and_it_is_made_with_the_new_version(
    store: PostgresRunStore, forks: ForkService, agents: AgentService, another_replica: AgentService, database: Breaking
) -> None:
    """Guard: `agent_check`; without it the fork is pinned to the version that this replica remembers."""
    owner = await two_steps(store)
    await agents.resolve("helper")
    await another_replica.put("helper", AgentSettings(model="demo/echo"))
    before = await counted(database)
    request = a_request(owner.run_id, agent_check="helper")
    with pytest.raises(AgentChanged):
        await store.fork(replace(request, idempotency=KEY))
    assert await counted(database) == before
    assert (await fork(forks, owner, agent="helper")).agent_version == 3


async def test_a_key_makes_one_fork_whatever_becomes_of_its_source(
    store: PostgresRunStore, forks: ForkService, threads: ThreadService, database: Breaking
) -> None:
    """Guard: the key is taken before the source is looked at; otherwise the last two answers are 422 and 404."""
    owner = await two_steps(store)
    command = ForkRun(owner.run_id)
    answers = await asyncio.gather(*(forks.fork(command, KEY) for _ in range(8)))
    (made,) = [answer for answer in answers if not answer.replayed]
    assert {answer.run.run_id for answer in answers} == {made.run.run_id}
    await owner.finish(checkpoint=owner.checkpoint(Phase.FINISH))
    assert (await forks.fork(command, KEY)).run == (await store.get(made.run.run_id))
    await threads.delete("t")
    again = await forks.fork(command, KEY)
    assert (again.replayed, again.run.run_id) == (True, made.run.run_id)
    assert await counted(database) == [1, 1, 3, 1]
    with pytest.raises(IdempotencyMismatch):
        await forks.fork(command, IdempotencyKey(KEY.key, b"another request".ljust(32, b".")))


async def test_a_refused_fork_leaves_its_key_free(store: PostgresRunStore, forks: ForkService) -> None:
    owner = await waiting_run(store, deferred())
    with pytest.raises(Invalid):
        await forks.fork(ForkRun(owner.run_id), KEY)
    assert not (await forks.fork(ForkRun(owner.run_id, input=OTHER), KEY)).replayed


async def test_a_full_queue_takes_no_fork(store: PostgresRunStore, database: Breaking, agents: AgentService) -> None:
    """Guard: `enqueue` asks for room before it makes anything, and counts what it made."""
    owner = await two_steps(store)
    forks, _ = a_service(database, store, agents, max_queued=2)
    for _ in range(2):
        await fork(forks, owner)
    before = await counted(database)
    with pytest.raises(TooManyRuns):
        await fork(forks, owner)
    assert await counted(database) == before
