"""What any store of runs promises: creating and claiming runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from app.engine.ports import RunStore
from app.engine.records import IdempotencyKey, NewRun
from app.engine.status import RunStatus
from app.engine.store_errors import AgentChanged, IdempotencyMismatch, RunNotFound
from app.engine.usage import Usage
from tests.contract.stores import (
    AGENT,
    OLD_AGENT,
    OTHER_OWNER,
    OWNER,
    a_run,
    answered,
    claim_only,
    create_owned,
    create_started,
    events_of,
    opening_of,
    owner_of,
    texts_of,
    user,
)

# --- creating -----------------------------------------------------------------------------------------------


async def test_a_created_run_is_queued_and_reads_back_as_it_was_asked_for(store: RunStore) -> None:
    new = a_run(context={"city": "Rome"}, metadata={"team": "a"}, user_id="u1", input=(user("one"), user("two")))
    created = await store.create(new, owner=None)
    assert created.claim is None
    run = await store.get(new.run_id)
    assert run == created.run
    assert (run.status, run.step, run.attempt, run.last_event_seq) == (RunStatus.QUEUED, 0, 0, 0)
    assert (run.agent_name, run.agent_version, run.requested_model) == ("helper", 2, "scripted/answer")
    assert (run.context, run.metadata, run.user_id) == ({"city": "Rome"}, {"team": "a"}, "u1")
    assert (run.input, run.thread_id, run.thread_key) == (new.input, new.thread_id, new.thread_key)
    assert (run.usage, run.cost_usd, run.tool_executions) == (Usage(), 0, ())
    assert (run.started_at, run.finished_at, run.result, run.error, run.owner) == (None,) * 5


async def test_a_create_with_an_owner_claims_the_run_on_a_free_thread(store: RunStore) -> None:
    created = await store.create(a_run(), owner=OWNER)
    assert created.claim is not None
    assert (created.claim.attempt, created.claim.opened) == (1, False)
    assert (created.run.status, created.run.owner, created.run.attempt) == (RunStatus.RUNNING, OWNER, 1)
    assert created.run.started_at is not None
    assert await store.claim(OTHER_OWNER, 10) == []


async def test_an_opening_is_committed_with_the_create_that_claims(store: RunStore) -> None:
    new = a_run()
    created = await store.create(replace(new, opening=opening_of(new)), owner=OWNER)
    assert created.claim is not None
    assert (created.claim.opened, created.claim.message_seq) == (True, 1)
    assert [(event.seq, event.type) for event in created.events] == [
        (1, "run_started"),
        (2, "step_started"),
        (3, "llm_called"),
    ]
    assert await events_of(store, new.run_id) == list(created.events)
    assert created.run.last_event_seq == 3
    loaded = await store.load(new.run_id)
    assert (loaded.checkpoint_seq, loaded.run.step) == (1, 1)
    assert loaded.checkpoint is not None
    assert [entry.message for entry in loaded.messages] == list(new.input)
    assert await owner_of(store, new, created.claim).finish()


async def test_an_opening_is_not_used_by_a_create_that_does_not_claim(store: RunStore) -> None:
    new = a_run()
    await store.create(replace(new, opening=opening_of(new)), owner=None)
    assert await events_of(store, new.run_id) == []
    assert await texts_of(store, new.thread_key) == []


@pytest.mark.parametrize("owner", [None, OWNER], ids=["queued", "claimed"])
async def test_a_create_that_is_sent_twice_happens_once(store: RunStore, owner: str | None) -> None:
    new = a_run()
    new = replace(new, opening=opening_of(new))
    first = await store.create(new, owner=owner)
    again = await store.create(new, owner=owner)
    assert again == first
    assert len(await texts_of(store, new.thread_key)) == (0 if owner is None else 1)


async def test_a_create_on_a_known_thread_finds_its_key(store: RunStore) -> None:
    first = a_run("shared")
    await (await create_started(store, first)).finish()
    second = await store.create(a_run("shared"), owner=None)
    assert second.run.thread_key == first.thread_key


async def test_threads_of_two_tenants_are_two_threads(store: RunStore) -> None:
    ours, theirs = a_run("same"), a_run("same", tenant_id="other")
    await store.create(ours, owner=None)
    await store.create(theirs, owner=None)
    assert (await store.get(theirs.run_id)).thread_key == theirs.thread_key
    assert len(await store.claim(OWNER, 10)) == 2


async def test_a_run_of_the_current_agent_is_created_and_one_of_an_older_is_not(store: RunStore) -> None:
    await store.create(a_run(agent=AGENT, agent_check="helper"), owner=None)
    refused = a_run(agent=OLD_AGENT, agent_check="helper")
    with pytest.raises(AgentChanged):
        await store.create(refused, owner=OWNER)
    with pytest.raises(RunNotFound):
        await store.get(refused.run_id)


async def test_a_run_pinned_to_an_older_version_is_created(store: RunStore) -> None:
    new = a_run(agent=OLD_AGENT)
    await store.create(new, owner=OWNER)
    assert (await store.load(new.run_id)).agent == OLD_AGENT


# --- idempotency keys ---------------------------------------------------------------------------------------


def keyed(key: str, body: bytes = b"body", **fields: Any) -> NewRun:
    return a_run(idempotency=IdempotencyKey(key, body.ljust(32, b".")), **fields)


async def test_the_same_key_and_request_answer_with_the_first_run_as_it_is_now(store: RunStore) -> None:
    first = await create_owned(store, keyed("key"))
    await first.start()
    again = keyed("key")
    replay = await store.create(again, owner=OWNER)
    assert (replay.replayed, replay.claim, replay.events) == (True, None, ())
    assert replay.run == await store.get(first.run_id)
    with pytest.raises(RunNotFound):
        await store.get(again.run_id)


async def test_the_same_key_with_another_request_is_refused(store: RunStore) -> None:
    await store.create(keyed("key"), owner=None)
    other = keyed("key", b"another body")
    with pytest.raises(IdempotencyMismatch):
        await store.create(other, owner=None)
    with pytest.raises(RunNotFound):
        await store.get(other.run_id)


async def test_a_keyed_create_that_is_sent_twice_happens_once(store: RunStore) -> None:
    new = keyed("key")
    await store.create(new, owner=None)
    again = await store.create(new, owner=None)
    assert again.run.run_id == new.run_id
    assert len(await store.claim(OWNER, 10)) == 1


async def test_a_key_belongs_to_its_tenant(store: RunStore) -> None:
    await store.create(keyed("key"), owner=None)
    theirs = await store.create(keyed("key", b"another body", tenant_id="other"), owner=None)
    assert not theirs.replayed


async def test_a_refused_create_leaves_its_key_unused(store: RunStore) -> None:
    with pytest.raises(AgentChanged):
        await store.create(keyed("key", agent=OLD_AGENT, agent_check="helper"), owner=None)
    created = await store.create(keyed("key", b"another body"), owner=None)
    assert not created.replayed


# --- claiming -----------------------------------------------------------------------------------------------


async def test_runs_are_claimed_once_and_oldest_first(store: RunStore) -> None:
    runs = [a_run() for _ in range(4)]
    for new in runs:
        await store.create(new, owner=None)
    first = await store.claim(OWNER, 3)
    rest = await store.claim(OTHER_OWNER, 3)
    assert [claim.fence.run_id for claim in first] == [new.run_id for new in runs[:3]]
    assert [claim.fence.run_id for claim in rest] == [runs[3].run_id]
    assert {(claim.attempt, claim.opened) for claim in (*first, *rest)} == {(1, False)}
    assert await store.claim(OWNER, 3) == []


async def test_a_claim_is_the_thread_s_the_run_s_and_the_owner_s(store: RunStore) -> None:
    new = a_run()
    await store.create(new, owner=None)
    (claim,) = await store.claim(OWNER, 1)
    run = await store.get(new.run_id)
    assert claim.thread_key == new.thread_key
    assert claim.fence.epoch == run.epoch == 1
    assert (run.status, run.owner, run.attempt) == (RunStatus.RUNNING, OWNER, 1)
    assert run.started_at is not None


async def test_a_later_claim_is_a_new_attempt_under_a_greater_epoch_and_keeps_the_start(
    store: RunStore,
) -> None:
    owner = await create_started(store)
    before = await store.get(owner.run_id)
    assert await store.release(owner.fence, 1.0)
    again = await claim_only(store, owner.new, OTHER_OWNER)
    run = await store.get(owner.run_id)
    assert again.fence.epoch > owner.fence.epoch
    assert (run.attempt, run.owner, run.started_at) == (2, OTHER_OWNER, before.started_at)
    assert await again.write(answered(1)) is not None
