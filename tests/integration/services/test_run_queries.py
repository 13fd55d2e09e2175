from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from app.db.database import Database
from app.db.models import Checkpoint
from app.engine.messages import Message, Role
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound
from app.services.errors import Invalid, NotFound
from app.services.run_queries import RunFilters, RunQueries
from app.services.threads import ThreadService

MakeRun = Callable[..., Awaitable[UUID]]


async def _ids(run_queries: RunQueries, filters: RunFilters) -> list[str]:
    return [run.run_id for run in (await run_queries.list(filters, None, 50)).items]


async def test_runs_are_paged_newest_first_without_their_results(run_queries: RunQueries, make_run: MakeRun) -> None:
    runs = [str(await make_run("t")) for _ in range(3)]
    first = await run_queries.list(RunFilters(), None, 2)
    assert [run.run_id for run in first.items] == [runs[2], runs[1]]
    rest = await run_queries.list(RunFilters(), first.next_cursor, 2)
    assert [run.run_id for run in rest.items] == [runs[0]]
    assert rest.next_cursor is None
    assert first.items[0].result is None
    assert first.items[0].context == {}
    assert first.items[0].input == (Message(Role.USER, "hello"),)


async def test_every_filter_restricts(run_queries: RunQueries, make_run: MakeRun) -> None:
    now = datetime.now(UTC)
    old = str(await make_run("t", "failed", run_metadata={"team": "a", "n": "1"}, created_at=now - timedelta(days=2)))
    new = str(await make_run("u", agent_name="other", parent_run_id=UUID(old), run_metadata={"team": "a"}))
    assert await _ids(run_queries, RunFilters(thread_id="t")) == [old]
    assert await _ids(run_queries, RunFilters(agent="other")) == [new]
    assert await _ids(run_queries, RunFilters(statuses=[RunStatus.FAILED])) == [old]
    assert await _ids(run_queries, RunFilters(statuses=[RunStatus.FAILED, RunStatus.COMPLETED])) == [new, old]
    assert await _ids(run_queries, RunFilters(parent_run_id=UUID(old))) == [new]
    assert await _ids(run_queries, RunFilters(metadata={"team": "a"})) == [new, old]
    assert await _ids(run_queries, RunFilters(metadata={"team": "a", "n": "1"})) == [old]
    assert await _ids(run_queries, RunFilters(metadata={"team": "b"})) == []
    assert await _ids(run_queries, RunFilters(created_after=now - timedelta(days=1))) == [new]
    assert await _ids(run_queries, RunFilters(created_before=now - timedelta(days=1))) == [old]


async def test_a_tenant_sees_its_own_runs(run_queries: RunQueries, make_run: MakeRun) -> None:
    await make_run("t", tenant_id="b")
    assert await _ids(run_queries, RunFilters()) == []


async def test_checkpoints_are_listed_oldest_first_with_their_place_in_the_log(
    run_queries: RunQueries, make_run: MakeRun, database: Database
) -> None:
    run_id = await make_run("t")
    async with database.session() as session:
        for seq in (9, 10):
            session.add(
                Checkpoint(run_id=run_id, seq=seq, step=seq, phase="finish", message_seq=2, state={"tool_calls": 3})
            )
    first = await run_queries.list_checkpoints(str(run_id), None, 2)
    assert [checkpoint.checkpoint_id for checkpoint in first.items] == ["1", "9"]
    rest = await run_queries.list_checkpoints(str(run_id), first.next_cursor, 2)
    assert [checkpoint.checkpoint_id for checkpoint in rest.items] == ["10"]
    assert rest.items[0].state == {"tool_calls": 3}
    with pytest.raises(Invalid):
        await run_queries.list_checkpoints(str(run_id), "x", 2)


async def test_a_checkpoint_comes_with_the_messages_as_of_it(
    run_queries: RunQueries, make_run: MakeRun, threads: ThreadService
) -> None:
    await threads.append_message("t", Message(Role.USER, "before"))
    run_id = await make_run("t")
    await threads.append_message("t", Message(Role.USER, "after"))
    found = await run_queries.get_checkpoint(str(run_id), "1")
    assert found.checkpoint.phase == "call_model"
    assert [record.message.content for record in found.messages] == ["before"]


@pytest.mark.parametrize("checkpoint_id", ["2", "x", "-1", "9" * 30, "", "１"])
async def test_a_run_without_that_checkpoint_says_so(
    run_queries: RunQueries, make_run: MakeRun, checkpoint_id: str
) -> None:
    run_id = await make_run("t")
    with pytest.raises(NotFound):
        await run_queries.get_checkpoint(str(run_id), checkpoint_id)


@pytest.mark.parametrize("run_id", ["x", "019a0000-0000-7000-8000-000000000000"])
async def test_no_run_has_no_checkpoints(run_queries: RunQueries, run_id: str) -> None:
    with pytest.raises(RunNotFound):
        await run_queries.list_checkpoints(run_id, None, 1)
    with pytest.raises(RunNotFound):
        await run_queries.get_checkpoint(run_id, "1")
