"""What the store without a database keeps: threads, runs and their tool calls, as plain mutable rows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from app.engine.agent import AgentOverrides
from app.engine.apply import ToolRecord
from app.engine.errors import RunError
from app.engine.events import Event, ResumeReason, StoredEvent, encode
from app.engine.messages import Message, ThreadMessage
from app.engine.records import Claim, Fence, Loaded, NewRun, RunRecord, ToolExecution
from app.engine.state import Checkpoint, OpenCall, Phase
from app.engine.status import RunStatus
from app.engine.usage import Usage


@dataclass(slots=True)
class ThreadRow:
    """A conversation. `holder` is its slot: the one run that may be claimed, runs, is paused or waits."""

    thread_key: str
    holder: RunRow | None = None
    next_ordinal: int = 1
    messages: list[ThreadMessage] = field(default_factory=list[ThreadMessage])
    voided: set[int] = field(default_factory=set[int])

    @property
    def last_seq(self) -> int:
        return len(self.messages)

    def append(self, messages: Iterable[Message], run_id: str | None) -> None:
        for message in messages:
            self.messages.append(ThreadMessage(self.last_seq + 1, message, run_id))

    def after(self, seq: int) -> list[ThreadMessage]:
        """The messages that a reader sees behind `seq`."""
        start = bisect_right(self.messages, seq, key=lambda message: message.seq)
        return [message for message in self.messages[start:] if message.seq not in self.voided]


@dataclass(slots=True)
class CallRow:
    """A tool call: asked for, started (the record of intent), ended."""

    step: int
    call: OpenCall
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(slots=True)
class RunRow:
    """One execution. `epoch`, `write_no` and `status` are the fence.

    `ordinal` is its place in the thread's line; a run with `start_after` has none until it is due. Of the
    checkpoints only the last is kept: `checkpoint_seq` is the last event committed with it, `message_seq` the
    last message of the thread as of then.
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
    attempt: int = 0
    resume_reason: ResumeReason | None = None
    step: int = 0
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal | None = Decimal(0)
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
    calls: dict[tuple[int, int], CallRow] = field(default_factory=dict[tuple[int, int], CallRow])

    @property
    def run_id(self) -> str:
        return self.new.run_id

    @property
    def holds_thread(self) -> bool:
        return self.thread.holder is self

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
            started_at = None if known is None else known.started_at
            if started_at is None and record.call.started:
                started_at = now
            finished_at = None if record.call.result is None else now
            self.calls[place] = CallRow(record.step, record.call, started_at, finished_at)

    def step_calls(self, step: int) -> tuple[OpenCall, ...]:
        """The calls recorded for a step, in the order in which the model asked for them."""
        return tuple(self.calls[place].call for place in sorted(self.calls) if place[0] == step)

    def claim_of(self, opened: bool = False) -> Claim:
        seq = self.message_seq if opened else 0
        return Claim(self.fence, self.thread.thread_key, self.attempt, opened=opened, message_seq=seq)

    def loaded(self) -> Loaded:
        checkpoint = self.checkpoint
        return Loaded(
            run=self.record(with_tools=True),
            agent=self.new.agent,
            checkpoint=checkpoint,
            checkpoint_seq=self.checkpoint_seq,
            calls=() if checkpoint is None else self.step_calls(checkpoint.step),
            messages=tuple(self.thread.after(0)),
            resume_reason=None if checkpoint is None else self.resume_reason,
            elapsed_s=self.elapsed_s,
            wall_from_s=self.wall_from_s,
        )

    def tool_executions(self) -> tuple[ToolExecution, ...]:
        return tuple(_tool_execution(self.calls[place]) for place in sorted(self.calls))

    def record(self, *, with_tools: bool = False) -> RunRecord:
        new = self.new
        return RunRecord(
            run_id=new.run_id,
            tenant_id=new.tenant_id,
            thread_id=new.thread_id,
            thread_key=self.thread.thread_key,
            agent_name=new.agent.definition.name,
            agent_version=new.agent.version,
            status=self.status,
            pause_requested=self.pause_requested,
            step=self.step,
            attempt=self.attempt,
            last_event_seq=len(self.events),
            input=new.input,
            context=new.context,
            metadata=new.metadata,
            overrides=self.overrides,
            requested_model=self.overrides.model or new.agent.definition.model,
            user_id=new.user_id,
            parent_run_id=None,
            on_disconnect=new.on_disconnect,
            usage=self.usage,
            cost_usd=self.cost_usd,
            elapsed_s=self.elapsed_s,
            created_at=self.created_at,
            started_at=self.started_at,
            finished_at=self.finished_at,
            result=self.result,
            error=self.error,
            owner=self.owner,
            epoch=self.epoch,
            tool_executions=self.tool_executions() if with_tools else None,
        )


def _tool_execution(row: CallRow) -> ToolExecution:
    call, result = row.call.call, row.call.result
    return ToolExecution(
        step=row.step,
        call_index=row.call.index,
        tool_call_id=call.id,
        tool_name=call.name,
        arguments=call.arguments,
        started_at=row.started_at,
        finished_at=row.finished_at,
        success=None if result is None else result.success,
        output=None if result is None else result.output,
        error=None if result is None else result.error,
        latency_ms=None if result is None else result.latency_ms,
        replayed=result is not None and result.replayed,
    )
