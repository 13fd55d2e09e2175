"""Threads: one holder, a line behind it, numbers that only grow, and rows that are gone with what they belonged to."""

from __future__ import annotations

from collections.abc import Sequence

from app.db.invariants.invariant import TERMINAL, Invariant, Over

HOLDER = Invariant(
    "a thread and its holder know of each other, and the holder is not over",
    "no other run of this thread will ever begin",
    f"""
    SELECT t.thread_key, t.holder_run_id AS holder, r.status, r.holds_thread FROM threads t
    LEFT JOIN runs r ON r.run_id = t.holder_run_id
    WHERE t.thread_key = ANY ($1) AND t.holder_run_id IS NOT NULL
      AND (r.holds_thread IS NOT TRUE OR r.thread_key <> t.thread_key OR r.status IN {TERMINAL})""",
    Over.THREADS,
)

ONE_HOLDER = Invariant(
    "a run that holds its thread is its holder",
    "two runs may be at work on one thread",
    """
    SELECT r.run_id, r.thread_id, t.holder_run_id AS holder FROM runs r LEFT JOIN threads t USING (thread_key)
    WHERE r.run_id = ANY ($1) AND r.holds_thread AND t.holder_run_id IS DISTINCT FROM r.run_id""",
)

LINE = Invariant(
    "a thread counts the runs in its line",
    "a run in this line is passed over when the thread becomes free",
    """
    SELECT t.thread_key, t.queued, count(r.run_id) AS in_line FROM threads t LEFT JOIN runs r
        ON r.thread_key = t.thread_key AND r.status = 'queued' AND NOT r.holds_thread AND r.ordinal IS NOT NULL
    WHERE t.thread_key = ANY ($1) GROUP BY t.thread_key HAVING t.queued <> count(r.run_id)""",
    Over.THREADS,
)

NUMBERS = Invariant(
    "a thread's counters are beyond all that they have numbered",
    "the next message or run of this thread will be refused",
    """
    SELECT t.thread_key, t.next_seq, m.seq, t.next_ordinal, r.ordinal FROM threads t
    LEFT JOIN LATERAL (SELECT max(seq) AS seq FROM messages WHERE thread_key = t.thread_key) AS m ON true
    LEFT JOIN LATERAL (SELECT max(ordinal) AS ordinal FROM runs WHERE thread_key = t.thread_key) AS r ON true
    WHERE t.thread_key = ANY ($1) AND (m.seq >= t.next_seq OR r.ordinal >= t.next_ordinal)""",
    Over.THREADS,
)

ORDER = Invariant(
    "no two runs have one place in a thread's line",
    "the order of these runs is left to chance",
    """
    SELECT thread_key, ordinal, count(*) AS runs FROM runs WHERE thread_key = ANY ($1) AND ordinal IS NOT NULL
    GROUP BY thread_key, ordinal HAVING count(*) > 1""",
    Over.THREADS,
)

ON_A_THREAD = Invariant(
    "a run is on a thread that is there, under its id",
    "this run cannot be executed, nor its thread be read",
    """
    SELECT r.run_id, r.thread_id, t.thread_id AS found FROM runs r LEFT JOIN threads t USING (thread_key)
    WHERE r.run_id = ANY ($1) AND (t.thread_id, t.tenant_id) IS DISTINCT FROM (r.thread_id, r.tenant_id)""",
)


def _newest_ids(table: str, key: str) -> str:
    """The newest ids of a table, found by jumping from one to the next: its rows are not read."""
    return f"""
    {table}_ids AS (
        (SELECT '{table}' AS kept, {key}, 1 AS n FROM {table} ORDER BY {key} DESC LIMIT 1)
        UNION ALL
        SELECT kept, (SELECT {key} FROM {table} WHERE {key} < i.{key} ORDER BY {key} DESC LIMIT 1), n + 1
        FROM {table}_ids i WHERE i.{key} IS NOT NULL AND n < $1)"""


def _left_over(tables: Sequence[str], key: str, owners: str) -> str:
    """The newest ids in these tables that their owners' table does not have."""
    return f"""
    WITH RECURSIVE {", ".join(_newest_ids(table, key) for table in tables)}
    SELECT {key}, kept FROM ({" UNION ALL ".join(f"SELECT kept, {key} FROM {table}_ids" for table in tables)}) AS ids
    WHERE {key} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {owners} o WHERE o.{key} = ids.{key})"""


LEFT_OF_RUNS = Invariant(
    "with a run, all that belongs to it is gone",
    "rows of a deleted run are left, and nobody will ever remove them",
    _left_over(("run_events", "checkpoints", "tool_executions", "interactions"), "run_id", "runs"),
    Over.LEFTOVERS,
)

LEFT_OF_THREADS = Invariant(
    "with a thread, its messages and summaries are gone",
    "rows of a deleted thread are left, and nobody will ever remove them",
    _left_over(("messages", "compactions"), "thread_key", "threads"),
    Over.LEFTOVERS,
)

SUMMARIES = Invariant(
    "a summary stands for messages that its thread has, or that were purged for it",
    "runs of this thread see a summary in place of messages that it does not tell of",
    """
    SELECT c.thread_key, c.upto_seq, c.purged, t.next_seq, m.seq AS first_left FROM compactions c
    LEFT JOIN threads t USING (thread_key)
    LEFT JOIN LATERAL (SELECT min(seq) AS seq FROM messages m WHERE m.thread_key = c.thread_key) AS m ON c.purged
    WHERE c.thread_key = ANY ($1) AND (t.next_seq IS NULL OR c.upto_seq >= t.next_seq OR m.seq <= c.upto_seq)""",
    Over.THREADS,
)

THREADS = (HOLDER, ONE_HOLDER, LINE, NUMBERS, ORDER, ON_A_THREAD, LEFT_OF_RUNS, LEFT_OF_THREADS, SUMMARIES)
