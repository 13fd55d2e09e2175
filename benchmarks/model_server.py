"""A model that costs nothing: OpenAI's streamed chat completions, precomputed and sent at once.

Three models, told apart by name:

- `one-step`: a short text in one piece;
- `tools-3`: three rounds of one tool call each, then the short text. The server keeps nothing: how many tool
  messages stand after the last user message says which round it is;
- `stream-100`: a text in 100 pieces of one token, each an event and an HTTP chunk of its own, as providers send
  them, but without a pause between them. With pauses the service would wake up for each token that the machine
  happens to be too busy to take together with the next, and the cost would change with the load on the machine.

Started as a process of its own, so that its CPU time is nobody else's. It prints `listening on PORT` and ends when
its standard input is closed: it cannot outlive the benchmark.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

import orjson
import uvloop

SHORT_TEXT = "It is sunny in Bern."
LONG_TEXT = " ".join(f"token{number:03d}" for number in range(100))
TOOL_ROUNDS = 3
LISTENING = "listening on "

_CHUNK: dict[str, Any] = {
    "id": "chatcmpl-benchmark",
    "object": "chat.completion.chunk",
    "created": 1767225600,
    "system_fingerprint": "fp_benchmark",
}
_HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"Cache-Control: no-cache\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
_UNKNOWN = b'{"error":{"message":"no such model","type":"invalid_request_error","code":"model_not_found"}}'
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (
    len(_UNKNOWN),
    _UNKNOWN,
)


def _event(data: bytes) -> bytes:
    """An event of the stream, in an HTTP chunk."""
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _delta(model: str, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return _event(orjson.dumps({**_CHUNK, "model": model, "choices": [choice], "usage": None}))


def _answer(model: str, deltas: list[dict[str, Any]], finish_reason: str) -> bytes:
    tokens = {"prompt_tokens": 24, "completion_tokens": len(deltas), "total_tokens": 24 + len(deltas)}
    return b"".join(
        (
            _HEAD,
            _delta(model, {"role": "assistant", "content": ""}),
            *(_delta(model, delta) for delta in deltas),
            _delta(model, {}, finish_reason),
            _event(orjson.dumps({**_CHUNK, "model": model, "choices": [], "usage": tokens})),
            _event(b"[DONE]"),
            b"0\r\n\r\n",
        )
    )


def _tool_call(number: int) -> list[dict[str, Any]]:
    function = {"name": "look_up", "arguments": '{"city":"Bern"}'}
    return [{"tool_calls": [{"index": 0, "id": f"call_{number}", "type": "function", "function": function}]}]


def _pieces(text: str) -> list[dict[str, Any]]:
    words = text.split(" ")
    return [{"content": word if place == 0 else f" {word}"} for place, word in enumerate(words)]


# By model, the answer to each number of tool messages since the last user message; the last serves for more.
_ANSWERS: dict[str, tuple[bytes, ...]] = {
    "one-step": (_answer("one-step", [{"content": SHORT_TEXT}], "stop"),),
    "tools-3": (
        *(_answer("tools-3", _tool_call(number), "tool_calls") for number in range(TOOL_ROUNDS)),
        _answer("tools-3", [{"content": SHORT_TEXT}], "stop"),
    ),
    "stream-100": (_answer("stream-100", _pieces(LONG_TEXT), "stop"),),
}


def answer_to(body: bytes) -> bytes:
    """The whole HTTP response to a request's body."""
    request = orjson.loads(body)
    answers = _ANSWERS.get(request["model"])
    if answers is None:
        return _NOT_FOUND
    rounds = 0
    for message in reversed(request["messages"]):
        if message["role"] == "user":
            break
        rounds += message["role"] == "tool"
    return answers[min(rounds, len(answers) - 1)]


class ModelServer(asyncio.Protocol):
    """One connection: as much of HTTP/1.1 as a client with keep-alive and Content-Length needs."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (body := self._take_body()) is not None:
            assert self._transport is not None
            self._transport.write(answer_to(body))

    def _take_body(self) -> bytes | None:
        """The body of the next request that has come in whole."""
        end_of_head = self._received.find(b"\r\n\r\n")
        if end_of_head < 0:
            return None
        head = bytes(self._received[:end_of_head]).lower()
        _, _, after = head.partition(b"\r\ncontent-length:")
        length = int(after.partition(b"\r\n")[0] or 0)
        start = end_of_head + 4
        if len(self._received) < start + length:
            return None
        body = bytes(self._received[start : start + length])
        del self._received[: start + length]
        return body


async def serve() -> None:
    """Answer on a free port of the loopback interface until standard input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(ModelServer, "127.0.0.1", 0)
    async with server:
        print(f"{LISTENING}{server.sockets[0].getsockname()[1]}", flush=True)
        await loop.run_in_executor(None, sys.stdin.buffer.read)


if __name__ == "__main__":
    uvloop.run(serve())
