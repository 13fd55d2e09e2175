"""What any store of runs promises about child runs: they begin with a write, and their ends wake their parents."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from app.engine.events import ResumeReason
from app.engine.moves import ChildEnd
from app.engine.ownership import Committed, Woken
from app.engine.ports import RunStore
from app.engine.records import Stimulated, SubagentExecution
from app.engine.status import RunStatus as S
from app.engine.store_errors import RunNotFound
from app.engine.transition import ToolRecord
from tests.contract.stores import (
    AGENT,
    OTHER_OWNER,
    STOPPED,
    Owner,
    answered,
    claim_only,
    create_started,
    result,
    texts_of,
)
from tests.contract.waiting import (
    a_child,
    claim_these,
    delegate,
    delegated,
    end_child,
    holding,
    parent_of,
    spent,
    started,
    statuses,
    three_generations,
)


async def take_in(owner: Owner, *indexes: int, **parts: Any) -> None:
    """The owner sees that children are over and ends their calls."""
    await owner.look()
    ended = [replace(owner.calls[index], hold=None, result=result()) for index in indexes]
    await owner.surely(answered(1), records=tuple(ToolRecord(1, call) for call in ended), **parts)


# --- beginning ------------------------------------------------------------------------------------------------


async def test_child_runs_begin_with_a_write_and_can_be_claimed(store: RunStore) -> None:
    owner, children = await parent_of(store, 2, context={"city": "Rome"}, user_id="u1")
    for new in children:
        run = await store.get(new.run_id)
        assert (run.status, run.step, run.attempt, run.owner, run.last_event_seq) == (S.QUEUED, 0, 0, None, 0)
        assert (run.thread_id, run.thread_key, run.input) == (new.run_id, new.run_id, new.input)
        assert (run.agent_name, run.agent_version) == ("helper", 2)
        assert (run.context, run.user_id, run.overrides) == ({"city": "Rome"}, "u1", new.overrides)
        assert (run.parent_run_id, run.root_run_id) == (owner.run_id, owner.run_id)
        assert (run.agent_depth, run.agent_path) == (1, "helper>helper")
        assert run.identity == new.identity
    for child in await claim_these(store, *children):
        await child.start()
        loaded = await store.load(child.run_id)
        assert (loaded.agent, loaded.run.parent_run_id) == (AGENT, owner.run_id)
        assert await texts_of(store, child.thread_key) == ["the task"]


async def test_a_run_that_a_caller_creates_is_the_root_of_its_family(store: RunStore) -> None:
    owner = await create_started(store)
    run = await store.get(owner.run_id)
    assert (run.parent_run_id, run.root_run_id, run.agent_depth) == (None, owner.run_id, 0)
    assert run.identity == owner.new.identity


async def test_children_of_children_know_where_they_come_from(store: RunStore) -> None:
    first, second, third = await three_generations(store)
    run = await store.get(third.run_id)
    assert (run.parent_run_id, run.root_run_id) == (second.run_id, first.run_id)
    assert (run.agent_depth, run.agent_path) == (2, "helper>helper>helper")


async def test_child_runs_can_begin_beside_what_their_parent_does(store: RunStore) -> None:
    owner = await create_started(store)
    child = a_child(owner.new)
    committed = await delegate(owner, child, status=S.RUNNING)
    assert committed.status is S.RUNNING
    await started(store, child)
    assert isinstance(await owner.try_write(answered(1)), Committed)


async def test_child_runs_begin_only_with_a_write_that_takes_place(store: RunStore) -> None:
    owner = await create_started(store)
    child = a_child(owner.new)
    late = replace(owner, fence=replace(owner.fence, write_no=owner.fence.write_no - 1))
    assert await late.try_write(answered(1), **holding(late, delegated(0, child)), children=(child,)) is None
    await owner.ask("look", "find")
    await store.post_result(owner.run_id, "call-0", '"x"', None)
    assert await owner.try_write(answered(1), **holding(owner, delegated(2, child)), children=(child,)) == Woken()
    with pytest.raises(RunNotFound):
        await store.get(child.run_id)
    assert await store.claim(OTHER_OWNER, 10) == []


async def test_child_runs_that_begin_where_a_pause_was_asked_for_begin_all_the_same(store: RunStore) -> None:
    owner = await create_started(store)
    child = a_child(owner.new)
    await store.pause(owner.run_id)
    committed = await delegate(owner, child)
    assert committed.status is S.PAUSED
    assert (await store.get(child.run_id)).parent_run_id == owner.run_id


async def test_child_runs_against_a_cancel_never_outlive_their_parent(store: RunStore) -> None:
    for _ in range(10):
        owner = await create_started(store)
        child = a_child(owner.new)
        write, _ = await asyncio.gather(
            owner.try_write(answered(1), **holding(owner, delegated(0, child)), children=(child,)),
            store.stop(owner.run_id, S.CANCELLED, STOPPED),
        )
        assert (await store.get(owner.run_id)).status is S.CANCELLED
        if write is None:
            with pytest.raises(RunNotFound):
                await store.get(child.run_id)
        else:
            assert (await store.get(child.run_id)).status is S.CANCELLED


# --- ending ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [S.COMPLETED, S.DEGRADED, S.FAILED])
async def test_a_child_s_end_wakes_its_parent_once(store: RunStore, status: S) -> None:
    owner, (new,) = await parent_of(store, 1)
    child = await started(store, new)
    assert list((await store.get(owner.run_id)).waiting_for) == [{"kind": "child_run", "id": new.run_id}]
    child.usage = spent(3)
    fence = child.fence
    committed = await end_child(child, status, text="the answer", cost_usd=Decimal("0.5"))
    assert committed.woken == Stimulated(owner.run_id, S.QUEUED)
    assert await replace(child, fence=fence).try_write(answered(1), status=S.COMPLETED) is None
    run, ended = await store.get(owner.run_id), await store.get(new.run_id)
    assert (run.status, run.wakes, run.waiting_for) == (S.QUEUED, 1, ())
    again = await claim_only(store, owner.new)
    loaded = await store.load(owner.run_id)
    assert (again.wakes, loaded.resume_reason) == (1, ResumeReason.WAKE)
    assert ended.finished_at is not None
    (end,) = loaded.stimuli.children
    assert end.latency_ms == pytest.approx((ended.finished_at - ended.created_at).total_seconds() * 1000)
    error = None if status is S.COMPLETED else STOPPED
    cost = Decimal("0.5")
    assert end == ChildEnd(0, new.run_id, status, "the answer", error, spent(3), cost, end.latency_ms)


@pytest.mark.parametrize("status", [S.CANCELLED, S.INTERRUPTED, S.FAILED])
async def test_a_child_run_that_a_caller_stops_wakes_its_parent(store: RunStore, status: S) -> None:
    owner, (new,) = await parent_of(store, 1)
    stopped = await store.stop(new.run_id, status, STOPPED)
    assert stopped.woken == Stimulated(owner.run_id, S.QUEUED)
    assert not (await store.stop(new.run_id, status, STOPPED)).changed
    assert (await store.get(owner.run_id)).wakes == 1
    (end,) = (await owner.look()).children
    assert (end.run_id, end.status) == (new.run_id, status)
    assert end.error == (None if status is S.CANCELLED else STOPPED)


async def test_a_child_that_pauses_does_not_wake_its_parent(store: RunStore) -> None:
    owner, (new,) = await parent_of(store, 1)
    child = await started(store, new)
    await store.pause(new.run_id)
    await child.ask("look")
    assert (await child.close_step()).status is S.PAUSED
    assert await statuses(store, owner) == [S.WAITING]


async def test_a_parent_under_way_sees_its_child_s_end_before_it_writes_again(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await delegate(owner, new, status=S.RUNNING)
    committed = await end_child(await started(store, new))
    assert committed.woken == Stimulated(owner.run_id, S.RUNNING)
    assert await owner.try_write(answered(1)) == Woken()
    assert [end.run_id for end in (await owner.look()).children] == [new.run_id]
    assert isinstance(await owner.try_write(answered(1)), Committed)


async def test_a_paused_parent_stays_paused_and_finds_the_end_when_it_is_resumed(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await store.pause(owner.run_id)
    await delegate(owner, new)
    committed = await end_child(await started(store, new))
    assert committed.woken == Stimulated(owner.run_id, S.PAUSED)
    await store.resume(owner.run_id, None)
    await claim_only(store, owner.new)
    assert [end.run_id for end in (await store.load(owner.run_id)).stimuli.children] == [new.run_id]


async def test_a_parent_that_is_over_is_not_woken(store: RunStore) -> None:
    owner = await create_started(store)
    new = a_child(owner.new)
    await delegate(owner, new, status=S.RUNNING)
    child = await started(store, new)
    await owner.finish(S.FAILED)
    before = await store.get(owner.run_id)
    assert (await end_child(child)).woken is None
    after = await store.get(owner.run_id)
    assert (after.status, after.wakes, after.usage) == (before.status, before.wakes, before.usage)


async def test_the_last_two_children_may_end_together(store: RunStore) -> None:
    for _ in range(10):
        owner, news = await parent_of(store, 2)
        children = await claim_these(store, *news)
        committed = await asyncio.gather(*(end_child(child) for child in children))
        assert [each.woken for each in committed] == [Stimulated(owner.run_id, S.QUEUED)] * 2
        again = await claim_only(store, owner.new)
        stimuli = await again.look()
        assert (stimuli.wakes, {end.run_id for end in stimuli.children}) == (2, {new.run_id for new in news})
        await again.finish()


async def test_an_end_that_was_taken_in_is_not_among_what_was_stored(store: RunStore) -> None:
    owner, news = await parent_of(store, 2)
    for child in await claim_these(store, *news):
        await end_child(child)
    again = await claim_only(store, owner.new)
    again.calls = owner.calls
    await take_in(again, 0)
    assert [end.index for end in (await again.look()).children] == [1]


async def test_what_a_child_has_used_is_what_its_own_children_have_used_too(store: RunStore) -> None:
    first, second, third = await three_generations(store)
    third.usage = spent(4)
    await end_child(third, cost_usd=Decimal("0.4"))
    again = await claim_only(store, second.new)
    again.calls, again.usage = second.calls, spent(6)
    await take_in(again, 0, cost_usd=Decimal("0.6"))
    await end_child(again, cost_usd=Decimal("0.6"))
    (end,) = (await first.look()).children
    assert (end.usage, end.cost_usd) == (spent(6), Decimal("0.6"))


async def test_a_child_whose_price_is_unknown_has_no_cost(store: RunStore) -> None:
    owner, (new,) = await parent_of(store, 1)
    await end_child(await started(store, new), cost_usd=None)
    (end,) = (await owner.look()).children
    assert end.cost_usd is None


async def test_the_next_in_a_child_s_thread_is_promoted_by_its_end(store: RunStore) -> None:
    _, (new,) = await parent_of(store, 1)
    child = await started(store, new)
    guest = await store.create(replace(a_child(new), thread_id=new.thread_id, lineage=None), owner=None)
    assert (await end_child(child)).promoted == guest.run.run_id


# --- reading --------------------------------------------------------------------------------------------------


async def test_a_parent_s_readers_see_its_children(store: RunStore) -> None:
    owner, (done, fails, runs) = await parent_of(store, 3)
    first, second, _ = await claim_these(store, done, fails, runs)
    first.usage = spent(2)
    await end_child(first, text="the answer")
    await end_child(second, S.FAILED, text=STOPPED.message)
    run = await store.get(owner.run_id)
    assert run.tool_executions is not None
    assert [one.child_run_id for one in run.tool_executions] == [done.run_id, fails.run_id, runs.run_id]
    assert run.subagent_executions is not None
    one, two, three = run.subagent_executions
    assert one == SubagentExecution("helper", done.run_id, S.COMPLETED, "the answer", None, one.latency_ms, spent(2))
    assert one.latency_ms is not None
    assert (two.run_id, two.status, two.error) == (fails.run_id, S.FAILED, STOPPED.message)
    assert (three.run_id, three.status, three.output_text, three.latency_ms) == (runs.run_id, S.RUNNING, None, None)


async def test_a_call_s_child_is_told_after_the_call_has_ended(store: RunStore) -> None:
    owner, (new,) = await parent_of(store, 1)
    await end_child(await started(store, new))
    again = await claim_only(store, owner.new)
    again.calls = owner.calls
    await take_in(again, 0)
    run = await store.get(owner.run_id)
    assert run.tool_executions is not None
    assert run.subagent_executions is not None
    assert [(one.child_run_id, one.success) for one in run.tool_executions] == [(new.run_id, True)]
    assert [one.run_id for one in run.subagent_executions] == [new.run_id]


async def test_a_run_without_children_has_none(store: RunStore) -> None:
    owner = await create_started(store)
    await owner.ask("look")
    run = await store.get(owner.run_id)
    assert run.subagent_executions == ()
    assert run.tool_executions is not None
    assert [one.child_run_id for one in run.tool_executions] == [None]
    assert (await store.get(owner.run_id, with_tools=False)).subagent_executions in (None, ())


async def test_a_team_is_the_current_versions_in_the_order_of_the_names(store: RunStore) -> None:
    assert await store.team("", ["helper"]) == {"helper": AGENT}
    assert list(await store.team("", ["gone", "helper"])) == ["helper"]
    assert await store.team("another tenant", ["helper"]) == {}
    assert await store.team("", []) == {}
