"""What the engine asks of the outside: a store that commits, an executor that runs, a hub that wakes readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from app.engine.agent import AgentVersion
from app.engine.errors import RunError
from app.engine.events import StoredEvent
from app.engine.limits import Limits
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
    RunRecord,
    Stopped,
    Write,
)
from app.engine.status import RunStatus


class RunStore(Protocol):
    """Where runs live. Every method is one transaction; waits are bounded by the implementation.

    Raises (all methods): `StoreUnavailable` when the store cannot be reached.
    """

    async def create(self, new: NewRun, *, owner: str | None) -> Created:
        """Create a run, and claim it for `owner` if given and the thread is free.

        Raises:
            ThreadBusy: `on_busy_thread` is reject and the thread has a holder.
            AgentChanged: see `NewRun.agent_check`.
            IdempotencyMismatch: the key was used with another request.
        """
        ...

    async def claim(self, owner: str, limit: int) -> list[Claim]:
        """Claim up to `limit` ready queued runs, oldest first."""
        ...

    async def load(self, run_id: str) -> Loaded: ...

    async def messages_after(self, thread_key: str, seq: int) -> list[ThreadMessage]:
        """The thread's messages with a greater seq, ascending; voided ones left out."""
        ...

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | None:
        """One fenced write. None: this attempt has lost the run and must write nothing more."""
        ...

    async def append_deltas(self, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
        """Append deltas of several runs, each under its fence; in the order of `batch`."""
        ...

    async def release(self, fence: Fence, elapsed_s: float) -> bool:
        """Give a run back to the queue at a drain; False if it was lost before."""
        ...

    async def stop(self, run_id: str, status: RunStatus, reason: RunError) -> Stopped:
        """Cancel or interrupt: terminal at once, whoever owns the run. A terminal run stays unchanged.

        Raises: RunNotFound.
        """
        ...

    async def pause(self, run_id: str) -> Stopped:
        """Pause at once, or ask the owner to pause at its next step boundary.

        Raises: RunNotFound, RunConflict.
        """
        ...

    async def resume(self, run_id: str, limits: Limits | None) -> Stopped:
        """Back to the queue from the last checkpoint, where the status allows it.

        Raises: RunNotFound, RunConflict, LimitReached.
        """
        ...

    async def get(self, run_id: str, *, with_tools: bool = True) -> RunRecord:
        """Raises: RunNotFound."""
        ...

    async def read_events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        """Events with a seq greater than `after`, ascending."""
        ...


class Executor(Protocol):
    """Runs what was claimed; implemented by `app.worker`, called by `app.services`."""

    @property
    def owner(self) -> str:
        """This replica's incarnation."""
        ...

    def has_room(self) -> bool:
        """Whether a new run may be claimed here as it is created."""
        ...

    def start(self, claim: Claim, created: RunRecord, agent: AgentVersion) -> None: ...

    def signal(self, run_id: str, epoch: int) -> None:
        """The store has moved the run on to `epoch`: an attempt of an earlier one stops at once."""
        ...


class EventBus(Protocol):
    """Wakes readers, owners and claimers; lossy, and only an accelerator."""

    def publish(self, run_id: str, events: Sequence[StoredEvent]) -> None:
        """Hand committed events to readers."""
        ...

    def control(self, run_id: str, epoch: int) -> None:
        """A caller moved the run on to `epoch`: its owner, wherever it is, should stop."""
        ...

    def queued(self) -> None:
        """There is a run to claim."""
        ...

    def watched(self, run_id: str) -> bool:
        """Whether anyone, on any replica, reads this run's events now."""
        ...
