"""Reading runs: lists, and the checkpoints of one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.db import models
from app.db.database import Database
from app.db.queries import runs
from app.db.queries.runs import RunFilters
from app.db.rows import run_uuid
from app.engine.records import RunRecord
from app.engine.store_errors import RunNotFound
from app.services.errors import NotFound
from app.services.pages import Page, int_cursor, page_of, uuid_cursor
from app.services.threads import MessageRecord, message_record

__all__ = ["CheckpointDetail", "CheckpointRecord", "RunFilters", "RunQueries"]


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """Where a run stood after a write: its counters as stored, and the last message of its thread by then."""

    checkpoint_id: str
    step: int
    phase: str
    message_seq: int
    state: Mapping[str, Any]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class CheckpointDetail:
    """A checkpoint with the messages that its run had then; its own are among them though they were voided since."""

    checkpoint: CheckpointRecord
    messages: tuple[MessageRecord, ...]


class RunQueries:
    """Reads that no run waits for.

    Raises (all methods): `StoreUnavailable` when the database cannot be reached.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list(
        self, filters: RunFilters, cursor: str | None, limit: int, *, tenant_id: str = ""
    ) -> Page[RunRecord, str]:
        """Runs, newest first; results, contexts and tool executions are not loaded.

        Raises:
            Invalid: the cursor is none of this list's.
        """
        before = uuid_cursor(cursor)
        async with self._database.session() as session:
            found = await runs.page(session, tenant_id, filters, before, limit + 1)
        return page_of(found, limit, lambda run: run.run_id)

    async def list_checkpoints(
        self, run_id: str, cursor: str | None, limit: int, *, tenant_id: str = ""
    ) -> Page[CheckpointRecord, str]:
        """A run's checkpoints, oldest first.

        Raises:
            RunNotFound: there is no such run.
            Invalid: the cursor is none of this list's.
        """
        after = int_cursor(cursor) or 0
        key = run_uuid(run_id)
        async with self._database.session() as session:
            if await runs.thread_key_of(session, tenant_id, key) is None:
                raise RunNotFound(run_id)
            found = await runs.checkpoints(session, key, after, limit + 1)
        return page_of([_record(row) for row in found], limit, lambda checkpoint: checkpoint.checkpoint_id)

    async def get_checkpoint(self, run_id: str, checkpoint_id: str, *, tenant_id: str = "") -> CheckpointDetail:
        """One checkpoint, with the messages as of it: those that a fork from there takes.

        Raises:
            RunNotFound: there is no such run.
            NotFound: it has no such checkpoint.
        """
        key = run_uuid(run_id)
        async with self._database.session() as session:
            thread_key = await runs.thread_key_of(session, tenant_id, key)
            if thread_key is None:
                raise RunNotFound(run_id)
            seq = checkpoint_seq(checkpoint_id)
            row = None if seq is None else await runs.checkpoint(session, key, seq)
            if row is None:
                raise no_checkpoint(run_id, checkpoint_id)
            messages = await runs.messages_as_of(session, thread_key, row)
        return CheckpointDetail(_record(row), tuple(message_record(message) for message in messages))


def checkpoint_seq(checkpoint_id: str) -> int | None:
    """The id as the database holds it; None if no checkpoint has that id."""
    looks_right = checkpoint_id.isascii() and checkpoint_id.isdigit() and len(checkpoint_id) <= 18
    return int(checkpoint_id) if looks_right else None


def no_checkpoint(run_id: str, checkpoint_id: str) -> NotFound:
    return NotFound(f"the run {run_id} has no checkpoint {checkpoint_id!r}")


def _record(row: models.Checkpoint) -> CheckpointRecord:
    return CheckpointRecord(
        checkpoint_id=str(row.seq),
        step=row.step,
        phase=row.phase,
        message_seq=row.message_seq,
        state=row.state,
        created_at=row.created_at,
    )
