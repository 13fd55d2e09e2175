"""Which messages a fork takes from the thread of its source, and with which input it goes on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from app.db.database import Database
from app.db.fork import Fork
from app.db.run_store import PostgresRunStore
from app.engine.messages import Message, Role
from app.engine.records import ForkedFrom, OnBusyThread, RunRecord
from app.engine.state import Phase
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.services.forks import ForkService
from app.services.run_queries import RunQueries
from app.services.threads import ThreadService
from tests.contract.stores import STOPPED, a_run, claim_only, create_started, texts_of
from tests.integration.breaking import Breaking
from tests.integration.services.forks.conftest import OTHER, a_request, counted, fork, points, two_steps


async def numbered(threads: ThreadService, thread_id: str) -> list[tuple[int, str]]:
    page = await threads.list_messages(thread_id, 0, 100)
    return [(record.seq, record.message.text()) for record in page.items]


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
