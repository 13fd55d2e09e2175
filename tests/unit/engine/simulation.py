"""A run that is driven to its end by answers, results, people, child runs and crashes, as the dice fall."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache

from app.engine.actions import Action, Await, CallModel, Compact, ExecuteTools, Finish
from app.engine.agent import ResolvedAgent
from app.engine.compact_step import Compacted
from app.engine.interactions import InteractionStatus
from app.engine.moves import (
    CallMove,
    ChildEnd,
    Deferred,
    Ended,
    InteractionEnd,
    PostedResult,
    Prepared,
    Stimuli,
    moves_of,
)
from app.engine.outcomes import AttemptBegan, CompactionEnded, ModelFailed, ModelResponded
from app.engine.state import Hold, HoldKind, OpenCall, RunState
from app.engine.status import RunStatus
from app.engine.usage import Usage
from tests.unit.engine.builders import a_scope
from tests.unit.engine.dice import Dice
from tests.unit.engine.driven_run import DrivenRun

_seeds = range(1000)


@dataclass
class Trace(DrivenRun):
    """A simulated run: what it committed, and what the world around it did.

    Args:
        charges: what was used, in order; `of_model` are the run's own model calls.
        children: how each child run ended that was taken in.
        states: the state after each write; `found` is what an attempt would find that takes over then.
    """

    seed: int = 0
    charges: list[Charge] = field(default_factory=list["Charge"])
    children: list[ChildEnd] = field(default_factory=list[ChildEnd])
    states: list[RunState] = field(default_factory=list[RunState])
    found: list[RunState] = field(default_factory=list[RunState])
    answered: list[InteractionEnd] = field(default_factory=list[InteractionEnd])

    @property
    def agent(self) -> ResolvedAgent:
        return self.scope.agent


@dataclass(frozen=True, slots=True)
class Charge:
    usage: Usage
    cost_usd: Decimal | None
    of_model: bool


def simulated_runs() -> tuple[Trace, ...]:
    """The runs of the chosen seeds, the shortest first, so that what breaks a promise is as short as may be."""
    return _simulated(_seeds)


def choose(seeds: range) -> None:
    """Simulate other runs than those that `make test` does."""
    global _seeds  # noqa: PLW0603 - the tests are functions, made before anyone can give them anything
    _seeds = seeds


@cache
def _simulated(seeds: range) -> tuple[Trace, ...]:
    return tuple(sorted((simulate(seed) for seed in seeds), key=lambda trace: len(trace.states)))


def simulate(seed: int) -> Trace:
    """Drive a run to its end."""
    dice = Dice(seed)
    trace = Trace(a_scope(dice.agent()), seed=seed)
    world = _World(trace, dice)
    deaths = dice.randrange(4)
    action = trace.write(AttemptBegan())
    while True:
        trace.states.append(trace.state)
        trace.found.append(trace.restored())
        if isinstance(action, Finish):
            return trace
        if deaths and dice.chance(20):
            deaths -= 1
            action = world.take_over(resumed=dice.chance(50))
        else:
            action = world.perform(action)


class _World:
    """All that stands around a run: its model, its tools, people, callers and child runs."""

    def __init__(self, trace: Trace, dice: Dice) -> None:
        self._trace = trace
        self._dice = dice
        self._step = 0
        self._posted: list[PostedResult] = []
        self._children: list[ChildEnd] = []

    def perform(self, action: Action) -> Action:
        trace, dice = self._trace, self._dice
        match action:
            case CallModel():
                if dice.chance(5):
                    return trace.write(ModelFailed(dice.model_error()))
                response = dice.response()
                trace.charges.append(Charge(response.usage, response.cost_usd, of_model=True))
                return trace.write(ModelResponded(response, 12.5))
            case Compact():
                outcome = dice.compaction()
                if isinstance(outcome, Compacted):
                    trace.charges.append(Charge(outcome.usage, outcome.cost_usd, of_model=True))
                return trace.write(CompactionEnded(outcome))
            case ExecuteTools():
                here = [call for call in trace.state.open_calls() if call.hold is None]
                named = [call.index for call in action.calls if call.hold is None]
                assert named == [call.index for call in here], "the calls to run are those that nothing holds"
                self._others_act(at_least=0)
                moves = tuple(self._end_here(call) for call in dice.sample(here, dice.randint(1, len(here))))
                stored = self._stored()
                # An owner that is told twice of what was stored takes it in twice.
                return trace.move(*stored, *(stored if dice.chance(30) else ()), *moves)
            case Await():
                self._others_act(at_least=1)
                return self.take_over()
            case Finish():
                raise AssertionError("a run that is over performs nothing")

    def take_over(self, *, resumed: bool = False) -> Action:
        """Another attempt goes on; of a run that was `resumed`, its questions were closed when it was stopped."""
        trace = self._trace
        trace.state = trace.restored()
        for hold in trace.state.holds() if resumed else ():
            if hold.kind is HoldKind.INTERACTION and not self._is_answered(hold):
                trace.answered.append(InteractionEnd(hold.id, self._held_by(hold), InteractionStatus.CLOSED, None))
        return trace.write(AttemptBegan(self._stored()))

    def _stored(self) -> tuple[CallMove, ...]:
        """What others have stored and the run has not acted upon; it is taken in at once."""
        self._forget_earlier_steps()
        stimuli = Stimuli(0, tuple(self._trace.answered), tuple(self._posted), tuple(self._children))
        moves = moves_of(self._trace.state, stimuli)
        for move in moves:
            if isinstance(move, ChildEnd):
                self._trace.children.append(move)
                self._trace.charges.append(Charge(move.usage, move.cost_usd, of_model=False))
        return moves

    def _forget_earlier_steps(self) -> None:
        if self._step != self._trace.state.step:
            self._step = self._trace.state.step
            self._posted, self._children = [], []

    def _end_here(self, call: OpenCall) -> CallMove:
        dice = self._dice
        if not call.judged:
            refused = dice.chance(20)
            return Ended(call.index, dice.result()) if refused else Prepared(call.index, dice.arguments())
        return Deferred(call.index, dice.deferral()) if dice.chance(20) else Ended(call.index, dice.result())

    def _others_act(self, at_least: int) -> None:
        """People answer, callers post results, child runs end: of what the run waits for, at least so many."""
        self._forget_earlier_steps()
        holds = self._trace.state.holds()
        if holds:
            for hold in self._dice.sample(holds, self._dice.randint(at_least, len(holds))):
                self._act(hold, self._held_by(hold))

    def _act(self, hold: Hold, index: int | None) -> None:
        trace, dice = self._trace, self._dice
        if index is not None and (hold.kind is HoldKind.TOOL_RESULT or dice.chance(8)):
            self._posted.append(PostedResult(index, *dice.posted()))
        elif hold.kind is HoldKind.INTERACTION:
            if not self._is_answered(hold):
                trace.answered.append(InteractionEnd(hold.id, index, InteractionStatus.RESOLVED, dice.answer()))
        elif index is not None:
            status = RunStatus.CANCELLED if hold.id in trace.stops else dice.child_status()
            error, usage, cost = dice.child_error(), dice.child_usage(), dice.cost()
            self._children.append(ChildEnd(index, hold.id, status, dice.text(), error, usage, cost, 5.0))

    def _is_answered(self, hold: Hold) -> bool:
        return any(end.interaction_id == hold.id for end in self._trace.answered)

    def _held_by(self, hold: Hold) -> int | None:
        """The call that a hold keeps; None where that is the model call."""
        return next((call.index for call in self._trace.state.open_calls() if call.hold == hold), None)
