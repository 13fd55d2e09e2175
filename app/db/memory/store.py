"""MemoryStore: `RunStore` over plain objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import assert_never

from app.db.memory import steering
from app.db.memory.rows import RunRow, ThreadRow
from app.db.memory.tables import KeyRow, Tables
from app.engine.agent import AgentVersion
from app.engine.errors import RunError
from app.engine.events import Event, ResumeReason, StoredEvent
from app.engine.limits import Limits, RunLimits
from app.engine.messages import ThreadMessage
from app.engine.records import (
    Claim,
    Committed,
    Created,
    DeltaOutcome,
    DeltaWrite,
    Fence,
    Loaded,
    NewRun,
    OnBusyThread,
    Opening,
    RunRecord,
    Stopped,
    Write,
)
from app.engine.status import RunStatus
from app.engine.store_errors import AgentChanged, IdempotencyMismatch, ThreadBusy

_KEY_LIFETIME = timedelta(hours=24)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class MemoryStore:
    """Runs in this process's memory; gone when it ends.

    Args:
        clock: the time that events and rows are stamped with, in UTC.
        limits: the service's limits, for what an agent leaves open; a resume is checked against them.
    """

    def __init__(self, clock: Callable[[], datetime] = _utc_now, limits: RunLimits | None = None) -> None:
        self._tables = Tables(clock, limits or RunLimits())

    def put_agent_version(self, version: AgentVersion, tenant_id: str = "") -> None:
        """Make `version` the current one of its agent. Runs keep the version that they were created with."""
        self._tables.current_versions[tenant_id, version.definition.name] = version

    def promote_due(self, now: datetime) -> list[str]:
        """Let runs whose `start_after` has come join their threads' lines; the ids of those that joined."""
        waiting = [row for row in self._tables.active.values() if row.ordinal is None]
        due = [row for row in waiting if row.status is RunStatus.QUEUED and row.available_at <= now]
        due.sort(key=lambda row: (row.available_at, row.run_id))
        for row in due:
            self._tables.join_line(row, now)
        return [row.run_id for row in due]

    # --- creating -------------------------------------------------------------------------------------------

    async def create(self, new: NewRun, *, owner: str | None) -> Created:
        earlier = self._created_before(new, owner)
        if earlier is not None:
            return earlier
        tables = self._tables
        if new.agent_check is not None:
            current = tables.current_versions.get((new.tenant_id, new.agent_check))
            if current is None or current.version_id != new.agent.version_id:
                raise AgentChanged(f"the agent {new.agent_check} has changed")
        now = tables.clock()
        thread = tables.thread_of(new.tenant_id, new.thread_id)
        scheduled = new.start_after is not None
        stopped = () if scheduled or thread is None else self._make_way(new, thread)
        thread = thread or tables.add_thread(new.tenant_id, new.thread_id, new.thread_key)
        row = RunRow(new, thread, new.overrides, created_at=now, available_at=new.start_after or now)
        tables.add_run(row)
        if new.idempotency is not None:
            key = (new.tenant_id, new.idempotency.key)
            tables.keys[key] = KeyRow(new.idempotency.request_hash, new.run_id, now)
        if not scheduled:
            tables.join_line(row, now)
        if owner is None or not row.holds_thread:
            return Created(row.record(with_tools=True), stopped=stopped)
        tables.take(row, owner, now)
        events = () if new.opening is None else self._open(row, new.opening, now)
        claim = row.claim_of(opened=new.opening is not None)
        return Created(row.record(with_tools=True), claim, events=events, stopped=stopped)

    def _created_before(self, new: NewRun, owner: str | None) -> Created | None:
        """The answer to a create that was sent before: this very one, or one with the same key."""
        tables = self._tables
        row = tables.runs.get(new.run_id)
        if row is not None:
            untouched = owner is not None and row.owner == owner and (row.attempt, row.write_no) == (1, 0)
            claim = row.claim_of(opened=new.opening is not None) if untouched else None
            return Created(row.record(with_tools=True), claim, events=tuple(row.events) if untouched else ())
        if new.idempotency is None:
            return None
        known = tables.keys.get((new.tenant_id, new.idempotency.key))
        if known is None or known.created_at < tables.clock() - _KEY_LIFETIME:
            return None
        if known.request_hash != new.idempotency.request_hash:
            raise IdempotencyMismatch("the idempotency key was used with another request")
        return Created(tables.run(known.run_id).record(with_tools=True), replayed=True)

    def _make_way(self, new: NewRun, thread: ThreadRow) -> tuple[Stopped, ...]:
        """Deal with the thread's holder as the new run asks."""
        holder = thread.holder
        if holder is None:
            return ()
        reason = RunError("superseded", f"run {new.run_id} took over the thread ({new.on_busy_thread})")
        match new.on_busy_thread:
            case OnBusyThread.ENQUEUE:
                return ()
            case OnBusyThread.REJECT:
                raise ThreadBusy(f"thread {new.thread_id} is held by another run")
            case OnBusyThread.INTERRUPT:
                return (steering.stop(self._tables, holder, RunStatus.INTERRUPTED, reason, promote=False),)
            case OnBusyThread.ROLLBACK:
                stopped = steering.stop(self._tables, holder, RunStatus.CANCELLED, reason, promote=False)
                self._tables.void_messages(holder)
                return (stopped,)
            case _:
                assert_never(new.on_busy_thread)

    def _open(self, row: RunRow, opening: Opening, now: datetime) -> tuple[StoredEvent, ...]:
        row.thread.append(row.new.input, row.run_id)
        row.step = opening.checkpoint.step
        row.save_checkpoint(opening.checkpoint, opening.checkpoint_after, row.thread.last_seq)
        return row.append_events(opening.events, now)

    # --- owning ---------------------------------------------------------------------------------------------

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        now = self._tables.clock()
        rows = self._tables.claimable(now)[:limit]
        for row in rows:
            self._tables.take(row, owner, now)
        return [row.claim_of() for row in rows]

    async def load(self, run_id: str) -> Loaded:
        return self._tables.run(run_id).loaded()

    async def messages_after(self, thread_key: str, seq: int) -> list[ThreadMessage]:
        thread = self._tables.threads.get(thread_key)
        return [] if thread is None else thread.after(seq)

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | None:
        row = self._tables.runs.get(fence.run_id)
        if row is None or not row.held_by(fence):
            return None
        now = self._tables.clock()
        pauses = row.pause_requested and write.on_pause is not None
        tail: tuple[Event, ...] = (write.on_pause or ()) if pauses else write.opening
        row.write_no += 1
        row.step, row.elapsed_s = write.step, write.elapsed_s
        row.usage, row.cost_usd = write.usage, write.cost_usd
        row.save_calls(write.records, now)
        messages = (*write.start, *write.messages)
        row.thread.append(messages, row.run_id)
        message_seq = row.thread.last_seq if messages else None
        if write.checkpoint is not None:
            seq = len(row.events) + len(write.events)
            row.save_checkpoint(write.checkpoint, seq, message_seq or write.message_seq)
        events = row.append_events((*write.events, *tail), now)
        promoted = self._move(row, write, RunStatus.PAUSED if pauses else write.status, now)
        first = None if message_seq is None else message_seq - len(messages) + 1
        return Committed(row.fence, events, row.status, first, message_seq, promoted)

    def _move(self, row: RunRow, write: Write, status: RunStatus, now: datetime) -> str | None:
        """Take a run to the status that a write gives it; the id of the run that gets its slot."""
        if status.terminal:
            self._tables.end(row, status, write.result, write.error, now)
            return self._tables.promote(row.thread, now)
        row.status = status
        if status is RunStatus.PAUSED:
            row.pause_requested = False
            row.resume_reason = ResumeReason.PAUSE
        if status is not RunStatus.RUNNING:
            row.owner = None
        return None

    async def append_deltas(self, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
        return [self._append_delta(write, self._tables.clock()) for write in batch]

    def _append_delta(self, write: DeltaWrite, now: datetime) -> Committed | DeltaOutcome:
        row = self._tables.runs.get(write.fence.run_id)
        if row is None or not row.held_by(write.fence):
            return DeltaOutcome.LOST
        row.write_no += 1
        return Committed(row.fence, row.append_events(write.events, now), row.status)

    async def release(self, fence: Fence, elapsed_s: float) -> bool:
        row = self._tables.runs.get(fence.run_id)
        if row is None or not row.held_by(fence):
            return False
        row.status = RunStatus.QUEUED
        row.owner = None
        row.resume_reason = ResumeReason.DRAIN
        row.elapsed_s = elapsed_s
        row.available_at = self._tables.clock()
        return True

    # --- steering and reading -------------------------------------------------------------------------------

    async def stop(self, run_id: str, status: RunStatus, reason: RunError) -> Stopped:
        return steering.stop(self._tables, self._tables.run(run_id), status, reason)

    async def pause(self, run_id: str) -> Stopped:
        return steering.pause(self._tables, self._tables.run(run_id))

    async def resume(self, run_id: str, limits: Limits | None) -> Stopped:
        return steering.resume(self._tables, self._tables.run(run_id), limits)

    async def get(self, run_id: str, *, with_tools: bool = True) -> RunRecord:
        return self._tables.run(run_id).record(with_tools=with_tools)

    async def read_events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        row = self._tables.runs.get(run_id)
        return [] if row is None else row.events[after : after + limit]
