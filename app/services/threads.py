"""Threads: conversations that runs read and extend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from uuid_utils.compat import uuid7

from app.db import models
from app.db.conflicts import again_if_undone
from app.db.database import Database
from app.db.deletion import delete_thread
from app.db.queries import idempotency, runs, threads
from app.db.queries.runs import RunFilters
from app.engine.messages import Message
from app.engine.records import IdempotencyKey, RunRecord
from app.engine.store_errors import RunConflict
from app.services.errors import Conflict, Invalid, NotFound
from app.services.pages import Page, page_of, uuid_cursor

MAX_METADATA_KEYS = 32


@dataclass(frozen=True, slots=True)
class ThreadRecord:
    """A thread as callers see it. `active_run_id`: the run that has the thread now, if one does."""

    thread_id: str
    metadata: Mapping[str, str]
    active_run_id: str | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class ThreadSummary:
    """The summary that runs see in the place of a thread's messages up to `upto_seq`. `purged`: these are deleted."""

    upto_seq: int
    summary: str
    purged: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ThreadDetail:
    """A thread, and the summary that stands in it now, if one does."""

    thread: ThreadRecord
    compaction: ThreadSummary | None


@dataclass(frozen=True, slots=True)
class MessageRecord:
    """A message of a thread. `run_id` is None for messages appended by hand.

    `compacted`: runs see a summary in its place.
    """

    seq: int
    message_id: str
    run_id: str | None
    message: Message
    created_at: datetime
    compacted: bool = False


@dataclass(frozen=True, slots=True)
class ThreadMade:
    """`replayed`: the idempotency key was known, and this is what it made then."""

    thread: ThreadRecord
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class MessageAppended:
    """`replayed` as in `ThreadMade`."""

    message: MessageRecord
    replayed: bool = False


