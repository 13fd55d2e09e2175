"""What passes between callers and a store: runs to create, what steering them leaves, records to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from app.engine.agent import AgentOverrides, AgentVersion
from app.engine.errors import RunError
from app.engine.events import Event, RunIdentity, StoredEvent
from app.engine.interactions import InteractionRecord
from app.engine.messages import Message, ThreadMessage
from app.engine.state import Checkpoint
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
class Lineage:
    """Where a child run comes from.

    Args:
        path: the names from the first run's agent down to the child's own, such as `planner>researcher`.
        depth: generations below the first run; a child's is at least 1.
        deadline_s: seconds from its creation, or from its last resume, until the child is interrupted; while it is
            paused it is spared.
    """

    parent_run_id: str
    root_run_id: str
    depth: int
    path: str
    deadline_s: float


@dataclass(frozen=True, slots=True)
class ForkedFrom:
    """Which run a run was forked from, and where; `checkpoint_id` is None if that run had not begun."""

    run_id: str
    checkpoint_id: str | None


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to create. All ids are made by the caller, so that a create can be sent twice and happen once.

    Args:
        thread_key: the thread's key if this create makes the thread.
        input: what joins the thread with the run's first write; empty where the run goes on from what is there.
        lineage: of a child run; None for a run that a caller creates.
        forked_from: of a fork.
        opening: given when the whole first write is known beforehand (a thread that surely is new); it is used only if
            the create also claims.
        agent_check: the stored agent's name if the run must fail with `AgentChanged` when `agent.version_id` is no
            longer that agent's current version; None for pinned versions and inline agents.
        trace_context: what the run's attempts are part of in traces, as `app.telemetry.trace_context` writes it.
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
    lineage: Lineage | None = None
    forked_from: ForkedFrom | None = None
    trace_context: str | None = None

    @property
    def identity(self) -> RunIdentity:
        name = self.agent.definition.name
        if self.lineage is None:
            return RunIdentity(self.run_id, self.thread_id, name, 0, name)
        return RunIdentity(self.run_id, self.thread_id, name, self.lineage.depth, self.lineage.path)


# --- steering a run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stopped:
    """A run that a caller ended, paused or resumed, as it is now, with the facts that this left.

    Args:
        changed: whether this call changed anything.
        promoted: the run that now holds the thread, if one was waiting in line.
        family: the child runs that this changed too, and theirs, each with what it left.
        woken: the parent run that the end of this one has woken.
    """

    run: RunRecord
    changed: bool
    events: tuple[StoredEvent, ...] = ()
    promoted: str | None = None
    family: tuple[Stopped, ...] = ()
    woken: Stimulated | None = None


@dataclass(frozen=True, slots=True)
class Stimulated:
    """A run for which something was stored that it waits for.

    Args:
        status: of the run now: `queued` if it was waiting; a running one's owner is to be told.
        events: what this left in the run's log.
        changed: False if the same had been stored before.
    """

    run_id: str
    status: RunStatus
    changed: bool = True
    events: tuple[StoredEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Resolved:
    """An interaction that was answered, as it is now, and what this did to its run."""

    interaction: InteractionRecord
    run: Stimulated


@dataclass(frozen=True, slots=True)
class Expired:
    """What had waited for too long: runs whose wait is over, and child runs that were interrupted."""

    stimulated: tuple[Stimulated, ...] = ()
    stopped: tuple[Stopped, ...] = ()


# --- reading a run ----------------------------------------------------------------------------------------------------


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
    child_run_id: str | None = None


@dataclass(frozen=True, slots=True)
class SubagentExecution:
    """The record of one child run, as its parent's readers see it."""

    subagent_name: str
    run_id: str
    status: RunStatus
    output_text: str | None
    error: str | None
    latency_ms: float | None
    usage: Usage


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as readers see it.

    Args:
        result: the stored scalars.
        waiting_for: kind and id of what a waiting run waits for; empty in every other status.
        agent_path: the names from the first run's agent down to this one's; `agent_depth` counts the generations.
        trace_context: as in `NewRun`; child runs take over what their parent's record has.
        tool_executions, subagent_executions: None where they were not loaded.
    """

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
    wakes: int = 0
    waiting_for: tuple[Mapping[str, str], ...] = ()
    agent_depth: int = 0
    agent_path: str = ""
    root_run_id: str = ""
    forked_from: ForkedFrom | None = None
    trace_context: str | None = None
    tool_executions: tuple[ToolExecution, ...] | None = None
    subagent_executions: tuple[SubagentExecution, ...] | None = None

    @property
    def identity(self) -> RunIdentity:
        path = self.agent_path or self.agent_name
        return RunIdentity(self.run_id, self.thread_id, self.agent_name, self.agent_depth, path)


@dataclass(frozen=True, slots=True)
class ThreadView:
    """A thread as runs see it.

    Args:
        active_run_id: the run that has the thread, if one does.
        messages: with the summary in place of what it stands for.
        model: that the thread's latest run asked for; None if it had no run.
    """

    thread_key: str
    active_run_id: str | None
    messages: tuple[ThreadMessage, ...]
    model: str | None
