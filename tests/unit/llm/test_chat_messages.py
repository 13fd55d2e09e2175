from __future__ import annotations

from types import MappingProxyType

import orjson
import pytest

from app.engine.messages import Message, Role, ToolCall
from app.engine.model import ModelRequest
from app.engine.tools import ToolSpec
from app.llm.chat_messages import ToolsJson, chat_message, chat_request

CALL = ToolCall("a", "add", '{"x":1}')


def test_an_assistant_that_only_calls_tools_has_null_content() -> None:
    assert chat_message(Message(Role.ASSISTANT, "", (CALL,))) == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}}],
    }


def test_text_beside_tool_calls_is_kept() -> None:
    assert chat_message(Message(Role.ASSISTANT, "Wait.", (CALL,)))["content"] == "Wait."


def test_a_tool_message_names_its_call() -> None:
    assert chat_message(Message(Role.TOOL, "3", tool_call_id="a")) == {
        "role": "tool",
        "content": "3",
        "tool_call_id": "a",
    }


def test_parts_pass_through() -> None:
    message = Message(Role.USER, [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}])
    assert chat_message(message)["content"] == [
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    ]


def _tool(description: str = "adds") -> ToolSpec:
    return ToolSpec("add", description, MappingProxyType({"type": "object", "properties": MappingProxyType({})}))


def test_tools_are_functions_with_a_schema() -> None:
    assert orjson.loads(orjson.dumps(ToolsJson().of((_tool(),)))) == [
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
    tools = ToolsJson()
    mine = (_tool(),)
    assert tools.of(mine) is tools.of(mine)


def test_a_list_that_changed_is_serialised_anew() -> None:
    tools, mine = ToolsJson(), [_tool()]
    before = orjson.dumps(tools.of(mine))
    mine[0] = _tool("adds two numbers")
    assert orjson.dumps(tools.of(mine)) != before


def test_no_more_than_a_bounded_number_of_tool_lists_is_kept() -> None:
    tools = ToolsJson(max_entries=2)
    first, others = (_tool(),), [(_tool(), _tool()) for _ in range(2)]
    kept = tools.of(first)
    for other in others:
        tools.of(other)
    assert tools.of(first) is not kept


@pytest.mark.parametrize(("for_openai", "name"), [(True, "max_completion_tokens"), (False, "max_tokens")])
def test_the_limit_of_output_has_the_name_that_the_server_knows(for_openai: bool, name: str) -> None:
    request = ModelRequest("openai/m", [Message(Role.USER, "Hi")], settings={"max_tokens": 5})
    body = orjson.loads(chat_request(request, "m", ToolsJson(), for_openai=for_openai))
    assert {key: value for key, value in body.items() if key.startswith("max_")} == {name: 5}


def test_a_request_without_tools_names_none() -> None:
    request = ModelRequest("openai/m", [Message(Role.USER, "Hi")])
    assert "tools" not in orjson.loads(chat_request(request, "m", ToolsJson(), for_openai=False))
