"""One chat completion, put together from its chunks; https://platform.openai.com/docs/api-reference/chat/streaming."""

from __future__ import annotations

from typing import Any

from app.engine.model import FinishReason, ModelEvent, ModelRequest, ModelResponse, ToolCallDelta
from app.engine.usage import Usage
from app.llm.gathered import Gathered
from app.llm.json_values import as_array, as_count, as_name, as_object, as_text, text_of
from app.llm.kept_reasoning import KeptReasoning
from app.llm.provider_errors import error_in_stream
from app.llm.token_estimate import estimate_usage

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
    "refusal": FinishReason.REFUSAL,
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
        self._gathered = Gathered(provider)
        self._kept = KeptReasoning()
        self._refused = False
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
            raise self._gathered.invalid("a chunk that is no JSON object")
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
            raise self._gathered.invalid("the answer ended without a finish_reason")
        reason = self._reason()
        gathered = self._gathered
        calls = gathered.calls(complete=reason is not FinishReason.LENGTH)
        text, reasoning = gathered.text, gathered.reasoning
        usage = _usage_of(self._usage)
        estimated = usage is None
        if usage is None:
            usage = estimate_usage(self._request, text + reasoning, calls)
        return ModelResponse(
            provider=self._provider,
            model=self._model,
            text=text,
            tool_calls=calls,
            finish_reason=reason,
            usage=usage,
            cost_usd=None,
            usage_estimated=estimated,
            cache_write_tokens=_cache_writes_of(self._usage, usage),
            reasoning=reasoning,
            kept=self._kept.kept(self._provider, has_calls=bool(calls)),
        )

    def _reason(self) -> FinishReason:
        reason = _FINISH_REASONS.get(self._finish_reason.lower(), FinishReason.STOP)
        if reason not in (FinishReason.STOP, FinishReason.TOOL_CALLS):
            return reason
        # Some servers say "stop" after tool calls, some "tool_calls" after none: the calls decide.
        if self._gathered.has_calls:
            return FinishReason.TOOL_CALLS
        return FinishReason.REFUSAL if self._refused else FinishReason.STOP

    def _take_delta(self, delta: dict[str, Any], events: list[ModelEvent]) -> None:
        content = delta.get("content")
        if content:
            text = text_of(content)
            if text:
                events.append(self._gathered.add_text(text))
        if len(delta) == 1 and "content" in delta:
            return  # what nearly every chunk of a text is
        reasoning = _reasoning_in(delta)
        if reasoning:
            events.append(self._gathered.add_reasoning(reasoning))
        kept = self._kept.take(delta)
        if kept:
            self._gathered.hold(kept)
        # https://platform.openai.com/docs/guides/structured-outputs#refusals
        refusal = as_text(delta.get("refusal"))
        if refusal:
            self._refused = True
            events.append(self._gathered.add_text(refusal))
        for piece in as_array(delta.get("tool_calls")):
            events.append(self._take_call(as_object(piece)))
        if delta.get("function_call"):  # the form before tool_calls, still spoken by some servers
            events.append(self._take_call({"index": 0, "function": delta["function_call"]}))

    def _take_call(self, piece: dict[str, Any]) -> ToolCallDelta:
        call_id = as_name(piece.get("id"))
        if "__" not in call_id:
            return self._gathered.add_call(piece)
        index = as_count(piece.get("index"))
        return self._gathered.add_call({**piece, "id": self._kept.take_call(index, call_id)})

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
            raise error or self._gathered.invalid("the provider broke the answer off with finish_reason error")
        self._finish_reason = reason


def _reasoning_in(delta: dict[str, Any]) -> str:
    said = as_text(delta.get("reasoning_content")) or as_text(delta.get("reasoning"))
    if said or not delta.get("reasoning_details"):
        return said
    details = map(as_object, as_array(delta["reasoning_details"]))
    return "".join(as_text(detail.get("text")) or as_text(detail.get("summary")) for detail in details)


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


def _cache_writes_of(given: dict[str, Any], usage: Usage) -> int:
    """Of litellm, and of OpenRouter, which both have Anthropic's count beside OpenAI's; part of the prompt tokens."""
    written = as_count(as_object(given.get("prompt_tokens_details")).get("cache_write_tokens"))
    written = written or as_count(given.get("cache_creation_input_tokens"))
    return min(written, usage.input_tokens - usage.cached_input_tokens)
