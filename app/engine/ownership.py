"""What passes between the owner of a run and a store: claims, what an attempt goes on from, writes to commit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from app.engine.agent import AgentVersion
from app.engine.compaction import NewCompaction
from app.engine.errors import RunError
from app.engine.events import Event, ResumeReason, RunIdentity, StoredEvent
from app.engine.interactions import NewInteraction
from app.engine.messages import Message, ThreadMessage
from app.engine.moves import Stimuli
from app.engine.records import NewRun, RunRecord, Stimulated, Stopped
from app.engine.state import Checkpoint, OpenCall
from app.engine.status import RunStatus
from app.engine.transition import ToolRecord
from app.engine.usage import Usage


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
        wakes: how many stimuli the run had had when it was claimed.
        suspect: whether its next crash ends it.
        waited_s: seconds from when it was ready to when it was claimed from the queue.
    """

    fence: Fence
    thread_key: str
    attempt: int
    opened: bool = False
    message_seq: int = 0
    wakes: int = 0
    suspect: bool = False
    waited_s: float = 0.0


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
        messages: the thread as runs see it: what was compacted, by its summary.
        used_ids: the ids of the run's tool calls, those among them that the messages do not show any more.
        resume_reason: why this attempt exists, None for a first one.
        elapsed_s: active seconds so far; `wall_from_s` of them are not counted against `max_wall_time_s`.
        stimuli: what others have stored for the open step.
        now: the store's time at the load.
    """

    run: RunRecord
    agent: AgentVersion
    checkpoint: Checkpoint | None
    checkpoint_seq: int
    calls: tuple[OpenCall, ...]
    messages: tuple[ThreadMessage, ...]
    used_ids: frozenset[str]
    resume_reason: ResumeReason | None
    elapsed_s: float
    wall_from_s: float
    stimuli: Stimuli
    now: datetime


@dataclass(frozen=True, slots=True)
class StopChildren:
    """Child runs that end with a write: what each becomes, and why."""

    run_ids: tuple[str, ...]
    status: RunStatus
    reason: RunError


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
        progress: the run gets further with it than any attempt before: crashes until now were not for this.
        result: the scalars of the AgentResult, for terminal writes.
        wakes: the stimuli that the owner has seen; if there are more, nothing is written and `Woken` is the answer.
        waiting_for: kind and id of what the run waits for, for writes of status waiting.
        interactions: questions that are asked with this write; `closes` are those that need no answer any more.
        children: child runs that begin with this write.
        stops: child runs that end with it.
        parent_run_id: of a child's terminal write: the run that it wakes.
        compaction: a summary that stands in the run's thread from now on.
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
    progress: bool = False
    result: Mapping[str, Any] | None = None
    error: RunError | None = None
    wakes: int = 0
    waiting_for: tuple[Mapping[str, str], ...] = ()
    interactions: tuple[NewInteraction, ...] = ()
    closes: tuple[str, ...] = ()
    children: tuple[NewRun, ...] = ()
    stops: StopChildren | None = None
    parent_run_id: str | None = None
    compaction: NewCompaction | None = None


@dataclass(frozen=True, slots=True)
class Woken:
    """A write that did not take place, because others have stored something for the run that its owner must see."""


@dataclass(frozen=True, slots=True)
class Committed:
    """A write that took place.

    Args:
        fence: for the next write.
        events: as numbered and stamped by the store.
        status: the run's status now (`paused` if the write met a pause request).
        message_seq: the seq of the last message written, or None if it wrote none.
        first_message_seq: of the messages written; a gap to what the owner knows means that others appended.
        promoted: the run that now holds the thread, if one was waiting in line.
        stopped: the child runs that ended with the write, and theirs.
        woken: the parent run that a child's terminal write has woken.
    """

    fence: Fence
    events: tuple[StoredEvent, ...]
    status: RunStatus
    first_message_seq: int | None = None
    message_seq: int | None = None
    promoted: str | None = None
    stopped: tuple[Stopped, ...] = ()
    woken: Stimulated | None = None


@dataclass(frozen=True, slots=True)
class DeltaWrite:
    """Deltas of one run to append; of several runs they may share a statement."""

    fence: Fence
    identity: RunIdentity
    events: tuple[Event, ...]


class DeltaOutcome(StrEnum):
    LOST = "lost"
    SKIPPED = "skipped"
