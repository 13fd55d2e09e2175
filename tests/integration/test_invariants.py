"""The invariants of `app.db.invariants`: a healthy database breaks none, and each finds what it is there to find.

None may stand without a proof here that it can fail.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, TypeAlias

import asyncpg
import pytest

from app.db.invariants import INVARIANTS, check_all, check_here
from app.db.invariants import calls as call
from app.db.invariants import families as family
from app.db.invariants import logs as log
from app.db.invariants import statuses as status
from app.db.invariants import threads as thread
from app.db.invariants.invariant import Invariant
from app.engine.status import RunStatus
from tests.integration.varied_runs import execute, varied_database
from tests.invariants import check_invariants

Database: TypeAlias = "asyncpg.Connection[Any]"


@pytest.fixture(scope="module")
def varied_url(postgres_server: str) -> Iterator[str]:
    """A database with runs of every kind; no test leaves a change there."""
    with varied_database(postgres_server, f"varied_{os.getpid()}") as url:
        yield url


@pytest.fixture
async def varied(varied_url: str) -> AsyncIterator[Database]:
    connection = await asyncpg.connect(varied_url)
    yield connection
    await connection.close()


@pytest.fixture
async def undone(varied: Database) -> AsyncIterator[Database]:
    """The same inside a transaction that is undone after the test."""
    transaction = varied.transaction()
    await transaction.start()
    yield varied
    await transaction.rollback()


def run_of(thread_id: str, place: int = 0) -> str:
    """A run of a thread, the first one by default, in SQL."""
    return f"(SELECT run_id FROM runs WHERE thread_id = '{thread_id}' ORDER BY run_id LIMIT 1 OFFSET {place})"


def set_run(thread_id: str, assignments: str) -> str:
    return f"UPDATE runs SET {assignments} WHERE run_id = {run_of(thread_id)}"


def child_of(thread_id: str) -> str:
    return f"(SELECT run_id FROM runs WHERE parent_run_id = {run_of(thread_id)} ORDER BY run_id LIMIT 1)"


def retype(thread_id: str, kind: str, to: str) -> str:
    """Make another of the first event of a type."""
    first = f"SELECT min(seq) FROM run_events WHERE run_id = {run_of(thread_id)} AND type = '{kind}'"
    return f"UPDATE run_events SET type = '{to}' WHERE run_id = {run_of(thread_id)} AND seq = ({first})"


def append(thread_id: str, kind: str) -> str:
    """Write one more event, as nobody should."""
    return f"""
        WITH grown AS ({set_run(thread_id, "last_seq = last_seq + 1")} RETURNING run_id, last_seq)
        INSERT INTO run_events (run_id, seq, type, created_at, body)
        SELECT run_id, last_seq, '{kind}', clock_timestamp(), '{{}}' FROM grown"""


def set_calls(thread_id: str, assignments: str, condition: str = "true", place: int = 0) -> str:
    return f"UPDATE tool_executions SET {assignments} WHERE run_id = {run_of(thread_id, place)} AND {condition}"


def results(thread_id: str, places: str = "true") -> str:
    """The tool messages of a thread, or those at these places in it."""
    key = f"(SELECT thread_key FROM threads WHERE thread_id = '{thread_id}')"
    return f"thread_key = {key} AND role = 'tool' AND {places}"


def summary_of(thread_id: str, upto_seq: str, *, purged: bool = False) -> str:
    return f"""INSERT INTO compactions (thread_key, upto_seq, summary, purged)
        SELECT thread_key, {upto_seq}, 'They spoke.', {purged} FROM threads WHERE thread_id = '{thread_id}'"""


BREAKS: list[tuple[Invariant, str]] = [
    (status.OVER, set_run("whole", "result = NULL")),
    (status.OVER, set_run("asking", "finished_at = clock_timestamp()")),
    (status.EXPLAINED, set_run("whole", """error = '{"code": "none"}'""")),
    (status.EXPLAINED, set_run("broken", "error = NULL")),
    (status.OWNED, set_run("asking", "owner = gen_random_uuid()")),
    (status.OWNED, set_run("line", "started_at = NULL")),
    (status.HOLDING, set_run("asking", "holds_thread = false")),
    (status.QUEUED, "UPDATE threads SET holder_run_id = NULL WHERE thread_id = 'line'"),
    (status.QUEUED, set_run("scheduled", "available_at = 'infinity'")),
    (status.WAITING, f"DELETE FROM interactions WHERE run_id = {run_of('asking')}"),
    (status.WAITING, set_calls("locating", "expires_at = NULL")),
    (status.WAITING, set_run("asking", "waiting_for = '[]'")),
    (status.TAKEN_IN, set_calls("locating", """posted = '{"output": 1, "error": null}'""")),
    (status.TAKEN_IN, f"UPDATE runs SET status = 'completed' WHERE run_id = {child_of('delegating')}"),
    (status.CLOSED_QUESTIONS, "UPDATE interactions SET status = 'pending' WHERE status = 'closed'"),
    (status.DECIDED, f"UPDATE interactions SET answer = NULL WHERE run_id = {run_of('asked')}"),
    (status.DECIDED, "UPDATE interactions SET resolved_at = clock_timestamp() WHERE status = 'pending'"),
    (status.COUNTED, set_run("whole", "output_tokens = -1")),
    (status.COUNTED, set_run("whole", "cost_usd = -0.01")),
    (status.COUNTED, set_run("whole", "epoch = attempt - 1")),
    (status.COUNTS_TOLD, set_run("odd", "input_tokens = input_tokens + 1")),
    (status.PLACED, f"DELETE FROM checkpoints WHERE run_id = {run_of('asking')} AND phase = 'await'"),
    (status.PLACED, f"DELETE FROM checkpoints WHERE run_id = {run_of('whole')}"),
    (status.PLACED, f"UPDATE checkpoints SET message_seq = 99 WHERE run_id = {run_of('whole')}"),
    (status.PLACED, f"UPDATE checkpoints SET seq = seq + 999 WHERE run_id = {run_of('whole')}"),
    (status.PINNED, set_run("whole", "agent_version_id = gen_random_uuid()")),
    (thread.HOLDER, f"UPDATE threads SET holder_run_id = {run_of('whole')} WHERE thread_id = 'whole'"),
    (thread.HOLDER, "UPDATE threads SET holder_run_id = gen_random_uuid() WHERE thread_id = 'by-hand'"),
    (thread.ONE_HOLDER, "UPDATE threads SET holder_run_id = NULL WHERE thread_id = 'asking'"),
    (thread.LINE, "UPDATE threads SET queued = queued + 1 WHERE thread_id = 'line'"),
    (thread.NUMBERS, "UPDATE threads SET next_seq = next_seq - 1 WHERE thread_id = 'whole'"),
    (thread.SUMMARIES, summary_of("whole", "next_seq")),
    (thread.SUMMARIES, summary_of("whole", "next_seq - 1", purged=True)),
    (thread.NUMBERS, "UPDATE threads SET next_ordinal = 1 WHERE thread_id = 'whole'"),
    (thread.ORDER, "UPDATE runs SET ordinal = 1 WHERE thread_id = 'line'"),
    (thread.ON_A_THREAD, set_run("whole", "thread_id = 'elsewhere'")),
    (thread.ON_A_THREAD, set_run("whole", "tenant_id = 'elsewhere'")),
    (thread.LEFT_OF_RUNS, f"DELETE FROM runs WHERE run_id = {run_of('whole')}"),
    (thread.LEFT_OF_THREADS, "DELETE FROM threads WHERE thread_id = 'by-hand'"),
    (
        thread.LEFT_OF_THREADS,
        "INSERT INTO compactions (thread_key, upto_seq, summary) VALUES (gen_random_uuid(), 1, 'Left.')",
    ),
    (log.NUMBERED, f"DELETE FROM run_events WHERE run_id = {run_of('whole')} AND seq = 3"),
    (log.NUMBERED, f"DELETE FROM run_events WHERE run_id = {run_of('whole')} AND seq = 1"),
    (log.NUMBERED, set_run("whole", "last_seq = last_seq + 1")),
    (log.NUMBERED, set_run("trimmed", "last_seq = last_seq + 1")),
    (log.NUMBERED, set_run("cut", "first_seq = first_seq - 1")),
    (log.NUMBERED, f"UPDATE run_events SET seq = 0 WHERE run_id = {run_of('trimmed')} AND seq = 1"),
    (log.TRIMMED, f"DELETE FROM run_events WHERE run_id = {run_of('trimmed')} AND type = 'step_started'"),
    (log.ATTEMPTS, retype("whole", "tool_started", "run_started")),
    (log.ATTEMPTS, retype("whole", "run_started", "step_started")),
    (log.ATTEMPTS, append("whole", "run_resumed")),
    (log.ATTEMPTS, append("whole", "run_cancelled")),
    (log.ATTEMPTS, append("cancelled", "run_resumed")),
    (log.ATTEMPTS, append("asking", "tool_started")),
    (log.ATTEMPTS, append("asking", "run_completed")),
    (log.ATTEMPTS, append("paused", "run_completed")),
    (log.ATTEMPTS, append("broken", "text_delta")),
    (log.ATTEMPTS, retype("interrupted", "run_resumed", "step_started")),
    (log.ANSWERED_AFTER_END, append("whole", "interaction_resolved")),
    (log.BEGUN_ONCE, set_run("crashed", "attempt = attempt - 1")),
    (log.BEGUN_ONCE, "UPDATE run_events SET body = '{}' WHERE type = 'run_resumed'"),
    (log.AGREES, set_run("whole", "status = 'degraded'")),
    (log.AGREES, set_run("whole", "status = 'queued'")),
    (log.AGREES, set_run("paused", "status = 'waiting'")),
    (log.AGREES, append("asking", "interaction_resolved")),
    (log.AGREES, f"DELETE FROM run_events WHERE run_id = {run_of('broken')}"),
    (log.RESULTS_TOLD, retype("whole", "tool_completed", "tool_progress")),
    (log.RESULTS_TOLD, retype("odd", "tool_completed", "tool_progress")),
    (log.RESULTS_TOLD, set_calls("whole", "outcome = NULL", "call_index = 1")),
    (log.QUESTIONS_TOLD, retype("asking", "interaction_requested", "tool_progress")),
    (log.QUESTIONS_TOLD, retype("asked", "interaction_resolved", "tool_progress")),
    (call.ASKED, set_calls("whole", "tool_call_id = 'another'", "step = 1 AND call_index = 0")),
    (call.ASKED, set_calls("odd", "tool_call_id = 'another'")),
    # Of this thread a purge has removed the first run, the second one's first step, and no more.
    (call.ASKED, set_calls("purged", "tool_call_id = 'another'", "step = 2", place=1)),
    (call.ASKED, set_calls("purged", "tool_call_id = 'another'", "step = 1", place=2)),
    (call.NAMED_ONCE, set_calls("whole", "tool_call_id = 'call_1_1'")),
    (call.ENDED, set_calls("whole", "finished_at = NULL")),
    (call.ENDED, set_calls("whole", "hold = '{}'")),
    (call.ALL_ANSWERED, set_calls("whole", "outcome = NULL")),
    (call.TRANSCRIPT, f"DELETE FROM messages WHERE {results('whole', 'seq = 3')}"),
    (call.TRANSCRIPT, f"DELETE FROM messages WHERE {results('whole', 'seq IN (3, 4)')}"),
    (call.TRANSCRIPT, f"DELETE FROM messages WHERE {results('odd')}"),
    (call.TRANSCRIPT, f"UPDATE messages SET seq = 99 WHERE {results('whole', 'seq = 3')}"),
    (call.TRANSCRIPT, f"UPDATE messages SET seq = 0 WHERE {results('whole', 'seq = 3')}"),
    (
        call.TRANSCRIPT,  # the results of one response's calls, exchanged
        f"""UPDATE messages m SET body = o.body FROM messages o WHERE o.thread_key = m.thread_key AND o.seq = 7 - m.seq
            AND (m.thread_key, m.seq) IN (
                SELECT thread_key, seq FROM messages WHERE {results("whole", "seq IN (3, 4)")})""",
    ),
    (family.PARENT, f"UPDATE runs SET parent_run_id = gen_random_uuid() WHERE run_id = {child_of('family')}"),
    (family.PARENT, set_run("whole", "root_run_id = gen_random_uuid()")),
    (family.LINEAGE, f"UPDATE runs SET agent_depth = 2 WHERE run_id = {child_of('family')}"),
    (family.LINEAGE, f"UPDATE runs SET agent_path = 'another' WHERE run_id = {child_of('family')}"),
    (family.OUTLIVED, set_run("delegating", "status = 'failed'")),
    (family.DELEGATED, f"DELETE FROM runs WHERE run_id = {child_of('delegating')}"),
    (family.MADE_ONCE, set_calls("family", "child_run_id = NULL")),
    (family.MADE_ONCE, set_calls("family", f"child_run_id = {child_of('family')}")),
    (family.TOLD, retype("family", "subagent_started", "tool_progress")),
    (family.TOLD, retype("family", "subagent_started", "subagent_completed")),
]


async def test_a_database_after_runs_of_every_kind_breaks_no_invariant(varied: Database) -> None:
    statuses = await varied.fetch("SELECT DISTINCT status FROM runs")
    assert {row["status"] for row in statuses} == set(RunStatus)
    await check_invariants(varied)


@pytest.mark.parametrize(("invariant", "statement"), BREAKS, ids=[each[0].promise for each in BREAKS])
async def test_what_breaks_an_invariant_is_found_and_named(
    undone: Database, invariant: Invariant, statement: str
) -> None:
    done = await undone.execute(statement)
    assert not done.endswith(" 0"), "nothing was broken"
    assert invariant in [each.invariant for each in (await check_here(undone)).broken]


def test_every_invariant_is_known_to_fail() -> None:
    assert {invariant.promise for invariant, _ in BREAKS} == {invariant.promise for invariant in INVARIANTS}


async def test_all_that_is_broken_is_told_at_once(database_url: str) -> None:
    await execute(
        database_url,
        """INSERT INTO threads (thread_key, thread_id, holder_run_id, queued)
           VALUES (gen_random_uuid(), 'broken twice', gen_random_uuid(), 7)""",
    )
    connection = await asyncpg.connect(database_url)
    with pytest.raises(AssertionError) as told:
        await check_invariants(connection)
    await connection.close()
    assert [line.partition(": ")[0] for line in str(told.value).splitlines()] == [
        thread.HOLDER.promise,
        thread.LINE.promise,
    ]


async def test_a_check_is_bounded_and_says_what_it_did_not_look_at(undone: Database) -> None:
    await undone.execute("UPDATE runs SET cost_usd = -1")
    checked = await check_here(undone, most_runs=3, most_rows=2)
    (counted,) = [each for each in checked.broken if each.invariant is status.COUNTED]
    assert (len(counted.rows), counted.more, checked.all_runs) == (2, True, False)
    assert {"run_id", "cost_usd"} <= set(counted.rows[0])
    assert len((await check_here(undone, within_s=0)).unfinished) == len(INVARIANTS)
    checked = await check_here(undone)
    assert (checked.all_runs, checked.unfinished) == (True, ())


async def test_what_cannot_be_asked_for_in_time_is_unfinished_and_the_rest_is_checked(
    varied: Database, varied_url: str
) -> None:
    """A lock stands for a query that takes too long. Seen to fail without the savepoint, and with all time for one."""
    other = await asyncpg.connect(varied_url)
    try:
        async with other.transaction():
            await other.execute("LOCK TABLE agent_versions IN ACCESS EXCLUSIVE MODE")
            checked = await check_all(varied, within_s=12)
    finally:
        await other.close()
    assert (checked.unfinished, checked.broken) == ((status.PINNED,), ())


async def test_a_check_writes_nothing_and_leaves_the_session_as_it_was(varied: Database) -> None:
    """Seen to fail without the transaction's `readonly`, and with SET in place of SET LOCAL."""
    before = await varied.fetchval("SHOW statement_timeout")
    seen: list[str] = []
    varied.add_query_logger(lambda query: seen.append(query.query))
    await check_all(varied)
    assert seen[0] == "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;"
    assert await varied.fetchval("SHOW statement_timeout") == before
