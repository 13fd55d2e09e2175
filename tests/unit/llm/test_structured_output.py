from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest

from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import ModelRequest
from app.llm.structured_output import SchemaMode, instructed

SCHEMA = MappingProxyType({"type": "object", "properties": MappingProxyType({"n": MappingProxyType({})})})
OTHER = {"type": "array"}
HI = Message(Role.USER, "Hi")


class Server:
    """Refuses what it is told to refuse, and notes what came."""

    def __init__(self, refusal: str | None = None) -> None:
        self.refusal = refusal
        self.seen: list[bool] = []
        self.messages: list[Any] = []

    async def send(self, request: ModelRequest, by_schema: bool) -> str:
        self.seen.append(by_schema)
        self.messages.append(request.messages)
        if by_schema and self.refusal is not None:
            raise ModelError(ModelErrorCode.INVALID_REQUEST, self.refusal, status=400)
        return "answer"


def _request(model: str = "openai/m", schema: Any = SCHEMA) -> ModelRequest:
    return ModelRequest(model, [HI], response_schema=schema)


def test_the_instruction_stands_at_the_end_of_the_system_message() -> None:
    first, second = instructed([Message(Role.SYSTEM, "Be brief."), HI], SCHEMA)
    assert first.text().startswith("Be brief.\n\n")
    assert first.text().endswith('\n{"type":"object","properties":{"n":{}}}')
    assert second is HI


def test_without_a_system_message_there_is_one() -> None:
    first, second = instructed([HI], SCHEMA)
    assert (first.role, second) == (Role.SYSTEM, HI)


async def test_the_providers_own_mode_is_used_where_there_is_one() -> None:
    server = Server()
    await SchemaMode(lambda model, schema: True).open(_request(), server.send)
    await SchemaMode(lambda model, schema: False).open(_request(), server.send)
    await SchemaMode(lambda model, schema: True).open(_request(schema=None), server.send)
    assert server.seen == [True, False, False]
    assert [len(messages) for messages in server.messages] == [1, 2, 1]


async def test_a_refused_mode_is_remembered_for_its_model() -> None:
    server, mode = Server("openai: HTTP 400: Unknown field: response_format"), SchemaMode(lambda model, schema: True)
    for request in (_request(), _request(schema=OTHER), _request("openai/n")):
        assert await mode.open(request, server.send) == "answer"
    assert server.seen == [True, False, False, True, False]


async def test_a_refused_schema_is_remembered_by_itself() -> None:
    server = Server("openai: HTTP 400: Invalid schema for response_format 'answer': no properties")
    mode = SchemaMode(lambda model, schema: True)
    for request in (_request(), _request(), _request(schema=OTHER)):
        await mode.open(request, server.send)
    assert server.seen == [True, False, False, True, False]


async def test_another_refusal_is_the_callers() -> None:
    server = Server("openai: HTTP 400: too many tools")
    with pytest.raises(ModelError, match="too many tools"):
        await SchemaMode(lambda model, schema: True).open(_request(), server.send)
    assert server.seen == [True]


async def test_what_is_remembered_is_bounded() -> None:
    server, mode = Server("no response_format"), SchemaMode(lambda model, schema: True)
    for number in range(1025):
        await mode.open(_request(f"openai/{number}"), server.send)
    server.seen.clear()
    await mode.open(_request("openai/1024"), server.send)
    await mode.open(_request("openai/0"), server.send)
    assert server.seen == [False, True, False]
