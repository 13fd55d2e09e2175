"""What any store promises of summaries: runs see them, and nothing of what they stand for is lost or seen twice."""

from __future__ import annotations

import pytest

from app.engine.compaction import NewCompaction, is_summary
from app.engine.messages import ThreadMessage
from app.engine.ports import RunStore, ThreadStore
from app.engine.records import OnBusyThread, ThreadView
from app.engine.status import RunStatus
from app.engine.store_errors import CompactedMeanwhile, ThreadBusy, ThreadNotFound
from tests.contract.stores import OTHER_OWNER, STOPPED, Owner, Subject, a_run, create_owned, create_started, new_id


async def view(threads: ThreadStore) -> ThreadView:
    found = await threads.thread("", "talk")
    assert found is not None
    return found


async def spoken(store: RunStore, turns: int = 2) -> None:
    for turn in range(turns):
        owner = await create_started(store, a_run("talk", f"question {turn}"))
        await owner.finish(text=f"answer {turn}")


def seqs(messages: tuple[ThreadMessage, ...]) -> list[int]:
    return [entry.seq for entry in messages]


async def test_runs_see_the_summary_in_place_of_what_it_stands_for(store: RunStore, threads: ThreadStore) -> None:
    await spoken(store)
    before = await view(threads)
    upto = before.messages[-2].seq
    await threads.compact(before.thread_key, NewCompaction(upto, "They spoke."), purge_upto=None)
    summary, last = (await view(threads)).messages
    assert is_summary(summary)
    assert (summary.seq, last) == (upto, before.messages[-1])
    owner = await create_owned(store, a_run("talk", "and now?"))
    loaded = await store.load(owner.run_id)
    assert loaded.messages[:2] == (summary, last)
    await owner.start()
    assert len((await store.load(owner.run_id)).messages) == 3


async def test_a_run_that_compacts_finds_its_summary_again_after_a_crash(
    store: RunStore, threads: ThreadStore, subject: Subject
) -> None:
    await spoken(store)
    owner = await create_started(store, a_run("talk", "go on"))
    await owner.ask("look")
    await owner.close_step()
    known = (await store.load(owner.run_id)).messages
    await owner.surely(compaction=NewCompaction(known[-2].seq, "They spoke, and it looked."))
    await subject.crash()
    (claim,) = await store.claim(OTHER_OWNER, 1)
    loaded = await store.load(claim.fence.run_id)
    assert seqs(loaded.messages) == seqs(known[-2:])
    assert is_summary(loaded.messages[0])
    assert loaded.used_ids == {"call-0"}


async def test_the_latest_summary_counts_and_an_older_one_is_refused(store: RunStore, threads: ThreadStore) -> None:
    await spoken(store)
    found = await view(threads)
    one, two, three, _ = seqs(found.messages)
    await threads.compact(found.thread_key, NewCompaction(two, "two"), purge_upto=None)
    for upto in (one, two):
        with pytest.raises(CompactedMeanwhile):
            await threads.compact(found.thread_key, NewCompaction(upto, "late"), purge_upto=upto)
    await threads.compact(found.thread_key, NewCompaction(three, "three"), purge_upto=None)
    assert "three" in (await view(threads)).messages[0].message.text()


async def test_a_thread_is_not_compacted_from_outside_while_a_run_has_it(store: RunStore, threads: ThreadStore) -> None:
    await spoken(store)
    await create_started(store, a_run("talk"))
    found = await view(threads)
    with pytest.raises(ThreadBusy):
        await threads.compact(found.thread_key, NewCompaction(found.messages[0].seq, "no"), purge_upto=None)
    assert (await view(threads)).messages == found.messages


@pytest.mark.parametrize("compaction", [NewCompaction(1, "of nothing"), None])
async def test_a_thread_that_is_gone_is_not_compacted(threads: ThreadStore, compaction: NewCompaction | None) -> None:
    with pytest.raises(ThreadNotFound):
        await threads.compact(new_id(), compaction, purge_upto=1)


async def test_what_was_purged_is_gone_and_numbers_go_on(store: RunStore, threads: ThreadStore) -> None:
    await spoken(store)
    found = await view(threads)
    upto = found.messages[2].seq
    await threads.compact(found.thread_key, NewCompaction(upto, "three"), purge_upto=upto)
    assert seqs((await view(threads)).messages) == [upto, found.messages[3].seq]
    assert seqs(tuple(await store.messages_after(found.thread_key, 0))) == [found.messages[3].seq]
    await spoken(store, 1)
    last = seqs((await view(threads)).messages)
    assert last == sorted(set(last))
    assert last[-1] > found.messages[3].seq


async def test_a_run_that_is_rolled_back_takes_its_summary_with_it(store: RunStore, threads: ThreadStore) -> None:
    await spoken(store)
    owner: Owner = await create_started(store, a_run("talk", "go on"))
    known = (await store.load(owner.run_id)).messages
    await owner.surely(compaction=NewCompaction(known[-1].seq, "with what is rolled back"))
    await store.create(a_run("talk", "instead", on_busy_thread=OnBusyThread.ROLLBACK), owner=None)
    assert (await store.get(owner.run_id)).status is RunStatus.CANCELLED
    assert seqs((await view(threads)).messages) == seqs(known[:-1])


async def test_a_run_that_is_rolled_back_leaves_the_summary_of_what_was_purged(
    store: RunStore, threads: ThreadStore
) -> None:
    await spoken(store)
    owner: Owner = await create_started(store, a_run("talk", "go on"))
    upto = (await store.load(owner.run_id)).messages[-2].seq
    await owner.surely(compaction=NewCompaction(upto, "They spoke."))
    await store.stop(owner.run_id, RunStatus.INTERRUPTED, STOPPED)
    await threads.compact((await view(threads)).thread_key, None, purge_upto=upto)
    await store.resume(owner.run_id, None)
    await store.create(a_run("talk", "instead", on_busy_thread=OnBusyThread.ROLLBACK), owner=None)
    assert (await store.get(owner.run_id)).status is RunStatus.CANCELLED
    (summary,) = (await view(threads)).messages
    assert (summary.seq, is_summary(summary)) == (upto, True)
