"""One scripted answer of the model server: what it says, and what goes wrong with it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

USAGE: dict[str, Any] = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


@dataclass(frozen=True)
class Reply:
    """An answer; without arguments the text "Hello." with usage and [DONE], as OpenAI would send it.

    Args:
        text: the answer's text; a list is sent piece by piece, a string word by word.
        reasoning: sent before the text as `reasoning_content`.
        tool_calls: each `{name, arguments, id?}`; arguments, an object or text, are sent in two pieces.
        finish_reason: None ends the stream without one; "" means what fits.
        usage: None sends none.
        done: whether [DONE] ends the stream.
        events: sent in place of all of the above; an object as one event, text as it is, line ends included.
        plain: answer one JSON completion, though a stream was asked for.
        status: another HTTP status than 200, with `body`.
        body: sent as it is in place of a completion or a stream, as `content_type`.
        headers: besides the usual ones, such as Retry-After.
        delay_s: seconds before the status line.
        first_chunk_delay_s: seconds between the headers and the first piece.
        chunk_delay_s: seconds before each further piece.
        end_delay_s: seconds between the last piece and the end of the body, or its cut.
        endless: send the pieces again and again, until the client leaves.
        hold: keep the connection open and silent after the pieces, until the client leaves.
        cut_after: break the connection after so many pieces.
        reset: break it by a TCP reset, which may take pieces with it that the client has not read yet.
    """

    STREAM_TYPE: ClassVar[str] = "text/event-stream"

    text: str | Sequence[str] = "Hello."
    reasoning: Sequence[str] = ()
    tool_calls: Sequence[Mapping[str, Any]] = ()
    finish_reason: str | None = ""
    usage: Mapping[str, Any] | None = field(default_factory=lambda: USAGE)
    done: bool = True
    events: Sequence[Any] | None = None
    plain: bool = False
    status: int = 200
    body: Any = None
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    first_chunk_delay_s: float = 0.0
    chunk_delay_s: float = 0.0
    end_delay_s: float = 0.0
    endless: bool = False
    hold: bool = False
    cut_after: int | None = None
    reset: bool = False

    @classmethod
    def error(
        cls,
        status: int,
        message: str = "no",
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """An HTTP error with OpenAI's error object."""
        body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
        return cls(status=status, body=body, headers=headers or {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Reply:
        """A reply out of its fields. Raises ValueError for one that does not exist."""
        unknown = set(data) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"no such field of a reply: {', '.join(sorted(unknown))}")
        return cls(**data)

    def streams(self, path: str, body: Mapping[str, Any]) -> bool:
        """Whether a request asks for a stream."""
        return bool(body.get("stream"))

    def body_bytes(self) -> bytes:
        if isinstance(self.body, bytes):
            return self.body
        return self.body.encode() if isinstance(self.body, str) else orjson.dumps(self.body)

    def completion(self, model: str) -> bytes:
        """The answer as one JSON completion."""
        message: dict[str, Any] = {"role": "assistant", "content": "".join(self.text) or None}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        if self.tool_calls:
            message["tool_calls"] = [_whole_call(place, call) for place, call in enumerate(self.tool_calls)]
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason()}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [choice],
        }
        return orjson.dumps({**answer, "usage": self.usage})

    def pieces(self, model: str) -> list[bytes]:
        """The stream, event by event."""
        if self.events is not None:
            return [e.encode() if isinstance(e, str) else b"data: " + orjson.dumps(e) + b"\n\n" for e in self.events]
        head = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":'
        head += orjson.dumps(model) + b',"choices":['
        pieces = [
            head + b'{"index":0,"delta":' + orjson.dumps(delta) + b',"finish_reason":null}]}\n\n'
            for delta in self._deltas()
        ]
        if self.finish_reason is not None:
            choice = {"index": 0, "delta": {}, "finish_reason": self._finish_reason()}
            pieces.append(head + orjson.dumps(choice) + b"]}\n\n")
        if self.usage is not None:
            pieces.append(head + b'],"usage":' + orjson.dumps(self.usage) + b"}\n\n")
        if self.done:
            pieces.append(b"data: [DONE]\n\n")
        return pieces

    def _finish_reason(self) -> str | None:
        return ("tool_calls" if self.tool_calls else "stop") if self.finish_reason == "" else self.finish_reason

    def _deltas(self) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"reasoning_content": piece} for piece in self.reasoning]
        pieces = re.findall(r"\S+\s*|\s+", self.text) if isinstance(self.text, str) else self.text
        deltas += [{"content": piece} for piece in pieces]
        for place, call in enumerate(self.tool_calls):
            whole = _whole_call(place, call)
            text = whole["function"]["arguments"]
            first = {**whole, "function": {"name": call["name"], "arguments": ""}}
            halves = [text[: len(text) // 2], text[len(text) // 2 :]]
            more = [{"index": place, "function": {"arguments": half}} for half in halves if half]
            deltas += [{"tool_calls": [piece]} for piece in (first, *more)]
        return deltas


def _whole_call(place: int, call: Mapping[str, Any]) -> dict[str, Any]:
    arguments = call.get("arguments", {})
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    call_id = call.get("id") or f"call_{place}"
    return {
        "index": place,
        "id": call_id,
        "type": "function",
        "function": {"name": call["name"], "arguments": text},
    }
