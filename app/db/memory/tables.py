"""The rows of the store without a database, and the moves on them that several requests share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.db.memory.rows import RunRow, ThreadRow
from app.engine.agent import AgentVersion
from app.engine.errors import RunError
from app.engine.limits import RunLimits
from app.engine.records import NewRun
from app.engine.status import RunStatus
from app.engine.store_errors import RunNotFound


@dataclass(frozen=True, slots=True)
class KeyRow:
    """What a create with an idempotency key made."""

    request_hash: bytes
    run_id: str
    created_at: datetime


class Tables:
    """All rows. `active` are the runs that are not terminal; `limits` hold where an agent states none."""

    def __init__(self, clock: Callable[[], datetime], limits: RunLimits) -> None:
        self.clock = clock
        self.limits = limits
        self.runs: dict[str, RunRow] = {}
        self.active: dict[str, RunRow] = {}
        self.threads: dict[str, ThreadRow] = {}
        self.thread_keys: dict[tuple[str, str], str] = {}
        self.current_versions: dict[tuple[str, str], AgentVersion] = {}
        self.keys: dict[tuple[str, str], KeyRow] = {}
        self._children: dict[str, list[RunRow]] = {}

    def run(self, run_id: str) -> RunRow:
        """Raises: RunNotFound."""
        try:
            return self.runs[run_id]
        except KeyError:
            raise RunNotFound(run_id) from None

    def thread_of(self, tenant_id: str, thread_id: str) -> ThreadRow | None:
        key = self.thread_keys.get((tenant_id, thread_id))
        return None if key is None else self.threads[key]

    def add_thread(self, tenant_id: str, thread_id: str, thread_key: str) -> ThreadRow:
        thread = self.threads[thread_key] = ThreadRow(thread_key)
        self.thread_keys[tenant_id, thread_id] = thread_key
        return thread

    def add_run(self, new: NewRun, thread: ThreadRow, now: datetime) -> RunRow:
        """The row of a new run, which is queued and not yet in its thread's line."""
        row = RunRow(new, thread, new.overrides, created_at=now, available_at=new.start_after or now)
        row.begin_deadline(now)
        self.runs[row.run_id] = self.active[row.run_id] = row
        if row.parent_run_id is not None:
            self._children.setdefault(row.parent_run_id, []).append(row)
        return row

    def children(self, row: RunRow) -> tuple[RunRow, ...]:
        """The child runs of a run, oldest first, whatever has become of them."""
        return tuple(self._children.get(row.run_id, ()))

    def forget(self, row: RunRow) -> None:
        """Remove a run with its child runs; their messages stay in their threads."""
        for child in self._children.pop(row.run_id, []):
            self.forget(child)
        if row.parent_run_id in self._children:
            self._children[row.parent_run_id].remove(row)
        del self.runs[row.run_id]

    def join_line(self, row: RunRow, now: datetime) -> None:
        """Give a queued run the slot if that is free; else it waits in line, where it stood if it did."""
        if row.ordinal is None:
            row.ordinal = row.thread.next_ordinal
            row.thread.next_ordinal += 1
        if row.thread.holder is None:
            self.hold(row, now)

    def hold(self, row: RunRow, now: datetime) -> None:
        row.thread.holder = row
        row.available_at = now

    def promote(self, thread: ThreadRow, now: datetime) -> str | None:
        """Give a free slot to the next in line; its id, or None if nobody waits."""
        if thread.holder is not None:
            return None
        line = [row for row in self.active.values() if row.thread is thread and row.in_line]
        if not line:
            return None
        first = min(line, key=lambda row: row.ordinal or 0)
        self.hold(first, now)
        return first.run_id

    def claimable(self, now: datetime, *, suspect: bool) -> list[RunRow]:
        """The queued holders that are due, oldest first; of those whose next crash ends them one at most, before all.

        Args:
            suspect: whether there may be that one.
        """
        ready = [row for row in self.active.values() if row.status is RunStatus.QUEUED and row.holds_thread]
        due = sorted((row for row in ready if row.available_at <= now), key=lambda row: (row.available_at, row.run_id))
        suspects = [row for row in due if row.suspect]
        return [*suspects[: int(suspect)], *(row for row in due if not row.suspect)]

    def take(self, row: RunRow, owner: str, now: datetime) -> None:
        """Make `owner` the owner of a queued run: a new attempt under a new epoch."""
        row.status = RunStatus.RUNNING
        row.owner = owner
        row.epoch += 1
        row.attempt += 1
        row.started_at = row.started_at or now

    def end(
        self,
        row: RunRow,
        status: RunStatus,
        result: Mapping[str, Any] | None,
        error: RunError | None,
        now: datetime,
    ) -> None:
        """Make a run terminal, close its questions and free its slot; the caller says who takes it."""
        row.status = status
        row.owner = None
        row.pause_requested = False
        row.result = None if result is None else dict(result)
        row.error = error
        row.finished_at = now
        row.close(row.interactions, now)
        del self.active[row.run_id]
        if row.holds_thread:
            row.thread.holder = None

    def void_messages(self, row: RunRow) -> None:
        """Take a run's messages out of its thread; they stay stored. A summary of what was purged stays, too."""
        row.thread.compactions = [
            made for made in row.thread.compactions if made[1] != row.run_id or made[0].upto_seq <= row.thread.purged
        ]
        row.thread.voided.update(message.seq for message in row.thread.messages if message.run_id == row.run_id)

    def others_wrote(self, row: RunRow) -> Iterable[str]:
        """The runs that have written to the thread after what `row` last committed to it."""
        return (
            message.run_id
            for message in row.thread.after(row.message_seq)
            if message.run_id is not None and message.run_id != row.run_id
        )
