"""Sampling settings, by their OpenAI names, as the Messages API has them.

https://platform.claude.com/docs/en/api/messages/create. What a model refuses is left out, and said: a run should not
fail with its fallback model for a setting that was meant for its first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.engine.errors import ModelError, ModelErrorCode
from app.llm.json_values import as_object, as_text
from app.llm.model_facts import ModelFacts

# The API requires max_tokens. For a model that nothing is known of: what the smallest that are still served can say.
DEFAULT_MAX_TOKENS = 8192
# "Must be >= 1024 and less than max_tokens": https://platform.claude.com/docs/en/build-with-claude/extended-thinking
LEAST_BUDGET = 1024
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16_384, "xhigh": 32_000, "max": 64_000}
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
_NO_THINKING = "none"


@dataclass(slots=True)
class MessagesSettings:
    """Settings in the API's form.

    Args:
        fields: of the request's body.
        left_out: setting to the reason why the model does not get it.
    """

    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    left_out: dict[str, str] = field(default_factory=dict[str, str])


def messages_settings(settings: Mapping[str, Any], facts: ModelFacts, *, has_tools: bool) -> MessagesSettings:
    """Translate settings for one model.

    Args:
        settings: see `ModelRequest.settings`.
        has_tools: whether the request has tools, without which none can be chosen.

    Raises:
        ModelError: INVALID_REQUEST for a value that has no counterpart.
    """
    result = MessagesSettings()
    max_tokens = settings.get("max_tokens") or facts.max_output_tokens or DEFAULT_MAX_TOKENS
    result.fields["max_tokens"] = max_tokens
    _stop(settings, result)
    if has_tools:
        _tool_choice(settings, facts, result)
    thinks = _thinking(settings, facts, max_tokens, result)
    _sampling(settings, facts, thinks, result)
    if "seed" in settings:
        result.left_out["seed"] = "Anthropic has none"
    return result


def _stop(settings: Mapping[str, Any], result: MessagesSettings) -> None:
    stop = settings.get("stop")
    # "each stop sequence must contain non-whitespace"
    sequences = [each for each in ([stop] if isinstance(stop, str) else stop or []) if each.strip()]
    if sequences:
        result.fields["stop_sequences"] = sequences
    elif stop:
        result.left_out["stop"] = "Anthropic takes no stop sequence of white space alone"


def _tool_choice(settings: Mapping[str, Any], facts: ModelFacts, result: MessagesSettings) -> None:
    """https://platform.claude.com/docs/en/agents-and-tools/tool-use/define-tools#controlling-claudes-output"""
    given = settings.get("tool_choice")
    choice: dict[str, Any] | None
    match given:
        case None:
            choice = None
        case "auto" | "none":
            choice = {"type": given}
        case "required" | "any":
            choice = {"type": "any"}
        case _:
            name = as_text(as_object(as_object(given).get("function")).get("name"))
            if not name:
                raise ModelError(
                    ModelErrorCode.INVALID_REQUEST,
                    f"anthropic: tool_choice {given!r} is none of auto, none, required, "
                    '{"type": "function", "function": {"name": ...}}',
                )
            choice = {"type": "tool", "name": name}
    if choice is not None and choice["type"] in ("any", "tool") and "forced_tool_use" in facts.unable:
        result.left_out["tool_choice"] = "the model cannot be made to call a tool"
        choice = None
    parallel = settings.get("parallel_tool_calls")
    if parallel is not None and choice != {"type": "none"}:
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": not parallel}
    if choice is not None:
        result.fields["tool_choice"] = choice


def _thinking(settings: Mapping[str, Any], facts: ModelFacts, max_tokens: int, result: MessagesSettings) -> bool:
    """Translate reasoning_effort; whether the model will think.

    Models of Claude 4.6 and later decide by themselves how much, and take the effort as it is; those before are given
    a number of tokens. https://platform.claude.com/docs/en/build-with-claude/adaptive-thinking
    """
    effort = settings.get("reasoning_effort")
    if effort is None:
        return "not_to_think" in facts.unable
    if effort != _NO_THINKING and effort not in _EFFORTS:
        raise ModelError(
            ModelErrorCode.INVALID_REQUEST,
            f"anthropic: reasoning_effort {effort!r} is none of {', '.join([_NO_THINKING, *_EFFORTS])}",
        )
    reason = _reason_against_thinking(effort, facts, max_tokens, result)
    if reason:
        result.left_out["reasoning_effort"] = reason
        return "not_to_think" in facts.unable
    if effort == _NO_THINKING:
        result.fields["thinking"] = {"type": "disabled"}
        return False
    if "adaptive_thinking" in facts.able:
        # Without display some models answer with thoughts whose text is empty.
        result.fields["thinking"] = {"type": "adaptive", "display": "summarized"}
        result.fields["output_config"] = {"effort": _supported(_EFFORTS[effort], facts)}
    else:
        # At least half of the tokens is left for the answer, which they count for as well.
        budget = min(_BUDGETS[effort], max(LEAST_BUDGET, max_tokens // 2))
        result.fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
    return True


def _reason_against_thinking(effort: str, facts: ModelFacts, max_tokens: int, result: MessagesSettings) -> str | None:
    if effort == _NO_THINKING:
        return "the model cannot be kept from thinking" if "not_to_think" in facts.unable else None
    if not facts.may("reasoning"):
        return "the model cannot think"
    # "Thinking may not be enabled when tool_choice forces tool use": the call that was asked for goes before.
    if as_object(result.fields.get("tool_choice")).get("type") in ("any", "tool"):
        return "the model cannot think when tool_choice makes it call a tool"
    if max_tokens <= LEAST_BUDGET and "adaptive_thinking" not in facts.able:
        return f"max_tokens leaves no room for the least of {LEAST_BUDGET} tokens of thinking"
    return None


def _supported(effort: str, facts: ModelFacts) -> str:
    """The effort, or the highest that every model has."""
    above = effort in ("xhigh", "max")
    return "high" if above and f"{effort}_reasoning_effort" not in facts.able else effort


def _sampling(settings: Mapping[str, Any], facts: ModelFacts, thinks: bool, result: MessagesSettings) -> None:
    """Newer models take no temperature but 1, and no top_p; thinking ones neither, but a top_p from 0.95 on.

    https://platform.claude.com/docs/en/build-with-claude/extended-thinking#feature-compatibility
    """
    temperature, top_p = settings.get("temperature"), settings.get("top_p")
    fixed = "sampling_params" in facts.unable
    if temperature is not None:
        if temperature > 1:
            result.left_out["temperature"] = "Anthropic takes none above 1"
        elif temperature != 1 and (fixed or thinks):
            result.left_out["temperature"] = "the model takes none" if fixed else "a model that thinks takes none"
        else:
            result.fields["temperature"] = temperature
    if top_p is not None:
        if fixed or (thinks and top_p < 0.95):
            result.left_out["top_p"] = "the model takes none" if fixed else "a model that thinks takes none below 0.95"
        elif "temperature" in result.fields and facts.known:
            result.left_out["top_p"] = "the model takes temperature or top_p, not both"
        else:
            result.fields["top_p"] = top_p
