"""What any store of runs promises about child runs that their parent's own write ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from decimal import Decimal

from app.engine.ownership import Committed, StopChildren, Woken
from app.engine.ports import RunStore
from app.engine.records import NewRun
from app.engine.status import RunStatus as S
from tests.contract.stores import (
    STOPPED,
    Owner,
    answered,
    claim_only,
    create_started,
    types_of,
)
from tests.contract.waiting import (
    a_child,
    claim_these,
    delegate,
    end_child,
    everyone,
    spent,
    started,
    statuses,
)


def stops(*runs: NewRun | Owner, status: S = S.CANCELLED) -> StopChildren:
    return StopChildren(tuple(run.run_id for run in runs), status, STOPPED)


async def under_way(store: RunStore, count: int) -> tuple[Owner, list[NewRun]]:
    """A run that goes on beside its child runs, which are queued."""
    owner = await create_started(store)
    news = [a_child(owner.new) for _ in range(count)]
    await delegate(owner, *news, status=S.RUNNING)
    return owner, news


async def test_a_write_ends_child_runs_and_theirs_and_its_owner_sees_their_ends(store: RunStore) -> None:
    owner, (new, kept) = await under_way(store, 2)
    child, _ = await claim_these(store, new, kept)
    grandchild = a_child(new)
    await delegate(child, grandchild)
    committed = await owner.surely(answered(1), stops=stops(new))
    assert committed.status is S.RUNNING
    assert set(everyone(*committed.stopped)) == {new.run_id, grandchild.run_id}
    assert await statuses(store, new, grandchild, kept) == [S.CANCELLED, S.CANCELLED, S.RUNNING]
    assert (await types_of(store, new.run_id))[-1] == "run_cancelled"
    assert await owner.try_write(answered(1)) == Woken()
    assert [(end.run_id, end.status) for end in (await owner.look()).children] == [(new.run_id, S.CANCELLED)]
    assert isinstance(await owner.try_write(answered(1)), Committed)


async def test_a_run_never_waits_for_child_runs_that_its_own_write_has_ended(store: RunStore) -> None:
    owner, (new,) = await under_way(store, 1)
    waiting = ({"kind": "child_run", "id": new.run_id},)
    await owner.surely(answered(1), stops=stops(new), status=S.WAITING, waiting_for=waiting)
    assert await statuses(store, owner, new) == [S.QUEUED, S.CANCELLED]
    again = await claim_only(store, owner.new)
    assert [end.run_id for end in (await again.look()).children] == [new.run_id]


async def test_a_write_that_ends_child_runs_which_are_over_or_never_began_ends_the_others(store: RunStore) -> None:
    owner, (done, runs) = await under_way(store, 2)
    child, _ = await claim_these(store, done, runs)
    await end_child(child)
    await owner.look()
    committed = await owner.surely(answered(1), stops=stops(done, a_child(owner.new), runs))
    assert set(everyone(*committed.stopped)) == {runs.run_id}
    assert await statuses(store, done, runs) == [S.COMPLETED, S.CANCELLED]


async def test_a_write_that_does_not_take_place_ends_no_child_runs(store: RunStore) -> None:
    owner, (one, other) = await under_way(store, 2)
    await store.stop(one.run_id, S.CANCELLED, STOPPED)
    assert await owner.try_write(answered(1), stops=stops(other)) == Woken()
    await owner.look()
    late = replace(owner, fence=replace(owner.fence, epoch=owner.fence.epoch - 1))
    assert await late.try_write(answered(1), stops=stops(other)) is None
    assert await statuses(store, other) == [S.QUEUED]


async def test_a_last_write_ends_the_family_and_is_charged_with_what_it_used(store: RunStore) -> None:
    owner, (new,) = await under_way(store, 1)
    child = await started(store, new)
    child.usage = spent(3)
    await child.surely(answered(1), cost_usd=Decimal("0.3"))
    owner.usage = spent(1)
    parts = {"stops": stops(new, status=S.INTERRUPTED), "cost_usd": Decimal("0.1")}
    committed = await owner.finish(S.INTERRUPTED, messages=(), **parts)
    assert set(everyone(*committed.stopped)) == {new.run_id}
    assert await statuses(store, owner, new) == [S.INTERRUPTED] * 2
    run = await store.get(owner.run_id)
    assert (run.usage, run.cost_usd) == (spent(4), Decimal("0.4"))
    await store.resume(owner.run_id, None)
    assert await statuses(store, owner, new) == [S.QUEUED] * 2


async def test_a_write_that_ends_a_child_against_the_child_s_own_end(store: RunStore) -> None:
    for _ in range(10):
        owner, (new,) = await under_way(store, 1)
        child = await started(store, new)
        finish = {"status": S.COMPLETED, "result": {"final_text": "done"}, "parent_run_id": owner.run_id}
        stopped, ended = await asyncio.gather(
            owner.try_write(answered(1), stops=stops(new)), child.try_write(answered(1), **finish)
        )
        assert (stopped == Woken()) is isinstance(ended, Committed)
        assert await statuses(store, new) == [S.COMPLETED if isinstance(ended, Committed) else S.CANCELLED]
        assert len((await owner.look()).children) == 1
        assert owner.wakes == 1
