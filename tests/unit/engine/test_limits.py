"""Which limits hold for a run, and whose settings win."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.engine.agent import AgentDefinition, AgentOverrides, AgentVersion, ResolvedAgent, resolve
from app.engine.limits import Limits, RunLimits, breach_before_tool_calls
from app.engine.model import ModelPolicies
from app.engine.model_settings import ModelPolicySettings, ModelSettings, RetryPolicy

FIELDS = (
    "max_steps",
    "max_llm_calls",
    "max_tool_calls",
    "max_wall_time_s",
    "max_total_tokens",
    "max_total_cost_usd",
)
COUNTS = st.none() | st.integers(1, 1000)
AMOUNTS = st.none() | st.floats(0.01, 1000)
STATED = st.builds(
    Limits,
    max_steps=COUNTS,
    max_llm_calls=COUNTS,
    max_tool_calls=COUNTS,
    max_wall_time_s=AMOUNTS,
    max_total_tokens=COUNTS,
    max_total_cost_usd=AMOUNTS,
)


def resolved(agent: Limits, request: Limits | None = None, resume: Limits | None = None) -> RunLimits:
    definition = AgentDefinition(name="helper", model="scripted/answer", limits=agent)
    overrides = AgentOverrides(limits=request).resumed_with(resume)
    return resolve(AgentVersion("v1", definition), overrides, RunLimits()).limits


@given(STATED)
def test_an_agent_s_limit_stands_in_place_of_the_service_s(agent: Limits) -> None:
    limits = resolved(agent)
    for name in FIELDS:
        stated = getattr(agent, name)
        assert getattr(limits, name) == (getattr(RunLimits(), name) if stated is None else stated)


@given(STATED, STATED)
def test_a_request_only_lowers_limits(agent: Limits, request: Limits) -> None:
    before, limits = resolved(agent), resolved(agent, request)
    for name in FIELDS:
        stated = [value for value in (getattr(before, name), getattr(request, name)) if value is not None]
        assert getattr(limits, name) == min(stated, default=None)


@given(STATED, STATED, STATED)
def test_a_resume_states_its_limits_anew_and_leaves_the_others(agent: Limits, request: Limits, resume: Limits) -> None:
    before, limits = resolved(agent, request), resolved(agent, request, resume)
    for name in FIELDS:
        stated = getattr(resume, name)
        assert getattr(limits, name) == (getattr(before, name) if stated is None else stated)


def test_limits_of_an_earlier_resume_stand_unless_they_are_stated_anew() -> None:
    first = AgentOverrides().resumed_with(Limits(max_steps=7, max_llm_calls=8))
    assert first.resumed_with(None) is first
    second = first.resumed_with(Limits(max_steps=9))
    assert second.resume_limits == Limits(max_steps=9, max_llm_calls=8)


@pytest.mark.parametrize("field", FIELDS)
def test_a_limit_of_nothing_is_refused(field: str) -> None:
    for value in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ValueError):
            Limits.model_validate({field: value})


@given(st.integers(0, 50), st.integers(0, 50), st.integers(1, 50))
def test_tool_calls_are_allowed_exactly_up_to_their_limit(made: int, asked: int, limit: int) -> None:
    breach = breach_before_tool_calls(RunLimits(max_tool_calls=limit), made=made, asked=asked)
    assert (breach is None) is (made + asked <= limit)


# --- the rest of an agent -----------------------------------------------------------------------------------

DEFINITION = AgentDefinition(
    name="helper",
    model="openai/one",
    instructions="from the agent",
    tools=["read"],
    model_settings=ModelSettings(temperature=0.5, max_tokens=100),
    model_policies=ModelPolicySettings(retry=RetryPolicy(max_attempts=2)),
)


def with_overrides(**overrides: object) -> ResolvedAgent:
    return resolve(AgentVersion("v1", DEFINITION, 3), AgentOverrides.model_validate(overrides), RunLimits())


def test_an_agent_without_overrides_is_what_its_definition_says() -> None:
    agent = with_overrides()
    assert (agent.name, agent.version, agent.version_id) == ("helper", 3, "v1")
    assert (agent.model, agent.provider, agent.instructions) == ("openai/one", "openai", "from the agent")
    assert (agent.tools, agent.settings) == (("read",), {"temperature": 0.5, "max_tokens": 100})
    assert agent.policies == ModelPolicies(max_attempts=2)


def test_a_request_wins_over_its_agent() -> None:
    agent = with_overrides(model="openai/two", instructions="", tools=[])
    assert (agent.model, agent.instructions, agent.tools) == ("openai/two", "", ())


def test_model_settings_of_a_request_are_merged_into_the_agent_s() -> None:
    agent = with_overrides(model_settings={"temperature": 0.0, "seed": 7})
    assert agent.settings == {"temperature": 0.0, "max_tokens": 100, "seed": 7}


def test_equal_definitions_have_equal_hashes_and_different_ones_do_not() -> None:
    same = AgentDefinition.model_validate(DEFINITION.model_dump())
    assert same.content_hash() == DEFINITION.content_hash()
    assert DEFINITION.model_copy(update={"model": "x/y"}).content_hash() != DEFINITION.content_hash()
