"""What a fork takes from the run that it is forked from, and that it is made whole, once or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from app.db.database import Database
from app.db.fork import Fork, ForkPoint, ForkRequest
from app.db.run_store import PostgresRunStore
from app.engine.agent import AgentDefinition, AgentOverrides, AgentSettings
from app.engine.limits import Limits
from app.engine.messages import Message, Role
from app.engine.policy import PolicyEngine
from app.engine.records import ForkedFrom, IdempotencyKey, NewRun, OnBusyThread, RunRecord
from app.engine.state import Phase
from app.engine.status import RunStatus
from app.engine.store_errors import AgentChanged, IdempotencyMismatch, RunNotFound, StoreUnavailable, ThreadExists
from app.event_bus.memory import MemoryBus
from app.services.agents import AgentService
from app.services.errors import Invalid, NotFound, TooManyRuns, UnknownAgent
from app.services.forks import ForkRun, ForkService
from app.services.run_queries import RunFilters, RunQueries
from app.services.runs import RunService
from app.services.threads import ThreadService
from tests.contract.stores import (
    OLD_AGENT,
    STOPPED,
    Owner,
    a_run,
    claim_only,
    create_started,
    new_id,
    postgres_subject,
    run_in,
    texts_of,
    user,
)
from tests.contract.waiting import a_child, a_question, asking_run, deferred, delegate, waiting_run
from tests.integration.services.conftest import TOOLS
from tests.integration.services.test_waiting import NoRoom
from tests.integration.test_lost_answers import Breaking

KEY = IdempotencyKey("key", b"the request".ljust(32, b"."))
OTHER = (user("other"),)


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Breaking]:
    database = await Breaking.connect(database_url)
    assert isinstance(database, Breaking)
    yield database
    await database.close()


@pytest.fixture
async def store(database: Breaking) -> PostgresRunStore:
    store = (await postgres_subject(database)).store
    assert isinstance(store, PostgresRunStore)
    return store


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


async def numbered(threads: ThreadService, thread_id: str) -> list[tuple[int, str]]:
    page = await threads.list_messages(thread_id, 0, 100)
    return [(record.seq, record.message.text()) for record in page.items]


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


# --- what a fork is -----------------------------------------------------------------------------------------------


async def test_a_fork_has_what_its_source_was_asked_and_counts_from_nothing(
    store: PostgresRunStore, forks: ForkService, run_queries: RunQueries
) -> None:
    overrides = AgentOverrides(model="scripted/other", limits=Limits(max_steps=3), resume_limits=Limits(max_steps=9))
    asked: dict[str, Any] = {"overrides": overrides, "context": {"a": 1}, "metadata": {"m": "1"}, "user_id": "ann"}
    owner = await two_steps(store, agent=OLD_AGENT, **asked)
    source = await store.get(owner.run_id)
    made = await fork(forks, owner)
    assert (made.status, made.step, made.attempt, made.usage.llm_calls) == (RunStatus.QUEUED, 0, 0, 0)
    assert (made.agent_name, made.agent_version, made.requested_model) == ("helper", 1, "scripted/other")
    assert (made.overrides, made.context, made.metadata, made.user_id) == (overrides, {"a": 1}, {"m": "1"}, "ann")
    assert (made.parent_run_id, made.root_run_id, made.input) == (None, made.run_id, ())
    assert made.forked_from == ForkedFrom(owner.run_id, (await points(run_queries, owner))["call_model"][-1])
    listed = (await run_queries.list(RunFilters(), None, 5)).items
    assert [run.forked_from for run in listed] == [made.forked_from, None]
    assert await store.get(owner.run_id) == source
    loaded = await store.load(made.run_id)
    assert loaded.agent == OLD_AGENT
    assert [entry.message.role for entry in loaded.messages] == [Role.USER, Role.ASSISTANT, Role.TOOL]


async def test_an_agent_that_is_given_comes_without_the_old_overrides(
    store: PostgresRunStore, forks: ForkService, agents: AgentService
) -> None:
    await agents.put("other", AgentSettings(model="demo/echo"))
    inline = AgentDefinition(name="inline", model="demo/echo")
    owner = await two_steps(store, overrides=AgentOverrides(model="scripted/other"), context={"a": 1})
    for agent, name, version in (("other", "other", 1), ("helper@1", "helper", 1), (inline, "inline", None)):
        made = await fork(forks, owner, agent=agent, context={"b": 2})
        assert (made.agent_name, made.agent_version, made.overrides) == (name, version, AgentOverrides())
        assert made.context == {"b": 2}
    with pytest.raises(UnknownAgent):
        await fork(forks, owner, agent="nobody")


async def test_a_run_whose_agent_was_deleted_is_forked_with_the_version_that_it_had(
    store: PostgresRunStore, forks: ForkService, agents: AgentService
) -> None:
    owner = await two_steps(store)
    await agents.delete("helper")
    assert (await fork(forks, owner)).agent_version == 2


async def test_a_fork_of_a_child_run_is_a_first_run_without_its_parents_limits(
    store: PostgresRunStore, forks: ForkService, database: Breaking
) -> None:
    """Guard: `_overrides` in `app.services.forks`; without it the child's share of a budget bounds the fork."""
    parent = await create_started(store)
    overrides = AgentOverrides(limits=Limits(max_total_tokens=7), instructions="Be brief.")
    child = a_child(parent.new, overrides=overrides)
    await delegate(parent, child)
    made = await fork(forks, child)
    assert made.overrides == AgentOverrides(instructions="Be brief.")
    assert (made.parent_run_id, made.root_run_id, made.agent_depth) == (None, made.run_id, 0)
    assert made.identity.agent_path == "helper"
    assert made.input == child.input
    assert await database.pool.fetchval("SELECT deadline_at FROM runs WHERE run_id = $1::uuid", made.run_id) is None
    assert (await store.get(parent.run_id)).status is RunStatus.WAITING


