"""With which writes a run gets further than any attempt before: these clear it of the crashes until then."""

from __future__ import annotations

from app.engine.apply import apply, begun
from app.engine.decide import decide
from app.engine.moves import CallMove, Ended
from app.engine.outcomes import AttemptBegan, CallsMoved, ModelResponded
from app.engine.ownership import Write
from app.engine.records import RunRecord
from app.engine.state import RunState
from app.engine.transition import Transition
from app.worker.owner_write import Position, step_write
from tests.contract.stores import a_run, memory_subject
from tests.unit.engine.builders import a_call, a_response, a_result, a_scope, an_agent

SCOPE = a_scope()


async def a_record() -> RunRecord:
    return (await memory_subject().store.create(a_run(), owner=None)).run


def written(run: RunRecord, before: RunState, transition: Transition) -> tuple[Write, RunState]:
    """The write of a transition, and the state after it."""
    action = decide(transition.state, an_agent())
    position = Position(run, before, message_seq=1, wakes=0, elapsed_s=1.0, joins=False)
    return step_write(position, transition, action, SCOPE, 1, ()), begun(transition.state, action)


async def test_a_response_a_result_and_a_step_are_progress_and_the_begin_of_an_attempt_is_none() -> None:
    """Seen to fail where only a closed step counts, and where every write does."""
    run = await a_record()

    def begins(state: RunState) -> bool:
        return written(run, state, apply(state, AttemptBegan(), SCOPE))[0].progress

    asks = RunState()
    assert not begins(asks)
    answer = ModelResponded(a_response("", a_call("read", "c0"), a_call("read", "c1")), 1.0)
    response, calling = written(run, asks, apply(asks, answer, SCOPE))
    assert response.progress
    assert not begins(calling), "the calls are made again"

    def ends(state: RunState, index: int) -> tuple[Write, RunState]:
        moves: tuple[CallMove, ...] = (Ended(index, a_result()),)
        return written(run, state, apply(state, CallsMoved(moves), SCOPE))

    first, waiting = ends(calling, 0)
    assert (first.progress, first.step) == (True, 1)
    assert not begins(waiting)
    last, next_step = ends(waiting, 1)
    assert (last.progress, last.step) == (True, 2)
    assert not begins(next_step)
