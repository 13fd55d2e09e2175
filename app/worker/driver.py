"""Drives one run: decide, perform, commit, and again.

The driver holds nothing that cannot be rebuilt from rows. It ends when the run is finished, paused or waits, when the
fence says that the run is no longer its own, or when it is cancelled because the store already says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, assert_never

from uuid_utils.compat import uuid7

from app.engine.actions import Action, Await, CallModel, Compact, ExecuteTools, Finish
from app.engine.agent import ResolvedAgent
from app.engine.apply import apply, begun
from app.engine.compact_step import wanted
from app.engine.compaction import CompactionReason
from app.engine.decide import decide
from app.engine.delegation import delegate_specs
from app.engine.errors import RunError
from app.engine.events import Event, EventType, RunIdentity, WarningCode
from app.engine.limits import LimitCode
from app.engine.memories import Memories
from app.engine.messages import Message
from app.engine.model import ModelClient, ModelRequest
from app.engine.model_answer import charge
from app.engine.moves import CallMove, moves_of
from app.engine.outcomes import ActionOutcome, AttemptBegan, CallsMoved, ModelResponded
from app.engine.ownership import Committed, Fence, Woken, Write
from app.engine.policy import PolicyEngine
from app.engine.ports import EventBus, RunStore
from app.engine.scope import Scope
from app.engine.state import OpenCall, RunState, finished
from app.engine.status import RunStatus
from app.engine.tools import ToolInvocation, ToolPort
from app.engine.transition import Transition
from app.event_bus.announce import announce_stimulated, announce_stopped
from app.tools.answer_schema import answers_of
from app.worker.compaction import compact
from app.worker.conversation import Conversation
from app.worker.deltas import DeltaGatherer, DeltaLog
from app.worker.invocation import invocation_of
from app.worker.model_call import ModelCaller
from app.worker.owner_write import Position, note_write, step_write
from app.worker.start import Start
from app.worker.tool_batch import ToolBatch


class LostRun(Exception):
    """The fence did not hold: another attempt, or a caller, has the run now."""


@dataclass(frozen=True, slots=True)
class DriverPorts:
    """What every driver of a replica shares. `clock` gives monotonic seconds; `policy` are the operator's rules."""

    store: RunStore
    models: ModelClient
    tools: ToolPort
    bus: EventBus
    deltas: DeltaGatherer
    clock: Callable[[], float]
    policy: PolicyEngine
    memories: Memories


