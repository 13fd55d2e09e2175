"""`ThreadStore` on Postgres."""

from __future__ import annotations

from app.db.database import Connection, Database
from app.db.reading import conversation
from app.engine.compaction import NewCompaction
from app.engine.records import ThreadView
from app.engine.store_errors import CompactedMeanwhile, ThreadBusy, ThreadNotFound

_THREAD = """
SELECT thread_key, holder_run_id,
       (SELECT requested_model FROM runs r WHERE r.thread_key = t.thread_key ORDER BY ordinal DESC NULLS LAST LIMIT 1)
       AS model
FROM threads t WHERE tenant_id = $1 AND thread_id = $2"""

_KEEP = """
INSERT INTO compactions (thread_key, upto_seq, summary)
SELECT $1::uuid, $2, $3 WHERE NOT EXISTS (SELECT 1 FROM compactions WHERE thread_key = $1::uuid AND upto_seq >= $2)"""


class PostgresThreads:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def thread(self, tenant_id: str, thread_id: str) -> ThreadView | None:
        """See `ThreadStore.thread`."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(_THREAD, tenant_id, thread_id)
            if row is None:
                return None
            holder, key = row["holder_run_id"], str(row["thread_key"])
            messages = await conversation(connection, key)
        return ThreadView(key, None if holder is None else str(holder), tuple(messages), row["model"])

    async def compact(self, thread_key: str, compaction: NewCompaction | None, *, purge_upto: int | None) -> None:
        """See `ThreadStore.compact`."""
        async with self._database.transaction() as connection:
            await _lock(connection, thread_key)
            if compaction is not None:
                done = await connection.execute(_KEEP, thread_key, compaction.upto_seq, compaction.summary)
                if done == "INSERT 0 0":
                    raise CompactedMeanwhile("the thread was compacted meanwhile")
            if purge_upto is not None:
                await _purge(connection, thread_key, purge_upto)


async def _lock(connection: Connection, thread_key: str) -> None:
    """Keep runs from taking the thread, and others from deleting it. Raises: ThreadNotFound, ThreadBusy."""
    row = await connection.fetchrow(
        "SELECT holder_run_id AS holder FROM threads WHERE thread_key = $1::uuid FOR NO KEY UPDATE", thread_key
    )
    if row is None:
        raise ThreadNotFound("the thread was deleted meanwhile")
    if row["holder"] is not None:
        raise ThreadBusy(f"run {row['holder']} has the thread")


async def _purge(connection: Connection, thread_key: str, upto_seq: int) -> None:
    await connection.execute("DELETE FROM messages WHERE thread_key = $1::uuid AND seq <= $2", thread_key, upto_seq)
    await connection.execute(
        "UPDATE compactions SET purged = true WHERE thread_key = $1::uuid AND upto_seq = $2", thread_key, upto_seq
    )
