from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from sqlalchemy import update

from app.db.database import Database
from app.db.models import Base, Checkpoint, Interaction, Run, RunEvent, Thread, ToolExecution
from app.db.models import IdempotencyKey as KeyRow
from app.db.models import Message as MessageRow
from app.engine.messages import Message, Role
from app.engine.records import IdempotencyKey
from app.engine.store_errors import IdempotencyMismatch
from app.services.errors import Conflict, Invalid, NotFound
from app.services.threads import ThreadDetail, ThreadService

MakeRun = Callable[..., Awaitable[UUID]]
RowsIn = Callable[[type[Base]], Awaitable[int]]

KEY = IdempotencyKey("k", b"hash")


async def _say(threads: ThreadService, thread_id: str, *texts: str) -> None:
    for text in texts:
        await threads.append_message(thread_id, Message(Role.USER, text))


async def _texts(threads: ThreadService, thread_id: str) -> list[object]:
    return [record.message.content for record in (await threads.list_messages(thread_id, 0, 100)).items]


async def test_a_thread_is_as_it_was_made(threads: ThreadService) -> None:
    made = (await threads.create("t-1", {"team": "a"})).thread
    assert (made.thread_id, made.metadata, made.active_run_id) == ("t-1", {"team": "a"}, None)
    assert await threads.get("t-1") == ThreadDetail(made, None)


async def test_a_thread_without_an_id_gets_a_uuid_of_version_7(threads: ThreadService) -> None:
    assert UUID((await threads.create(None, {})).thread.thread_id).version == 7


async def test_a_thread_is_made_once(threads: ThreadService) -> None:
    await threads.create("t", {})
    with pytest.raises(Conflict, match="already"):
        await threads.create("t", {})


async def test_the_same_id_in_another_tenant_is_another_thread(threads: ThreadService) -> None:
    await threads.create("t", {})
    await threads.create("t", {"of": "b"}, tenant_id="b")
    assert (await threads.get("t")).thread.metadata == {}
    assert (await threads.get("t", tenant_id="b")).thread.metadata == {"of": "b"}


async def test_threads_are_listed_newest_first_and_by_metadata(threads: ThreadService) -> None:
    for number in range(5):
        await threads.create(f"t-{number}", {"parity": str(number % 2), "n": str(number)})
    await threads.create("plain", {})
    page = await threads.list({"parity": "0"}, None, 2)
    assert [thread.thread_id for thread in page.items] == ["t-4", "t-2"]
    rest = await threads.list({"parity": "0"}, page.next_cursor, 2)
    assert [thread.thread_id for thread in rest.items] == ["t-0"]
    assert rest.next_cursor is None
    assert [thread.thread_id for thread in (await threads.list({"parity": "0", "n": "2"}, None, 9)).items] == ["t-2"]
    assert len((await threads.list({}, None, 9)).items) == 6


async def test_a_cursor_of_no_list_is_refused(threads: ThreadService) -> None:
    with pytest.raises(Invalid) as refused:
        await threads.list({}, "nonsense", 5)
    assert refused.value.loc == ("query", "cursor")


async def test_metadata_is_merged_and_null_takes_a_key_away(threads: ThreadService) -> None:
    made = (await threads.create("t", {"a": "1", "b": "2"})).thread
    changed = await threads.update("t", {"b": None, "c": "3"})
    assert changed.metadata == {"a": "1", "c": "3"}
    assert changed.updated_at > made.updated_at
    assert (await threads.get("t")).thread == changed


async def test_metadata_stays_bounded(threads: ThreadService) -> None:
    await threads.create("t", {str(number): "" for number in range(30)})
    with pytest.raises(Invalid, match="32"):
        await threads.update("t", {f"more-{number}": "" for number in range(3)})
    assert len((await threads.get("t")).thread.metadata) == 30


