"""Settings by their OpenAI names, as the Messages API has them, by what is known of each model."""

from __future__ import annotations

from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.llm.anthropic.settings import messages_settings
from app.llm.model_facts import UNKNOWN
from app.llm.pricing import bundled_prices

ADD = {"type": "function", "function": {"name": "add"}}


def _given(model: str, *, has_tools: bool = True, **settings: Any) -> tuple[dict[str, Any], set[str]]:
    result = messages_settings(settings, bundled_prices().facts_of(f"anthropic/{model}"), has_tools=has_tools)
    result.fields.pop("max_tokens", None)
    return result.fields, set(result.left_out)


@pytest.mark.parametrize(
    ("model", "settings", "max_tokens"),
    [
        ("claude-sonnet-4-5", {}, 64_000),
        ("claude-opus-5", {}, 128_000),
        ("claude-sonnet-4-5", {"max_tokens": 10}, 10),
        ("nobody-knows", {}, 8192),
    ],
)
def test_an_answer_may_be_as_long_as_the_model_can_say_unless_told(
    model: str, settings: dict[str, Any], max_tokens: int
) -> None:
    facts = bundled_prices().facts_of(f"anthropic/{model}")
    assert messages_settings(settings, facts, has_tools=False).fields == {"max_tokens": max_tokens}


@pytest.mark.parametrize(
    ("settings", "choice"),
    [
        ({"tool_choice": "auto"}, {"type": "auto"}),
        ({"tool_choice": "none", "parallel_tool_calls": False}, {"type": "none"}),
        ({"tool_choice": "required"}, {"type": "any"}),
        ({"tool_choice": ADD}, {"type": "tool", "name": "add"}),
        ({"parallel_tool_calls": False}, {"type": "auto", "disable_parallel_tool_use": True}),
        (
            {"tool_choice": "required", "parallel_tool_calls": True},
            {"type": "any", "disable_parallel_tool_use": False},
        ),
    ],
)
def test_tool_choices(settings: dict[str, Any], choice: dict[str, Any]) -> None:
    assert _given("claude-sonnet-4-5", **settings) == ({"tool_choice": choice}, set())
    assert _given("claude-sonnet-4-5", has_tools=False, **settings) == ({}, set())


@pytest.mark.parametrize("choice", ["sometimes", {"type": "function"}])
def test_a_tool_choice_that_is_none_is_refused(choice: object) -> None:
    with pytest.raises(ModelError, match="tool_choice") as caught:
        _given("claude-sonnet-4-5", tool_choice=choice)
    assert caught.value.code is ModelErrorCode.INVALID_REQUEST


def test_a_model_that_cannot_be_made_to_call_is_left_to_choose() -> None:
    assert _given("claude-opus-5-5", tool_choice="required") == ({}, {"tool_choice"})


@pytest.mark.parametrize(
    ("model", "effort", "fields"),
    [
        ("claude-sonnet-4-5", "low", {"thinking": {"type": "enabled", "budget_tokens": 2048}}),
        ("claude-sonnet-4-5", "max", {"thinking": {"type": "enabled", "budget_tokens": 32_000}}),
        ("claude-sonnet-4-5", "none", {"thinking": {"type": "disabled"}}),
        ("nobody-knows", "minimal", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
        (
            "claude-opus-4-6",
            "medium",
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "medium"}},
        ),
        (
            "claude-opus-4-6",
            "xhigh",
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "high"}},
        ),
        (
            "claude-sonnet-5",
            "xhigh",
            {"thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "xhigh"}},
        ),
    ],
)
def test_reasoning_effort_is_a_budget_for_older_models_and_an_effort_for_newer(
    model: str, effort: str, fields: dict[str, Any]
) -> None:
    assert _given(model, reasoning_effort=effort) == (fields, set())


@pytest.mark.parametrize(("max_tokens", "budget"), [(40_000, 16_384), (10_000, 5000), (1500, 1024)])
def test_a_budget_leaves_room_for_the_answer(max_tokens: int, budget: int) -> None:
    facts = bundled_prices().facts_of("anthropic/claude-sonnet-4-5")
    settings = {"reasoning_effort": "high", "max_tokens": max_tokens}
    fields = messages_settings(settings, facts, has_tools=False).fields
    assert fields["thinking"]["budget_tokens"] == budget < fields["max_tokens"]


def test_without_room_for_a_budget_there_is_no_thinking() -> None:
    assert _given("claude-sonnet-4-5", reasoning_effort="high", max_tokens=1024) == ({}, {"reasoning_effort"})


def test_a_model_that_always_thinks_cannot_be_kept_from_it() -> None:
    assert _given("claude-fable-5", reasoning_effort="none") == ({}, {"reasoning_effort"})


def test_a_call_that_is_asked_for_goes_before_thinking() -> None:
    fields, left_out = _given("claude-sonnet-4-5", reasoning_effort="low", tool_choice="required")
    assert (fields, left_out) == ({"tool_choice": {"type": "any"}}, {"reasoning_effort"})


def test_an_effort_that_is_none_is_refused() -> None:
    with pytest.raises(ModelError, match="reasoning_effort 'much' is none of none, minimal, low"):
        _given("claude-sonnet-4-5", reasoning_effort="much")


@pytest.mark.parametrize(
    ("model", "settings", "fields", "left_out"),
    [
        ("claude-sonnet-4-5", {"temperature": 0}, {"temperature": 0}, set()),
        ("claude-sonnet-4-5", {"temperature": 1.5}, {}, {"temperature"}),
        ("claude-sonnet-4-5", {"top_p": 0.5}, {"top_p": 0.5}, set()),
        ("claude-sonnet-4-5", {"temperature": 0, "top_p": 0.5}, {"temperature": 0}, {"top_p"}),
        ("claude-sonnet-5", {"temperature": 0, "top_p": 0.5}, {}, {"temperature", "top_p"}),
        ("claude-sonnet-5", {"temperature": 1}, {"temperature": 1}, set()),
        ("nobody-knows", {"temperature": 0, "top_p": 0.5}, {"temperature": 0, "top_p": 0.5}, set()),
        ("claude-sonnet-4-5", {"stop": ["a", " "]}, {"stop_sequences": ["a"]}, set()),
        ("claude-sonnet-4-5", {"stop": "\n\n"}, {}, {"stop"}),
    ],
)
def test_sampling_is_sent_as_far_as_the_model_takes_it(
    model: str, settings: dict[str, Any], fields: dict[str, Any], left_out: set[str]
) -> None:
    assert _given(model, **settings) == (fields, left_out)


@pytest.mark.parametrize(("settings", "kept"), [({"temperature": 0.2}, set[str]()), ({"top_p": 0.97}, {"top_p"})])
def test_a_model_that_thinks_takes_no_temperature_and_no_low_top_p(settings: dict[str, Any], kept: set[str]) -> None:
    fields, left_out = _given("claude-sonnet-4-5", reasoning_effort="low", **settings)
    assert (fields.keys() - {"thinking"}, left_out) == (kept, settings.keys() - kept)


def test_of_an_unknown_model_all_may_be() -> None:
    assert UNKNOWN.may("reasoning")
    assert not bundled_prices().facts_of("openai/gpt-4").may("response_schema")
