"""What the model server answers without a script, by the name of the model: for load and other processes.

    echo          the last user message
    stream-100    100 pieces
    tools-3       three rounds of one call of the request's first tool, then text
    slow-60       headers at once, then nothing for 60 seconds
    wait-5        5 seconds, then "Done."
    drip-2        50 words, all different, over 2 seconds
    error-503     that HTTP status
    obey          what the last user message says: a JSON list of steps, each a list of [tool, arguments] to call at
                  once, then "Done."; any other text is echoed

Any other name echoes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from uuid import uuid4

from tests.model_server.reply import Reply

_NUMBERED = re.compile(r"(stream|tools|slow|wait|drip|error)-(\d+(?:\.\d+)?)")
_DROPS = 50
_EXAMPLES: dict[str, Any] = {
    "string": "1 + 1",
    "number": 1,
    "integer": 1,
    "boolean": True,
    "array": [],
    "object": {},
}


def conventional_reply(body: Mapping[str, Any]) -> Reply:
    """The answer to a request by its model's name."""
    model = str(body.get("model", ""))
    match = _NUMBERED.fullmatch(model)
    if model == "obey":
        return _obeyed(body)
    if match is None:
        return Reply(text=_last_user_text(body))
    kind, number = match[1], float(match[2])
    match kind:
        case "stream":
            return _stream(int(number))
        case "tools":
            return _tools(body, int(number))
        case "slow":
            return Reply(first_chunk_delay_s=number)
        case "wait":
            return Reply(text="Done.", delay_s=number)
        case "drip":
            return Reply(text=[f"word{place} " for place in range(_DROPS)], chunk_delay_s=number / _DROPS)
        case _:
            return Reply.error(int(number), f"asked for {int(number)}")


@lru_cache
def _stream(pieces: int) -> Reply:
    return Reply(text=["word "] * pieces)


def _tools(body: Mapping[str, Any], rounds: int) -> Reply:
    done = _rounds(body)
    tools = body.get("tools") or []
    if done >= rounds or not tools:
        return Reply(text="All done.")
    function = tools[0]["function"]
    call_id = f"call_{uuid4().hex[:24]}"
    return Reply(text="", tool_calls=[{"id": call_id, "name": function["name"], "arguments": _arguments(function)}])


def _obeyed(body: Mapping[str, Any]) -> Reply:
    text, done = _last_user_text(body), _rounds(body)
    if not text.startswith("[["):
        return Reply(text=text)
    steps = json.loads(text)
    if done >= len(steps):
        return Reply(text="Done.")
    calls = [
        {"id": f"call_{done + 1}_{place}", "name": name, "arguments": arguments}
        for place, (name, arguments) in enumerate(steps[done], 1)
    ]
    return Reply(text="", tool_calls=calls)


def _rounds(body: Mapping[str, Any]) -> int:
    """How often the model has answered the last user message."""
    done = 0
    for message in reversed(body.get("messages", [])):
        if message["role"] == "user":
            break
        done += message["role"] == "assistant"
    return done


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    schema = function.get("parameters") or {}
    properties = schema.get("properties", {})
    return {name: _EXAMPLES.get(properties.get(name, {}).get("type"), "1 + 1") for name in schema.get("required", [])}


def _last_user_text(body: Mapping[str, Any]) -> str:
    for message in reversed(body.get("messages", [])):
        if message.get("role") == "user":
            content = message.get("content") or ""
            return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
    return "(nothing)"
