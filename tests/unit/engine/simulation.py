"""A run without a world: the pure core driven by drawn model answers, tool results and crashes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal

import orjson
from hypothesis import strategies as st

from app.engine.actions import CallModel, ExecuteTools, Finish
from app.engine.agent import LlmFailurePolicy, OnLimit, ResolvedAgent, ToolFailurePolicy
from app.engine.apply import (
    ActionOutcome,
    ModelFailed,
    ModelResponded,
    ToolRecord,
    ToolsFinished,
    Transition,
    apply,
    begun,
    opening,
)
from app.engine.decide import decide
from app.engine.errors import ModelError, ModelErrorCode
from app.engine.events import Event, RunIdentity
from app.engine.limits import RunLimits
from app.engine.messages import Message, Role, ThreadMessage, ToolCall
from app.engine.model import FinishReason, ModelResponse
from app.engine.recover import unknown_outcomes
from app.engine.resume import best_text
from app.engine.state import Checkpoint, OpenCall, Outcome, Phase, RunState, checkpoint_of, restore
from app.engine.tools import ToolEffect, ToolInvocation, ToolResult, ToolSpec
from app.engine.usage import Usage

RUN = RunIdentity("run-1", "thread-1", "helper", 0, "helper")

EFFECTS = {"read": ToolEffect.READ_ONLY, "put": ToolEffect.IDEMPOTENT, "send": ToolEffect.UNSAFE}


class Tools:
    """A tool port that knows three tools, one of each effect, and runs none."""

    def spec(self, name: str) -> ToolSpec | None:
        effect = EFFECTS.get(name)
        return None if effect is None else ToolSpec(name, "", {"type": "object"}, effect)

    async def invoke(self, invocation: ToolInvocation) -> ToolResult:
        raise AssertionError("the core runs no tool")


TOOLS = Tools()


def an_agent(
    limits: RunLimits | None = None,
    *,
    llm_failure: LlmFailurePolicy = LlmFailurePolicy.FAIL,
    tool_failure: ToolFailurePolicy = ToolFailurePolicy.CONTINUE,
    on_limit: OnLimit = OnLimit.FAIL,
    max_tokens: int | None = None,
    tool_output_max_chars: int = 200,
) -> ResolvedAgent:
    return ResolvedAgent(
        name="helper",
        version=1,
        version_id="version-1",
        model="scripted/answer",
        instructions="",
        tools=tuple(EFFECTS),
        settings={} if max_tokens is None else {"max_tokens": max_tokens},
        limits=limits or RunLimits(),
        llm_failure_policy=llm_failure,
        tool_failure_policy=tool_failure,
        on_limit=on_limit,
        context_defaults={},
        tool_output_max_chars=tool_output_max_chars,
    )


def a_response(text: str = "", *calls: ToolCall, **fields: object) -> ModelResponse:
    reason = FinishReason.TOOL_CALLS if calls else FinishReason.STOP
    response = ModelResponse("scripted", "answer", text, calls, reason, Usage(llm_calls=1), Decimal("0.01"))
    return replace(response, **fields)


def a_result(success: bool = True, text: str = "found") -> ToolResult:
    if success:
        return ToolResult(True, orjson.dumps(text).decode(), None, text, 1.0)
    return ToolResult(False, None, text, text, 1.0)


# --- drawing -----------------------------------------------------------------------------------------------

TRICKY = st.text(
    st.one_of(st.sampled_from('\u0085\u2028\u2029\x00"\\\n\r{}'), st.characters(exclude_categories=["Cs"])),
    max_size=12,
)
# Models write JSON over several lines, and what is no JSON at all.
ARGUMENTS = st.one_of(
    TRICKY,
    st.dictionaries(TRICKY, st.integers() | TRICKY, max_size=2).map(lambda data: json.dumps(data, indent=1)),
    st.dictionaries(TRICKY, TRICKY, max_size=2).map(lambda data: json.dumps(data, ensure_ascii=False)),
)
# Providers repeat ids, or give none; these also look like what the engine makes of such ids.
IDS = st.sampled_from(["", "a", "b", "call-1-0", "call-1-1", "a-1-0", "a-2-0", "a-2-1"])
CALLS = st.builds(ToolCall, IDS, st.sampled_from([*EFFECTS, "unknown"]), ARGUMENTS)
COSTS = st.none() | st.decimals(0, 1, places=6)
TOKENS = st.integers(0, 1000)
USAGES = st.builds(Usage, st.just(1), TOKENS, TOKENS, TOKENS, TOKENS)
RESPONSES = st.builds(
    ModelResponse,
    provider=st.just("scripted"),
    model=st.just("answer"),
    text=TRICKY,
    tool_calls=st.lists(CALLS, max_size=4).map(tuple),
    finish_reason=st.sampled_from(FinishReason),
    usage=USAGES,
    cost_usd=st.decimals(0, 1, places=6) | COSTS,
    usage_estimated=st.booleans(),
)
ERRORS = st.builds(ModelError, st.sampled_from(ModelErrorCode), TRICKY)
RESULTS = st.one_of(
    st.builds(a_result, st.just(False), TRICKY),
    st.builds(lambda output, content: ToolResult(True, output, None, content, 1.0), ARGUMENTS, TRICKY),
)
LIMITS = st.builds(
    RunLimits,
    max_steps=st.integers(1, 6),
    max_llm_calls=st.integers(1, 6),
    max_tool_calls=st.integers(1, 8),
    max_total_tokens=st.none() | st.integers(1, 5000),
    max_total_cost_usd=st.none() | st.floats(0.01, 3),
)
AGENTS = st.builds(
    an_agent,
    LIMITS,
    llm_failure=st.sampled_from(LlmFailurePolicy),
    tool_failure=st.sampled_from(ToolFailurePolicy),
    on_limit=st.sampled_from(OnLimit),
    max_tokens=st.none() | st.integers(1, 500),
)


# --- driving -----------------------------------------------------------------------------------------------


@dataclass
class Trace:
    """A simulated run: what it committed, in order."""

    agent: ResolvedAgent
    messages: list[Message] = field(default_factory=lambda: [Message(Role.USER, "go")])
    events: list[Event] = field(default_factory=list[Event])
    records: list[ToolRecord] = field(default_factory=list[ToolRecord])
    responses: list[ModelResponse] = field(default_factory=list[ModelResponse])
    states: list[RunState] = field(default_factory=list[RunState])
    state: RunState = field(default_factory=RunState)
    checkpoint: Checkpoint = field(default_factory=lambda: checkpoint_of(RunState()))

    @property
    def outcome(self) -> Outcome:
        assert self.state.outcome is not None
        return self.state.outcome

    @property
    def call_ids(self) -> list[str]:
        return [call.id for message in self.messages for call in message.tool_calls]

    def best_text(self) -> str:
        return best_text(tuple(ThreadMessage(i, m, RUN.run_id) for i, m in enumerate(self.messages, 1)), RUN.run_id)

    def step_calls(self) -> tuple[OpenCall, ...]:
        """The calls of the checkpoint's step as a store keeps them: the latest record of each."""
        kept = {one.call.index: one.call for one in self.records if one.step == self.checkpoint.step}
        return tuple(kept[index] for index in sorted(kept))

    def restored(self) -> RunState:
        """The state as an attempt that takes over finds it; the checkpoint has been through JSON."""
        kept = replace(self.checkpoint, state=orjson.loads(orjson.dumps(self.checkpoint.state)))
        return restore(kept, self.step_calls(), self.best_text())


