"""Drives one run: decide, perform, commit, and again.

The driver holds nothing that cannot be rebuilt from rows. It ends when the run is finished or paused, when the fence
says that the run is no longer its own, or when it is cancelled because the store already says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import assert_never

from app.engine.actions import Action, CallModel, ExecuteTools, Finish
from app.engine.agent import ResolvedAgent
from app.engine.apply import (
    ActionOutcome,
    ModelFailed,
    ModelResponded,
    ToolsFinished,
    Transition,
    apply,
    begun,
    last_step,
    opening,
)
from app.engine.decide import decide
from app.engine.errors import ModelError, ModelErrorCode, RunError
from app.engine.events import Event, EventType, RunIdentity, WarningCode
from app.engine.limits import LimitCode
from app.engine.messages import Message, ThreadMessage
from app.engine.model import (
    ModelClient,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    StreamRestarted,
    TextDelta,
    ToolCallDelta,
)
from app.engine.model_request import build_request
from app.engine.ports import EventBus, RunStore
from app.engine.records import Claim, Committed, Fence, RunRecord, Write
from app.engine.recover import unknown_outcome_warnings, unknown_outcomes
from app.engine.state import OpenCall, Outcome, RunState, checkpoint_of, finished
from app.engine.status import RunStatus
from app.engine.tools import ToolInvocation, ToolPort, ToolSpec
from app.worker.deltas import DeltaGatherer, DeltaLog
from app.worker.tool_batch import ToolBatch


class LostRun(Exception):
    """The fence did not hold: another attempt, or a caller, has the run now."""


@dataclass(frozen=True, slots=True)
class DriverPorts:
    """What every driver of a replica shares. `clock` gives monotonic seconds."""

    store: RunStore
    models: ModelClient
    tools: ToolPort
    bus: EventBus
    deltas: DeltaGatherer
    clock: Callable[[], float]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a driver begins.

    Args:
        opened: whether the attempt's first write is committed.
        messages: the thread as it is, the run's input included if `joined`.
        message_seq: the last message of the thread that is among them.
        elapsed_s: active seconds of earlier attempts; `wall_from_s` of them do not count against the limit.
        first_events: what the attempt's first write begins with, if it is not opened.
    """

    claim: Claim
    run: RunRecord
    agent: ResolvedAgent
    state: RunState
    messages: tuple[ThreadMessage, ...]
    message_seq: int
    opened: bool
    joined: bool
    elapsed_s: float = 0.0
    wall_from_s: float = 0.0
    first_events: tuple[Event, ...] = ()