@pytest.mark.parametrize("asked", ["get", "update", "delete", "messages", "runs", "copy"])
async def test_what_is_not_there_is_not_found(threads: ThreadService, asked: str) -> None:
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: threads.get("no"),
        "update": lambda: threads.update("no", {}),
        "delete": lambda: threads.delete("no"),
        "messages": lambda: threads.list_messages("no", 0, 1),
        "runs": lambda: threads.list_runs("no", None, 1),
        "copy": lambda: threads.copy("no", None, None),
    }
    with pytest.raises(NotFound, match="no thread 'no'"):
        await calls[asked]()


async def test_an_append_makes_the_thread_and_numbers_from_one(threads: ThreadService) -> None:
    first = (await threads.append_message("new", Message(Role.USER, "hello"))).message
    second = (await threads.append_message("new", Message(Role.ASSISTANT, [{"type": "text", "text": "hi"}]))).message
    assert (first.seq, second.seq) == (1, 2)
    assert first.message_id.startswith("msg_")
    assert first.message_id.endswith("_1")
    page = await threads.list_messages("new", 0, 1)
    assert page.items == [first]
    assert page.next_cursor == 1
    rest = await threads.list_messages("new", 1, 1)
    assert (rest.items, rest.next_cursor) == ([second], None)


async def test_concurrent_appends_have_numbers_of_their_own(threads: ThreadService) -> None:
    await asyncio.gather(*(threads.append_message("t", Message(Role.USER, str(n))) for n in range(20)))
    page = await threads.list_messages("t", 0, 100)
    assert [record.seq for record in page.items] == list(range(1, 21))


async def test_voided_messages_are_not_listed(threads: ThreadService, database: Database) -> None:
    await _say(threads, "t", "one", "two", "three")
    async with database.session() as session:
        await session.execute(update(MessageRow).where(MessageRow.seq == 2).values(voided=True))
    assert await _texts(threads, "t") == ["one", "three"]


async def test_a_copy_has_the_messages_up_to_a_seq_and_goes_on_by_itself(
    threads: ThreadService, database: Database
) -> None:
    await threads.create("t", {"team": "a"})
    await _say(threads, "t", "one", "two", "three")
    async with database.session() as session:
        await session.execute(update(MessageRow).where(MessageRow.seq == 1).values(voided=True))
    copied = (await threads.copy("t", "copy", 2)).thread
    assert (copied.thread_id, copied.metadata) == ("copy", {"team": "a"})
    assert await _texts(threads, "copy") == ["two"]
    assert (await threads.append_message("copy", Message(Role.USER, "else"))).message.seq == 3
    assert await _texts(threads, "t") == ["two", "three"]


async def test_a_whole_copy_continues_the_numbering(threads: ThreadService) -> None:
    await _say(threads, "t", "one", "two")
    copy_id = (await threads.copy("t", None, None)).thread.thread_id
    await _say(threads, copy_id, "three")
    assert await _texts(threads, copy_id) == ["one", "two", "three"]


async def test_an_empty_thread_can_be_copied_and_a_taken_id_not(threads: ThreadService) -> None:
    await threads.create("t", {})
    await threads.copy("t", "copy", None)
    with pytest.raises(Conflict):
        await threads.copy("t", "copy", None)


async def test_the_same_key_makes_one_thread(threads: ThreadService, rows_in: RowsIn) -> None:
    made = await asyncio.gather(*(threads.create(None, {}, idempotency_key=KEY) for _ in range(5)))
    assert len({each.thread.thread_id for each in made}) == 1
    assert sorted(each.replayed for each in made) == [False, True, True, True, True]
    assert await rows_in(Thread) == 1


async def test_the_same_key_appends_once(threads: ThreadService) -> None:
    first = await threads.append_message("t", Message(Role.USER, "hello"), idempotency_key=KEY)
    again = await threads.append_message("t", Message(Role.USER, "hello"), idempotency_key=KEY)
    assert again.replayed
    assert again.message == first.message
    assert await _texts(threads, "t") == ["hello"]


async def test_the_same_key_copies_once(threads: ThreadService) -> None:
    await threads.create("t", {})
    first = await threads.copy("t", None, None, idempotency_key=KEY)
    again = await threads.copy("t", None, None, idempotency_key=KEY)
    assert again.thread == first.thread


