"""One attempt at a run, driven by hand: what its owner does, and that nothing of it lands once the run is not its own.

Between the claim and the first write an attempt has written nothing: then its epoch alone tells it from the next one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from app.db.database import Database
from app.engine.apply import closing_event
from app.engine.effects import ToolEffect
from app.engine.events import Event, EventType
from app.engine.messages import Message, Role, ToolCall
from app.engine.moves import Stimuli
from app.engine.ownership import Committed, Fence, Woken
from app.engine.state import Hold, HoldKind, OpenCall, Phase, RunState, checkpoint_of
from app.engine.status import RunStatus as S
from app.engine.transition import ToolRecord
from app.engine.usage import Usage
from tests.contract.stores import STARTED, STOPPED, Owner, answered, begins
from tests.contract.waiting import FUTURE, PAST, a_question, holding

_ONE_CALL = Usage(llm_calls=1, input_tokens=10, output_tokens=5)

# All that a write which comes too late could change.
_STANDS = """
    SELECT concat(to_json(r), to_json(t),
                  (SELECT count(*) FROM messages m WHERE m.thread_key = r.thread_key),
                  (SELECT count(*) FROM run_events e WHERE e.run_id = r.run_id),
                  (SELECT json_agg(i) FROM interactions i WHERE i.run_id = r.run_id))
    FROM runs r JOIN threads t USING (thread_key) WHERE r.run_id = $1::uuid"""


@dataclass(eq=False)
class Attempt:
    """A claim of a run, as its replica holds it.

    Args:
        begun: whether it has made its first write.
    """

    database: Database
    replica: str
    owner: Owner
    begun: bool = False

    @property
    def run_id(self) -> str:
        return self.owner.run_id

    @property
    def answers(self) -> bool:
        """Whether the model is to answer next: no call of a tool is open."""
        return not self.owner.calls

    async def begin(self) -> None:
        """The first write of an attempt: the run's own first one, or that it goes on from its last checkpoint."""
        owner = self.owner
        loaded = await owner.store.load(owner.run_id)
        owner.wakes = loaded.stimuli.wakes
        self.begun = True
        if loaded.checkpoint is None:
            await owner.start()
            return
        owner.step, owner.usage, owner.calls = loaded.checkpoint.step, loaded.run.usage, loaded.calls
        self._take_in(loaded.stimuli)
        data = {"reason": "crash", "attempt": loaded.run.attempt, "from_seq": loaded.checkpoint_seq}
        # One that goes on before a model call asks for it again, and so begins its step again.
        await owner.surely(Event(EventType.RUN_RESUMED, owner.step, data), opening=self._begins_step())

    async def look(self) -> None:
        """Take in what others have stored. Before that nothing of it may be written over."""
        known = self.owner.wakes
        stands = await self._stands()
        if (await self.owner.store.stimuli(self.run_id)).wakes > known:
            assert isinstance(await self.owner.try_write(answered(self.owner.step, "unaware")), Woken)
            assert await self._stands() == stands, "an owner has written without what others have stored"
        self._take_in(await self.owner.look())

    async def go_on(self) -> None:
        """Whatever comes next: a model's answer with a call, the end of a call, a wait, the end of the step."""
        owner = self.owner
        if not owner.calls:
            owner.usage += _ONE_CALL
            await owner.surely(answered(owner.step), **self._calling())
            return
        going = [call for call in owner.calls if call.result is None and call.hold is None]
        if going:
            await owner.end_call(going[0].index)
            return
        pauses = (await owner.store.get(self.run_id)).pause_requested
        if any(call.hold is not None for call in owner.calls):
            written = await owner.surely(**holding(owner, *owner.calls) | {"messages": ()})
            assert written.status is (S.PAUSED if pauses else S.WAITING)
        else:
            told = [Message(Role.TOOL, "found", tool_call_id=call.call.id) for call in owner.calls]
            written = await owner.close_step(messages=tuple(told))
            assert written.status is (S.PAUSED if pauses else S.RUNNING)

    async def say(self) -> None:
        assert isinstance(await self.owner.say("some ", "words"), Committed)

    async def release(self) -> None:
        assert await self.owner.store.release(self.owner.fence, 1.0)

    async def ask(self, *, beside: bool, lapses: bool) -> None:
        """Ask a person about a call, and wait for the answer.

        Args:
            beside: go on with another call meanwhile.
            lapses: the question's time is up as soon as it is asked.
        """
        assert isinstance(await self._ask(self.owner, beside=beside, lapses=lapses), Committed)

    async def finish(self, status: S) -> None:
        assert isinstance(await self._finish(self.owner, status), Committed)

    async def race(self, what: str) -> Committed | Woken | None:
        """A write of an owner who does not know what others are about to do: it lands as a whole or not at all."""
        racing = replace(self.owner)
        match what:
            case "ask" if self.answers:
                written = await self._ask(racing, beside=False, lapses=False)
            case "complete" if self.answers:
                written = await self._finish(racing, S.COMPLETED)
            case _:
                written = await self._finish(racing, S.FAILED)
        if isinstance(written, Committed):
            self.owner = racing
        return written

    async def lands_nothing(self, fence: Fence | None = None) -> None:
        """No kind of write takes place with this fence, or else its last one, by an owner who has seen everything."""
        late = replace(self.owner, fence=fence or self.owner.fence)
        await late.look()
        stands = await self._stands()
        first = {"opening": begins(1), "start": late.new.input, "checkpoint": checkpoint_of(RunState())}
        assert await late.try_write(STARTED, **first) is None
        assert await late.try_write(answered(late.step, "too late")) is None
        assert not isinstance(await late.say("too late"), Committed)
        assert not await late.store.release(late.fence, 1.0)
        assert await self._finish(late, S.FAILED) is None
        assert await self._stands() == stands, "a write that was refused has left something"

    def _take_in(self, stimuli: Stimuli) -> None:
        """Questions that have ended, in whatever way, hold their calls no longer."""
        ended = {end.interaction_id for end in stimuli.interactions}
        self.owner.calls = tuple(
            replace(call, hold=None, started=True) if call.hold is not None and call.hold.id in ended else call
            for call in self.owner.calls
        )

    def _begins_step(self) -> tuple[Event, ...]:
        return () if self.owner.calls else begins(self.owner.step)

    def _calling(self) -> dict[str, Any]:
        """The parts with which the model asks for one call."""
        owner = self.owner
        owner.calls = (OpenCall(0, _call(owner, 0), ToolEffect.READ_ONLY, started=True),)
        return {
            "opening": (Event(EventType.TOOL_BATCH_STARTED, owner.step, {"tool_call_count": 1}),),
            "messages": (Message(Role.ASSISTANT, "", (_call(owner, 0),)),),
            "records": tuple(ToolRecord(owner.step, call) for call in owner.calls),
            "checkpoint": owner.checkpoint(Phase.EXECUTE_TOOLS),
        }

    async def _ask(self, owner: Owner, *, beside: bool, lapses: bool) -> Committed | Woken | None:
        asked = _call(owner, 0)
        question = a_question(step=owner.step, tool_call_id=asked.id, expires_at=PAST if lapses else FUTURE)
        held = Hold(HoldKind.INTERACTION, question.interaction_id, question=question.kind)
        calls = [OpenCall(0, asked, ToolEffect.IDEMPOTENT, hold=held)]
        if beside:
            calls.append(OpenCall(1, _call(owner, 1), ToolEffect.READ_ONLY, started=True))
        owner.usage += _ONE_CALL
        parts = holding(owner, *calls, status=S.RUNNING if beside else S.WAITING)
        told = Event(EventType.INTERACTION_REQUESTED, owner.step, {"interaction_id": question.interaction_id})
        return await owner.try_write(answered(owner.step), told, interactions=(question,), **parts)

    async def _finish(self, owner: Owner, status: S) -> Committed | Woken | None:
        error = None if status is S.COMPLETED else STOPPED
        state = RunState(step=owner.step, usage=owner.usage)
        return await owner.try_write(
            answered(owner.step, "done"),
            messages=() if owner.calls else (Message(Role.ASSISTANT, "done"),),
            opening=(closing_event(state, status, "done", error),),
            status=status,
            result={"final_text": "done"},
            error=error,
            closes=tuple(call.hold.id for call in owner.calls if call.hold is not None),
        )

    async def _stands(self) -> str:
        async with self.database.connection() as connection:
            return await connection.fetchval(_STANDS, self.run_id)


def _call(owner: Owner, index: int) -> ToolCall:
    """A call whose id no other step of the run has."""
    return ToolCall(f"call-{owner.step}-{index}", "look", '{"q": 1}')
