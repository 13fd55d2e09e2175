"""The port to a model: one request, one stream of events, one response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any, Protocol

from app.engine.events import WarningCode
from app.engine.messages import Message, Reasoning, ToolCall
from app.engine.tools import ToolSpec
from app.engine.usage import Spend, Usage


class FinishReason(StrEnum):
    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    CONTENT_FILTER = "content_filter"
    REFUSAL = "refusal"  # the model declined; its text says why


@dataclass(frozen=True, slots=True)
class CachePolicy:
    """Answers may come from earlier calls that were the same in all that matters.

    Args:
        ttl_s: seconds for which an answer is kept.
        any_temperature: whether calls that do not ask for temperature 0 may be answered so too.
    """

    ttl_s: float
    any_temperature: bool = False


@dataclass(frozen=True, slots=True)
class ModelPolicies:
    """How hard to try, per call. Times in seconds.

    Args:
        max_attempts: tries of one model in all, the first included.
        first_byte_s: the longest wait for the first piece of the answer.
        between_chunks_s: the longest silence between two pieces.
        cache: None for no cache.
        coalesce: whether calls under way at the same time that are the same in all that matters become one.
        hedge_after_s: how long nothing may come before the same call is made once more beside the first; None: never.
    """

    max_attempts: int = 3
    first_byte_s: float = 60.0
    between_chunks_s: float = 45.0
    cache: CachePolicy | None = None
    coalesce: bool = False
    hedge_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """All that a client needs for one call.

    Args:
        model: the full name with its prefix, such as `openai/gpt-4o-mini`.
        messages: in order; at most one system message comes first from the agent.
        tools: what the model may call; empty for none.
        settings: sampling settings that were set, by their OpenAI names (temperature, top_p, max_tokens, seed, stop,
            reasoning_effort, tool_choice, parallel_tool_calls); absent means the provider's default.
        fallback_models: asked in order, each in place of the one before, where that cannot answer.
        response_schema: the JSON schema of the answer; by the provider's own mode or by instruction, and never sure:
            who asked validates.
        tenant_id: whose call it is; nothing of one tenant's calls is ever shared with another's.
    """

    model: str
    messages: Sequence[Message]
    tools: Sequence[ToolSpec] = ()
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    policies: ModelPolicies = ModelPolicies()
    fallback_models: Sequence[str] = ()
    response_schema: Mapping[str, Any] | None = None
    tenant_id: str = ""


@dataclass(frozen=True, slots=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A piece of a call's arguments. `index` is the call's place in the response; `name` comes with its first piece."""

    index: int
    tool_call_id: str
    name: str
    delta: str


@dataclass(frozen=True, slots=True)
class StreamRestarted:
    """All deltas so far are void: the stream broke after output had been sent on and the call starts again."""

    reason: str


@dataclass(frozen=True, slots=True)
class ModelNotice:
    """Something about a call that the run's readers should know: it becomes a `warning` event."""

    code: WarningCode
    message: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class ModelResponse:
    """The last event of every stream that did not raise.

    Args:
        provider: who answered, such as `openai`.
        model: the model that answered, as the provider names it.
        usage: of this call, `llm_calls` 1; estimated where the provider gave none (`usage_estimated`). All zero where
            the answer is `reused`: somebody else has paid for it.
        cost_usd: null where the price is unknown.
        cache_write_tokens: input tokens, part of `usage.input_tokens`, that the provider put into its prompt cache.
        reasoning: what the model thought aloud; no part of `text`.
        kept: what the provider wants to be shown again with this answer in later calls.
        reused: the answer to an equal call, from the cache or one that was under way.
    """

    provider: str
    model: str
    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: FinishReason
    usage: Usage
    cost_usd: Decimal | None
    usage_estimated: bool = False
    cache_write_tokens: int = 0
    reasoning: str = ""
    kept: Reasoning | None = None
    reused: bool = False


ModelEvent = TextDelta | ReasoningDelta | ToolCallDelta | StreamRestarted | Spend | ModelNotice | ModelResponse


class ModelClient(Protocol):
    """Something that answers model requests; policies such as retry are model clients that wrap one."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
        """Answer a request, ending with exactly one `ModelResponse`.

        Closing the iterator (or cancelling the task that reads it) closes the connection to the provider.

        Raises:
            ModelError: the call failed.
        """
        ...

    async def aclose(self) -> None:
        """Give back sessions and connections; the client is not used afterwards."""
        ...