async def test_a_key_is_for_one_request(threads: ThreadService) -> None:
    await threads.create("t", {}, idempotency_key=KEY)
    with pytest.raises(IdempotencyMismatch):
        await threads.create("u", {}, idempotency_key=IdempotencyKey("k", b"another"))


async def test_an_error_leaves_the_key_free(threads: ThreadService) -> None:
    await threads.create("t", {})
    with pytest.raises(Conflict):
        await threads.create("t", {}, idempotency_key=KEY)
    assert not (await threads.create("u", {}, idempotency_key=KEY)).replayed


async def test_a_key_is_forgotten_after_a_day(threads: ThreadService, database: Database) -> None:
    await threads.create("t", {}, idempotency_key=KEY)
    async with database.connection() as connection:
        await connection.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours'")
    other = IdempotencyKey("k", b"another")
    assert not (await threads.create("u", {}, idempotency_key=other)).replayed
    assert (await threads.create("u", {}, idempotency_key=other)).replayed


@pytest.mark.parametrize("status", ["queued", "running", "paused", "waiting"])
async def test_a_thread_with_an_active_run_stays(threads: ThreadService, make_run: MakeRun, status: str) -> None:
    await make_run("t", status)
    with pytest.raises(Conflict) as refused:
        await threads.delete("t")
    assert refused.value.current_status == status


async def test_a_thread_with_an_active_run_below_its_runs_stays(threads: ThreadService, make_run: MakeRun) -> None:
    parent = await make_run("t")
    await make_run("below", "running", parent_run_id=parent)
    with pytest.raises(Conflict):
        await threads.delete("t")


async def test_deleting_a_thread_leaves_no_row_of_it(
    threads: ThreadService, make_run: MakeRun, rows_in: RowsIn
) -> None:
    await _say(threads, "t", "hello")
    parent = await make_run("t")
    child = await make_run("child", parent_run_id=parent, root_run_id=parent)
    await make_run("grandchild", parent_run_id=child, root_run_id=parent)
    await make_run("child-with-a-life-of-its-own", parent_run_id=parent, root_run_id=parent)
    await make_run("child-with-a-life-of-its-own")
    await make_run("another")
    await threads.delete("t")
    for table in (Run, RunEvent, Checkpoint, ToolExecution, Interaction):
        assert await rows_in(table) == 2, table
    assert await rows_in(MessageRow) == 0
    assert await rows_in(Thread) == 2
    with pytest.raises(NotFound):
        await threads.get("t")


async def test_a_threads_runs_are_its_own(threads: ThreadService, make_run: MakeRun) -> None:
    runs = [str(await make_run("t")) for _ in range(3)]
    await make_run("another")
    page = await threads.list_runs("t", None, 2)
    assert [run.run_id for run in page.items] == [runs[2], runs[1]]
    assert [run.run_id for run in (await threads.list_runs("t", page.next_cursor, 2)).items] == [runs[0]]


async def test_a_key_whose_thread_was_deleted_can_be_used_anew(threads: ThreadService, rows_in: RowsIn) -> None:
    await threads.create("source", {})
    requests = (
        lambda thread_id, key: threads.create(thread_id, {}, idempotency_key=key),
        lambda thread_id, key: threads.copy("source", thread_id, None, idempotency_key=key),
        lambda thread_id, key: threads.append_message(thread_id, Message(Role.USER, "hello"), idempotency_key=key),
    )
    for number, request in enumerate(requests):
        key = IdempotencyKey(f"key-{number}", b"hash")
        for _ in range(2):
            assert [(await request("t", key)).replayed for _ in range(2)] == [False, True]
            await threads.delete("t")
        # By another request as well, which the key is then for.
        other = IdempotencyKey(key.key, b"another")
        assert [(await request("u", other)).replayed for _ in range(2)] == [False, True]
        with pytest.raises(IdempotencyMismatch):
            await request("u", key)
        await threads.delete("u")
    assert await rows_in(KeyRow) == len(requests)
