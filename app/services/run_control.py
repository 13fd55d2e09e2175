"""Steer runs: pause, resume, cancel, interrupt, whoever executes them."""

from __future__ import annotations

from app.engine.errors import RunError
from app.engine.limits import Limits
from app.engine.ports import EventBus, RunStore
from app.engine.records import RunRecord, Stopped
from app.engine.status import RunStatus

CANCELLED = RunError("cancelled", "cancelled by the caller")
INTERRUPTED = RunError("interrupted", "interrupted by the caller", retryable=True)


class RunControl:
    """A transition in the store first; only then is its owner told, whose late writes the fence refuses.

    Raises (all methods): `StoreUnavailable` when the store cannot be reached.
    """

    def __init__(self, store: RunStore, bus: EventBus) -> None:
        self._steered = store
        self._told = bus

    async def pause(self, run_id: str) -> RunRecord:
        """Raises: RunNotFound, RunConflict."""
        return self._stopped(await self._steered.pause(run_id))

    async def resume(self, run_id: str, limits: Limits | None) -> RunRecord:
        """Raises: RunNotFound, RunConflict, LimitReached."""
        return self._stopped(await self._steered.resume(run_id, limits))

    async def cancel(self, run_id: str) -> RunRecord:
        """Raises: RunNotFound."""
        return self._stopped(await self._steered.stop(run_id, RunStatus.CANCELLED, CANCELLED))

    async def interrupt(self, run_id: str) -> RunRecord:
        """Raises: RunNotFound."""
        return self._stopped(await self._steered.stop(run_id, RunStatus.INTERRUPTED, INTERRUPTED))

    def _stopped(self, stopped: Stopped) -> RunRecord:
        """Tell readers, the owner and the claimers what a transition has left."""
        run = stopped.run
        if stopped.changed:
            self._told.publish(run.run_id, stopped.events)
            self._told.control(run.run_id, run.epoch)
        if stopped.promoted is not None or run.status is RunStatus.QUEUED:
            self._told.queued()
        return run
