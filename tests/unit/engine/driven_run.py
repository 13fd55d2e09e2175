"""A run without a world: the pure core, and all that it would commit."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from app.engine.actions import Action, Await, Finish
from app.engine.apply import apply, begun, opening
from app.engine.decide import decide
from app.engine.events import Event, EventType
from app.engine.interactions import Answer, InteractionStatus, NewInteraction
from app.engine.messages import Message, Role, ThreadMessage, ToolCall
from app.engine.moves import CallMove, InteractionEnd
from app.engine.outcomes import ActionOutcome, AttemptBegan, CallsMoved, ModelResponded
from app.engine.resume import best_text
from app.engine.scope import Scope
from app.engine.state import Checkpoint, OpenCall, Outcome, Phase, RunState, checkpoint_of, restore
from app.engine.status import RunStatus
from app.engine.tools import ToolResult
from app.engine.transition import ToolRecord, Transition
from tests.unit.engine.builders import a_response, a_scope


@dataclass
class DrivenRun:
    """A run, write by write: `write` takes an outcome in and begins what comes next, as an owner's write does."""

    scope: Scope = field(default_factory=a_scope)
    state: RunState = field(default_factory=RunState)
    messages: list[Message] = field(default_factory=lambda: [Message(Role.USER, "go")])
    events: list[Event] = field(default_factory=list[Event])
    records: list[ToolRecord] = field(default_factory=list[ToolRecord])
    interactions: list[NewInteraction] = field(default_factory=list[NewInteraction])
    closes: list[str] = field(default_factory=list[str])
    stops: list[str] = field(default_factory=list[str])
    checkpoint: Checkpoint = field(default_factory=lambda: checkpoint_of(RunState()))

    def write(self, outcome: AttemptBegan | ActionOutcome) -> Action:
        scope = replace(self.scope, used_ids=frozenset(self.call_ids))
        done = apply(self.state, outcome, scope)
        action = decide(done.state, scope.agent)
        self._keep(done, action)
        events, records = opening(done.state, action, scope.agent, len(self.messages))
        self.events += events
        self.records += records
        self.state = begun(done.state, action)
        return action

    def ask(self, *calls: ToolCall, text: str = "") -> Action:
        """The model answers with these calls, or with a text alone."""
        return self.write(ModelResponded(a_response(text, *calls), 12.5))

    def move(self, *moves: CallMove) -> Action:
        return self.write(CallsMoved(moves))

    def answer(self, answer: Answer | None, number: int = -1) -> Action:
        """A question, by default the latest, is answered, or closed without an answer."""
        asked = self.interactions[number]
        status = InteractionStatus.CLOSED if answer is None else InteractionStatus.RESOLVED
        return self.move(InteractionEnd(asked.interaction_id, asked.call_index, status, answer))

    def crash(self, *moves: CallMove) -> Action:
        """Another attempt takes the run over; `moves` is what was stored in the meantime."""
        self.state = self.restored()
        return self.write(AttemptBegan(moves))

    @property
    def outcome(self) -> Outcome:
        assert self.state.outcome is not None
        return self.state.outcome

    @property
    def call_ids(self) -> list[str]:
        return [call.id for message in self.messages for call in message.tool_calls]

    def call(self, index: int = 0) -> OpenCall:
        """The latest record of a call of the latest step that had any."""
        step = max(one.step for one in self.records)
        return [one.call for one in self.records if (one.step, one.call.index) == (step, index)][-1]

    def result(self, index: int = 0) -> ToolResult:
        result = self.call(index).result
        assert result is not None
        return result

    def event_types(self) -> list[str]:
        return [event.type.value for event in self.events]

    def data(self, kind: EventType) -> list[dict[str, Any]]:
        """The data of all events of a type, as readers get it."""
        return [orjson.loads(orjson.dumps(event.data)) for event in self.events if event.type is kind]

    def restored(self) -> RunState:
        """The state as an attempt that takes over finds it; the checkpoint has been through JSON."""
        kept = replace(self.checkpoint, state=orjson.loads(orjson.dumps(self.checkpoint.state)))
        return restore(kept, self.step_calls(), self.best_text())

    def step_calls(self) -> tuple[OpenCall, ...]:
        """The calls of the checkpoint's step as a store keeps them: the latest record of each."""
        kept = {one.call.index: one.call for one in self.records if one.step == self.checkpoint.step}
        return tuple(kept[index] for index in sorted(kept))

    def best_text(self) -> str:
        run_id = self.scope.run.run_id
        return best_text(tuple(ThreadMessage(i, m, run_id) for i, m in enumerate(self.messages, 1)), run_id)

    def _keep(self, done: Transition, action: Action) -> None:
        in_step = self.state.phase is done.state.phase is Phase.EXECUTE_TOOLS and self.state.usage == done.state.usage
        waits = isinstance(action, Await)
        interrupted = isinstance(action, Finish) and action.outcome.status is RunStatus.INTERRUPTED
        if (waits or not in_step) and not interrupted:
            self.checkpoint = checkpoint_of(done.state, waits=waits)
        self.events += done.events
        self.messages += done.messages
        self.records += done.records
        self.interactions += done.interactions
        self.closes += done.closes
        self.stops += done.stops
