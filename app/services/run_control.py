"""Steer runs: pause, resume, cancel, interrupt, and bring what they wait for, whoever executes them."""

from __future__ import annotations

from app.engine.errors import RunError
from app.engine.interactions import Answer, InteractionRecord
from app.engine.limits import Limits
from app.engine.ports import EventBus, RunStore
from app.engine.records import RunRecord, Stimulated, Stopped
from app.engine.status import RunStatus
from app.engine.store_errors import InteractionDecided, ResultConflict
from app.event_bus.announce import announce_stimulated, announce_stopped
from app.services.errors import Conflict

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

    async def answer(self, run_id: str, interaction_id: str, answer: Answer) -> InteractionRecord:
        """Answer a question of a run; the interaction as it is now.

        Args:
            answer: taken as it is: whether it fits the question is for the caller to check.

        Raises:
            InteractionNotFound: the run has no such interaction.
            Conflict: it was decided otherwise, or can be decided no more; `current_status` is the run's status.
        """
        try:
            resolved = await self._steered.answer(run_id, interaction_id, answer)
        except InteractionDecided as error:
            raise await self._conflict(run_id, error) from error
        announce_stimulated(self._told, resolved.run)
        return resolved.interaction

    async def post_result(self, run_id: str, tool_call_id: str, output: str | None, error: str | None) -> Stimulated:
        """Give a tool call the result that it waits for; what this did to its run.

        Args:
            output: JSON text; None with an `error`.

        Raises:
            RunNotFound, ToolCallNotFound.
            Conflict: the call has another result, or the run is over; `current_status` is the run's status.
        """
        try:
            stimulated = await self._steered.post_result(run_id, tool_call_id, output, error)
        except ResultConflict as refusal:
            raise await self._conflict(run_id, refusal) from refusal
        announce_stimulated(self._told, stimulated)
        return stimulated

    def _stopped(self, stopped: Stopped) -> RunRecord:
        announce_stopped(self._told, stopped)
        return stopped.run

    async def _conflict(self, run_id: str, refusal: InteractionDecided | ResultConflict) -> Conflict:
        run = await self._steered.get(run_id, with_tools=False)
        return Conflict(str(refusal), run.status)
