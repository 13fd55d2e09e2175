"""One answer of the Messages API, put together from its events.

https://platform.claude.com/docs/en/build-with-claude/streaming. Events and blocks of kinds that are not known are
passed over, as that page asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.engine.messages import Reasoning
from app.engine.model import FinishReason, ModelEvent, ModelRequest, ModelResponse
from app.engine.usage import Usage
from app.llm.anthropic.messages import PROVIDER
from app.llm.gathered import Gathered
from app.llm.json_values import as_array, as_count, as_object, as_text
from app.llm.provider_errors import error_in_stream
from app.llm.token_estimate import estimate_usage

# https://platform.claude.com/docs/en/build-with-claude/handling-stop-reasons
_STOP_REASONS = {
    "end_turn": FinishReason.STOP,
    "stop_sequence": FinishReason.STOP,
    "tool_use": FinishReason.TOOL_CALLS,
    "max_tokens": FinishReason.LENGTH,
    "model_context_window_exceeded": FinishReason.LENGTH,
    # Only turns in which Anthropic runs tools of its own are paused: what came is a part.
    "pause_turn": FinishReason.LENGTH,
    "refusal": FinishReason.REFUSAL,
}
_COUNTS = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")


class MessageAnswer:
    """Takes the events of one answer, gives what they mean, and at the end the response.

    A plain, unstreamed message is read as well.

    Args:
        request: what was asked; its size counts where the server gives no usage.
        model: the name of the model that was asked for, used where the answer names none.
        secret: a text that error messages must not repeat.
    """

    def __init__(self, request: ModelRequest, *, model: str, secret: str | None) -> None:
        self._request = request
        self._model = model
        self._secret = secret
        self._gathered = Gathered(PROVIDER)
        self._thoughts: dict[int, dict[str, Any]] = {}  # by the block's index
        self._inputs: dict[int, str] = {}  # what a call began with, until its pieces come
        self._stop_reason = ""
        self._explanation = ""
        self._usage: dict[str, int] = {}
        self._thinking_tokens = 0
        self.ended = False

    @property
    def finished(self) -> bool:
        """Whether the model has said why it stopped, so that nothing that matters can be missing."""
        return bool(self._stop_reason)

    def take(self, event: object) -> list[ModelEvent]:
        """Take one event, parsed.

        Raises:
            ModelError: the event is an error, or no event at all; or the answer is too long to be held.
        """
        data = as_object(event)
        match data.get("type"):
            case "content_block_delta":
                return self._take_delta(as_count(data.get("index")), as_object(data.get("delta")))
            case "content_block_start":
                return self._take_block(as_count(data.get("index")), as_object(data.get("content_block")))
            case "content_block_stop":
                return self._end_block(as_count(data.get("index")))
            case "message_start":
                self._take_envelope(as_object(data.get("message")))
            case "message_delta":
                self._take_envelope({**as_object(data.get("delta")), "usage": data.get("usage")})
            case "message_stop":
                self.ended = True
            case "message":
                return self._take_message(data)
            case _:
                self._take_other(data)
        return []

    def response(self) -> ModelResponse:
        """The whole answer.

        Raises:
            ModelError: the answer stopped without saying why.
        """
        if not self._stop_reason:
            raise self._gathered.invalid("the answer ended without a stop_reason")
        gathered = self._gathered
        reason = _STOP_REASONS.get(self._stop_reason, FinishReason.STOP)
        if reason is FinishReason.STOP and gathered.has_calls:
            reason = FinishReason.TOOL_CALLS
        calls = gathered.calls(complete=reason is not FinishReason.LENGTH)
        text, reasoning = gathered.text, gathered.reasoning
        if reason is FinishReason.REFUSAL and not text:
            text = self._explanation
        usage = self._usage_of()
        return ModelResponse(
            provider=PROVIDER,
            model=self._model,
            text=text,
            tool_calls=calls,
            finish_reason=reason,
            usage=usage or estimate_usage(self._request, text + reasoning, calls),
            cost_usd=None,
            usage_estimated=usage is None,
            cache_write_tokens=0 if usage is None else self._usage.get("cache_creation_input_tokens", 0),
            reasoning=reasoning,
            kept=self._kept(),
        )

    def _take_delta(self, index: int, delta: Mapping[str, Any]) -> list[ModelEvent]:
        match delta.get("type"):
            case "text_delta":
                text = as_text(delta.get("text"))
                return [self._gathered.add_text(text)] if text else []
            case "input_json_delta":
                piece = as_text(delta.get("partial_json"))
                if not piece:
                    return []
                self._inputs[index] = ""
                return [self._gathered.add_call({"index": index, "function": {"arguments": piece}})]
            case "thinking_delta":
                return self._think(index, as_text(delta.get("thinking")))
            case "signature_delta":
                signature = as_text(delta.get("signature"))
                self._gathered.hold(signature)
                self._thoughts.setdefault(index, _thinking())["signature"] = signature
            case _:
                pass
        return []

    def _take_block(self, index: int, block: Mapping[str, Any]) -> list[ModelEvent]:
        """A block begins; servers that do not stream send it whole."""
        match block.get("type"):
            case "text":
                text = as_text(block.get("text"))
                return [self._gathered.add_text(text)] if text else []
            case "tool_use":
                function = {"name": block.get("name"), "arguments": ""}
                given = as_object(block.get("input"))
                if given:
                    function["arguments"] = given
                self._inputs[index] = "" if given else "{}"
                return [self._gathered.add_call({"index": index, "id": block.get("id"), "function": function})]
            case "thinking":
                self._thoughts[index] = {**_thinking(), "signature": as_text(block.get("signature"))}
                return self._think(index, as_text(block.get("thinking")))
            case "redacted_thinking":
                data = as_text(block.get("data"))
                self._gathered.hold(data)
                self._thoughts[index] = {"type": "redacted_thinking", "data": data}
            case _:
                pass
        return []

    def _end_block(self, index: int) -> list[ModelEvent]:
        """A call of a tool without parameters brings no piece of an input."""
        nothing = self._inputs.pop(index, "")
        return [self._gathered.add_call({"index": index, "function": {"arguments": nothing}})] if nothing else []

    def _think(self, index: int, thought: str) -> list[ModelEvent]:
        if not thought:
            return []
        self._thoughts.setdefault(index, _thinking()).setdefault("pieces", []).append(thought)
        return [self._gathered.add_reasoning(thought)]

    def _take_message(self, message: Mapping[str, Any]) -> list[ModelEvent]:
        events: list[ModelEvent] = []
        for index, block in enumerate(as_array(message.get("content"))):
            events += [*self._take_block(index, as_object(block)), *self._end_block(index)]
        self._take_envelope(message)
        self.ended = True
        return events

    def _take_envelope(self, data: Mapping[str, Any]) -> None:
        """The counts of later events take the place of earlier ones: each is the sum so far."""
        usage = as_object(data.get("usage"))
        self._usage.update({name: as_count(usage[name]) for name in _COUNTS if usage.get(name) is not None})
        details = as_object(usage.get("output_tokens_details"))
        self._thinking_tokens = as_count(details.get("thinking_tokens")) or self._thinking_tokens
        self._model = as_text(data.get("model")) or self._model
        self._stop_reason = as_text(data.get("stop_reason")) or self._stop_reason
        self._explanation = as_text(as_object(data.get("stop_details")).get("explanation")) or self._explanation

    def _take_other(self, data: dict[str, Any]) -> None:
        error = error_in_stream(data, provider=PROVIDER, secret=self._secret)
        if error is not None:
            raise error
        if not data.get("type"):
            raise self._gathered.invalid("an event that is none of the Messages API")

    def _usage_of(self) -> Usage | None:
        """`input_tokens` of the API leaves out what was read from the cache and what was written to it."""
        count = self._usage.get
        read, written = count("cache_read_input_tokens", 0), count("cache_creation_input_tokens", 0)
        input_tokens, output_tokens = count("input_tokens", 0) + read + written, count("output_tokens", 0)
        if not input_tokens and not output_tokens:
            return None
        return Usage(
            llm_calls=1,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_input_tokens=read,
            reasoning_tokens=min(self._thinking_tokens, output_tokens),
        )

    def _kept(self) -> Reasoning | None:
        """The thoughts in their order, signed or sealed; those that are neither the API would not take back."""
        blocks: list[dict[str, Any]] = []
        for _, block in sorted(self._thoughts.items()):
            if block["type"] == "redacted_thinking":
                blocks.append(block)
            elif block["signature"]:
                thought = "".join(block.get("pieces", ()))
                blocks.append({"type": "thinking", "thinking": thought, "signature": block["signature"]})
        return Reasoning(PROVIDER, tuple(blocks)) if blocks else None


def _thinking() -> dict[str, Any]:
    return {"type": "thinking", "signature": ""}
