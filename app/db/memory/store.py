"""MemoryStore: `RunStore` over plain objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import assert_never

from app.db.memory import children, expiry, steering, stimuli, writing
from app.db.memory.reading import loaded, record
from app.db.memory.rows import RunRow, ThreadRow
from app.db.memory.tables import KeyRow, Tables
from app.engine.agent import AgentVersion
from app.engine.compaction import NewCompaction
from app.engine.crashes import MAX_CRASHES, poisoned
from app.engine.errors import RunError
from app.engine.events import ResumeReason, StoredEvent
from app.engine.interactions import Answer, InteractionRecord
from app.engine.limits import Limits, RunLimits
from app.engine.messages import ThreadMessage
from app.engine.moves import Stimuli
from app.engine.ownership import Claim, Committed, Created, DeltaOutcome, DeltaWrite, Fence, Loaded, Woken, Write
from app.engine.records import (
    Expired,
    NewRun,
    OnBusyThread,
    Opening,
    Resolved,
    RunRecord,
    Stimulated,
    Stopped,
    ThreadView,
)
from app.engine.status import RunStatus
from app.engine.store_errors import (
    AgentChanged,
    CompactedMeanwhile,
    IdempotencyMismatch,
    RunConflict,
    ThreadBusy,
    ThreadNotFound,
)

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

    async def thread(self, tenant_id: str, thread_id: str) -> ThreadView | None:
        """See `ThreadStore.thread`."""
        thread = self._tables.thread_of(tenant_id, thread_id)
        if thread is None:
            return None
        latest = max(
            (row for row in self._tables.runs.values() if row.thread is thread),
            key=lambda row: row.ordinal or 0,
            default=None,
        )
        model = None if latest is None else latest.overrides.model or latest.new.agent.definition.model
        holder = None if thread.holder is None else thread.holder.run_id
        return ThreadView(thread.thread_key, holder, tuple(thread.conversation()), model)

    async def compact(self, thread_key: str, compaction: NewCompaction | None, *, purge_upto: int | None) -> None:
        """See `ThreadStore.compact`."""
        thread = self._tables.threads.get(thread_key)
        if thread is None:
            raise ThreadNotFound("the thread was deleted meanwhile")
        if thread.holder is not None:
            raise ThreadBusy(f"run {thread.holder.run_id} has the thread")
        if compaction is not None and not thread.compact(compaction, None):
            raise CompactedMeanwhile("the thread was compacted meanwhile")
        if purge_upto is not None:
            thread.purge(purge_upto)

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

    def requeue_orphans(self, owner: str) -> list[Stopped]:
        """Put the runs of an owner that is gone back into the queue, each with one more crash to its name.

        Returns:
            those that have now crashed `MAX_CRASHES` times: they have failed.
        """
        now = self._tables.clock()
        orphans = [row for row in self._tables.active.values() if row.owner == owner]
        for row in orphans:
            row.status, row.owner, row.resume_reason = RunStatus.QUEUED, None, ResumeReason.CRASH
            row.epoch += 1
            row.crashes += 1
            row.available_at = now
        given_up = [row for row in orphans if row.crashes >= MAX_CRASHES]
        return [steering.stop(self._tables, row, RunStatus.FAILED, poisoned(row.crashes)) for row in given_up]

    def delete_run(self, run_id: str) -> None:
        """Remove a terminal run and its child runs. The messages that they wrote stay in their threads.

        Raises:
            RunNotFound: there is no such run.
            RunConflict: it is not terminal, or its parent may have to take in how it ended.
        """
        row = self._tables.run(run_id)
        if not row.status.terminal:
            raise RunConflict(f"the run is {row.status}: cancel it before it is deleted", row.status)
        parent = None if row.parent_run_id is None else self._tables.runs.get(row.parent_run_id)
        if parent is not None and children.may_need(self._tables, parent, row):
            text = f"its parent run {parent.run_id} may go on and need it: delete that, when it is over"
            raise RunConflict(text, row.status)
        self._tables.forget(row)

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
        row = tables.add_run(new, thread, now)
        if new.idempotency is not None:
            key = (new.tenant_id, new.idempotency.key)
            tables.keys[key] = KeyRow(new.idempotency.request_hash, new.run_id, now)
        if not scheduled:
            tables.join_line(row, now)
        if owner is None or not row.holds_thread:
            return Created(record(tables, row), stopped=stopped)
        tables.take(row, owner, now)
        events = () if new.opening is None else self._open(row, new.opening, now)
        claim = row.claim_of(opened=new.opening is not None)
        return Created(record(tables, row), claim, events=events, stopped=stopped)

    def _created_before(self, new: NewRun, owner: str | None) -> Created | None:
        """The answer to a create that was sent before: this very one, or one with the same key."""
        tables = self._tables
        row = tables.runs.get(new.run_id)
        if row is not None:
            untouched = owner is not None and row.owner == owner and (row.attempt, row.write_no) == (1, 0)
            claim = row.claim_of(opened=new.opening is not None) if untouched else None
            return Created(record(tables, row), claim, events=tuple(row.events) if untouched else ())
        if new.idempotency is None:
            return None
        known = tables.keys.get((new.tenant_id, new.idempotency.key))
        if known is None or known.created_at < tables.clock() - _KEY_LIFETIME:
            return None
        if known.request_hash != new.idempotency.request_hash:
            raise IdempotencyMismatch("the idempotency key was used with another request")
        return Created(record(tables, tables.run(known.run_id)), replayed=True)

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

    async def claim(self, owner: str, limit: int, *, suspect: bool = False) -> list[Claim]:
        now = self._tables.clock()
        rows = self._tables.claimable(now, suspect=suspect)[:limit]
        for row in rows:
            self._tables.take(row, owner, now)
        return [row.claim_of(waited_s=(now - row.available_at).total_seconds()) for row in rows]

    async def load(self, run_id: str) -> Loaded:
        return loaded(self._tables, self._tables.run(run_id))

    async def messages_after(self, thread_key: str, seq: int) -> list[ThreadMessage]:
        thread = self._tables.threads.get(thread_key)
        return [] if thread is None else thread.after(seq)

    async def team(self, tenant_id: str, names: Sequence[str]) -> Mapping[str, AgentVersion]:
        known = self._tables.current_versions
        return {name: known[tenant_id, name] for name in names if (tenant_id, name) in known}

    async def stimuli(self, run_id: str) -> Stimuli:
        return stimuli.stimuli_of(self._tables, self._tables.run(run_id))

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | Woken | None:
        row = self._tables.runs.get(fence.run_id)
        if row is None or not row.held_by(fence):
            return None
        return Woken() if row.wakes > write.wakes else writing.commit(self._tables, row, write)

    async def append_deltas(self, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
        return [self._append_delta(write, self._tables.clock()) for write in batch]

    def _append_delta(self, write: DeltaWrite, now: datetime) -> Committed | DeltaOutcome:
        row = self._tables.runs.get(write.fence.run_id)
        if row is None or not row.held_by(write.fence):
            return DeltaOutcome.LOST
        row.write_no += 1
        return Committed(row.fence, row.append_events(write.events, now), row.status)

    async def release(self, fence: Fence, elapsed_s: float, *, delay_s: float = 0.0) -> bool:
        row = self._tables.runs.get(fence.run_id)
        if row is None or not row.held_by(fence):
            return False
        row.status = RunStatus.QUEUED
        row.owner = None
        row.crashes = 0
        row.resume_reason = ResumeReason.DRAIN
        row.elapsed_s = elapsed_s
        row.available_at = self._tables.clock() + timedelta(seconds=delay_s)
        return True

    # --- steering -------------------------------------------------------------------------------------------

    async def stop(self, run_id: str, status: RunStatus, reason: RunError) -> Stopped:
        return steering.stop(self._tables, self._tables.run(run_id), status, reason)

    async def pause(self, run_id: str) -> Stopped:
        return steering.pause(self._tables, self._tables.run(run_id))

    async def resume(self, run_id: str, limits: Limits | None) -> Stopped:
        return steering.resume(self._tables, self._tables.run(run_id), limits)

    # --- what others store ----------------------------------------------------------------------------------

    async def answer(self, run_id: str, interaction_id: str, answer: Answer) -> Resolved:
        return stimuli.answer(self._tables, self._tables.run(run_id), interaction_id, answer)

    async def post_result(self, run_id: str, tool_call_id: str, output: str | None, error: str | None) -> Stimulated:
        return stimuli.post_result(self._tables, self._tables.run(run_id), tool_call_id, output, error)

    async def expire(self, limit: int) -> Expired:
        return expiry.expire(self._tables, limit)

    # --- reading --------------------------------------------------------------------------------------------

    async def get(self, run_id: str, *, with_tools: bool = True) -> RunRecord:
        return record(self._tables, self._tables.run(run_id), with_tools=with_tools)

    async def interactions(self, run_id: str) -> list[InteractionRecord]:
        return [asked.record for asked in self._tables.run(run_id).interactions.values()]

    async def read_events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        row = self._tables.runs.get(run_id)
        return [] if row is None else row.events[after : after + limit]