class RunDriver:
    """One attempt at one run."""

    def __init__(self, ports: DriverPorts, start: Start, on_lost: Callable[[], None]) -> None:
        self._ports = ports
        self._start = start
        self._run: RunIdentity = start.run.identity
        self._agent: ResolvedAgent = start.agent
        self._state = start.state
        self._messages: list[Message] = [entry.message for entry in start.messages]
        self._used_ids = {
            call.id for entry in start.messages if entry.run_id == self._run.run_id for call in entry.message.tool_calls
        }
        self._message_seq = start.message_seq
        self._last_seq = start.run.last_event_seq
        self._request: ModelRequest | None = None
        self._step_text: list[str] = []
        self._stopping = False
        self.failure: RunError | None = None
        self._began_at = ports.clock()
        self._deltas = DeltaLog(self._run, start.claim.fence, on_lost)
        self._tools: tuple[ToolSpec, ...] = tuple(
            spec for spec in (ports.tools.spec(name) for name in start.agent.tools) if spec is not None
        )
        self._allowed_tools = frozenset(start.agent.tools)
        self._batch = ToolBatch(ports.tools, self._invocation)

    async def drive(self) -> RunStatus:
        """Go on until the run is finished, paused or released.

        Returns:
            the run's status, as committed: terminal, paused, or queued if it was released.

        Raises:
            LostRun: someone else has the run; nothing more was written.
            StoreUnavailable: the store could not be reached for too long.
        """
        try:
            return await self._drive()
        finally:
            self._batch.cancel()
            self._ports.deltas.forget(self._deltas)

    def stop_at_next_commit(self) -> None:
        """Release the run when it next stands before a model call; no tool under way is abandoned for it."""
        self._stopping = True

    async def give_up(self, error: RunError) -> None:
        """End the run as failed after a defect of ours, so that it does not hang."""
        self._batch.cancel()
        state = finished(self._state, RunStatus.FAILED, error.message, error)
        await self._commit(Transition(state), decide(state, self._agent))

    async def release(self) -> None:
        """Give the run back to the queue, for another replica to go on from the last commit."""
        fence = await self._deltas.settle()
        await self._ports.store.release(fence, self._elapsed())

    async def _drive(self) -> RunStatus:
        action = decide(self._state, self._agent)
        if self._start.opened:
            self._state = begun(self._state, action)
        else:
            action = await self._begin(action)
        while action is not None:
            if isinstance(action, Finish):
                if action.outcome.status is RunStatus.FAILED:
                    self.failure = action.outcome.error
                return action.outcome.status
            if self._stopping and isinstance(action, CallModel):
                await self.release()
                return RunStatus.QUEUED
            outcome = await self._within_wall_time(action)
            transition = self._out_of_time() if outcome is None else self._apply(outcome)
            action = await self._commit(transition, decide(transition.state, self._agent))
        return RunStatus.PAUSED

    async def _begin(self, action: Action) -> Action | None:
        """The attempt's first write: that it began, and what becomes of calls whose outcome nobody knows."""
        transition = Transition(self._state, self._start.first_events)
        unknown = unknown_outcomes(self._state)
        if unknown:
            warnings = unknown_outcome_warnings(self._state, {index for index, _ in unknown})
            settled = self._apply(ToolsFinished(unknown))
            transition = replace(settled, events=(*transition.events, *warnings, *settled.events))
            action = decide(transition.state, self._agent)
        return await self._commit(transition, action, joins=not self._start.joined)

    async def _within_wall_time(self, action: CallModel | ExecuteTools) -> ActionOutcome | None:
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

    async def _perform(self, action: CallModel | ExecuteTools) -> ActionOutcome:
        match action:
            case CallModel():
                return await self._call_model()
            case ExecuteTools(_, calls):
                return ToolsFinished(await self._batch.next_results(calls))
            case _:
                assert_never(action)

    async def _call_model(self) -> ActionOutcome:
        clock = self._ports.clock
        started = clock()
        self._step_text = []
        self._deltas.step = self._state.step
        response: ModelResponse | None = None
        request = self._request or self._build_request(self._messages)
        try:
            async with aclosing(self._ports.models.stream(request)) as events:
                async for event in events:
                    if isinstance(event, ModelResponse):
                        response = event
                    elif isinstance(event, StreamRestarted):
                        await self._restart_step(event.reason)
                    else:
                        self._add_delta(event)
        except ModelError as error:
            return ModelFailed(error)
        if response is None:
            return ModelFailed(ModelError(ModelErrorCode.INVALID_RESPONSE, "the model's answer never ended"))
        return ModelResponded(response, (clock() - started) * 1000)

    def _add_delta(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> None:
        match event:
            case TextDelta(text):
                self._step_text.append(text)
                self._deltas.add(EventType.TEXT_DELTA, text)
            case ReasoningDelta(text):
                self._deltas.add(EventType.REASONING_DELTA, text)
            case ToolCallDelta():
                self._deltas.add(EventType.TOOL_CALL_DELTA, event.delta, (event.tool_call_id, event.name))
            case _:
                assert_never(event)
        self._ports.deltas.touched(self._deltas)

    async def _restart_step(self, reason: str) -> None:
        """Void the deltas of a broken stream, for readers and for partial text alike."""
        self._step_text = []
        data = {"code": WarningCode.STEP_RESTARTED, "from_seq": self._last_seq, "reason": reason}
        warning = Event(EventType.WARNING, self._state.step, data, message=f"the step starts again: {reason}")
        await self._write(Transition(self._state, (warning,)), (), None)

    def _build_request(self, messages: Sequence[Message]) -> ModelRequest:
        return build_request(self._agent, self._start.run.context, messages, self._tools)

    def _invocation(self, call: OpenCall) -> ToolInvocation:
        run = self._start.run
        return ToolInvocation(
            run_id=self._run.run_id,
            thread_id=self._run.thread_id,
            agent_name=self._run.agent_name,
            tool_call_id=call.call.id,
            tool_name=call.call.name,
            arguments=call.call.arguments,
            idempotency_key=f"{self._run.run_id}:{self._state.step}:{call.index}",
            context=run.context,
            metadata=run.metadata,
            allowed_tools=self._allowed_tools,
            output_max_chars=self._agent.tool_output_max_chars,
        )

    def _apply(self, outcome: ActionOutcome) -> Transition:
        return apply(self._state, outcome, self._agent, self._run, self._ports.tools, self._used_ids)

    def _out_of_time(self) -> Transition:
        seconds = self._agent.limits.max_wall_time_s
        message = f"the run was active for its limit of {seconds:g} s (max_wall_time_s)"
        error = RunError(LimitCode.WALL_TIME.value, message, retryable=True)
        return Transition(finished(self._state, RunStatus.INTERRUPTED, "".join(self._step_text), error))

    async def _commit(self, transition: Transition, action: Action, *, joins: bool = False) -> Action | None:
        """Commit what an outcome brought together with what the next action begins with.

        Args:
            joins: the run's input joins its thread with this write.

        Returns:
            the action to perform; None if the run was paused instead.
        """
        on_pause = None
        message_count = 0
        if isinstance(action, CallModel):
            on_pause = (Event(EventType.RUN_PAUSED, action.step, {"reason": "requested"}, RunStatus.PAUSED),)
            input_messages = self._start.run.input if joins else ()
            self._request = self._build_request((*self._messages, *input_messages, *transition.messages))
            message_count = len(self._request.messages)
        events, records = opening(transition.state, action, self._agent, message_count)
        transition = replace(transition, records=(*transition.records, *records))
        committed = await self._write(transition, events, on_pause, action=action, joins=joins)
        if committed.status is RunStatus.PAUSED:
            return None
        self._state = begun(transition.state, action)
        return action

    async def _write(
        self,
        transition: Transition,
        opening_events: tuple[Event, ...],
        on_pause: tuple[Event, ...] | None,
        *,
        action: Action | None = None,
        joins: bool = False,
    ) -> Committed:
        fence, deltas = await self._take_over()
        state = transition.state
        outcome = action.outcome if isinstance(action, Finish) else None
        start = self._start.run.input if joins else ()
        write = Write(
            identity=self._run,
            events=(*deltas, *transition.events),
            opening=opening_events,
            on_pause=on_pause,
            status=RunStatus.RUNNING if outcome is None else outcome.status,
            step=state.step if outcome is None else last_step(state),
            messages=transition.messages,
            records=transition.records,
            # An interrupted run goes on from where it stood: at the checkpoint that it has.
            checkpoint=None if _mid_step(state, outcome) else checkpoint_of(state),
            usage=state.usage,
            cost_usd=state.cost_usd,
            elapsed_s=self._elapsed(),
            message_seq=self._message_seq,
            start=start,
            step_closed=state.step > self._state.step or outcome is not None,
            result=None if outcome is None else _result(state, outcome),
            error=None if outcome is None else outcome.error,
        )
        committed = await self._ports.store.commit(fence, self._start.claim.thread_key, write)
        if committed is None:
            raise LostRun(self._run.run_id)
        await self._committed(committed, (*start, *transition.messages))
        return committed

    async def _take_over(self) -> tuple[Fence, tuple[Event, ...]]:
        """The fence, and the deltas that go first in the next write: nothing of this run is in flight any more."""
        fence = await self._deltas.settle()
        self._ports.deltas.forget(self._deltas)
        return fence, self._deltas.take()

    async def _committed(self, committed: Committed, added: tuple[Message, ...]) -> None:
        self._deltas.fence = committed.fence
        self._last_seq = committed.events[-1].seq
        self._ports.bus.publish(self._run.run_id, committed.events)
        if committed.promoted is not None:
            self._ports.bus.queued()
        self._used_ids |= {call.id for message in added for call in message.tool_calls}
        if committed.first_message_seq is None or committed.message_seq is None:
            return
        if committed.first_message_seq == self._message_seq + 1:
            self._messages += added
        else:  # others have written to the thread in between; the next model call sees it
            newer = await self._ports.store.messages_after(self._start.claim.thread_key, self._message_seq)
            self._messages += [entry.message for entry in newer]
            self._request = None
        self._message_seq = committed.message_seq

    def _elapsed(self) -> float:
        return self._start.elapsed_s + self._ports.clock() - self._began_at

    def _time_left(self) -> float:
        return self._agent.limits.max_wall_time_s - (self._elapsed() - self._start.wall_from_s)


def _mid_step(state: RunState, outcome: Outcome | None) -> bool:
    """Whether the last checkpoint still says where to go on from: calls of the step are open, or it was cut off."""
    if outcome is not None:
        return outcome.status is RunStatus.INTERRUPTED
    return any(call.result is not None for call in state.calls)


def _result(state: RunState, outcome: Outcome) -> dict[str, str | None]:
    """The scalars of the AgentResult that are stored with the run; its lists are read from rows."""
    return {
        "final_text": outcome.final_text,
        "final_structured": None,
        "model": state.model,
        "provider": state.provider,
    }
