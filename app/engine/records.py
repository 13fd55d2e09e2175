"""What passes between the engine and a store: runs to create, writes to commit, records to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from app.engine.agent import AgentOverrides, AgentVersion
from app.engine.apply import ToolRecord
from app.engine.errors import RunError
from app.engine.events import Event, ResumeReason, RunIdentity, StoredEvent
from app.engine.messages import Message, ThreadMessage
from app.engine.state import Checkpoint, OpenCall
from app.engine.status import RunStatus
from app.engine.usage import Usage


class OnBusyThread(StrEnum):
    """What becomes of a new run whose thread has a holder."""

    ENQUEUE = "enqueue"
    REJECT = "reject"
    INTERRUPT = "interrupt"
    ROLLBACK = "rollback"


class OnDisconnect(StrEnum):
    CONTINUE = "continue"
    CANCEL = "cancel"


# --- creating a run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A caller's key with the SHA-256 of what it was sent with."""

    key: str
    request_hash: bytes


@dataclass(frozen=True, slots=True)
class Opening:
    """The first write of an attempt, made in advance: `run_started` and what the first action begins with."""

    events: tuple[Event, ...]
    checkpoint: Checkpoint
    checkpoint_after: int  # how many of the events come before the checkpoint


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to create. All ids are made by the caller, so that a create can be sent twice and happen once.

    Args:
        thread_key: the thread's key if this create makes the thread.
        opening: given when the whole first write is known beforehand (a thread that surely is new); it is used only if
            the create also claims.
        agent_check: the stored agent's name if the run must fail with `AgentChanged` when `agent.version_id` is no
            longer that agent's current version; None for pinned versions and inline agents.
    """

    run_id: str
    thread_id: str
    thread_key: str
    agent: AgentVersion
    input: tuple[Message, ...]
    tenant_id: str = ""
    agent_check: str | None = None
    overrides: AgentOverrides = field(default_factory=AgentOverrides)
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    user_id: str | None = None
    on_busy_thread: OnBusyThread = OnBusyThread.ENQUEUE
    on_disconnect: OnDisconnect = OnDisconnect.CONTINUE
    start_after: datetime | None = None
    idempotency: IdempotencyKey | None = None
    opening: Opening | None = None

    @property
    def identity(self) -> RunIdentity:
        name = self.agent.definition.name
        return RunIdentity(self.run_id, self.thread_id, name, 0, name)


# --- owning a run -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fence:
    """What an owner's write must still find in the run's row."""

    run_id: str
    epoch: int
    write_no: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A run that this replica now owns.

    Args:
        opened: whether the opening is committed already, so that the attempt starts at performing its first action.
        message_seq: the last message of the thread that the opening committed; 0 if not opened.
    """

    fence: Fence
    thread_key: str
    attempt: int
    opened: bool = False
    message_seq: int = 0


