"""Servers that break the protocol, or do more than anybody asked for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import psutil
import pytest
import structlog

from app.tools.errors import CallTimeoutError, HandlerError
from app.tools.mcp_servers import McpState
from tests.integration.tools.mcp.conftest import Playgrounds, hostile_server, until, until_ready
from tests.processes import children_with

FLOODS = {
    "endless_line": "it sent a message of more than 66560 bytes",
    "endless_messages": "that nobody asked for",
    "endless_requests": "that nobody asked for",
    "endless_junk": "that nobody asked for",
    "endless_complaints": "it flooded its standard error output",
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_ends_the_session_and_not_the_service(playground: Playgrounds, kind: str) -> None:
    process = psutil.Process()
    async with playground(box=hostile_server(kind, max_output_bytes=1024)) as play:
        before = process.memory_info().rss
        said = await play.refusal("box__misbehave")
        assert said.startswith("the MCP server 'box' gave no answer: it ")
        assert said.endswith(f"{FLOODS[kind]}; whether the call took effect is unknown")
        assert process.memory_info().rss - before < 32 * 1024 * 1024
        assert "hello" in await play.call("box__echo", text="hello")


async def test_a_flood_between_calls_ends_the_session_too(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("floods_by_itself")) as play:
        await until(lambda: play.servers.state("box").state is McpState.UNAVAILABLE)
        assert "messages that nobody asked for" in (play.servers.state("box").reason or "")


@pytest.mark.parametrize("kind", ["deaf", "stubborn"])
async def test_a_server_that_answers_no_more_is_replaced(playground: Playgrounds, kind: str) -> None:
    async with playground(box=hostile_server(kind, max_sessions=1)) as play:
        (hung,) = children_with("hostile.py")
        call = asyncio.create_task(play.call("box__misbehave"))
        await until(lambda: play.said)
        call.cancel()
        assert "hello" in await play.call("box__echo", text="hello")
        await until(lambda: not hung.is_running())


async def test_a_call_that_hangs_is_over_in_its_time(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("deaf", timeout_s=0.5)) as play:
        with pytest.raises(CallTimeoutError, match=r"timed out after 0\.5 s"):
            await play.call("box__misbehave")


async def test_a_server_that_ignores_its_end_is_killed(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("stubborn")) as play:
        call = asyncio.create_task(play.refusal("box__misbehave"))
        await until(lambda: play.said)
        # Leaving the block ends the servers, with the call under way.
    assert "it was closed" in await call


async def test_greetings_on_the_output_are_passed_over(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("polite")) as play:
        assert "hello" in await play.call("box__echo", text="hello")


async def test_a_server_that_dies_of_the_newest_protocol_is_spoken_to_in_an_older_one(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("dies_of_news")) as play:
        await until_ready(play.servers, "box")
        assert "hello" in await play.call("box__echo", text="hello")


async def test_a_server_that_cannot_start_is_told_with_its_end(playground: Playgrounds) -> None:
    async with playground(
        box=hostile_server("dies_at_once"), mute=hostile_server("silent", start_timeout_s=0.5)
    ) as play:
        assert play.servers.state("box").reason == "it ended with status 7"
        assert play.servers.state("mute").reason == "it was not ready after 0.5 s"


async def test_an_answer_that_is_none_fails_its_call_only(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("no_result", max_sessions=1)) as play:
        (process,) = children_with("hostile.py")
        assert "does not follow the protocol" in await play.refusal("box__misbehave")
        assert "hello" in await play.call("box__echo", text="hello")
        assert process.is_running()


async def test_a_servers_own_error_is_told_and_keeps_the_session(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("own_error", max_sessions=1)) as play:
        (process,) = children_with("hostile.py")
        with pytest.raises(HandlerError, match="the database is away"):
            await play.call("box__misbehave")
        assert "hello" in await play.call("box__echo", text="hello")
        assert process.is_running()


async def test_tools_that_cannot_be_used_are_left_out_and_the_rest_kept(playground: Playgrounds) -> None:
    plain: dict[str, Any] = {"type": "object", "properties": {}}
    tools = [
        {"name": "echo", "inputSchema": plain},
        {"name": "same.name", "inputSchema": plain},
        {"name": "same/name", "inputSchema": plain},
        {"name": "twice", "inputSchema": plain},
        {"name": "twice", "inputSchema": plain},
        {"name": "x" * 64, "inputSchema": plain},
        {"name": "bad_schema", "inputSchema": {"type": "object", "properties": {"a": {"type": "nonsense"}}}},
        {"name": "elsewhere", "inputSchema": {"type": "object", "$ref": "https://example.com/schema"}},
        {"name": "long", "description": "x" * 10_000, "inputSchema": plain},
    ]
    with structlog.testing.capture_logs() as logs:
        async with playground(box=hostile_server("polite", env={"TOOLS": json.dumps(tools)})) as play:
            assert [tool.spec.name for tool in play.servers.all()] == ["box__echo", "box__long"]
            assert len(play.servers.all()[1].spec.description) == 4_000
    left_out = [entry["tool"] for entry in logs if entry["event"] == "mcp_tool_left_out"]
    assert left_out == ["same.name", "same/name", "twice", "twice", "x" * 64, "bad_schema", "elsewhere"]


async def test_a_list_without_end_is_cut(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("endless_list")) as play:
        assert play.servers.state("box").state is McpState.READY


async def test_a_call_carries_its_idempotency_key(playground: Playgrounds) -> None:
    async with playground(box=hostile_server("polite")) as play:
        sent = json.loads(await play.call("box__echo", text="hello"))
        assert sent["arguments"] == {"text": "hello"}
        assert sent["_meta"]["agent-runner/idempotency-key"] == "run-1/1/0"


async def test_what_a_server_writes_to_its_error_output_is_logged_without_secrets(playground: Playgrounds) -> None:
    with structlog.testing.capture_logs() as logs:
        env = {"TOKEN": "{{ secrets.token }}"}
        async with playground(box=hostile_server("tells_secrets", env=env)):
            await until(lambda: any(entry["event"] == "mcp_stderr" for entry in logs))
    assert [entry["line"] for entry in logs if entry["event"] == "mcp_stderr"] == ["TOKEN is [secret:token]"]