class ThreadService:
    """What a caller may do with threads.

    Raises (all methods): `StoreUnavailable` when the database cannot be reached; `IdempotencyMismatch` where
    a key is given that was used with another request.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @again_if_undone
    async def create(
        self,
        thread_id: str | None,
        metadata: Mapping[str, str],
        *,
        idempotency_key: IdempotencyKey | None = None,
        tenant_id: str = "",
    ) -> ThreadMade:
        """Make a thread; without an id it gets a UUIDv7.

        Raises:
            Conflict: there is a thread of that id.
        """
        async with self._database.session() as session:
            made = await _made_before(session, tenant_id, idempotency_key)
            if made is not None:
                return ThreadMade(await _thread(session, tenant_id, made["thread_id"]), replayed=True)
            key = uuid7()
            thread_id = thread_id or str(key)
            if not await threads.add(session, key, tenant_id, thread_id, metadata):
                raise Conflict(f"there is a thread {thread_id!r} already")
            await _remember(session, tenant_id, idempotency_key, {"thread_id": thread_id})
            return ThreadMade(await _thread(session, tenant_id, thread_id))

    async def get(self, thread_id: str, *, tenant_id: str = "") -> ThreadDetail:
        """Raises: NotFound."""
        async with self._database.session() as session:
            thread = await threads.get(session, tenant_id, thread_id)
            if thread is None:
                raise _no_thread(thread_id)
            made = await threads.compaction(session, thread.thread_key)
        summary = None if made is None else ThreadSummary(made.upto_seq, made.summary, made.purged, made.created_at)
        return ThreadDetail(_record(thread), summary)

    async def list(
        self, metadata: Mapping[str, str], cursor: str | None, limit: int, *, tenant_id: str = ""
    ) -> Page[ThreadRecord, str]:
        """Threads that have all of `metadata`, newest first.

        Raises:
            Invalid: the cursor is none of this list's.
        """
        before = uuid_cursor(cursor)
        async with self._database.session() as session:
            found = await threads.page(session, tenant_id, metadata, before, limit + 1)
        page = page_of(found, limit, lambda thread: str(thread.thread_key))
        return Page([_record(thread) for thread in page.items], page.next_cursor)

    @again_if_undone
    async def update(self, thread_id: str, metadata: Mapping[str, str | None], *, tenant_id: str = "") -> ThreadRecord:
        """Merge metadata into the thread's own, as RFC 7396 does: None takes a key away.

        Raises:
            NotFound: there is no such thread.
            Invalid: the thread would have too many keys.
        """
        given = {key: value for key, value in metadata.items() if value is not None}
        removed = [key for key, value in metadata.items() if value is None]
        async with self._database.session() as session:
            thread = await threads.merge_metadata(session, tenant_id, thread_id, given, removed)
            if thread is None:
                raise _no_thread(thread_id)
            if len(thread.thread_metadata) > MAX_METADATA_KEYS:
                raise Invalid(f"a thread has at most {MAX_METADATA_KEYS} metadata keys", ("body", "metadata"))
            return _record(thread)

    @again_if_undone
    async def delete(self, thread_id: str, *, tenant_id: str = "") -> None:
        """Delete a thread with its messages and runs, and the runs below these with threads of their own.

        Raises:
            NotFound: there is no such thread.
            Conflict: one of these runs is not over, or the parent of one may have to take in how it ended;
                `current_status` is the status of that run.
        """
        try:
            async with self._database.transaction() as connection:
                if not await delete_thread(connection, tenant_id, thread_id):
                    raise _no_thread(thread_id)
        except RunConflict as error:
            raise Conflict(str(error), error.current_status) from None

    async def list_messages(
        self, thread_id: str, after: int, limit: int, *, include_compacted: bool = False, tenant_id: str = ""
    ) -> Page[MessageRecord, int]:
        """A thread's messages with a seq greater than `after`, ascending. Raises: NotFound.

        Args:
            include_compacted: also those that a summary stands for.
        """
        async with self._database.session() as session:
            thread = await threads.get(session, tenant_id, thread_id)
            if thread is None:
                raise _no_thread(thread_id)
            upto = await threads.compacted_upto(session, thread.thread_key)
            first = after if include_compacted else max(after, upto)
            found = await threads.messages(session, thread.thread_key, after=first, limit=limit + 1)
        page = page_of(found, limit, lambda message: message.seq)
        return Page([message_record(message, upto) for message in page.items], page.next_cursor)

    @again_if_undone
    async def append_message(
        self,
        thread_id: str,
        message: Message,
        *,
        idempotency_key: IdempotencyKey | None = None,
        tenant_id: str = "",
    ) -> MessageAppended:
        """Append a message by hand; a run that is under way sees it from its next model call.

        A thread that is not there is made.
        """
        async with self._database.session() as session:
            made = await _made_before(session, tenant_id, idempotency_key)
            if made is not None:
                earlier = await threads.message(session, UUID(made["thread_key"]), made["seq"])
                if earlier is None:
                    raise NotFound(f"the message that this key made in thread {thread_id!r} was deleted")
                return MessageAppended(message_record(earlier), replayed=True)
            appended = await threads.append(session, uuid7(), tenant_id, thread_id, message.role.value, message.body())
            place = {"thread_key": str(appended.thread_key), "seq": appended.seq}
            await _remember(session, tenant_id, idempotency_key, place)
            return MessageAppended(message_record(appended))

    async def list_runs(
        self, thread_id: str, cursor: str | None, limit: int, *, tenant_id: str = ""
    ) -> Page[RunRecord, str]:
        """A thread's runs, newest first.

        Raises:
            NotFound: there is no such thread.
            Invalid: the cursor is none of this list's.
        """
        before = uuid_cursor(cursor)
        async with self._database.session() as session:
            if await threads.get(session, tenant_id, thread_id) is None:
                raise _no_thread(thread_id)
            found = await runs.page(session, tenant_id, RunFilters(thread_id=thread_id), before, limit + 1)
        return page_of(found, limit, lambda run: run.run_id)

    @again_if_undone
    async def copy(
        self,
        source_id: str,
        thread_id: str | None,
        upto_seq: int | None,
        *,
        idempotency_key: IdempotencyKey | None = None,
        tenant_id: str = "",
    ) -> ThreadMade:
        """Copy a thread's metadata and its messages, up to and with `upto_seq`, into a new thread.

        Raises:
            NotFound: there is no thread `source_id`.
            Conflict: there is a thread `thread_id` already.
            Invalid: messages that the copy would have were purged, and the summary in their place tells of later ones.
        """
        async with self._database.session() as session:
            made = await _made_before(session, tenant_id, idempotency_key)
            if made is not None:
                return ThreadMade(await _thread(session, tenant_id, made["thread_id"]), replayed=True)
            await _refuse_purged(session, tenant_id, source_id, upto_seq)
            key = uuid7()
            thread_id = thread_id or str(key)
            if not await threads.copy(session, tenant_id, source_id, key, thread_id, upto_seq):
                if await threads.get(session, tenant_id, source_id) is None:
                    raise _no_thread(source_id)
                raise Conflict(f"there is a thread {thread_id!r} already")
            await _remember(session, tenant_id, idempotency_key, {"thread_id": thread_id})
            return ThreadMade(await _thread(session, tenant_id, thread_id))


async def _refuse_purged(session: AsyncSession, tenant_id: str, thread_id: str, upto_seq: int | None) -> None:
    thread = None if upto_seq is None else await threads.get(session, tenant_id, thread_id)
    if thread is None or upto_seq is None:
        return
    purged = await threads.compacted_upto(session, thread.thread_key, purged=True)
    if upto_seq < purged:
        raise Invalid(f"the messages up to {purged} were purged: copy at least those", ("body", "up_to_seq"))


def message_record(row: models.Message, compacted_upto: int = 0) -> MessageRecord:
    return MessageRecord(
        seq=row.seq,
        message_id=f"msg_{row.thread_key.hex}_{row.seq}",
        run_id=None if row.run_id is None else str(row.run_id),
        message=Message.from_body(row.role, row.body),
        created_at=row.created_at,
        compacted=row.seq <= compacted_upto,
    )


async def _made_before(session: AsyncSession, tenant_id: str, key: IdempotencyKey | None) -> dict[str, Any] | None:
    return None if key is None else await idempotency.take(session, tenant_id, key)


async def _remember(
    session: AsyncSession, tenant_id: str, key: IdempotencyKey | None, resource: dict[str, Any]
) -> None:
    if key is not None:
        await idempotency.remember(session, tenant_id, key, resource)


async def _thread(session: AsyncSession, tenant_id: str, thread_id: str) -> ThreadRecord:
    thread = await threads.get(session, tenant_id, thread_id)
    if thread is None:
        raise _no_thread(thread_id)
    return _record(thread)


def _record(thread: models.Thread) -> ThreadRecord:
    holder = thread.holder_run_id
    return ThreadRecord(
        thread_id=thread.thread_id,
        metadata=thread.thread_metadata,
        active_run_id=None if holder is None else str(holder),
        created_at=thread.created_at,
        updated_at=thread.updated_at,
    )


def _no_thread(thread_id: str) -> NotFound:
    return NotFound(f"there is no thread {thread_id!r}")