# --- which messages it takes --------------------------------------------------------------------------------------


async def test_a_fork_has_the_messages_of_its_checkpoint_under_their_numbers_and_goes_on_behind_them(
    store: PostgresRunStore, forks: ForkService, threads: ThreadService, run_queries: RunQueries
) -> None:
    await threads.append_message("t", Message(Role.USER, "before"))
    owner = await two_steps(store, text="asked")
    await threads.append_message("t", Message(Role.USER, "in between"))
    await owner.finish(text="answered", checkpoint=owner.checkpoint(Phase.FINISH))
    await threads.append_message("t", Message(Role.USER, "after"))
    begun, done, ended = [(1, "before"), (2, "asked")], [(3, ""), (4, "found")], [(5, "in between"), (6, "answered")]
    at = await points(run_queries, owner)
    for checkpoint_id, expected in (
        (at["call_model"][0], begun),
        (at["execute_tools"][0], begun + done[:1]),
        (at["call_model"][1], begun + done),
        (at["finish"][0], begun + done + ended),
    ):
        made = await fork(forks, owner, checkpoint_id=checkpoint_id, input=OTHER)
        assert await numbered(threads, made.thread_id) == expected
        shown = (await run_queries.get_checkpoint(owner.run_id, checkpoint_id)).messages
        assert [(record.seq, record.message.text()) for record in shown] == expected
        appended = await threads.append_message(made.thread_id, Message(Role.USER, "next"))
        assert appended.message.seq == expected[-1][0] + 1
    assert [seq for seq, _ in await numbered(threads, "t")] == list(range(1, 8))


