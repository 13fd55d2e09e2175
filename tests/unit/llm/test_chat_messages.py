from __future__ import annotations

from types import MappingProxyType
from typing import Any

import orjson
import pytest

from app.engine.messages import Message, Reasoning, Role, ToolCall
from app.engine.model import ModelRequest
from app.engine.tools import ToolSpec
from app.llm.chat_messages import ToolsJson, chat_message, chat_request, chat_tools

CALL = ToolCall("a", "add", '{"x":1}')


def test_an_assistant_that_only_calls_tools_has_null_content() -> None:
    assert chat_message(Message(Role.ASSISTANT, "", (CALL,)), "openai") == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}}],
    }


def test_text_beside_tool_calls_is_kept() -> None:
    assert chat_message(Message(Role.ASSISTANT, "Wait.", (CALL,)), "openai")["content"] == "Wait."


def test_a_tool_message_names_its_call() -> None:
    assert chat_message(Message(Role.TOOL, "3", tool_call_id="a"), "openai") == {
        "role": "tool",
        "content": "3",
        "tool_call_id": "a",
    }


def test_parts_pass_through() -> None:
    message = Message(Role.USER, [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])
    assert chat_message(message, "openai")["content"] == [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    ]


def _tool(description: str = "adds") -> ToolSpec:
    return ToolSpec("add", description, MappingProxyType({"type": "object", "properties": MappingProxyType({})}))


def test_tools_are_functions_with_a_schema() -> None:
    assert orjson.loads(orjson.dumps(ToolsJson(chat_tools).of((_tool(),)))) == [
        {
            "type": "function",
            "function": {
                "name": "add",
                "description": "adds",
                "parameters": {"type": "object", "properties": {}},
            },
        }
    ]


def test_the_same_tuple_of_tools_is_serialised_once() -> None:
    tools = ToolsJson(chat_tools)
    mine = (_tool(),)
    assert tools.of(mine) is tools.of(mine)


def test_a_list_that_changed_is_serialised_anew() -> None:
    tools, mine = ToolsJson(chat_tools), [_tool()]
    before = orjson.dumps(tools.of(mine))
    mine[0] = _tool("adds two numbers")
    assert orjson.dumps(tools.of(mine)) != before


def test_no_more_than_a_bounded_number_of_tool_lists_is_kept() -> None:
    tools = ToolsJson(chat_tools, max_entries=2)
    first, others = (_tool(),), [(_tool(), _tool()) for _ in range(2)]
    kept = tools.of(first)
    for other in others:
        tools.of(other)
    assert tools.of(first) is not kept


def _body(request: ModelRequest, *, for_openai: bool = False) -> dict[str, Any]:
    tools = ToolsJson(chat_tools)
    body = chat_request(request, "m", tools, provider="openai", by_schema=False, for_openai=for_openai)
    return orjson.loads(body)


@pytest.mark.parametrize(("for_openai", "name"), [(True, "max_completion_tokens"), (False, "max_tokens")])
def test_the_limit_of_output_has_the_name_that_the_server_knows(for_openai: bool, name: str) -> None:
    request = ModelRequest("openai/m", [Message(Role.USER, "Hi")], settings={"max_tokens": 5})
    body = _body(request, for_openai=for_openai)
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {name: 5}


def test_a_request_without_tools_names_none() -> None:
    request = ModelRequest("openai/m", [Message(Role.USER, "Hi")])
    assert "tools" not in _body(request)


def test_openai_itself_is_shown_no_thoughts() -> None:
    """It knows no field for them, and refuses fields that it does not know."""
    kept = Reasoning("openai", ({"type": "reasoning.text", "text": "x", "signature": "c2ln"},))
    request = ModelRequest("openai/m", [Message(Role.ASSISTANT, "Hi", kept=kept)])
    assert "reasoning_details" in _body(request)["messages"][0]
    assert _body(request, for_openai=True)["messages"][0].keys() == {"role", "content"}