Draw = Callable[[st.SearchStrategy[object]], object]


def simulate(agent: ResolvedAgent, data: st.DataObject, *, failures: bool = True, crashes: bool = True) -> Trace:
    """Drive a run to its end; `failures` and `crashes` say whether model calls fail and attempts die."""
    trace = Trace(agent)
    deaths = data.draw(st.integers(0, 3), "deaths") if crashes else 0
    while True:
        action = decide(trace.state, agent)
        events, records = opening(trace.state, action, agent, len(trace.messages))
        trace.events += events
        trace.records += records
        trace.state = begun(trace.state, action)
        trace.states.append(trace.state)
        if isinstance(action, Finish):
            return trace
        if deaths and data.draw(st.booleans(), "dies"):
            deaths -= 1
            _take_over(trace)
            continue
        _commit(trace, _outcome(action, trace, data, failures))


def _take_over(trace: Trace) -> None:
    trace.state = trace.restored()
    unknown = unknown_outcomes(trace.state)
    if unknown:
        _commit(trace, ToolsFinished(unknown))


def _outcome(action: CallModel | ExecuteTools, trace: Trace, data: st.DataObject, failures: bool) -> ActionOutcome:
    match action:
        case CallModel():
            if failures and data.draw(st.integers(0, 9), "fails") == 0:
                return ModelFailed(data.draw(ERRORS))
            response = data.draw(RESPONSES)
            trace.responses.append(response)
            return ModelResponded(response, 12.5)
        case ExecuteTools(_, calls):
            assert calls, "a batch without a call to run"
            ended = data.draw(st.lists(st.sampled_from(calls), min_size=1, unique_by=lambda call: call.index))
            return ToolsFinished(tuple((call.index, data.draw(RESULTS)) for call in ended))


def _commit(trace: Trace, outcome: ActionOutcome) -> Transition:
    used = set(trace.call_ids)
    transition = apply(trace.state, outcome, trace.agent, RUN, TOOLS, used)
    trace.state = transition.state
    trace.events += transition.events
    trace.messages += transition.messages
    trace.records += transition.records
    if transition.state.phase is not Phase.FINISH and (transition.messages or isinstance(outcome, ModelResponded)):
        trace.checkpoint = checkpoint_of(transition.state)
    return transition
