"""Threads and their messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import CTE, Insert, Select, Text, exists, func, insert, literal, select, text, true, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import UUID as PgUuid
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from app.db.models import Compaction, Message, Thread


async def add(
    session: AsyncSession, thread_key: UUID, tenant_id: str, thread_id: str, metadata: Mapping[str, str]
) -> bool:
    """Make a thread; False if there is one of that id."""
    values = {"thread_key": thread_key, "tenant_id": tenant_id, "thread_id": thread_id}
    added = await session.execute(
        upsert(Thread)
        # One moment for both: the columns' own defaults would be taken one after the other.
        .values(thread_metadata=dict(metadata), created_at=func.now(), updated_at=func.now(), **values)
        .on_conflict_do_nothing(index_elements=[Thread.tenant_id, Thread.thread_id])
        .returning(Thread.thread_key)
    )
    return added.first() is not None


async def get(session: AsyncSession, tenant_id: str, thread_id: str) -> Thread | None:
    return await session.scalar(_named(tenant_id, thread_id))


async def page(
    session: AsyncSession, tenant_id: str, metadata: Mapping[str, str], before: UUID | None, limit: int
) -> Sequence[Thread]:
    """Threads that have all of `metadata`, newest first, from before a key."""
    query = select(Thread).where(Thread.tenant_id == tenant_id)
    if metadata:
        # The second condition is that of the partial index, in its own words, so that the planner can use it.
        query = query.where(Thread.thread_metadata.contains(dict(metadata)), text("threads.metadata <> '{}'"))
    if before is not None:
        query = query.where(Thread.thread_key < before)
    return (await session.scalars(query.order_by(Thread.thread_key.desc()).limit(limit))).all()


async def merge_metadata(
    session: AsyncSession, tenant_id: str, thread_id: str, given: Mapping[str, str], removed: Sequence[str]
) -> Thread | None:
    """Set the given keys and take the removed ones away; the thread as it is then."""
    merged = Thread.thread_metadata.op("||")(literal(dict(given), JSONB)).op("-")(literal(list(removed), ARRAY(Text)))
    return await session.scalar(
        update(Thread)
        .where(Thread.tenant_id == tenant_id, Thread.thread_id == thread_id)
        .values(thread_metadata=merged, updated_at=func.clock_timestamp())
        .returning(Thread)
    )


async def append(
    session: AsyncSession,
    thread_key: UUID,
    tenant_id: str,
    thread_id: str,
    role: str,
    body: Mapping[str, Any],
) -> Message:
    """Append a message, numbered by the thread's row; makes the thread, under `thread_key`, if there is none.

    One statement: whoever else appends waits for the row, so numbers are given in the order of the commits.
    """
    numbering = upsert(Thread).values(thread_key=thread_key, tenant_id=tenant_id, thread_id=thread_id, next_seq=2)
    numbered = (
        numbering.on_conflict_do_update(
            index_elements=[Thread.tenant_id, Thread.thread_id],
            set_={"next_seq": Thread.next_seq + 1, "updated_at": func.clock_timestamp()},
        )
        .returning(Thread.thread_key, (Thread.next_seq - 1).label("seq"))
        .cte("numbered")
    )
    appended = await session.execute(
        insert(Message)
        .from_select(
            ["thread_key", "seq", "role", "body"],
            select(
                numbered.c.thread_key,
                numbered.c.seq,
                literal(role),
                literal(dict(body), Message.__table__.c.body.type),
            ),
        )
        .returning(Message)
    )
    return appended.scalar_one()


async def message(session: AsyncSession, thread_key: UUID, seq: int) -> Message | None:
    return await session.get(Message, (thread_key, seq))


async def messages(
    session: AsyncSession,
    thread_key: UUID,
    *,
    after: int = 0,
    upto: int | None = None,
    limit: int | None = None,
) -> Sequence[Message]:
    """Messages with a seq greater than `after` and not above `upto`, ascending; voided ones left out."""
    query = select(Message).where(Message.thread_key == thread_key, Message.seq > after, ~Message.voided)
    if upto is not None:
        query = query.where(Message.seq <= upto)
    return (await session.scalars(query.order_by(Message.seq).limit(limit))).all()


async def compacted_upto(session: AsyncSession, thread_key: UUID, *, purged: bool = False) -> int:
    """The last message that a summary stands for, or that was purged for one; 0 for none."""
    query = select(func.max(Compaction.upto_seq)).where(Compaction.thread_key == thread_key)
    return await session.scalar(query.where(Compaction.purged) if purged else query) or 0


async def compaction(session: AsyncSession, thread_key: UUID) -> Compaction | None:
    """The summary that stands in a thread now."""
    made = select(Compaction).where(Compaction.thread_key == thread_key)
    return await session.scalar(made.order_by(Compaction.upto_seq.desc()).limit(1))


async def copy(
    session: AsyncSession, tenant_id: str, source_id: str, key: UUID, thread_id: str, upto: int | None
) -> bool:
    """Copy a thread's row, messages (up to a seq, voided ones left out) and summaries under a new key and id.

    One statement, so that both are read from the same snapshot: messages appended meanwhile are all in or all
    out, and the copy's counter is beyond every message that it has.

    Returns:
        False if nothing was copied: there is no such thread, or the new id is taken.
    """
    next_seq = Thread.next_seq if upto is None else func.least(Thread.next_seq, upto + 1)
    row = select(
        literal(key, PgUuid(as_uuid=True)),
        Thread.tenant_id,
        literal(thread_id),
        next_seq,
        Thread.thread_metadata,
    ).where(Thread.tenant_id == tenant_id, Thread.thread_id == source_id)
    copied = (
        upsert(Thread)
        .from_select(["thread_key", "tenant_id", "thread_id", "next_seq", "metadata"], row)
        .on_conflict_do_nothing(index_elements=[Thread.tenant_id, Thread.thread_id])
        .returning(Thread.thread_key)
        .cte("copied")
    )
    columns = [Message.seq, Message.run_id, Message.role, Message.body, Message.created_at]
    source = select(Thread.thread_key).where(Thread.tenant_id == tenant_id, Thread.thread_id == source_id)
    kept = (
        select(copied.c.thread_key, *columns)
        .select_from(Message)
        .join(copied, true())
        .where(Message.thread_key == source.scalar_subquery(), ~Message.voided)
    )
    if upto is not None:
        kept = kept.where(Message.seq <= upto)
    pasted = insert(Message).from_select(["thread_key", *(column.key for column in columns)], kept)
    summaries = _summaries(copied, source, upto)
    done = await session.execute(select(exists(select(copied))).add_cte(pasted.cte("pasted"), summaries.cte("summed")))
    return done.scalar_one()


def _summaries(copied: CTE, source: Select[UUID], upto: int | None) -> Insert:
    """The copy of those summaries that stand for messages of the copy alone."""
    columns = [Compaction.upto_seq, Compaction.run_id, Compaction.summary, Compaction.purged, Compaction.created_at]
    kept = (
        select(copied.c.thread_key, *columns)
        .select_from(Compaction)
        .join(copied, true())
        .where(Compaction.thread_key == source.scalar_subquery())
    )
    if upto is not None:
        kept = kept.where(Compaction.upto_seq <= upto)
    return insert(Compaction).from_select(["thread_key", *(column.key for column in columns)], kept)


def _named(tenant_id: str, thread_id: str) -> Select[Thread]:
    return select(Thread).where(Thread.tenant_id == tenant_id, Thread.thread_id == thread_id)
