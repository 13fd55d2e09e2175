"""One chat completion, put together from its chunks; https://platform.openai.com/docs/api-reference/chat/streaming."""

from __future__ import annotations

from typing import Any

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.model import (
    FinishReason,
    ModelEvent,
    ModelRequest,
    ModelResponse,
    ReasoningDelta,
    TextDelta,
    ToolCallDelta,
)
from app.engine.usage import Usage
from app.llm.json_values import as_array, as_count, as_object, as_text, text_of
from app.llm.provider_errors import error_in_stream
from app.llm.token_estimate import estimate_usage
from app.llm.tool_call_pieces import ToolCallPieces

# A provider that never stops would fill the memory that all runs of this process share. No model's longest answer comes
# near it; it is also the longest answer that is read where a server does not stream.
MAX_ANSWER_BYTES = 16 * 1024 * 1024
# What a piece counts for at least: kept apart, it takes more memory than its text.
_LEAST_PIECE_BYTES = 16
_MAX_CALLS = 1024

_FINISH_REASONS = {
    "stop": FinishReason.STOP,
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "eos": FinishReason.STOP,
    "tool_calls": FinishReason.TOOL_CALLS,
    "tool_use": FinishReason.TOOL_CALLS,
    "function_call": FinishReason.TOOL_CALLS,
    "length": FinishReason.LENGTH,
    "max_tokens": FinishReason.LENGTH,
    "model_length": FinishReason.LENGTH,
    "content_filter": FinishReason.CONTENT_FILTER,
    "safety": FinishReason.CONTENT_FILTER,
}


class Completion:
    """Takes the chunks of one answer, gives the events that they mean, and at the end the response.

    A plain, unstreamed completion is a single chunk whose choice holds `message` in place of `delta`.

    Args:
        request: what was asked; its size counts where the provider gives no usage.
        provider: the name that the response and its errors carry.
        model: the name of the model that was asked for, used where the answer names none.
        secret: a text that error messages must not repeat.
    """

    def __init__(self, request: ModelRequest, *, provider: str, model: str, secret: str | None = None) -> None:
        self._request = request
        self._provider = provider
        self._model = model
        self._secret = secret
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls = ToolCallPieces()
        self._bytes = 0
        self._finish_reason = ""
        self._usage: dict[str, Any] = {}

    @property
    def finished(self) -> bool:
        """Whether the provider has said why it stopped, so that nothing but usage can be missing."""
        return bool(self._finish_reason)

    def take(self, chunk: object) -> list[ModelEvent]:
        """Take one chunk, parsed.

        Raises:
            ModelError: the chunk is an error object, or no chunk at all; or the answer is too long to be held.
        """
        data = as_object(chunk)
        if not data and chunk != {}:
            raise self._invalid("a chunk that is no JSON object")
        choices = data.get("choices")
        if not choices:
            self._take_envelope(data)
            return []
        choice = as_object(next(iter(as_array(choices)), None))
        delta = choice.get("delta") or choice.get("message")
        events: list[ModelEvent] = []
        if delta:
            self._take_delta(as_object(delta), events)
        if choice.get("finish_reason"):
            self._take_finish(as_text(choice["finish_reason"]), data)
        if data.get("usage"):
            self._usage = as_object(data["usage"])
        if data.get("model"):
            self._model = as_text(data["model"]) or self._model
        return events

    def response(self) -> ModelResponse:
        """The whole answer.

        Raises:
            ModelError: the answer stopped without saying why, or called a tool without naming it.
        """
        if not self._finish_reason:
            raise self._invalid("the answer ended without a finish_reason")
        reason = _FINISH_REASONS.get(self._finish_reason.lower(), FinishReason.STOP)
        if reason in (FinishReason.STOP, FinishReason.TOOL_CALLS):
            # Some servers say "stop" after tool calls, some "tool_calls" after none: the calls decide.
            reason = FinishReason.TOOL_CALLS if len(self._calls) else FinishReason.STOP
        calls = self._calls.calls(complete=reason is not FinishReason.LENGTH)
        if any(not call.name for call in calls):
            raise self._invalid("a tool call without a name")
        text = "".join(self._text)
        usage = _usage_of(self._usage)
        estimated = usage is None
        if usage is None:
            usage = estimate_usage(self._request, text + "".join(self._reasoning), calls)
        return ModelResponse(
            provider=self._provider,
            model=self._model,
            text=text,
            tool_calls=calls,
            finish_reason=reason,
            usage=usage,
            cost_usd=None,
            usage_estimated=estimated,
            reasoning="".join(self._reasoning),
        )

    def _take_delta(self, delta: dict[str, Any], events: list[ModelEvent]) -> None:
        content = delta.get("content")
        if content:
            text = text_of(content)
            if text:
                self._hold(text)
                self._text.append(text)
                events.append(TextDelta(text))
        if len(delta) == 1 and "content" in delta:
            return  # what nearly every chunk of a text is
        reasoning = as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning"))
        if reasoning:
            self._hold(reasoning)
            self._reasoning.append(reasoning)
            events.append(ReasoningDelta(reasoning))
        refusal = as_text(delta.get("refusal"))
        if refusal:
            self._hold(refusal)
            self._text.append(refusal)
            events.append(TextDelta(refusal))
        for piece in as_array(delta.get("tool_calls")):
            events.append(self._take_call(as_object(piece)))
        if delta.get("function_call"):  # the form before tool_calls, still spoken by some servers
            events.append(self._take_call({"index": 0, "function": delta["function_call"]}))

    def _take_call(self, piece: dict[str, Any]) -> ToolCallDelta:
        delta = self._calls.add(piece)
        self._hold(delta.tool_call_id + delta.name + delta.delta)
        if len(self._calls) > _MAX_CALLS:
            raise self._invalid(f"more than {_MAX_CALLS} tool calls in one answer")
        return delta

    def _hold(self, said: str) -> None:
        """Count what is about to be kept."""
        size = len(said) if said.isascii() else len(said.encode())
        self._bytes += max(size, _LEAST_PIECE_BYTES)
        if self._bytes > MAX_ANSWER_BYTES:
            raise self._invalid(f"the answer is longer than {MAX_ANSWER_BYTES // 1024**2} MiB")

    def _take_envelope(self, data: dict[str, Any]) -> None:
        # Usage at the end, an error, or a heartbeat of some gateway, which means nothing.
        error = error_in_stream(data, provider=self._provider, secret=self._secret)
        if error is not None:
            raise error
        if data.get("usage"):
            self._usage = as_object(data["usage"])

    def _take_finish(self, reason: str, data: dict[str, Any]) -> None:
        if reason == "error":
            error = error_in_stream(data, provider=self._provider, secret=self._secret)
            raise error or self._invalid("the provider broke the answer off with finish_reason error")
        self._finish_reason = reason

    def _invalid(self, what: str) -> ModelError:
        return ModelError(ModelErrorCode.INVALID_RESPONSE, f"{self._provider}: {what}")


def _usage_of(usage: dict[str, Any]) -> Usage | None:
    input_tokens, output_tokens = (
        as_count(usage.get("prompt_tokens")),
        as_count(usage.get("completion_tokens")),
    )
    if not input_tokens and not output_tokens:
        return None
    cached = as_count(as_object(usage.get("prompt_tokens_details")).get("cached_tokens"))
    if not cached:
        cached = as_count(usage.get("prompt_cache_hit_tokens"))  # DeepSeek's name for it
    reasoning = as_count(as_object(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    return Usage(
        llm_calls=1,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_input_tokens=min(cached, input_tokens),
        reasoning_tokens=min(reasoning, output_tokens),
    )