@dataclass(frozen=True, slots=True)
class Created:
    """The run as created; with a claim if the caller's replica is to execute it.

    Args:
        replayed: the idempotency key was known: this is the earlier run.
        events: what the create committed, for readers on this replica.
    """

    run: RunRecord
    claim: Claim | None = None
    replayed: bool = False
    events: tuple[StoredEvent, ...] = ()
    stopped: tuple[Stopped, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """All that an attempt needs to go on.

    Args:
        checkpoint: None if the run never started.
        checkpoint_seq: the last event committed with the checkpoint; drafts after it are void.
        calls: the tool calls recorded for the checkpoint's step.
        resume_reason: why this attempt exists, None for a first one.
        elapsed_s: active seconds so far; `wall_from_s` of them are not counted against `max_wall_time_s`.
    """

    run: RunRecord
    agent: AgentVersion
    checkpoint: Checkpoint | None
    checkpoint_seq: int
    calls: tuple[OpenCall, ...]
    messages: tuple[ThreadMessage, ...]
    resume_reason: ResumeReason | None
    elapsed_s: float
    wall_from_s: float


@dataclass(frozen=True, slots=True)
class Write:
    """What one fenced write commits. `events` come first, then `opening` or, if a pause was asked for, `on_pause`.

    Args:
        status: the run's status after the write, unless it pauses.
        messages: appended to the thread, in order.
        on_pause: None where the write is no step boundary.
        checkpoint: placed between `events` and `opening`.
        message_seq: the last message of the thread that the owner knows, where the write adds none.
        elapsed_s: active seconds of the run in all, at the time of the write.
        start: the run's input, which joins the thread with this write, before `messages`; empty if it has joined.
        step_closed: a step was committed: the run is not poisoned.
        result: the scalars of the AgentResult, for terminal writes.
    """

    identity: RunIdentity
    events: tuple[Event, ...]
    opening: tuple[Event, ...] = ()
    on_pause: tuple[Event, ...] | None = None
    status: RunStatus = RunStatus.RUNNING
    step: int = 1
    messages: tuple[Message, ...] = ()
    records: tuple[ToolRecord, ...] = ()
    checkpoint: Checkpoint | None = None
    usage: Usage = field(default_factory=Usage)
    cost_usd: Decimal | None = None
    elapsed_s: float = 0.0
    message_seq: int = 0
    start: tuple[Message, ...] = ()
    step_closed: bool = False
    result: Mapping[str, Any] | None = None
    error: RunError | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """A write that took place.

    Args:
        fence: for the next write.
        events: as numbered and stamped by the store.
        status: the run's status now (`paused` if the write met a pause request).
        message_seq: the seq of the last message written, or None if it wrote none.
        first_message_seq: of the messages written; a gap to what the owner knows means that others appended.
    """

    fence: Fence
    events: tuple[StoredEvent, ...]
    status: RunStatus
    first_message_seq: int | None = None
    message_seq: int | None = None
    promoted: str | None = None


@dataclass(frozen=True, slots=True)
class DeltaWrite:
    """Deltas of one run to append; of several runs they may share a statement."""

    fence: Fence
    identity: RunIdentity
    events: tuple[Event, ...]


class DeltaOutcome(StrEnum):
    LOST = "lost"
    SKIPPED = "skipped"


# --- steering a run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that a caller ended, paused or resumed, as it is now, with the facts that this left.

    Args:
        changed: whether this call changed anything.
        promoted: the run that now holds the thread, if one was waiting in line.
    """

    run: RunRecord
    changed: bool
    events: tuple[StoredEvent, ...] = ()
    promoted: str | None = None


@dataclass(frozen=True, slots=True)
class ToolExecution:
    """The record of one tool call. `output` is JSON text; `latency_ms` in milliseconds."""

    step: int
    call_index: int
    tool_call_id: str
    tool_name: str
    arguments: str
    started_at: datetime | None
    finished_at: datetime | None
    success: bool | None
    output: str | None
    error: str | None
    latency_ms: float | None
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as readers see it. `result` are the stored scalars; `tool_executions` is None where it was not loaded."""

    run_id: str
    tenant_id: str
    thread_id: str
    thread_key: str
    agent_name: str
    agent_version: int | None
    status: RunStatus
    pause_requested: bool
    step: int
    attempt: int
    last_event_seq: int
    input: tuple[Message, ...]
    context: Mapping[str, Any]
    metadata: Mapping[str, str]
    overrides: AgentOverrides
    requested_model: str
    user_id: str | None
    parent_run_id: str | None
    on_disconnect: OnDisconnect
    usage: Usage
    cost_usd: Decimal | None
    elapsed_s: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    result: Mapping[str, Any] | None
    error: RunError | None
    owner: str | None = None
    epoch: int = 0
    tool_executions: tuple[ToolExecution, ...] | None = None

    @property
    def identity(self) -> RunIdentity:
        return RunIdentity(self.run_id, self.thread_id, self.agent_name, 0, self.agent_name)
