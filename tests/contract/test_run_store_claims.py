"""What any store of runs promises: suspects, the runs whose next crash ends them."""

from __future__ import annotations

import pytest

from app.engine.crashes import MAX_CRASHES, SUSPECT_CRASHES
from app.engine.ports import RunStore
from app.engine.status import RunStatus
from tests.contract.stores import (
    OTHER_OWNER,
    OWNER,
    STOPPED,
    Owner,
    Subject,
    a_run,
    create_started,
    owner_of,
    types_of,
)


@pytest.fixture
def store(subject: Subject) -> RunStore:
    return subject.store


async def suspects(subject: Subject, count: int) -> list[Owner]:
    """Queued runs that were under way in as many crashes as a run may be, in the order in which they are claimed."""
    owners = [await create_started(subject.store) for _ in range(count)]
    for crash in range(SUSPECT_CRASHES):
        if crash:
            await subject.store.claim(OWNER, count)
        assert await subject.crash() == []
    return owners


async def claimed(store: RunStore, owner: Owner, limit: int = 10, *, suspect: bool = True) -> Owner:
    """Claim one run, which is this one."""
    (claim,) = await store.claim(OWNER, limit, suspect=suspect)
    assert claim.fence.run_id == owner.run_id
    again = owner_of(store, owner.new, claim)
    again.step = owner.step
    return again


async def test_a_run_is_a_suspect_when_its_next_crash_would_end_it(subject: Subject) -> None:
    """Seen to fail without the clause on crashes in the claim."""
    store = subject.store
    await create_started(store)
    seen: list[bool] = []
    for _ in range(SUSPECT_CRASHES):
        assert await subject.crash() == []
        seen += [claim.suspect for claim in await store.claim(OWNER, 10, suspect=True)]
    assert seen == [*[False] * (SUSPECT_CRASHES - 1), True]


async def test_an_ordinary_claim_leaves_suspects_out(subject: Subject) -> None:
    """Seen to fail without the clause on crashes in the claim."""
    store = subject.store
    await suspects(subject, 2)
    fresh = await subject.store.create(a_run(), owner=None)
    claims = await store.claim(OWNER, 10)
    assert [(claim.fence.run_id, claim.suspect) for claim in claims] == [(fresh.run.run_id, False)]


async def test_one_suspect_at_most_is_claimed_at_once_the_oldest_first_and_within_the_limit(subject: Subject) -> None:
    """Seen to fail with a limit of two for suspects, and with one that is not taken from the limit."""
    store = subject.store
    held = await suspects(subject, 3)
    fresh = [(await store.create(a_run(), owner=None)).run.run_id for _ in range(2)]
    claims = await store.claim(OWNER, 2, suspect=True)
    assert len(claims) == 2
    assert {claim.suspect: claim.fence.run_id for claim in claims}[False] == fresh[0]
    (first,) = [claim.fence.run_id for claim in claims if claim.suspect]
    (second,) = [claim.fence.run_id for claim in await store.claim(OTHER_OWNER, 1, suspect=True)]
    assert len({first, second} & {owner.run_id for owner in held}) == 2
    assert [claim.fence.run_id for claim in await store.claim(OWNER, 10)] == fresh[1:]


async def test_progress_makes_an_ordinary_run_of_a_suspect(subject: Subject) -> None:
    """Seen to fail without the reset of crashes in an owner's write."""
    (owner,) = await suspects(subject, 1)
    owner = await claimed(subject.store, owner)
    await owner.ask("look")
    await owner.close_step()
    assert await subject.crash() == []
    await claimed(subject.store, owner, suspect=False)


async def test_a_write_without_progress_leaves_a_suspect_what_it_is(subject: Subject) -> None:
    (owner,) = await suspects(subject, 1)
    owner = await claimed(subject.store, owner)
    await owner.ask("look")
    assert await subject.crash() == [owner.run_id]


async def test_a_suspect_that_crashes_fails_as_poisoned_and_frees_its_thread(subject: Subject) -> None:
    store = subject.store
    (owner,) = await suspects(subject, 1)
    waiting = await store.create(a_run(owner.new.thread_id), owner=None)
    await claimed(store, owner)
    assert await subject.crash() == [owner.run_id]
    run = await store.get(owner.run_id)
    assert run.error is not None
    assert (run.status, run.error.code, run.attempt) == (RunStatus.FAILED, "poisoned", MAX_CRASHES)
    assert (await types_of(store, owner.run_id))[-1] == "run_failed"
    assert [claim.fence.run_id for claim in await store.claim(OWNER, 10)] == [waiting.run.run_id]


async def test_neighbours_of_a_run_that_kills_its_owner_are_not_poisoned(subject: Subject) -> None:
    """One owner, restarted for as long as it takes, of which one run ends it whenever it is under way.

    Seen to fail where a claim takes all suspects that there are.
    """
    store = subject.store
    killer, *others = [(await store.create(a_run(), owner=None)).run.run_id for _ in range(12)]
    given_up: list[str] = []
    for _ in range(100):
        claims = await store.claim(OWNER, 100, suspect=True)
        if not claims:
            break
        if killer in {claim.fence.run_id for claim in claims}:
            given_up += await subject.crash()
            continue
        for claim in claims:
            await store.stop(claim.fence.run_id, RunStatus.INTERRUPTED, STOPPED)
    assert given_up == [killer]
    assert {(await store.get(run_id)).status for run_id in others} == {RunStatus.INTERRUPTED}


async def test_a_run_that_a_caller_resumes_is_no_suspect_any_more(subject: Subject) -> None:
    """Seen to fail without the reset of crashes in a resume."""
    store = subject.store
    (owner,) = await suspects(subject, 1)
    await claimed(store, owner)
    assert await subject.crash() == [owner.run_id]
    await store.resume(owner.run_id, None)
    await claimed(store, owner, suspect=False)


async def test_a_run_that_its_owner_releases_is_no_suspect_any_more(subject: Subject) -> None:
    store = subject.store
    (owner,) = await suspects(subject, 1)
    owner = await claimed(store, owner)
    assert await store.release(owner.fence, 1.0)
    await claimed(store, owner, suspect=False)


async def test_a_claim_tells_how_long_the_run_was_ready(subject: Subject) -> None:
    store = subject.store
    await store.create(a_run(), owner=None)
    (claim,) = await store.claim(OWNER, 1)
    assert 0 < claim.waited_s < 60
