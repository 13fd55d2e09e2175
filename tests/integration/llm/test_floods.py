"""Providers that never stop talking: what they say is bounded, and so is the time that they get."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from app import Agent, Runner
from app.engine.errors import ModelError, ModelErrorCode
from app.engine.messages import Message, Role
from app.engine.model import ModelEvent, ModelRequest, TextDelta
from app.engine.result import AgentResult
from app.llm.factory import ModelConfig, build_model_client
from app.llm.openai_compatible import OpenAICompatibleClient
from app.llm.timeouts import TimeoutClient
from tests.model_server import ModelServer, Reply

TALKER = Agent("talker", "openai/talker", limits={"max_wall_time_s": 1.0})


def _endless(**delta: Any) -> Reply:
    return Reply(events=[{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}], endless=True)


@pytest.mark.parametrize("delta", ["content", "reasoning"])
async def test_an_answer_without_end_is_an_invalid_response_and_closes_the_connection(
    server: ModelServer, delta: str
) -> None:
    server.script([_endless(**{delta: "x" * 50_000})])
    client = OpenAICompatibleClient(server.base_url)
    with pytest.raises(ModelError, match="longer than 16 MiB") as caught:
        async for _ in client.stream(ModelRequest("openai/m", [Message(Role.USER, "Go")])):
            pass
    assert caught.value.code is ModelErrorCode.INVALID_RESPONSE
    await server.until(lambda server: server.aborted == 1)
    await client.aclose()


async def test_a_run_is_out_of_time_while_its_provider_floods_it(server: ModelServer) -> None:
    server.script([_endless(content="x")])
    client = build_model_client(ModelConfig(openai_base_url=server.base_url))
    async with Runner(model_client=client) as runner:
        result = await runner.run(TALKER, user_message="Go")
    _is_out_of_time(result)
    await server.until(lambda server: server.aborted == 1)
    await client.aclose()


async def test_a_run_is_out_of_time_while_its_answer_is_always_ready() -> None:
    class Flood:
        async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelEvent]:
            for _ in range(5_000_000):
                yield TextDelta("x")

        async def aclose(self) -> None: ...

    async with asyncio.timeout(60), Runner(model_client=TimeoutClient(Flood())) as runner:
        _is_out_of_time(await runner.run(TALKER, user_message="Go"))


def _is_out_of_time(result: AgentResult) -> None:
    assert result.error is not None
    assert (result.state, result.error["code"]) == ("interrupted", "wall_time")
    assert set(result.final_text) <= {"x"}
    assert result.state_snapshot["elapsed_s"] < 10