async def test_what_a_rolled_back_run_said_is_in_its_fork_and_what_others_took_back_is_not(
    store: PostgresRunStore, forks: ForkService, threads: ThreadService, run_queries: RunQueries
) -> None:
    """Guard: `AS_OF`, which the fork and `get_checkpoint` share: with `NOT voided` alone the run's own are missing."""
    first = await create_started(store, a_run("t", "taken back"))
    second = a_run("t", "mine", on_busy_thread=OnBusyThread.ROLLBACK)
    owner = await create_started(store, second)
    await owner.ask("look")
    await owner.close_step()
    await store.create(a_run("t", "last", on_busy_thread=OnBusyThread.ROLLBACK), owner=None)
    assert await numbered(threads, "t") == []
    for source, texts in ((first, ["taken back"]), (owner, ["mine", "", "found"])):
        made = await fork(forks, source)
        assert await texts_of(store, made.thread_key) == texts
        assert made.forked_from is not None
        assert made.forked_from.checkpoint_id is not None
        shown = await run_queries.get_checkpoint(source.run_id, made.forked_from.checkpoint_id)
        assert [record.message.text() for record in shown.messages] == texts


async def test_a_run_that_never_began_is_forked_with_its_input_on_what_was_there_when_it_ended(
    store: PostgresRunStore, forks: ForkService, threads: ThreadService
) -> None:
    """Guard: the part of `_POINT` for runs without a checkpoint; by the thread's counter alone, later messages come."""
    holder = await create_started(store, a_run("t", "holder"))
    waiting = a_run("t", "waiting")
    await store.create(waiting, owner=None)
    assert await texts_of(store, (await fork(forks, waiting)).thread_key) == ["holder"]
    await holder.ask("look")
    await store.stop(waiting.run_id, RunStatus.CANCELLED, STOPPED)
    await holder.close_step()
    await holder.finish()
    made = await fork(forks, waiting)
    assert (made.input, made.forked_from) == (waiting.input, ForkedFrom(waiting.run_id, None))
    assert await texts_of(store, made.thread_key) == ["holder", ""]
    assert (await fork(forks, waiting, input=OTHER)).input == OTHER
    assert (await threads.append_message(made.thread_id, Message(Role.USER, "next"))).message.seq == 3


async def test_a_fork_that_never_began_can_be_forked(store: PostgresRunStore, forks: ForkService) -> None:
    owner = await two_steps(store, text="asked")
    first = await fork(forks, owner)
    await store.stop(first.run_id, RunStatus.CANCELLED, STOPPED)
    second = await fork(forks, first)
    assert (second.input, second.forked_from) == ((), ForkedFrom(first.run_id, None))
    assert await texts_of(store, second.thread_key) == ["asked", "", "found"]


async def test_a_source_that_begins_meanwhile_does_not_say_its_input_twice(
    store: PostgresRunStore, database: Breaking
) -> None:
    """Guard: what the fork takes is settled with the same look that finds no checkpoint."""
    source = a_run("t", "asked")
    await store.create(source, owner=None)

    async def begin() -> None:
        await (await claim_only(store, source)).start()

    made = await sent_again(database, source.run_id, begin)
    assert await texts_of(store, made.thread_key) == []


async def test_a_source_whose_thread_is_deleted_meanwhile_leaves_nothing(
    store: PostgresRunStore, database: Breaking, threads: ThreadService
) -> None:
    """Guard: `_COPY` makes the thread only where it finds the source's; a thread without messages would be left."""
    owner = await two_steps(store)
    await owner.finish()
    with pytest.raises(RunNotFound):
        await sent_again(database, owner.run_id, lambda: threads.delete("t"))
    assert await counted(database) == [0, 0, 0, 0]


async def sent_again(database: Database, source_id: str, meanwhile: Callable[[], Awaitable[None]]) -> RunRecord:
    """A fork whose first sending is undone; something happens before the second."""
    fork = Fork(a_request(source_id))
    async with database.connection() as connection:
        sending = connection.transaction()
        await sending.start()
        await fork.send(connection)
        await sending.rollback()
    await meanwhile()
    async with database.transaction() as connection:
        return (await fork.send(connection)).run


def a_request(source_id: str, **fields: Any) -> ForkRequest:
    new = a_run(f"fork-{new_id()}", input=OTHER, **fields)

    def plan(point: ForkPoint) -> NewRun:
        return replace(new, forked_from=ForkedFrom(point.run.run_id, point.checkpoint_id))

    return ForkRequest(source_id, None, new.run_id, "", None, plan)