class RunDriver:
    """One attempt at one run.

    Args:
        on_lost: called when deltas find that the run is another's now.
        on_progress: called when a write was committed with which the run got further.
    """

    def __init__(
        self, ports: DriverPorts, start: Start, *, on_lost: Callable[[], None], on_progress: Callable[[], None]
    ) -> None:
        self._ports = ports
        self._start = start
        self._on_progress = on_progress
        self.run: RunIdentity = start.run.identity
        self._agent: ResolvedAgent = start.agent
        self._state = start.state
        self._conversation = Conversation(start, ports.store)
        self._last_seq = start.run.last_event_seq
        self._joined = start.joined
        self._wakes = start.stimuli.wakes
        self._request: ModelRequest | None = None
        self._stopping = False
        self._writing = False  # then the fence is the driver's, and the gatherer must not use it
        self.failure: RunError | None = None
        self._began_at = ports.clock()
        self._loop = asyncio.get_running_loop()
        self._deltas = DeltaLog(self.run, start.claim.fence, on_lost)
        self._caller = ModelCaller(
            ports.models, ports.deltas, self._deltas, self._restart_step, self._tell, ports.clock
        )
        tools = ports.tools.for_agent(start.agent.toolbox)
        context = {**start.agent.definition.context_defaults, **start.run.context}
        schema = start.agent.response_schema
        answers = None if schema is None else answers_of(schema)
        self._scope = Scope(start.agent, self.run, context, tools, start.now, _new_id, ports.policy, answers=answers)
        self._now_at = self._began_at
        self._batch = ToolBatch(tools, self._invocation)
        self._allowed_tools: frozenset[str] = frozenset()

    async def drive(self) -> RunStatus:
        """Go on until the run is finished, paused, waiting or released.

        Returns:
            the run's status, as committed: terminal, paused, waiting, or queued if it was released.

        Raises:
            LostRun: someone else has the run; nothing more was written.
            StoreUnavailable: the store could not be reached for too long.
        """
        try:
            await self._gather_tools()
            return await self._drive()
        finally:
            self._batch.cancel()
            self._ports.deltas.forget(self._deltas)

    @property
    def state(self) -> RunState:
        """As last committed; a new object whenever the run has moved on."""
        return self._state

    @property
    def write_no(self) -> int:
        """Grows with every write of the run, deltas and the progress of tools included."""
        return self._deltas.fence.write_no

    @property
    def doing(self) -> str:
        """What is under way: `model`, or the names of the tools."""
        names = [call.call.name for call in self._state.open_calls() if self._batch.under_way(call.index)]
        return ", ".join(names) or "model"

    def note_stall(self, doing: str, seconds: float) -> None:
        """Put a warning into the log that the step has made no progress for so long; it goes on."""
        data = {"code": WarningCode.STEP_STALLED, "seconds": round(seconds, 1), "doing": doing}
        said = f"the step has made no progress for {seconds:.0f} s ({doing})"
        self._tell(Event(EventType.WARNING, self._state.step, data, message=said))

    def stop_at_next_commit(self) -> None:
        """Release the run when it next stands before a model call; no tool under way is abandoned for it."""
        self._stopping = True

    def wake(self, wakes: int | None) -> None:
        """Somebody has stored something for this run: look at once, if that can change what is under way."""
        if wakes is None or wakes > self._wakes:
            self._batch.wake()

    async def give_up(self, error: RunError) -> None:
        """End the run as failed after a defect of ours, so that it does not hang."""
        self._batch.cancel()
        await self._carry_out(lambda _: Transition(finished(self._state, RunStatus.FAILED, error.message, error)))

    async def release(self) -> None:
        """Give the run back to the queue, for another replica to go on from the last commit."""
        await self._ports.store.release(await self._deltas.settle(), self._elapsed())

    async def _gather_tools(self) -> None:
        """Learn which tools the model may call: the agent's own, and one for each of its subagents."""
        subagents = self._agent.definition.subagents
        if subagents:
            team = await self._ports.store.team(self._start.run.tenant_id, subagents)
            self._scope = replace(self._scope, team=team)
        await self._scope.tools.settled(self._agent.tools)
        tools = (*self._scope.tools.granted(self._agent.tools), *delegate_specs(self._scope))
        self._allowed_tools = frozenset((*self._agent.tools, *(spec.name for spec in tools)))
        self._conversation.tools = tools

    async def _drive(self) -> RunStatus:
        if self._start.opened:
            action = decide(self._state, self._agent)
            self._state = begun(self._state, action)
        else:
            action = await self._begin()
        while True:
            match action:
                case RunStatus():
                    return action
                case Finish(outcome):
                    if outcome.status is RunStatus.FAILED:
                        self.failure = outcome.error
                    return outcome.status
                case Await():
                    return RunStatus.WAITING
                case CallModel() | Compact() if self._stopping:
                    await self.release()
                    return RunStatus.QUEUED
                case CallModel() | Compact() | ExecuteTools():
                    outcome = await self._within_wall_time(action)
                    action = await (self._end_in_time() if outcome is None else self._take_in(outcome))
                case _:
                    assert_never(action)

    async def _begin(self) -> Action | RunStatus:
        """The attempt's first write: that it began, and what has become of calls that others were to end."""
        first = Transition(self._state, self._start.first_events)
        stored = moves_of(self._state, self._start.stimuli)

        def transition(newer: tuple[CallMove, ...]) -> Transition:
            return first.then(apply(self._state, AttemptBegan(newer or stored), self._scope_now()))

        return await self._carry_out(transition)

    async def _take_in(self, outcome: ActionOutcome) -> Action | RunStatus:
        def transition(newer: tuple[CallMove, ...]) -> Transition:
            # What others have stored goes first: a posted result counts over one that came later.
            moved = CallsMoved((*newer, *outcome.moves)) if isinstance(outcome, CallsMoved) else outcome
            return apply(self._state, moved, self._scope_now())

        return await self._carry_out(transition)

    async def _end_in_time(self) -> Action | RunStatus:
        seconds = self._agent.limits.max_wall_time_s
        message = f"the run was active for its limit of {seconds:g} s (max_wall_time_s)"
        error = RunError(LimitCode.WALL_TIME.value, message, retryable=True)
        charged = charge(self._state, self._caller.broken_off())
        ended = charged.then(Transition(finished(charged.state, RunStatus.INTERRUPTED, self._caller.text, error)))
        return await self._carry_out(lambda _: ended)

    async def _within_wall_time(self, action: CallModel | Compact | ExecuteTools) -> ActionOutcome | None:
        """Perform an action; None if the run's time was up before it ended. Commits are never cut off, only actions."""
        limit = asyncio.timeout(self._time_left())
        try:
            async with limit:
                return await self._perform(action)
        except TimeoutError:
            if not limit.expired():
                raise
            self._batch.cancel()
            return None

    async def _perform(self, action: CallModel | Compact | ExecuteTools) -> ActionOutcome:
        match action:
            case CallModel(step):
                request = self._request or self._conversation.request(self._state)
                outcome = await self._caller.call(request, step)
                if isinstance(outcome, ModelResponded):
                    self._conversation.count(request, outcome.response)
                return outcome
            case Compact():
                talk = self._conversation
                return await compact(self._ports.models, talk.request(self._state), talk.cut(self._state))
            case ExecuteTools():
                return await self._next_moves()
            case _:
                assert_never(action)

    async def _next_moves(self) -> CallsMoved:
        """What becomes next of the open step's calls, here or elsewhere."""
        here = tuple(call for call in self._state.open_calls() if call.hold is None)
        while True:
            moves = await self._batch.next_moves(here) or await self._stored_moves()
            if moves:
                return CallsMoved(moves)

    async def _stored_moves(self) -> tuple[CallMove, ...]:
        stimuli = await self._ports.store.stimuli(self.run.run_id)
        self._wakes = stimuli.wakes
        return moves_of(self._state, stimuli)

    async def _carry_out(self, transition_with: Callable[[tuple[CallMove, ...]], Transition]) -> Action | RunStatus:
        """Commit what was brought about, together with what the next action begins with.

        Where others have stored something that this replica has not seen, it is taken in first, and again.

        Args:
            transition_with: the transition, given what others have stored since.

        Returns:
            the action to perform, or the status of the run if it was paused instead.
        """
        newer: tuple[CallMove, ...] = ()
        while True:
            transition = transition_with(newer)
            action = decide(transition.state, self._agent)
            count = self._prepare_request(transition, action)
            if self._is_too_long(transition.state, action):
                compacts = wanted(transition.state, CompactionReason.TOKEN_LIMIT, opened=False)
                transition = replace(transition, state=compacts)
                action = decide(compacts, self._agent)
            fence, deltas = await self._take_over()
            write = step_write(self._position(), transition, action, self._scope, count, deltas)
            committed = await self._commit(fence, write)
            if isinstance(committed, Committed):
                break
            self._deltas.put_back(deltas)
            newer = await self._stored_moves()
        if transition.compaction is not None:
            self._conversation.compact(transition.compaction)
        self._joined = True
        self._state = begun(transition.state, action)
        self._batch.keep_only({call.index for call in self._state.open_calls()})
        if committed.status is not RunStatus.PAUSED:
            return action
        if write.children:  # they began although a pause was asked for: it is theirs as well
            announce_stopped(self._ports.bus, await self._ports.store.pause(self.run.run_id))
        return RunStatus.PAUSED

    def _prepare_request(self, transition: Transition, action: Action) -> int:
        """Build the request of the model call that comes next, if one does; how many messages it has."""
        if not isinstance(action, CallModel):
            return 0
        joining = () if self._joined else self._start.run.input
        new = (*joining, *transition.messages)
        self._request = self._conversation.request(transition.state, new, transition.compaction)
        return len(self._request.messages)

    def _is_too_long(self, state: RunState, action: Action) -> bool:
        """Whether the request that was prepared should be made shorter first."""
        asks = isinstance(action, CallModel) and self._request is not None and not state.compacted
        return asks and self._request is not None and self._conversation.is_too_long(self._request)

    async def _restart_step(self, reason: str) -> None:
        """Void the deltas of a broken stream, for readers and for partial text alike."""
        data = {"code": WarningCode.STEP_RESTARTED, "from_seq": self._last_seq, "reason": reason}
        warning = Event(EventType.WARNING, self._state.step, data, message=f"the step starts again: {reason}")
        fence, deltas = await self._take_over()
        while isinstance(
            await self._commit(fence, note_write(self._position(), self._scope, (*deltas, warning))), Woken
        ):
            await self._stored_moves()

    async def _commit(self, fence: Fence, write: Write) -> Committed | Woken:
        committed = await self._ports.store.commit(fence, self._start.claim.thread_key, write)
        if committed is None:
            raise LostRun(self.run.run_id)
        if isinstance(committed, Committed):
            if write.progress:
                self._on_progress()
            await self._committed(committed, (*write.start, *write.messages))
            if write.children:
                self._ports.bus.queued()
        return committed

    async def _take_over(self) -> tuple[Fence, tuple[Event, ...]]:
        """The fence, and the deltas that go first in the next write: nothing of this run is in flight any more."""
        self._writing = True
        fence = await self._deltas.settle()
        self._ports.deltas.forget(self._deltas)
        return fence, self._deltas.take()

    async def _committed(self, committed: Committed, added: tuple[Message, ...]) -> None:
        self._deltas.fence = committed.fence
        self._writing = False
        if self._deltas.pending and committed.status is RunStatus.RUNNING:  # told while the write was under way
            self._ports.deltas.touched(self._deltas)
        self._last_seq = committed.events[-1].seq
        self._scope = replace(self._scope, now=committed.events[-1].created_at)
        self._now_at = self._ports.clock()
        self._ports.bus.publish(self.run.run_id, committed.events)
        for stopped in committed.stopped:
            announce_stopped(self._ports.bus, stopped)
        if committed.promoted is not None:
            self._ports.bus.queued()
        if committed.woken is not None:
            announce_stimulated(self._ports.bus, committed.woken)
        if not await self._conversation.take_in(committed, added):
            self._request = None  # the next model call sees what others have written

    def _position(self) -> Position:
        return Position(
            run=self._start.run,
            state=self._state,
            message_seq=self._conversation.last_seq,
            wakes=self._wakes,
            elapsed_s=self._elapsed(),
            joins=not self._joined,
        )

    def _scope_now(self) -> Scope:
        """The run's surroundings now; the store's time is reckoned from its last answer."""
        passed = timedelta(seconds=self._ports.clock() - self._now_at)
        return replace(self._scope, now=self._scope.now + passed, used_ids=self._conversation.used_ids)

    def _invocation(self, call: OpenCall) -> ToolInvocation:
        step, call_id = self._state.step, call.call.id

        def progress(message: str, data: Any) -> None:
            event = Event(EventType.TOOL_PROGRESS, step, {"tool_call_id": call_id, "message": message, "data": data})
            with suppress(RuntimeError):  # the loop is gone: so is whoever could be told
                self._loop.call_soon_threadsafe(self._note, call.index, event)

        run, ports = self._start.run, self._ports
        return invocation_of(call, step, run, self._agent.definition, self._allowed_tools, ports.memories, progress)

    def _note(self, index: int, event: Event) -> None:
        """Put a fact about a call under way into the log; calls that have ended have nothing more to say."""
        if self._batch.under_way(index) and event.step == self._state.step:
            self._tell(event)

    def _tell(self, fact: Event) -> None:
        self._deltas.note(fact)
        if not self._writing:
            self._ports.deltas.touched(self._deltas)

    def _elapsed(self) -> float:
        return self._start.elapsed_s + self._ports.clock() - self._began_at

    def _time_left(self) -> float:
        return self._agent.limits.max_wall_time_s - (self._elapsed() - self._start.wall_from_s)


def _new_id() -> str:
    return str(uuid7())
