"""What a fork is, and of which runs there can be one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.db.run_store import PostgresRunStore
from app.engine.agent import AgentDefinition, AgentOverrides, AgentSettings
from app.engine.limits import Limits
from app.engine.messages import Role
from app.engine.records import ForkedFrom
from app.engine.state import Phase
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.services.agents import AgentService
from app.services.errors import Invalid, NotFound, UnknownAgent
from app.services.forks import ForkRun, ForkService
from app.services.run_queries import RunFilters, RunQueries
from app.services.threads import ThreadService
from tests.contract.stores import OLD_AGENT, a_run, create_started, new_id, run_in
from tests.contract.waiting import a_child, a_question, asking_run, deferred, delegate, waiting_run
from tests.integration.breaking import Breaking
from tests.integration.services.forks.conftest import OTHER, claim_only_fork, counted, fork, points, two_steps


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
