"""What the engine asks of the outside: a store that commits, an executor that runs, a hub that wakes readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from app.engine.agent import AgentVersion
from app.engine.compaction import NewCompaction
from app.engine.errors import RunError
from app.engine.events import StoredEvent
from app.engine.interactions import Answer, InteractionRecord
from app.engine.limits import Limits
from app.engine.messages import ThreadMessage
from app.engine.moves import Stimuli
from app.engine.ownership import Claim, Committed, Created, DeltaOutcome, DeltaWrite, Fence, Loaded, Woken, Write
from app.engine.records import Expired, NewRun, Resolved, RunRecord, Stimulated, Stopped, ThreadView
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

    async def claim(self, owner: str, limit: int, *, suspect: bool = False) -> list[Claim]:
        """Claim up to `limit` ready queued runs, oldest first.

        Args:
            suspect: whether one run may be among them whose next crash ends it; the others are left out.
        """
        ...

    async def load(self, run_id: str) -> Loaded: ...

    async def messages_after(self, thread_key: str, seq: int) -> list[ThreadMessage]:
        """The thread's messages with a greater seq, ascending; voided ones left out."""
        ...

    async def team(self, tenant_id: str, names: Sequence[str]) -> Mapping[str, AgentVersion]:
        """The current versions of these agents, in the order of the names; those that are gone are left out."""
        ...

    async def stimuli(self, run_id: str) -> Stimuli:
        """What others have stored for the run's open step."""
        ...

    async def commit(self, fence: Fence, thread_key: str, write: Write) -> Committed | Woken | None:
        """One fenced write, with the child runs that begin and end with it.

        Returns:
            None: this attempt has lost the run and must write nothing more. `Woken`: nothing was written, see
            `Write.wakes`.
        """
        ...

    async def append_deltas(self, batch: Sequence[DeltaWrite]) -> list[Committed | DeltaOutcome]:
        """Append deltas of several runs, each under its fence; in the order of `batch`."""
        ...

    async def release(self, fence: Fence, elapsed_s: float, *, delay_s: float = 0.0) -> bool:
        """Give a run back to the queue, to be claimed after `delay_s` seconds; False if it was lost before."""
        ...

    async def stop(self, run_id: str, status: RunStatus, reason: RunError) -> Stopped:
        """Cancel or interrupt: terminal at once, whoever owns the run, with all of its child runs.

        Open questions are closed. A terminal run stays unchanged.

        Raises: RunNotFound.
        """
        ...

    async def pause(self, run_id: str) -> Stopped:
        """Pause at once, or ask the owner to pause at its next step boundary; child runs likewise.

        Raises: RunNotFound, RunConflict.
        """
        ...

    async def resume(self, run_id: str, limits: Limits | None) -> Stopped:
        """Back to the queue from the last checkpoint, where the status allows it.

        Child runs of open calls go on too, if they were paused or interrupted.

        Raises: RunNotFound, RunConflict, LimitReached.
        """
        ...

    async def answer(self, run_id: str, interaction_id: str, answer: Answer) -> Resolved:
        """Store a decision and let the run go on; the same decision again changes nothing.

        Raises:
            RunNotFound.
            InteractionNotFound: the run has no such interaction.
            InteractionDecided: it was decided otherwise, has expired, or was closed.
        """
        ...

    async def interactions(self, run_id: str) -> list[InteractionRecord]:
        """All questions of a run, oldest first. Raises: RunNotFound."""
        ...

    async def post_result(self, run_id: str, tool_call_id: str, output: str | None, error: str | None) -> Stimulated:
        """Store the result of a committed call that has none; the same result again changes nothing.

        Args:
            output: JSON text; None with an `error`.

        Raises:
            RunNotFound, ToolCallNotFound.
            ResultConflict: the call has another result, or the run is over.
        """
        ...

    async def expire(self, limit: int) -> Expired:
        """End what has waited for too long: at most `limit` questions, tool results and child runs each."""
        ...

    async def get(self, run_id: str, *, with_tools: bool = True) -> RunRecord:
        """Raises: RunNotFound."""
        ...

    async def read_events(self, run_id: str, after: int, limit: int) -> list[StoredEvent]:
        """Events with a seq greater than `after`, ascending."""
        ...


class ThreadStore(Protocol):
    """Where threads are compacted from outside of any run. Raises (all methods): `StoreUnavailable`."""

    async def thread(self, tenant_id: str, thread_id: str) -> ThreadView | None:
        """A thread as runs see it; None if there is none of that id."""
        ...

    async def compact(self, thread_key: str, compaction: NewCompaction | None, *, purge_upto: int | None) -> None:
        """Let a summary stand for the thread's older messages, and delete messages that a summary stands for.

        Args:
            compaction: None for none.
            purge_upto: the last message to delete; None deletes none.

        Raises:
            ThreadNotFound: the thread was deleted meanwhile.
            ThreadBusy: a run has the thread.
            CompactedMeanwhile: the thread was compacted by others meanwhile; nothing was changed.
        """
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

    def wake(self, run_id: str) -> None:
        """Something was stored for a running run: its owner, wherever it is, should look."""
        ...

    def queued(self) -> None:
        """There is a run to claim."""
        ...

    def watched(self, run_id: str) -> bool:
        """Whether anyone, on any replica, reads this run's events now."""
        ...
