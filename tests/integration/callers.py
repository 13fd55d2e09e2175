"""What callers do to a run on its way, and what they may be told: the contract's table."""

from __future__ import annotations

from app.db.run_store import PostgresRunStore
from app.engine.errors import RunError
from app.engine.ownership import Committed, Woken
from app.engine.records import Resolved, RunRecord
from app.engine.status import RunStatus as S
from app.engine.store_errors import InteractionDecided, RunConflict
from tests.contract.stores import STOPPED
from tests.contract.waiting import APPROVED, DENIED

FINAL = {S.COMPLETED, S.DEGRADED, S.CANCELLED}
# What a caller gets by the status that the run has: the contract's table. None is a conflict.
ALLOWED: dict[str, dict[S, tuple[S, ...] | None]] = {
    "pause": {
        S.QUEUED: (S.PAUSED,),
        S.RUNNING: (S.RUNNING,),
        S.PAUSED: (S.PAUSED,),
        S.WAITING: (S.PAUSED,),
        **dict.fromkeys((S.COMPLETED, S.DEGRADED, S.FAILED, S.INTERRUPTED, S.CANCELLED)),
    },
    "resume": {
        S.QUEUED: (S.QUEUED,),
        S.RUNNING: (S.RUNNING,),
        S.PAUSED: (S.QUEUED,),
        S.WAITING: (S.WAITING,),
        S.COMPLETED: (S.COMPLETED,),
        S.DEGRADED: (S.DEGRADED,),
        S.FAILED: (S.QUEUED,),
        S.INTERRUPTED: (S.QUEUED,),
        S.CANCELLED: None,
    },
    "cancel": {status: (status if status.terminal else S.CANCELLED,) for status in S},
    "interrupt": {status: (status if status.terminal else S.INTERRUPTED,) for status in S},
}
DECISIONS = ("approve", "deny")


class Callers:
    """All who ask something of runs that they do not execute."""

    def __init__(self, store: PostgresRunStore) -> None:
        self._store = store

    async def steer(self, run_id: str, asked: str) -> None:
        before = await self._store.get(run_id)
        allowed = ALLOWED[asked][before.status]
        try:
            after = await self._act(run_id, asked)
        except RunConflict:
            # A run that others have written behind cannot be resumed either.
            assert allowed is None or (asked == "resume" and before.status in (S.FAILED, S.INTERRUPTED))
            return
        assert allowed is not None
        assert after.status in allowed
        if before.status.terminal and after.status is before.status:
            assert after.last_event_seq == before.last_event_seq

    async def _act(self, run_id: str, asked: str) -> RunRecord:
        match asked:
            case "pause":
                stopped = await self._store.pause(run_id)
            case "resume":
                stopped = await self._store.resume(run_id, None)
            case "cancel":
                stopped = await self._store.stop(run_id, S.CANCELLED, RunError("cancelled", "by the test"))
            case _:
                stopped = await self._store.stop(run_id, S.INTERRUPTED, STOPPED)
        return stopped.run

    async def decide(self, run_id: str, approves: bool) -> None:
        for question in await self._store.interactions(run_id):
            status = (await self._store.get(run_id)).status
            try:
                resolved = await self._store.answer(run_id, question.interaction_id, APPROVED if approves else DENIED)
            except InteractionDecided:
                assert question.status != "pending"
                continue
            if resolved.run.changed:
                assert not status.terminal, "a question of a run that is over was answered"
                assert resolved.run.status is (S.QUEUED if status is S.WAITING else status)

    async def act(self, run_id: str, what: str) -> RunRecord | Resolved | None:
        """One of `ALLOWED` or `DECISIONS`, whatever the run is at; None if there is nothing to decide.

        Raises:
            RunConflict, InteractionDecided: as the store.
        """
        if what in ALLOWED:
            return await self._act(run_id, what)
        asked = await self._store.interactions(run_id)
        answer = APPROVED if what == "approve" else DENIED
        return await self._store.answer(run_id, asked[-1].interaction_id, answer) if asked else None


def agree(answers: list[object]) -> None:
    """What two were told who asked something of a run at one time can both be true."""
    for answer in answers:
        expected = RunRecord | Resolved | Committed | Woken | RunConflict | InteractionDecided | None
        assert isinstance(answer, expected), answer
    told = [each.status for each in answers if isinstance(each, RunRecord | Committed)]
    assert len(FINAL & set(told)) <= 1, "both were told an end, and not the same one"
    decided = [each for each in answers if isinstance(each, Resolved) and each.run.changed]
    assert len(decided) <= 1, "both were told that theirs is the answer"
