"""What the store without a database keeps: threads and runs, as plain mutable rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from app.db.memory.calls import CallRow
from app.db.memory.interactions import InteractionRow, interaction_row
from app.engine.agent import AgentOverrides
from app.engine.compaction import NewCompaction, with_summary
from app.engine.crashes import SUSPECT_CRASHES
from app.engine.errors import RunError
from app.engine.events import Event, ResumeReason, StoredEvent, encode
from app.engine.interactions import InteractionStatus, NewInteraction
from app.engine.messages import Message, ThreadMessage
from app.engine.ownership import Claim, Fence
from app.engine.records import NewRun
from app.engine.state import Checkpoint, OpenCall, Phase
from app.engine.status import RunStatus
from app.engine.transition import ToolRecord
from app.engine.usage import Usage


@dataclass(slots=True)
class ThreadRow:
    """A conversation. `holder` is its slot: the one run that may be claimed, runs, is paused or waits."""

    thread_key: str
    holder: RunRow | None = None
    next_ordinal: int = 1
    messages: list[ThreadMessage] = field(default_factory=list[ThreadMessage])
    voided: set[int] = field(default_factory=set[int])
    compactions: list[tuple[NewCompaction, str | None]] = field(
        default_factory=list[tuple[NewCompaction, str | None]]
    )  # rising, each with the run that made it
    purged: int = 0

    @property
    def last_seq(self) -> int:
        return self.purged + len(self.messages)

    def append(self, messages: Iterable[Message], run_id: str | None) -> None:
        for message in messages:
            self.messages.append(ThreadMessage(self.last_seq + 1, message, run_id))

    def compact(self, compaction: NewCompaction, run_id: str | None) -> bool:
        """Let a summary stand for what is older; False if one does that stands for as much."""
        if self.compactions and self.compactions[-1][0].upto_seq >= compaction.upto_seq:
            return False
        self.compactions.append((compaction, run_id))
        return True

    def purge(self, upto_seq: int) -> None:
        """Delete messages that a summary stands for."""
        self.messages = [entry for entry in self.messages if entry.seq > upto_seq]
        self.purged = max(self.purged, upto_seq)

    def conversation(self) -> list[ThreadMessage]:
        """The thread as runs see it."""
        if not self.compactions:
            return self.after(0)
        compaction = self.compactions[-1][0]
        return with_summary(self.after(compaction.upto_seq), compaction)

    def after(self, seq: int) -> list[ThreadMessage]:
        """The messages that a reader sees behind `seq`."""
        start = bisect_right(self.messages, seq, key=lambda message: message.seq)
        return [message for message in self.messages[start:] if message.seq not in self.voided]


@dataclass(slots=True)
class RunRow:
    """One execution. `epoch`, `write_no` and `status` are the fence.

    `ordinal` is its place in the thread's line; a run with `start_after` has none until it is due. Of the
    checkpoints only the last is kept: `checkpoint_seq` is the last event committed with it, `message_seq` the
    last message of the thread as of then. `crashes` counts those since the run last got further. `spent_before` is
    usage and cost as they were before those of child runs that ended with this one were added. A child run is
    interrupted at `deadline_at`, unless it is paused then.
    """

    new: NewRun
    thread: ThreadRow
    overrides: AgentOverrides
    created_at: datetime
    available_at: datetime
    status: RunStatus = RunStatus.QUEUED
    ordinal: int | None = None
    pause_requested: bool = False
    owner: str | None = None
    epoch: int = 0
    write_no: int = 0
    wakes: int = 0
    attempt: int = 0
    crashes: int = 0
    resume_reason: ResumeReason | None = None
    step: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal | None = Decimal(0)
    spent_before: tuple[Usage, Decimal | None] | None = None
    elapsed_s: float = 0.0
    wall_from_s: float = 0.0
    result: dict[str, Any] | None = None
    error: RunError | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    events: list[StoredEvent] = field(default_factory=list[StoredEvent])
    checkpoint: Checkpoint | None = None
    checkpoint_seq: int = 0
    step_seq: int = (
        0  # as `checkpoint_seq`, of the last checkpoint before a model call: the open step's text is behind it
    )
    message_seq: int = 0
    deadline_at: datetime | None = None
    waiting_for: tuple[Mapping[str, str], ...] = ()
    calls: dict[tuple[int, int], CallRow] = field(default_factory=dict[tuple[int, int], CallRow])
    interactions: dict[str, InteractionRow] = field(default_factory=dict[str, InteractionRow])

    @property
    def run_id(self) -> str:
        return self.new.run_id

    @property
    def parent_run_id(self) -> str | None:
        return None if self.new.lineage is None else self.new.lineage.parent_run_id

    @property
    def holds_thread(self) -> bool:
        return self.thread.holder is self

    @property
    def suspect(self) -> bool:
        """Whether its next crash ends it."""
        return self.crashes >= SUSPECT_CRASHES

    @property
    def in_line(self) -> bool:
        """Whether the run stands in its thread's line behind the holder."""
        return self.status is RunStatus.QUEUED and self.ordinal is not None and not self.holds_thread

    @property
    def fence(self) -> Fence:
        return Fence(self.run_id, self.epoch, self.write_no)

    def held_by(self, fence: Fence) -> bool:
        """Whether an owner's write under `fence` may still take place."""
        return self.fence == fence and self.status is RunStatus.RUNNING

    def append_events(self, events: Iterable[Event], now: datetime) -> tuple[StoredEvent, ...]:
        """Number and stamp the events of one write."""
        first = len(self.events)
        for event in events:
            body = encode(event, self.new.identity)
            self.events.append(StoredEvent(len(self.events) + 1, event.type.value, now, body))
        return tuple(self.events[first:])

    def save_checkpoint(self, checkpoint: Checkpoint, seq: int, message_seq: int) -> None:
        self.checkpoint, self.checkpoint_seq, self.message_seq = checkpoint, seq, message_seq
        if checkpoint.phase is Phase.CALL_MODEL:
            self.step_seq = seq

    def save_calls(self, records: Iterable[ToolRecord], now: datetime) -> None:
        for record in records:
            place = (record.step, record.call.index)
            known = self.calls.get(place)
            if known is None or known.call.call.id != record.call.call.id:
                # A step that is asked anew has other calls in the same places.
                known = self.calls[place] = CallRow(record.step, record.call)
            known.save(record.call, now)

    def step_calls(self, step: int) -> tuple[OpenCall, ...]:
        """The calls recorded for a step, in the order in which the model asked for them."""
        return tuple(self.calls[place].call for place in sorted(self.calls) if place[0] == step)

    def open_calls(self) -> list[CallRow]:
        """The calls without a result of the step that the run goes on with, in order; none before a model call."""
        checkpoint = self.checkpoint
        if checkpoint is None or checkpoint.phase in (Phase.CALL_MODEL, Phase.FINISH):
            return []
        rows = [self.calls[place] for place in sorted(self.calls) if place[0] == checkpoint.step]
        return [row for row in rows if row.open]

    def begin_deadline(self, now: datetime) -> None:
        """Let the time of a child run begin: at its creation, and again when it is resumed."""
        if self.new.lineage is not None:
            self.deadline_at = now + timedelta(seconds=self.new.lineage.deadline_s)

    def ask(self, questions: Iterable[NewInteraction], now: datetime) -> None:
        for question in questions:
            self.interactions[question.interaction_id] = interaction_row(self.run_id, question, now)

    def close(self, interaction_ids: Iterable[str], now: datetime) -> None:
        """Let questions go that need no answer any more; such that have one keep it."""
        for interaction_id in interaction_ids:
            row = self.interactions.get(interaction_id)
            if row is not None and row.pending:
                row.end(InteractionStatus.CLOSED, None, now)

    def claim_of(self, opened: bool = False, waited_s: float = 0.0) -> Claim:
        seq = self.message_seq if opened else 0
        return Claim(
            self.fence,
            self.thread.thread_key,
            self.attempt,
            opened=opened,
            message_seq=seq,
            wakes=self.wakes,
            suspect=self.suspect,
            waited_s=waited_s,
        )