# --- what can be forked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", RunStatus)
async def test_a_run_in_any_status_is_forked_and_stays_as_it_is(
    store: PostgresRunStore, forks: ForkService, database: Breaking, status: RunStatus
) -> None:
    source = await run_in(store, status)
    before = await store.get(source.run_id), await store.load(source.run_id)
    made = await fork(forks, source, input=OTHER)
    assert (made.status, made.input) == (RunStatus.QUEUED, OTHER)
    after = await store.get(source.run_id), await store.load(source.run_id)
    assert after[0] == before[0]
    assert replace(after[1], now=before[1].now) == before[1]
    await claim_only_fork(store, made)


async def claim_only_fork(store: PostgresRunStore, made: RunRecord) -> None:
    assert made.run_id in [claim.fence.run_id for claim in await store.claim(new_id(), 10)]


async def test_a_checkpoint_that_stands_before_anything_but_a_model_call_needs_an_input(
    store: PostgresRunStore, forks: ForkService, run_queries: RunQueries, database: Breaking
) -> None:
    """Guard: the check of `next_action` in `app.services.forks`; without it the fork goes on from dangling calls."""
    done = await two_steps(store)
    await done.finish(checkpoint=done.checkpoint(Phase.FINISH))
    asking = await asking_run(store, a_question())
    deferring = await waiting_run(store, deferred())
    at = await points(run_queries, done)
    refused = [(done, at["execute_tools"][0]), (done, at["finish"][0]), (done, None), (asking, None), (deferring, None)]
    before = await counted(database)
    for source, checkpoint_id in refused:
        with pytest.raises(Invalid, match="not call_model") as raised:
            await fork(forks, source, checkpoint_id=checkpoint_id)
        assert raised.value.loc == ("body", "input")
    assert await counted(database) == before
    for source, checkpoint_id in refused:
        assert (await fork(forks, source, checkpoint_id=checkpoint_id, input=OTHER)).input == OTHER
    for checkpoint_id in at["call_model"]:
        assert (await fork(forks, done, checkpoint_id=checkpoint_id)).input == ()


@pytest.mark.parametrize("checkpoint_id", ["1000", "0", "x", "-1", "9" * 30, ""])
async def test_what_is_not_there_is_not_forked(
    store: PostgresRunStore, forks: ForkService, database: Breaking, checkpoint_id: str
) -> None:
    queued = a_run("queued")
    await store.create(queued, owner=None)
    owner = await two_steps(store)
    before = await counted(database)
    for source in (owner, queued):
        with pytest.raises(NotFound, match="no checkpoint"):
            await fork(forks, source, checkpoint_id=checkpoint_id, input=OTHER)
    for run_id in ("x", new_id()):
        with pytest.raises(RunNotFound):
            await forks.fork(ForkRun(run_id))
    with pytest.raises(RunNotFound):
        await fork(forks, owner, tenant_id="another")
    assert await counted(database) == before


async def test_a_run_whose_checkpoints_are_gone_is_not_taken_for_one_that_never_began(
    store: PostgresRunStore, forks: ForkService, database: Breaking
) -> None:
    """Guard: `source.step > 0` in `app.services.forks`; without it the fork is given the run's input a second time."""
    owner = await two_steps(store)
    await database.pool.execute("DELETE FROM checkpoints")
    with pytest.raises(NotFound, match="no longer kept"):
        await fork(forks, owner, input=OTHER)


async def test_a_fork_outlives_its_source(
    store: PostgresRunStore, forks: ForkService, threads: ThreadService, database: Breaking
) -> None:
    owner = await two_steps(store, text="asked")
    made = await fork(forks, owner)
    await owner.finish()
    loaded = await store.load(made.run_id)
    await threads.delete("t")
    assert replace(await store.load(made.run_id), now=loaded.now) == loaded
    assert await counted(database) == [1, 1, 3, 0]
    assert (await store.get(made.run_id)).forked_from == made.forked_from


# --- whole, once or not at all ------------------------------------------------------------------------------------


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
