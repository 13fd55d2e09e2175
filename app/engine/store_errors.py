"""What a store answers when it has no result."""

from __future__ import annotations

from app.engine.status import RunStatus


class StoreError(Exception):
    """Root of what a store raises.

    StoreError
    ├── StoreUnavailable     the database cannot be reached or did not answer in time
    ├── RunNotFound
    ├── DamagedCheckpoint    the last checkpoint of a run cannot be understood
    ├── RunConflict          the run's status does not allow the request
    ├── LimitReached         a resume that would breach a limit at once
    ├── ThreadBusy           the thread has a holder
    ├── ThreadNotFound       the thread was deleted meanwhile
    ├── ThreadExists         the thread is there, and has to be new
    ├── CompactedMeanwhile   the thread has a newer summary than the one to be kept
    ├── AgentChanged         the agent has a newer version than the caller resolved
    ├── InteractionNotFound
    ├── InteractionDecided   the question has another answer, or none can be given any more
    ├── ToolCallNotFound
    ├── ResultConflict       the tool call has another result, or its run is over
    └── IdempotencyMismatch  the key was used with another request
    """


class StoreUnavailable(StoreError):
    """The store did not answer; nothing is known of what was asked.

    Args:
        message: for callers: which part failed and what to do.
        reason: for logs: what the driver said; it may name hosts and accounts. None where there was none.
    """

    def __init__(self, message: str, reason: object = None) -> None:
        super().__init__(message)
        self.reason = None if reason is None else str(reason) or type(reason).__name__


class RunNotFound(StoreError):
    def __init__(self, run_id: str) -> None:
        super().__init__(f"there is no run {run_id}")


class RunConflict(StoreError):
    """The run's status, `current_status`, does not allow the request."""

    def __init__(self, message: str, current_status: RunStatus) -> None:
        super().__init__(message)
        self.current_status = current_status


class DamagedCheckpoint(StoreError):
    def __init__(self, run_id: str) -> None:
        super().__init__(f"the last checkpoint of run {run_id} is damaged; the run cannot go on from it")


class LimitReached(StoreError):
    """A resume would breach a limit at once; the message says which and how to go on."""


class ThreadBusy(StoreError):
    """The thread has a holder and the caller asked not to wait."""


class ThreadNotFound(StoreError):
    """The thread that the caller has read is there no more; one of the same id would be another."""


class ThreadExists(StoreError):
    def __init__(self, thread_id: str) -> None:
        super().__init__(f"there is a thread {thread_id!r} already")


class CompactedMeanwhile(StoreError):
    """The thread has a newer summary than the one to be kept."""


class AgentChanged(StoreError):
    """The agent has a newer version than the caller resolved; resolve again."""


class IdempotencyMismatch(StoreError):
    """The idempotency key was used with another request."""


class InteractionNotFound(StoreError):
    def __init__(self, run_id: str, interaction_id: str) -> None:
        super().__init__(f"run {run_id} has no interaction {interaction_id}")


class InteractionDecided(StoreError):
    """The question has another answer, or the run needs none any more."""


class ToolCallNotFound(StoreError):
    def __init__(self, run_id: str, tool_call_id: str) -> None:
        super().__init__(f"run {run_id} has no tool call {tool_call_id!r}")


class ResultConflict(StoreError):
    """The tool call has another result, or its run is over."""


def reason_of(error: StoreError) -> str:
    """What to write into a log: also what callers are not told."""
    reason = error.reason if isinstance(error, StoreUnavailable) else None
    return str(error) if reason is None else f"{error} ({reason})"
