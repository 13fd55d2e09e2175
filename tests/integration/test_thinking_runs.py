"""A whole run with a model that thinks: what readers see of the thoughts, and what the model is shown again."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from app import Agent, Runner, tool
from app.llm.factory import ModelConfig, build_model_client
from tests.model_server import ModelServer
from tests.model_server.anthropic import AnthropicReply, anthropic_server


@tool(effect="read_only")
def add(x: int, y: int) -> int:
    """Add two numbers."""
    return x + y


@pytest.fixture
async def server() -> AsyncIterator[ModelServer]:
    async with anthropic_server() as server:
        yield server


async def test_thoughts_are_events_of_their_own_and_return_to_the_model_but_are_no_text(server: ModelServer) -> None:
    call = {"id": "toolu_1", "name": "add", "arguments": {"x": 2, "y": 3}}
    details = {"output_tokens_details": {"thinking_tokens": 5}}
    usage = {"input_tokens": 10, "output_tokens": 20, "cache_read_input_tokens": 4, **details}
    server.script(
        [
            AnthropicReply(text="", reasoning=["I should", " add."], tool_calls=[call], usage=usage),
            AnthropicReply(text="Five.", reasoning=["Easy."], usage=usage),
        ]
    )
    client = build_model_client(ModelConfig(anthropic_base_url=server.root_url))
    agent = Agent("thinker", "anthropic/claude-opus-4-6", tools=[add], model_settings={"reasoning_effort": "low"})
    async with Runner(model_client=client) as runner:
        handle = await runner.run_stream(agent, user_message="What is 2 + 3?")
        events = [event async for event in handle]
    result = handle.result
    await client.aclose()

    assert (result.state, result.final_text) == ("completed", "Five.")
    assert result.usage_aggregate["reasoning_tokens"] == 10
    assert result.usage_aggregate["input_tokens"] == 28
    thoughts = [event.data["reasoning"] for event in events if event.type == "llm_completed"]
    assert thoughts == ["I should add.", "Easy."]
    deltas = "".join(event.data["delta"] for event in events if event.type == "reasoning_delta")
    assert deltas == "I should add.Easy."
    assert "Easy" not in "".join(event.data["delta"] for event in events if event.type == "text_delta")

    second = server.requests[1].body["messages"]
    assert second[1]["content"] == [
        {"type": "thinking", "thinking": "I should add.", "signature": "c2lnbmVk"},
        {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"x": 2, "y": 3}},
    ]
    assert "should add" not in str(second[0]) + str(second[2])


async def test_a_failed_call_reaches_the_model_as_one(server: ModelServer) -> None:
    call = {"id": "toolu_1", "name": "add", "arguments": {"x": 2}}
    server.script([AnthropicReply(text="", tool_calls=[call]), AnthropicReply(text="Sorry.")])
    client = build_model_client(ModelConfig(anthropic_base_url=server.root_url))
    async with Runner(model_client=client) as runner:
        await runner.run(Agent("adder", "anthropic/claude-sonnet-4-5", tools=[add]), user_message="Go")
    await client.aclose()
    result = server.requests[1].body["messages"][2]["content"][0]
    assert (result["type"], result["is_error"]) == ("tool_result", True)
